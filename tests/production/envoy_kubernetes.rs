//! The examples for Istio and for Envoy Gateway, as far as they can be held against a real Envoy without a cluster: the patches put where
//! Istio puts them, and the descriptors that Envoy Gateway 1.9 makes of the policy.

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::{Value as Json, json};

use crate::envoy_proxy::{Stage, chat, folder, text};

fn json(node: &Yaml<'_>) -> Json {
    match node {
        Yaml::Value(Scalar::Boolean(value)) => json!(value),
        Yaml::Value(Scalar::Integer(value)) => json!(value),
        Yaml::Value(Scalar::String(value)) => json!(value),
        Yaml::Sequence(items) => items.iter().map(json).collect(),
        Yaml::Mapping(fields) => {
            fields.iter().map(|(name, value)| (name.as_str().expect("a name").to_owned(), json(value))).collect()
        }
        other => panic!("no example needs {other:?}"),
    }
}

fn documents(file: &str) -> Vec<Json> {
    let text = text(file);
    Yaml::load_from_str(&text).unwrap().iter().map(json).collect()
}

fn port(cluster: &mut Json, address: &str, port: u16) {
    let place = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
    assert!(place["socket_address"]["address"].is_string(), "{cluster}");
    place["socket_address"] = json!({ "address": address, "port_value": port });
}

/// What both kinds of gateway are without Tollgate: a listener with one route to an upstream.
fn gateway(route: Json, filters: Vec<Json>, upstream: u16, tollgate: Json) -> String {
    let http = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let router = json!({ "name": "envoy.filters.http.router", "typed_config": { "@type": router } });
    let filters: Vec<_> = filters.into_iter().chain([router]).collect();
    let manager = json!({
        "@type": http,
        "stat_prefix": "gateway",
        "http_filters": filters,
        "route_config": { "virtual_hosts": [{ "name": "llm.example.com:443", "domains": ["*"], "routes": [route] }] },
    });
    let chain =
        json!({ "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager }] });
    let listen = json!({ "socket_address": { "address": "127.0.0.1", "port_value": 0 } });
    let mut llm = json!({
        "name": "llm",
        "type": "STATIC",
        "load_assignment": { "cluster_name": "llm", "endpoints": [{ "lb_endpoints": [{
            "endpoint": { "address": { "socket_address": { "address": "" } } },
        }] }] },
    });
    port(&mut llm, "127.0.0.1", upstream);
    let resources = json!({
        "listeners": [{ "name": "gateway", "address": listen, "filter_chains": [chain] }],
        "clusters": [llm, tollgate],
    });
    // JSON is YAML.
    format!("static_resources: {resources}\n")
}

/// Waits as long as a busy machine takes.
fn patient(filter: &mut Json) {
    assert_eq!(filter["typed_config"]["timeout"], "0.25s", "{filter}");
    assert_eq!(filter["typed_config"]["failure_mode_deny"], true, "{filter}");
    filter["typed_config"]["timeout"] = json!("60s");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_patches_for_istio_count_what_calls_have_used() {
    let [filter] = &documents("istio.yaml")[..] else { panic!("one EnvoyFilter") };
    let patches = filter["spec"]["configPatches"].as_array().unwrap();
    let of = |kind: &str| {
        let patches = patches.iter().filter(|patch| patch["applyTo"] == kind);
        patches.map(|patch| patch["patch"]["value"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((of("CLUSTER").len(), of("HTTP_FILTER").len(), of("HTTP_ROUTE").len(), patches.len()), (1, 2, 1, 4));
    let stage = Stage::start_with(&[], |upstream, tollgate| {
        let mut cluster = of("CLUSTER").remove(0);
        port(&mut cluster, "127.0.0.1", tollgate);
        cluster["connect_timeout"] = json!("60s");
        cluster["health_checks"][0]["timeout"] = json!("60s");
        // Each is inserted before the router, and so after those before it.
        let mut filters = of("HTTP_FILTER");
        patient(&mut filters[1]);
        let mut route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "llm" } });
        for (field, value) in of("HTTP_ROUTE").remove(0).as_object().unwrap() {
            route[field] = value.clone();
        }
        gateway(route, filters, upstream, cluster)
    });
    let Some(mut stage) = stage.await else { return };
    let user = stage.user("tokens", 100.0).await;
    for (fake, status, used) in [
        (json!({ "prompt": 10, "completion": 20 }), 200, 30.0),
        (json!({ "status": 500 }), 500, 30.0),
        (json!({ "completion": 100 }), 200, 130.0),
        (json!({ "completion": 100 }), 429, 130.0),
    ] {
        assert_eq!(stage.envoy.chat(&user, &chat(fake.clone())).await.status, status);
        stage.ended(2).await;
        assert_eq!(stage.used(&user, "tokens").await, used, "{fake}");
    }
}

/// The actions that Envoy Gateway 1.9 makes of a rule whose one selector is a Distinct header: the name of the route, and then the header
/// under the number of the rule.
fn actions(rule: usize, header: &Json) -> Json {
    let route = "httproute/default/llm/rule/0/match/0/a-host-name-that-is-long_example_com";
    json!([
        { "generic_key": { "descriptor_key": route, "descriptor_value": route } },
        { "request_headers": { "descriptor_key": format!("rule-{rule}-match-0"), "header_name": header } },
    ])
}

/// What Envoy Gateway 1.9 makes of the rules of a BackendTrafficPolicy with such selectors.
fn rate_limits(rules: &[Json]) -> Vec<Json> {
    let mut limits = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let [selector] = &rule["clientSelectors"].as_array().unwrap()[..] else { panic!("{rule}") };
        let [header] = &selector["headers"].as_array().unwrap()[..] else { panic!("{rule}") };
        assert_eq!(header["type"], "Distinct");
        let mut before = json!({ "actions": actions(index, &header["name"]) });
        let cost = &rule["cost"];
        if cost["request"].is_object() {
            before["hits_addend"] = json!({ "number": cost["request"]["number"] });
        }
        limits.push(before);
        if cost["response"].is_object() {
            let from = &cost["response"]["metadata"];
            let (namespace, key) = (from["namespace"].as_str().unwrap(), from["key"].as_str().unwrap());
            limits.push(json!({
                "actions": actions(index, &header["name"]),
                "apply_on_stream_done": true,
                "hits_addend": { "format": format!("%DYNAMIC_METADATA({namespace}:{key})%") },
            }));
        }
    }
    limits
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_envoy_gateway_are_understood_by_the_mapping() {
    let documents = documents("envoy-gateway.yaml");
    let of = |kind: &str| documents.iter().find(|document| document["kind"] == kind).unwrap().clone();
    let settings = of("EnvoyGateway")["rateLimit"].clone();
    assert_eq!((&settings["timeout"], &settings["failClosed"]), (&json!("250ms"), &json!(true)));
    let rules = of("BackendTrafficPolicy")["spec"]["rateLimit"]["global"]["rules"].as_array().unwrap().clone();
    let limits = rate_limits(&rules);
    assert_eq!(limits.len(), 3, "rule 0 before and after, rule 1 before");
    let config = folder().join("envoy-gateway.toml");
    let flags = ["--config", config.to_str().unwrap()];
    let stage = Stage::start_with(&flags, |upstream, tollgate| {
        let mut cluster = json!({
            "name": "tollgate",
            "type": "STATIC",
            "connect_timeout": "60s",
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            } },
            "load_assignment": { "cluster_name": "tollgate", "endpoints": [{ "lb_endpoints": [{
                "endpoint": { "address": { "socket_address": { "address": "" } } },
            }] }] },
        });
        port(&mut cluster, "127.0.0.1", tollgate);
        let per_route = json!({ "envoy.filters.http.ratelimit": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute",
            "domain": "default/eg/http",
            "rate_limits": limits,
        } });
        let route =
            json!({ "match": { "prefix": "/" }, "route": { "cluster": "llm" }, "typed_per_filter_config": per_route });
        // What Envoy AI Gateway does with the answer.
        let tokens = json!({ "name": "tokens", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
            "response_rules": { "rules": [{
                "selectors": [{ "key": "usage" }, { "key": "total_tokens" }],
                "on_present": { "metadata_namespace": "io.envoy.ai_gateway", "key": "llm_total_token", "type": "NUMBER" },
            }] },
        } });
        let filter = json!({ "name": "envoy.filters.http.ratelimit", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit",
            "domain": "default/eg/http",
            "timeout": "60s",
            "failure_mode_deny": true,
            "rate_limit_service": {
                "transport_api_version": "V3",
                "grpc_service": { "envoy_grpc": { "cluster_name": "tollgate" } },
            },
        } });
        gateway(route, vec![tokens, filter], upstream, cluster)
    });
    let Some(mut stage) = stage.await else { return };
    let user = stage.user("tokens", 50.0).await;
    let chat = |fake| {
        let mut body = chat(fake);
        body["max_tokens"] = Json::Null;
        body
    };
    // No accept-encoding: this gateway does not remove it.
    let headers = [("x-user-id", &*user)];
    for (tokens, status, used) in [(30, 200, (30.0, 1.0)), (30, 200, (60.0, 2.0)), (30, 429, (60.0, 2.0))] {
        let answer = stage.envoy.post(&headers, &chat(json!({ "completion": tokens }))).await;
        assert_eq!(answer.status, status, "{answer:?}");
        stage.ended(if status == 200 { 2 } else { 1 }).await;
        assert_eq!((stage.used(&user, "tokens").await, stage.used(&user, "calls").await), used);
    }
}
