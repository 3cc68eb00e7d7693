//! The manifests of Kubernetes, held against the binary, the documentation and themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::{Value as Json, json};
use tollgate::{catalog, config};

use crate::support::served::tollgate;

const GUIDE: &str = include_str!("../../docs/operating/kubernetes.md");

/// A document of a manifest.
struct Document {
    path: PathBuf,
    body: Json,
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn json(node: &Yaml<'_>) -> Json {
    match node {
        Yaml::Value(Scalar::Null) => Json::Null,
        Yaml::Value(Scalar::Boolean(value)) => json!(value),
        Yaml::Value(Scalar::Integer(value)) => json!(value),
        Yaml::Value(Scalar::String(value)) => json!(value),
        Yaml::Sequence(items) => items.iter().map(json).collect(),
        Yaml::Mapping(fields) => {
            fields.iter().map(|(name, value)| (name.as_str().expect("a name").to_owned(), json(value))).collect()
        }
        other => panic!("no manifest needs {other:?}"),
    }
}

/// The documents of a file of YAML.
pub fn parse(path: &Path) -> Vec<Json> {
    let text = std::fs::read_to_string(path).unwrap();
    let nodes = Yaml::load_from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    nodes.iter().map(json).collect()
}

fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![repository().join("deploy/kubernetes")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    assert!(found.iter().all(|path| path.extension().is_some_and(|extension| extension == "yaml")), "{found:?}");
    found
}

/// What Kubernetes or kustomize reads.
fn documents() -> Vec<Document> {
    let manifests = files().into_iter().filter(|path| !path.ends_with("catalog.yaml"));
    manifests.flat_map(|path| parse(&path).into_iter().map(move |body| Document { path: path.clone(), body })).collect()
}

/// The one document of a kind.
fn only(kind: &str) -> Json {
    let mut found = documents().into_iter().filter(|document| document.body["kind"] == kind);
    let one = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "several of {kind}");
    one.body
}

pub fn texts(list: &Json) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|item| item.as_str().unwrap()).collect()
}

pub fn list<'a>(body: &'a Json, pointer: &str) -> &'a [Json] {
    body.pointer(pointer).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

/// The Deployments: their pods and their containers of all kinds.
fn pods() -> Vec<(Document, Vec<Json>)> {
    let deployments = documents().into_iter().filter(|document| document.body["kind"] == "Deployment");
    let pods = deployments.map(|document| {
        let kinds = ["/spec/template/spec/initContainers", "/spec/template/spec/containers"];
        let containers = kinds.iter().flat_map(|kind| list(&document.body, kind)).cloned().collect();
        (document, containers)
    });
    pods.collect()
}

/// The containers of Tollgate: the sidecar's and the Service's.
fn ours() -> Vec<(Document, Json)> {
    let all = pods().into_iter().filter_map(|(document, containers)| {
        let ours = containers.into_iter().find(|container| container["image"] == "tollgate")?;
        Some((document, ours))
    });
    let all: Vec<_> = all.collect();
    assert_eq!(all.len(), 2, "a sidecar and a Service");
    all
}

/// Every setting as this container's binary has it in force. What a Secret holds stands here as it could be.
pub fn in_force(arguments: &[&str], variables: &[(String, String)]) -> BTreeMap<String, String> {
    let names = variables.iter().map(|(name, _)| name.into());
    assert_eq!(config::unknown_variables(names), Vec::<String>::new());
    let [command, flags @ ..] = arguments else { panic!("no command") };
    assert_eq!(*command, "serve");
    let output = tollgate().arg("config").args(flags).envs(variables.iter().cloned()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    let settings = told.lines().filter_map(|line| {
        let (name, rest) = line.split_once(" = ")?;
        Some((name.to_owned(), rest.split("  # ").next()?.trim_matches('"').to_owned()))
    });
    settings.collect()
}

fn settings(container: &Json) -> BTreeMap<String, String> {
    let variables = list(container, "/env").iter().map(|variable| {
        let name = variable["name"].as_str().unwrap().to_owned();
        let secret = variable.pointer("/valueFrom/secretKeyRef/key").and_then(Json::as_str);
        let value = match (variable["value"].as_str(), secret) {
            (Some(value), None) => value.to_owned(),
            (None, Some("url")) => "rediss://redis.example.com:6379".to_owned(),
            (None, Some("user")) => "tollgate".to_owned(),
            _ => panic!("{variable}"),
        };
        (name, value)
    });
    in_force(&texts(&container["args"]), &variables.collect::<Vec<_>>())
}

pub fn port_of(address: &str) -> u64 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

pub fn seconds(text: &str) -> Duration {
    text.parse::<jiff::SignedDuration>().unwrap().try_into().unwrap()
}

#[test]
fn every_file_is_named_by_its_kustomization_and_every_name_is_a_file() {
    let documents = documents();
    for path in files().iter().filter(|path| !path.ends_with("kustomization.yaml")) {
        let folder = path.parent().unwrap();
        let kustomization = std::fs::read_to_string(folder.join("kustomization.yaml")).unwrap();
        assert!(kustomization.contains(path.file_name().unwrap().to_str().unwrap()), "{path:?} is named nowhere");
    }
    for Document { path, body } in documents.iter().filter(|document| document.path.ends_with("kustomization.yaml")) {
        let mut named: Vec<_> = texts(&body["resources"]);
        named.extend(texts(&body["components"]));
        named.extend(list(body, "/patches").iter().map(|patch| patch["path"].as_str().unwrap()));
        for generator in list(body, "/configMapGenerator") {
            named.extend(texts(&generator["files"]));
            // The name stays, so that a mounted catalog follows.
            assert_eq!(body.pointer("/generatorOptions/disableNameSuffixHash"), Some(&json!(true)), "{path:?}");
        }
        for name in named {
            assert!(path.parent().unwrap().join(name).exists(), "{path:?} names {name}");
        }
        assert!(["Kustomization", "Component"].contains(&body["kind"].as_str().unwrap()), "{path:?}");
    }
    for Document { path, body } in documents.iter().filter(|document| !document.path.ends_with("kustomization.yaml")) {
        for field in ["/apiVersion", "/kind", "/metadata/name"] {
            assert!(body.pointer(field).is_some_and(Json::is_string), "{path:?} has no {field}");
        }
    }
}

#[test]
fn the_operators_rules_are_those_of_prometheus() {
    let (rule, alerts) = (only("PrometheusRule"), parse(&repository().join("deploy/prometheus/alerts.yaml")));
    let [alerts] = alerts.as_slice() else { panic!("one document") };
    assert!(alerts["groups"].is_array());
    assert_eq!(rule["spec"], *alerts, "./dev manifests copies the alerts");
}

#[test]
fn the_operator_scrapes_the_admin_ports_under_jobs_that_the_alerts_find() {
    let monitors = documents().into_iter().filter(|document| document.body["kind"] == "PodMonitor");
    let mut scraped = BTreeMap::new();
    for Document { body, .. } in monitors {
        let [endpoint] = list(&body, "/spec/podMetricsEndpoints") else { panic!("one endpoint: {body}") };
        // The operator names the job by namespace and name.
        assert!(body["metadata"]["name"].as_str().unwrap().contains("tollgate"), "{body}");
        assert_eq!(endpoint["path"], "/metrics");
        scraped.insert(endpoint["port"].as_str().unwrap().to_owned(), body["spec"]["selector"].clone());
    }
    let admin = ours().into_iter().map(|(document, container)| {
        let settings = settings(&container);
        let admin = port_of(&settings["admin-listen"]);
        let named = list(&container, "/ports").iter().find(|port| port["containerPort"].as_u64() == Some(admin));
        (named.unwrap()["name"].as_str().unwrap().to_owned(), document.body["spec"]["selector"].clone())
    });
    let admin: BTreeMap<_, _> = admin.collect();
    assert_eq!(admin.keys().collect::<Vec<_>>(), scraped.keys().collect::<Vec<_>>());
    assert_eq!(scraped["admin"], admin["admin"]);
    // The pods of the sidecars have the labels of their apps.
    assert_eq!(scraped["tollgate-admin"], json!({}));
}

#[test]
fn the_dashboard_is_generated_where_grafana_looks() {
    let folder = repository().join("deploy/grafana");
    let generated = parse(&folder.join("kustomization.yaml"));
    let [generated] = generated.as_slice() else { panic!("one document") };
    let [map] = list(generated, "/configMapGenerator") else { panic!("one ConfigMap") };
    assert_eq!(map.pointer("/options/labels/grafana_dashboard"), Some(&json!("1")));
    assert_eq!(texts(&map["files"]), ["tollgate.json"]);
    assert!(folder.join("tollgate.json").exists());
}

#[test]
fn every_catalog_is_valid() {
    let catalogs: Vec<_> = files().into_iter().filter(|path| path.ends_with("catalog.yaml")).collect();
    assert!(!catalogs.is_empty());
    for path in catalogs {
        let checked = catalog::check(&std::fs::read_to_string(&path).unwrap(), jiff::tz::db());
        assert!(checked.as_ref().is_ok_and(|checked| checked.warnings.is_empty()), "{path:?}: {checked:?}");
    }
}

#[test]
fn every_variable_is_a_setting_and_the_settings_go_together() {
    for (Document { path, body }, container) in ours() {
        let settings = settings(&container);
        let sidecar = container["restartPolicy"] == "Always";
        assert_eq!(settings["listen"].starts_with("127.0.0.1:"), sidecar, "{path:?}");
        assert_eq!(settings["api-keys"], (!sidecar).to_string(), "{path:?}");
        assert_eq!(settings.contains_key("tls-cert"), !sidecar, "{path:?}");
        assert_eq!(settings["allow-anonymous"], "false", "{path:?}");

        let drain = seconds(&settings["drain-delay"]) + seconds(&settings["drain-timeout"]);
        let grace = body.pointer("/spec/template/spec/terminationGracePeriodSeconds").and_then(Json::as_u64);
        // That of the sidecar is the app's.
        assert!(sidecar || drain < Duration::from_secs(grace.unwrap()), "{path:?} kills what still drains");

        let limit = container.pointer("/resources/limits/memory").and_then(Json::as_str).unwrap();
        let limit: u64 = limit.strip_suffix("Mi").unwrap().parse::<u64>().unwrap() << 20;
        let number = |name: &str| settings[name].parse::<u64>().unwrap();
        let requests = number("max-in-flight") * number("max-message-bytes");
        // Messages that are being read, and streams of callers without keys: docs/development/adr/0014-shares-and-free-streams.md.
        let reading = number("max-in-flight") * (8 << 10) + 16 * number("max-message-bytes");
        let keyless = 1000 * (11 << 10) + 32 * (256 << 10);
        let connections = number("max-connections") * (100 << 10);
        let all = (20 << 20) + requests + reading + keyless + connections;
        assert!(all < limit, "{path:?}: what callers may ask for does not fit: {} MiB", all >> 20);
        assert_eq!(container.pointer("/resources/limits/cpu"), None, "{path:?}");
        assert!(container.pointer("/resources/requests/cpu").is_some(), "{path:?}");
    }
}

#[test]
fn every_port_that_is_named_is_one_that_is_listened_on() {
    let mut of_service = BTreeMap::new();
    for (Document { path, body }, container) in ours() {
        let settings = settings(&container);
        let ports: BTreeMap<_, _> = list(&container, "/ports")
            .iter()
            .map(|port| (port["name"].as_str().unwrap().to_owned(), port["containerPort"].as_u64().unwrap()))
            .collect();
        let admin = port_of(&settings["admin-listen"]);
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let Some(http) = container[probe].get("httpGet") else {
                // UNAVAILABLE is for the app to meet: its pod stays ready.
                assert_eq!((probe, &container["restartPolicy"]), ("readinessProbe", &json!("Always")), "{path:?}");
                continue;
            };
            assert_eq!(ports[http["port"].as_str().unwrap()], admin, "{path:?}");
            // Only readiness may depend on Redis.
            let expected = if probe == "readinessProbe" { "/readyz" } else { "/livez" };
            assert_eq!(http["path"], expected, "{path:?}");
        }
        assert!(ports.keys().all(|name| name.len() <= 15), "{ports:?}");
        if body["metadata"]["name"] == "tollgate" {
            assert_eq!(ports["grpc"], port_of(&settings["listen"]));
            let scraped = body.pointer("/spec/template/metadata/annotations/prometheus.io~1port").unwrap();
            assert_eq!(scraped.as_str(), Some(admin.to_string().as_str()));
            of_service = ports;
        }
    }
    for Document { path, body } in documents() {
        let service = list(&body, "/spec/ports").iter().map(|port| &port["targetPort"]);
        let policy =
            list(&body, "/spec/ingress").iter().flat_map(|rule| list(rule, "/ports")).map(|port| &port["port"]);
        for port in service.chain(policy) {
            assert!(of_service.contains_key(port.as_str().unwrap()), "{path:?}: {port}");
        }
    }
}

/// Whether the guide says how to make a Secret with this key.
fn guide_makes(secret: &str, key: &str) -> bool {
    let commands = GUIDE.split("kubectl").filter(|command| command.contains(&format!(" {secret} ")));
    commands.filter(|command| command.contains("create secret")).any(|command| {
        let tls = command.contains("secret tls ") && ["tls.crt", "tls.key"].contains(&key);
        tls || command.contains(&format!("--from-literal={key}=")) || command.contains(&format!("--from-file={key}"))
    })
}

#[test]
fn every_file_is_mounted_as_a_folder_from_a_key_that_is_there() {
    let generated: Vec<_> = documents()
        .iter()
        .flat_map(|document| list(&document.body, "/configMapGenerator"))
        .flat_map(|map| {
            texts(&map["files"]).into_iter().map(|file| format!("{} {file}", map["name"].as_str().unwrap()))
        })
        .collect();
    for (Document { path, body }, container) in ours() {
        assert!(!body.to_string().contains("subPath"), "{path:?}: what is mounted so does not follow");
        let mut mounted = Vec::new();
        for mount in list(&container, "/volumeMounts") {
            assert_eq!(mount["readOnly"], true, "{path:?}");
            let volumes = list(&body, "/spec/template/spec/volumes");
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("a volume of this name");
            let place = mount["mountPath"].as_str().unwrap();
            if let Some(map) = volume.pointer("/configMap/name").and_then(Json::as_str) {
                let keys = generated.iter().filter_map(|key| key.strip_prefix(&format!("{map} ")));
                mounted.extend(keys.map(|key| format!("{place}/{key}")));
            } else {
                let secret = volume.pointer("/secret/secretName").and_then(Json::as_str).unwrap();
                for item in list(volume, "/secret/items") {
                    assert!(guide_makes(secret, item["key"].as_str().unwrap()), "{path:?}: {secret} {item}");
                    mounted.push(format!("{place}/{}", item["path"].as_str().unwrap()));
                }
            }
        }
        let named: Vec<_> = settings(&container).into_values().filter(|value| value.starts_with("/etc/")).collect();
        assert!(named.len() >= 2, "{named:?}");
        assert!(named.iter().all(|file| mounted.contains(file)), "{path:?}: {named:?} {mounted:?}");
        assert!(mounted.iter().all(|file| named.contains(file)), "{path:?}: {mounted:?} {named:?}");
        for variable in list(&container, "/env") {
            if let Some(secret) = variable.pointer("/valueFrom/secretKeyRef") {
                let of = |field: &str| secret[field].as_str().unwrap();
                assert!(guide_makes(of("name"), of("key")), "{path:?}: {secret}");
            }
        }
    }
}

/// The security context of every container.
pub fn hardening() -> [(&'static str, Json); 5] {
    [
        ("runAsNonRoot", json!(true)),
        ("readOnlyRootFilesystem", json!(true)),
        ("allowPrivilegeEscalation", json!(false)),
        ("capabilities", json!({ "drop": ["ALL"] })),
        ("seccompProfile", json!({ "type": "RuntimeDefault" })),
    ]
}

#[test]
fn no_container_may_do_more_than_it_has_to() {
    for (Document { path, body }, containers) in pods() {
        for container in &containers {
            for (field, value) in hardening() {
                assert_eq!(container["securityContext"][field], value, "{path:?}: {field}");
            }
            assert!(container["securityContext"]["runAsUser"].as_u64().is_some_and(|user| user > 0), "{path:?}");
            assert!(container.pointer("/resources/limits/memory").is_some(), "{path:?}");
        }
        // The patch of the sidecar leaves the rest of the pod to its app.
        if !path.ends_with("sidecar.yaml") {
            for field in ["automountServiceAccountToken", "enableServiceLinks"] {
                assert_eq!(body["spec"]["template"]["spec"][field], false, "{path:?}: {field}");
            }
        }
    }
}

#[test]
fn what_selects_the_pods_of_the_service_finds_them() {
    let documents = documents();
    let service = |kind: &str| {
        let found = documents
            .iter()
            .find(|document| document.body["kind"] == kind && document.path.parent().unwrap().ends_with("service"));
        &found.unwrap_or_else(|| panic!("no {kind}")).body
    };
    let deployment = service("Deployment");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert!(labels.is_object());
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&service("Service")["spec"]["selector"], labels);
    assert_eq!(&service("PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&service("NetworkPolicy")["spec"]["podSelector"]["matchLabels"], labels);
    for constraint in list(deployment, "/spec/template/spec/topologySpreadConstraints") {
        assert_eq!(&constraint["labelSelector"]["matchLabels"], labels);
    }
    let scaled = &service("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"];
    assert_eq!((&scaled["kind"], &scaled["name"]), (&json!("Deployment"), &deployment["metadata"]["name"]));
    // The autoscaler's.
    assert_eq!(deployment["spec"].get("replicas"), None);
    assert_eq!(deployment.pointer("/spec/strategy/rollingUpdate/maxUnavailable"), Some(&json!(0)));
    let account = service("ServiceAccount");
    assert_eq!(deployment["spec"]["template"]["spec"]["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(account["automountServiceAccountToken"], false);
}
