//! The Helm chart, as `./dev helm` rendered it into `tests/fixtures/helm`: held against the manifests for kustomize, and the binary.
//!
//! `./dev helm` fails if the chart renders otherwise than these files have it. It needs Go, and these tests do not.

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory as _;
use serde_json::{Value as Json, json};
use tollgate::config::Cli;
use tollgate::{catalog, config};

use crate::manifests::{hardening, in_force, list, parse, port_of, repository, seconds, texts};

const CHART: &str = "deploy/helm/tollgate";
const VALUES: &str = include_str!("../../deploy/helm/tollgate/values.yaml");
const RENDERED: [&str; 3] = ["defaults", "everything", "minimal"];

/// Flags that are no entries of `settings`: the chart sets them by other values.
const BY_OTHER_VALUES: [&str; 19] = [
    "listen",
    "admin-listen",
    "envoy-listen",
    "envoy-entries",
    "api-keys",
    "allow-anonymous",
    "tls-cert",
    "tls-key",
    "tls-client-ca",
    "tls-client-app",
    "catalog",
    "redis-url",
    "redis-sentinel",
    "redis-user",
    "redis-password-file",
    "redis-sentinel-password-file",
    "redis-ca",
    "redis-cert",
    "redis-key",
];
/// Flags that make no sense in the chart: a file of settings, and the private Redis.
const NOT_IN_THE_CHART: [&str; 3] = ["config", "data-dir", "redis-server"];

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn document(path: &str) -> Json {
    let documents = parse(&repository().join(path));
    let [document] = <[Json; 1]>::try_from(documents).unwrap_or_else(|_| panic!("{path}: one document"));
    document
}

/// Every object that the chart gives for a file of values.
fn rendered(name: &str) -> Vec<Json> {
    parse(&repository().join(format!("tests/fixtures/helm/{name}.yaml")))
}

fn of_kind<'a>(objects: &'a [Json], kind: &str) -> Option<&'a Json> {
    objects.iter().find(|object| object["kind"] == kind)
}

fn container(deployment: &Json) -> &Json {
    &deployment["spec"]["template"]["spec"]["containers"][0]
}

/// An object without what a chart names otherwise (labels, the namespace and the image), and with its variables in order.
fn comparable(node: &Json) -> Json {
    match node {
        Json::Object(fields) => {
            let mut kept: serde_json::Map<String, Json> =
                fields.iter().map(|(name, value)| (name.clone(), comparable(value))).collect();
            for name in ["labels", "app.kubernetes.io/instance", "namespace", "image", "imagePullPolicy"] {
                kept.remove(name);
            }
            if let Some(variables) = kept.get_mut("env").and_then(Json::as_array_mut) {
                variables.sort_by_key(|variable| variable["name"].to_string());
            }
            Json::Object(kept)
        }
        Json::Array(items) => items.iter().map(comparable).collect(),
        other => other.clone(),
    }
}

#[test]
fn the_default_values_give_what_kustomize_gives() {
    let objects = rendered("defaults");
    let folder = repository().join("deploy/kubernetes/service");
    let mut compared = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        for original in parse(&file.unwrap().path()) {
            let kind = original["kind"].as_str().unwrap().to_owned();
            // Helm does not make the namespace of a release.
            if ["Kustomization", "Namespace"].contains(&kind.as_str()) {
                continue;
            }
            let object = of_kind(&objects, &kind).unwrap_or_else(|| panic!("the chart has no {kind}"));
            assert_eq!(comparable(object), comparable(&original), "{kind}");
            compared.insert(kind);
        }
    }
    let map = of_kind(&objects, "ConfigMap").expect("a catalog");
    assert_eq!(map["metadata"]["name"], "tollgate-catalog");
    let original = read("deploy/kubernetes/base/catalog.yaml");
    assert_eq!(map["data"]["catalog.yaml"].as_str(), Some(original.as_str()));
    compared.insert("ConfigMap".to_owned());
    assert_eq!(
        objects.iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>(),
        compared
    );
}

#[test]
fn the_default_image_is_that_of_the_kustomization_and_the_version_is_that_of_the_program() {
    let chart = document(&format!("{CHART}/Chart.yaml"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let kustomization = document("deploy/kubernetes/service/kustomization.yaml");
    let image = &kustomization["images"][0];
    let expected = format!("{}:{}", image["newName"].as_str().unwrap(), image["newTag"].as_str().unwrap());
    let objects = rendered("defaults");
    assert_eq!(container(of_kind(&objects, "Deployment").unwrap())["image"], expected);
}

/// Every setting that the container of these objects has in force. What a Secret holds stands here as it could be.
fn settings(deployment: &Json) -> BTreeMap<String, String> {
    let variables = list(container(deployment), "/env").iter().filter_map(|variable| {
        let secret = variable.pointer("/valueFrom/secretKeyRef/key").and_then(Json::as_str);
        let value = match (variable["value"].as_str(), secret) {
            (Some(value), None) => value,
            (None, Some("url")) => "rediss://redis.example.com",
            (None, Some("user")) => "tollgate",
            (None, Some("sentinels")) => "rediss://one.example.com:26379,rediss://two.example.com:26379",
            _ => return None,
        };
        Some((variable["name"].as_str().unwrap().to_owned(), value.to_owned()))
    });
    in_force(&texts(&container(deployment)["args"]), &variables.collect::<Vec<_>>())
}

#[test]
fn the_program_accepts_the_settings_of_every_file_of_values() {
    for name in RENDERED {
        let objects = rendered(name);
        let deployment = of_kind(&objects, "Deployment").unwrap();
        let (settings, container) = (settings(deployment), container(deployment));
        let ports: BTreeMap<_, _> = list(container, "/ports")
            .iter()
            .map(|port| (port["name"].as_str().unwrap(), port["containerPort"].as_u64().unwrap()))
            .collect();
        let mut listened = BTreeMap::from([("grpc", "listen"), ("admin", "admin-listen")]);
        if settings["envoy-listen"] != "none" {
            listened.insert("envoy", "envoy-listen");
        }
        let listened: BTreeMap<_, _> =
            listened.into_iter().map(|(port, setting)| (port, port_of(&settings[setting]))).collect();
        assert_eq!(ports, listened, "{name}");
        for (probe, path) in [("startupProbe", "/livez"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
            assert_eq!(container[probe]["httpGet"], json!({ "path": path, "port": "admin" }), "{name}: {probe}");
        }
        let policy = of_kind(&objects, "NetworkPolicy");
        let policed = policy.into_iter().flat_map(|policy| list(policy, "/spec/ingress"));
        let policed = policed.flat_map(|rule| list(rule, "/ports")).map(|port| &port["port"]);
        let served = list(of_kind(&objects, "Service").unwrap(), "/spec/ports").iter().map(|port| &port["targetPort"]);
        for port in policed.chain(served) {
            assert!(ports.contains_key(port.as_str().unwrap()), "{name}: {port}");
        }
        let drain = seconds(&settings["drain-delay"]) + seconds(&settings["drain-timeout"]);
        let grace = deployment.pointer("/spec/template/spec/terminationGracePeriodSeconds").and_then(Json::as_u64);
        assert!(drain.as_secs() < grace.unwrap(), "{name} kills what still drains");
    }
}

#[test]
fn values_become_the_settings_that_they_stand_for() {
    let of = |name: &str| settings(of_kind(&rendered(name), "Deployment").unwrap());
    let (everything, minimal) = (of("everything"), of("minimal"));
    for (setting, value) in [
        ("catalog", "/etc/tollgate/catalog"),
        ("rate-per-app", "1000000"),
        ("trace-ratio", "0.1"),
        ("fail-open", "true"),
        // A flag of `extraArgs`.
        ("settlement-window", "30m"),
        ("tls-client-ca", "/etc/tollgate/clients/ca.crt"),
        ("redis-cert", "/etc/tollgate/redis/tls.crt"),
        ("redis-sentinel-password-file", "/etc/tollgate/redis/sentinel-password"),
    ] {
        assert_eq!(everything[setting], value, "{setting}");
    }
    assert_eq!(minimal["listen"], "[::]:50051");
    assert_eq!((minimal["api-keys"].as_str(), minimal["allow-anonymous"].as_str()), ("false", "true"));
    assert_eq!(minimal["drain-delay"], "0s", "null removes a default of the chart");
    assert!(!minimal.contains_key("tls-cert"));
}

#[test]
fn every_file_that_a_setting_names_is_mounted_and_every_mounted_file_is_named() {
    for name in RENDERED {
        let objects = rendered(name);
        let deployment = of_kind(&objects, "Deployment").unwrap();
        let settings = settings(deployment);
        let mut mounted = BTreeSet::from([settings["catalog"].clone()]);
        for mount in list(container(deployment), "/volumeMounts").iter().filter(|mount| mount["mountPath"] != "/more") {
            assert_eq!((&mount["readOnly"], mount.get("subPath")), (&json!(true), None), "{name}");
            let volumes = list(deployment, "/spec/template/spec/volumes");
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("a volume of this name");
            for item in list(volume, "/secret/items") {
                mounted.insert(format!("{}/{}", mount["mountPath"].as_str().unwrap(), item["path"].as_str().unwrap()));
            }
        }
        let named = settings.into_values().filter(|value| value.starts_with("/etc/"));
        assert_eq!(named.collect::<BTreeSet<_>>(), mounted, "{name}");
    }
}

#[test]
fn no_values_take_the_hardening_away_or_lose_the_pods() {
    for name in RENDERED {
        let objects = rendered(name);
        let deployment = of_kind(&objects, "Deployment").unwrap();
        let context = &container(deployment)["securityContext"];
        for (field, value) in hardening() {
            assert_eq!(context[field], value, "{name}: {field}");
        }
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!((&pod["automountServiceAccountToken"], &pod["enableServiceLinks"]), (&json!(false), &json!(false)));
        assert_eq!(
            deployment["spec"].get("replicas").is_some(),
            of_kind(&objects, "HorizontalPodAutoscaler").is_none()
        );

        let labels = deployment["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
        for (kind, pointer) in [
            ("Deployment", "/spec/selector/matchLabels"),
            ("Service", "/spec/selector"),
            ("PodDisruptionBudget", "/spec/selector/matchLabels"),
            ("NetworkPolicy", "/spec/podSelector/matchLabels"),
            ("PodMonitor", "/spec/selector/matchLabels"),
        ] {
            let Some(object) = of_kind(&objects, kind) else { continue };
            let selector =
                object.pointer(pointer).and_then(Json::as_object).unwrap_or_else(|| panic!("{name}: {kind}"));
            assert_eq!(selector.len(), 2, "{name}: {kind}");
            assert!(selector.iter().all(|(label, value)| labels.get(label) == Some(value)), "{name}: {kind}");
        }
        if let Some(monitor) = of_kind(&objects, "PodMonitor") {
            // The operator names the job by it, and the alerts look for the word.
            assert!(monitor["metadata"]["name"].as_str().unwrap().contains("tollgate"), "{name}: {monitor}");
            let original = &parse(&repository().join("deploy/kubernetes/components/monitoring/podmonitor.yaml"))[0];
            assert_eq!(monitor["spec"]["podMetricsEndpoints"], original["spec"]["podMetricsEndpoints"], "{name}");
        }
    }
}

#[test]
fn every_catalog_of_the_chart_is_valid() {
    let mut apps = 0;
    for name in RENDERED {
        for map in rendered(name).iter().filter(|object| object["kind"] == "ConfigMap") {
            for (file, text) in map["data"].as_object().unwrap() {
                let checked = catalog::check(text.as_str().unwrap(), jiff::tz::db());
                assert!(
                    checked.as_ref().is_ok_and(|checked| checked.warnings.is_empty()),
                    "{name}, {file}: {checked:?}"
                );
                apps += 1;
            }
        }
    }
    assert_eq!(apps, 3);
}

#[test]
fn the_alerts_and_the_dashboard_of_the_chart_are_copies() {
    for (copy, original) in
        [("alerts.yaml", "deploy/prometheus/alerts.yaml"), ("dashboard.json", "deploy/grafana/tollgate.json")]
    {
        assert!(read(&format!("{CHART}/files/{copy}")) == read(original), "run ./dev manifests: {copy} is old");
    }
    // What the values replace is there.
    let base = document(&format!("{CHART}/values.yaml"))["prometheusRule"]["runbookBase"].as_str().unwrap().to_owned();
    let alerts = read("deploy/prometheus/alerts.yaml");
    assert_eq!(alerts.matches("runbook_url: ").count(), alerts.matches(&format!("runbook_url: {base}/docs/")).count());
}

#[test]
fn every_flag_is_a_setting_or_has_a_value_of_its_own() {
    let cli = Cli::command();
    let serve = cli.find_subcommand("serve").unwrap();
    let flags = serve.get_arguments().filter_map(|argument| argument.get_long()).filter(|name| *name != "help");
    let flags: BTreeSet<_> = flags.collect();
    let schema: Json = serde_json::from_str(&read(&format!("{CHART}/values.schema.json"))).unwrap();
    let settings: BTreeSet<_> =
        schema["properties"]["settings"]["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    let others: BTreeSet<_> = BY_OTHER_VALUES.into_iter().chain(NOT_IN_THE_CHART).collect();
    assert_eq!(settings.intersection(&others).collect::<Vec<_>>(), Vec::<&&str>::new());
    assert_eq!(settings.union(&others).copied().collect::<BTreeSet<_>>(), flags, "values.schema.json, settings");
    let template = read(&format!("{CHART}/templates/deployment.yaml"));
    for flag in BY_OTHER_VALUES {
        let variable = format!("TOLLGATE_{}", flag.to_uppercase().replace('-', "_"));
        assert!(template.contains(&format!("- name: {variable}\n")), "the template does not set {variable}");
        assert_eq!(config::unknown_variables([variable.clone().into()].into_iter()), Vec::<String>::new());
    }
}

#[test]
fn every_value_is_explained_and_has_a_type() {
    let mut before = "";
    let mut in_text = false;
    for line in VALUES.lines() {
        let indentation = line.len() - line.trim_start().len();
        in_text = in_text && (line.is_empty() || indentation >= 4);
        let key = line.trim_start().split_once(':').map_or("", |(key, _)| key);
        let is_key = !key.is_empty() && key.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-');
        // Keys of lists, and of the objects of Kubernetes, are Kubernetes' own.
        if is_key && !in_text && indentation <= 4 && !before.ends_with(['-', ':']) && !line.contains("Selector") {
            let grouped = ["requests", "limits"].contains(&key);
            assert!(grouped || before.trim_start().starts_with("# "), "values.yaml does not explain {key}: {before}");
        }
        in_text |= line.ends_with(": |");
        before = line;
    }
    let schema: Json = serde_json::from_str(&read(&format!("{CHART}/values.schema.json"))).unwrap();
    let values = document(&format!("{CHART}/values.yaml"));
    for (name, of_schema) in schema["properties"].as_object().unwrap() {
        if name == "global" {
            continue;
        }
        assert!(values.get(name).is_some(), "values.yaml has no {name}");
        // Only what has defaults by Kubernetes or by the program may be missing.
        if ["settings", "probes", "resources"].contains(&name.as_str()) {
            continue;
        }
        for inner in of_schema["properties"].as_object().into_iter().flatten().map(|(inner, _)| inner) {
            assert!(values[name].get(inner).is_some(), "values.yaml has no {name}.{inner}");
        }
    }
}

#[test]
fn every_value_that_the_page_names_exists() {
    let schema: Json = serde_json::from_str(&read(&format!("{CHART}/values.schema.json"))).unwrap();
    let page = read("docs/operating/helm.md");
    let rows = page.lines().skip_while(|line| !line.starts_with("| you want to | set |")).skip(2);
    let mut named = 0;
    for row in rows.take_while(|line| line.starts_with('|')) {
        let set = row.rsplit('|').nth(1).unwrap();
        for code in set.split('`').skip(1).step_by(2) {
            let path = code.split(':').next().unwrap();
            if path == "ca.crt" || path == "labels" || path.starts_with("--") {
                continue;
            }
            let found = path.split('.').try_fold(&schema, |at, name| at["properties"].get(name));
            assert!(found.is_some(), "helm.md names {path}, which is no value");
            named += 1;
        }
    }
    assert!(named > 15, "{named}");
}
