//! The Compose file, held against the binary and the files that it mounts.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value as Json, json};

use crate::manifests::{in_force, list, parse, port_of, repository, texts};

fn only(path: &str) -> Json {
    let documents = parse(&repository().join(path));
    let [document] = <[Json; 1]>::try_from(documents).unwrap_or_else(|_| panic!("{path}: one document"));
    document
}

fn composed() -> Json {
    only("docker-compose.yml")
}

/// The mounted folders of a service: where they are in the repository, and in the container.
fn folders(service: &Json) -> Vec<(String, String)> {
    let mounts = texts(&service["volumes"]).into_iter().filter_map(|mount| mount.strip_prefix("./"));
    let folders = mounts.map(|mount| {
        let (here, there) = mount.strip_suffix(":ro").expect("only for reading").split_once(':').unwrap();
        assert!(repository().join(here).is_dir(), "{here} is a folder: an editor would replace a file");
        (here.to_owned(), there.to_owned())
    });
    folders.collect()
}

/// Finds the file of the repository that a container sees at this path.
fn mounted(service: &Json, path: &str) -> String {
    let found = folders(service).into_iter().find_map(|(here, there)| {
        let rest = Path::new(path).strip_prefix(there).ok()?;
        Some(format!("{here}/{}", rest.display()))
    });
    let found = found.unwrap_or_else(|| panic!("nothing is mounted at {path}"));
    assert!(repository().join(&found).exists(), "{found}");
    found
}

#[test]
fn the_compose_file_is_valid_and_open_to_this_machine_only() {
    let composed = composed();
    let service = &composed["services"]["tollgate"];
    let variables = service["environment"].as_object().unwrap().iter();
    let variables: Vec<_> = variables.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    let settings = in_force(&["serve", "--listen=0.0.0.0:50051"], &variables);
    assert_eq!(settings["allow-anonymous"], "true");
    for (name, service) in composed["services"].as_object().unwrap() {
        assert!(texts(&service["ports"]).iter().all(|port| port.starts_with("127.0.0.1:")), "{name}");
    }
    mounted(service, &settings["catalog"]);
}

#[test]
fn every_image_has_an_exact_version_and_every_container_a_health_check() {
    let composed = composed();
    for (name, service) in composed["services"].as_object().unwrap() {
        if let Some(image) = service["image"].as_str() {
            let (_, tag) = image.rsplit_once(':').expect("a tag");
            let version = tag.trim_start_matches('v').split('-').next().unwrap();
            let numbers: Vec<_> = version.split('.').map(|number| number.parse::<u32>()).collect();
            assert!(numbers.len() == 3 && numbers.iter().all(Result::is_ok), "{name}: {tag}");
        } else {
            assert_eq!(service["build"], ".", "{name}");
        }
        assert_eq!(service["healthcheck"]["test"][0], "CMD", "{name}: needs no shell");
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        // Who waits for another waits until that is healthy, and nobody waits for a service of another profile.
        for (other, condition) in service["depends_on"].as_object().into_iter().flatten() {
            assert_eq!(condition, &json!({ "condition": "service_healthy" }), "{name}");
            let profiles = &composed["services"][other]["profiles"];
            assert!(profiles.is_null() || *profiles == service["profiles"], "{name} waits for {other}");
        }
    }
    let named: BTreeSet<_> = composed["services"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|service| texts(&service["volumes"]))
        .filter(|mount| !mount.starts_with("./"))
        .map(|mount| mount.split_once(':').unwrap().0)
        .collect();
    assert_eq!(named, composed["volumes"].as_object().unwrap().keys().map(String::as_str).collect());
}

#[test]
fn the_profile_scrapes_the_admin_port_and_evaluates_the_alerts() {
    let composed = composed();
    let prometheus = &composed["services"]["prometheus"];
    assert_eq!(prometheus["profiles"], json!(["observability"]));
    let flags = texts(&prometheus["command"]);
    let flag = |name: &str| flags.iter().find_map(|flag| flag.strip_prefix(&format!("--{name}="))).expect(name);
    let file = mounted(prometheus, flag("config.file"));
    let configuration = only(&file);
    let [job] = list(&configuration, "/scrape_configs") else { panic!("one job") };
    // As the alerts and the dashboard expect it.
    assert!(job["job_name"].as_str().unwrap().contains("tollgate"));
    let admin = composed["services"]["tollgate"]["environment"]["TOLLGATE_ADMIN_LISTEN"].as_str().unwrap();
    assert_eq!(job["static_configs"], json!([{ "targets": [format!("tollgate:{}", port_of(admin))] }]));
    let rules = texts(&configuration["rule_files"]);
    assert_eq!(
        rules.iter().map(|rule| Path::new(&file).with_file_name(rule)).collect::<Vec<_>>(),
        [Path::new("deploy/prometheus/alerts.yaml")]
    );
    // What it stores outlives the container.
    let stored = flag("storage.tsdb.path");
    assert!(texts(&prometheus["volumes"]).iter().any(|mount| mount.ends_with(&format!(":{stored}"))));
}

#[test]
fn the_profile_shows_the_dashboard_of_the_scraped_prometheus() {
    let composed = composed();
    let grafana = &composed["services"]["grafana"];
    assert_eq!(grafana["profiles"], json!(["observability"]));
    let provisioning = mounted(grafana, "/etc/grafana/provisioning/");
    let sources = only(&format!("{provisioning}datasources/prometheus.yaml"));
    let [source] = list(&sources, "/datasources") else { panic!("one data source") };
    // The dashboard takes the data source of this type that is the default one.
    assert_eq!((&source["type"], &source["isDefault"]), (&json!("prometheus"), &json!(true)));
    let host = source["url"].as_str().unwrap().strip_prefix("http://").unwrap();
    let (service, port) = host.split_once(':').unwrap();
    let [published] = texts(&composed["services"][service]["ports"])[..] else { panic!("one port") };
    assert!(published.ends_with(&format!(":{port}")), "{published}");

    let dashboards = only(&format!("{provisioning}dashboards/tollgate.yaml"));
    let [provider] = list(&dashboards, "/providers") else { panic!("one provider") };
    let folder = provider["options"]["path"].as_str().unwrap();
    let home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str().unwrap();
    assert!(home.starts_with(folder));
    let dashboard = std::fs::read_to_string(repository().join(mounted(grafana, home))).unwrap();
    let dashboard: Json = serde_json::from_str(&dashboard).unwrap();
    assert_eq!(dashboard["templating"]["list"][0]["query"], "prometheus");
}
