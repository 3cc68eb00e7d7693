//! The configurations of `deploy/envoy` as they are, with a real Envoy, the real binary and a real Redis: what callers get, and what is
//! counted, exactly.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tollgate::grpc::v1;

use crate::real_envoy::{EnvoyProxy, Upstream, envoy_program, validate};
use crate::support::served::Served;
use crate::support::{Replica, fresh_user, redis_url};

const WHOLE: [&str; 4] = ["plain-limits", "check-then-charge", "bound-then-refund", "priced-by-tokens"];

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/envoy")
}

pub(crate) fn text(file: &str) -> String {
    std::fs::read_to_string(folder().join(file)).unwrap()
}

/// Replaces what must be there, once.
fn replace(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replace(from, to)
}

/// Gives a busy machine time: every patience of a configuration becomes a minute.
fn patient(text: &str) -> String {
    let mut text = replace(text, "timeout: 0.25s\n                      #", "timeout: 60s\n                      #");
    for (from, to) in [
        ("connect_timeout: 0.25s", "connect_timeout: 60s"),
        (
            "connection_keepalive: { interval: 10s, timeout: 2s }",
            "connection_keepalive: { interval: 600s, timeout: 60s }",
        ),
        ("        - timeout: 1s\n", "        - timeout: 60s\n"),
    ] {
        text = replace(&text, from, to);
    }
    text
}

/// Tollgate, a real Envoy before an upstream, and who looks at the counters.
pub(crate) struct Stage {
    served: Served,
    replica: Replica,
    upstream: Upstream,
    pub(crate) envoy: EnvoyProxy,
    /// How many calls of Envoy to Tollgate have ended that were expected.
    asked: u64,
}

impl Stage {
    /// With a configuration of this folder. `None` without an Envoy.
    async fn start(file: &str) -> Option<Self> {
        let config = patient(&text(&format!("{file}.yaml")));
        Self::start_with(&[], |upstream, tollgate| {
            let config = replace(&config, "port_value: 10000", "port_value: 0");
            let config = replace(&config, "port_value: 8000", &format!("port_value: {upstream}"));
            replace(&config, "port_value: 8081", &format!("port_value: {tollgate}"))
        })
        .await
    }

    /// With the configuration that these ports of the upstream and of Tollgate make.
    pub(crate) async fn start_with(flags: &[&str], config: impl Fn(u16, u16) -> String) -> Option<Self> {
        let program = envoy_program()?;
        let catalog = folder().join("catalog.yaml");
        let url = redis_url();
        let all = ["--redis-url", &url, "--catalog", catalog.to_str().unwrap()];
        let ports = ["--envoy-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let served = Served::start(0, &[&all, &ports, flags].concat());
        let replica = Replica::connect(served.address).await;
        let upstream = Upstream::start().await;
        let config = config(upstream.address.port(), served.envoy.unwrap().port());
        let envoy = EnvoyProxy::start(&program, &config).await;
        Some(Self { served, replica, upstream, envoy, asked: 0 })
    }

    /// A user whose quota of a group is this.
    pub(crate) async fn user(&mut self, group: &str, quota: f64) -> String {
        let user = fresh_user("proxied");
        let quota = v1::Quota { limit: Some(v1::quota::Limit::Amount(quota)) };
        let overrides = v1::QuotaOverrides { quotas: [(group.to_owned(), quota)].into() };
        let upsert = v1::UpsertSubscriptionRequest {
            user_id: user.clone(),
            plan_id: "free".to_owned(),
            overrides: Some(overrides),
            ..v1::UpsertSubscriptionRequest::default()
        };
        self.replica.subscriptions.upsert_subscription(upsert).await.unwrap();
        user
    }

    /// Waits until so many further calls of Envoy have ended: those at the end of a stream are waited for by nobody.
    pub(crate) async fn ended(&mut self, calls: u64) {
        self.asked += calls;
        let since = Instant::now();
        loop {
            let (_, text) = self.served.get("/metrics");
            let of_envoy = text.lines().filter(|line| line.starts_with("tollgate_rpcs_total{rpc=\"ShouldRateLimit\""));
            let ended: f64 = of_envoy.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum();
            if ended >= self.asked as f64 {
                assert_eq!(ended, self.asked as f64, "Envoy asks no more often than that");
                return;
            }
            assert!(since.elapsed() < Duration::from_secs(120), "{ended} calls have ended, not {}", self.asked);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn used(&mut self, user: &str, group: &str) -> f64 {
        let request = v1::GetUsageRequest { user_id: user.to_owned(), ..v1::GetUsageRequest::default() };
        let limits = self.replica.metering.get_usage(request).await.unwrap().into_inner().limits;
        let limit = limits.iter().find(|limit| limit.limit_group_id == group).unwrap();
        assert_eq!(limit.held, 0.0, "nothing stays held");
        limit.used
    }
}

pub(crate) fn chat(fake: Json) -> Json {
    json!({ "model": "gpt-4o", "max_tokens": 100, "fake": fake })
}

#[test]
fn every_whole_configuration_refuses_what_is_not_decided_and_waits_long_enough() {
    for file in WHOLE {
        let text = text(&format!("{file}.yaml"));
        for line in ["failure_mode_deny: true", "timeout: 0.25s", "no_traffic_interval: 5s", "grpc_health_check: {}"] {
            assert!(text.contains(line), "{file}: {line}");
        }
        let Some(program) = envoy_program() else { continue };
        validate(&program, &text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_limits_pass_as_many_calls_as_the_plan_says() {
    let Some(mut stage) = Stage::start("plain-limits").await else { return };
    let user = stage.user("calls", 2.0).await;
    for left in ["1", "0"] {
        let answer = stage.envoy.chat(&user, &chat(json!({}))).await;
        assert_eq!((answer.status, answer.header("x-ratelimit-remaining")), (200, Some(left)), "{answer:?}");
    }
    let answer = stage.envoy.chat(&user, &chat(json!({}))).await;
    assert_eq!(answer.status, 429);
    let wait: u64 = answer.header("retry-after").expect("when to come back").parse().unwrap();
    assert!((1..=31 * 24 * 3600).contains(&wait), "{answer:?}");
    stage.ended(3).await;
    // A user id that is none is refused, and not free.
    for odd in ["x".repeat(257), "y".repeat(1000)] {
        assert_eq!(stage.envoy.chat(&odd, &chat(json!({}))).await.status, 429);
    }
    // Who names no user gets nothing.
    for headers in [&[] as &[_], &[("x-user-id", "")]] {
        assert_eq!(stage.envoy.post(headers, &chat(json!({}))).await.status, 401);
    }
    stage.ended(2).await;
    assert_eq!(stage.used(&user, "calls").await, 2.0);
    assert_eq!(stage.upstream.calls(), 2, "nothing else reaches the upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_decision_a_call_is_refused() {
    let Some(mut stage) = Stage::start("plain-limits").await else { return };
    stage.served.kill();
    assert_eq!(stage.envoy.chat("anybody", &chat(json!({}))).await.status, 503);
    assert_eq!(stage.upstream.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_then_charge_counts_what_calls_have_used_also_those_that_are_left() {
    let Some(mut stage) = Stage::start("check-then-charge").await else { return };
    let user = stage.user("tokens", 300.0).await;
    let mut used = 0.0;
    for (fake, status, tokens) in [
        (json!({ "prompt": 10, "completion": 20 }), 200, 30.0),
        (json!({ "prompt": 20, "completion": 30, "sse": true }), 200, 50.0),
        (json!({ "status": 400 }), 400, 0.0),
        (json!({ "status": 500 }), 500, 0.0),
    ] {
        assert_eq!(stage.envoy.chat(&user, &chat(fake.clone())).await.status, status);
        stage.ended(2).await;
        used += tokens;
        assert_eq!(stage.used(&user, "tokens").await, used, "{fake}");
    }
    // Who goes away before the usage is told pays for the largest answer.
    for fake in [json!({ "cut": true }), json!({ "silent": true })] {
        drop(stage.envoy.chat_unfinished(&user, &chat(fake.clone()), &stage.upstream).await);
        stage.ended(2).await;
        used += 100.0;
        assert_eq!(stage.used(&user, "tokens").await, used, "{fake}");
    }
    // TRUTH: the last call that passes counts in full.
    assert_eq!(stage.envoy.chat(&user, &chat(json!({ "completion": 50 }))).await.status, 200);
    stage.ended(2).await;
    assert_eq!(stage.used(&user, "tokens").await, 330.0);
    let calls = stage.upstream.calls();
    assert_eq!(stage.envoy.chat(&user, &chat(json!({}))).await.status, 429);
    stage.ended(2).await;
    assert_eq!((stage.used(&user, "tokens").await, stage.upstream.calls()), (330.0, calls));
}

#[tokio::test(flavor = "multi_thread")]
async fn bound_then_refund_never_passes_the_limit_and_ends_exact() {
    let Some(mut stage) = Stage::start("bound-then-refund").await else { return };
    let bound = |body: &Json| (100 + body.to_string().len()) as f64;
    let user = stage.user("tokens", 10_000.0).await;
    let mut used = 0.0;
    for (fake, status, tokens) in [
        (json!({ "prompt": 10, "completion": 20 }), 200, 30.0),
        (json!({ "prompt": 20, "completion": 30, "sse": true }), 200, 50.0),
        // More than the bound.
        (json!({ "prompt": 500, "completion": 500 }), 200, 1000.0),
        (json!({ "status": 400 }), 400, 0.0),
        (json!({ "status": 500 }), 500, 0.0),
    ] {
        assert_eq!(stage.envoy.chat(&user, &chat(fake.clone())).await.status, status);
        stage.ended(2).await;
        used += tokens;
        assert_eq!(stage.used(&user, "tokens").await, used, "{fake}");
    }
    // As much as the bound: there is nothing to give back.
    let bodies = (100..).map(|tokens| (tokens, chat(json!({ "completion": tokens }))));
    let (tokens, body) = bodies.into_iter().find(|(tokens, body)| bound(body) == f64::from(*tokens)).unwrap();
    assert_eq!(stage.envoy.chat(&user, &body).await.status, 200);
    stage.ended(2).await;
    used += f64::from(tokens);
    assert_eq!(stage.used(&user, "tokens").await, used);
    // Who goes away before the usage is told pays the bound: nobody knows better.
    for fake in [json!({ "cut": true }), json!({ "silent": true })] {
        let body = chat(fake.clone());
        drop(stage.envoy.chat_unfinished(&user, &body, &stage.upstream).await);
        // The second has no descriptor left, so that Envoy does not ask.
        stage.ended(1).await;
        used += bound(&body);
        assert_eq!(stage.used(&user, "tokens").await, used, "{fake}");
    }
    // A bound that cannot be is no way around it.
    for (max_tokens, status) in [
        (json!(-5), 429),
        (json!(0), 429),
        (json!(1e12), 429),
        (json!("-5"), 429),
        // As if it was not there.
        (json!([1]), 200),
        (json!("many"), 200),
        (Json::Null, 200),
    ] {
        let mut body = chat(json!({ "prompt": 3, "completion": 4 }));
        body["max_tokens"] = max_tokens.clone();
        assert_eq!(stage.envoy.chat(&user, &body).await.status, status, "{max_tokens}");
        stage.ended(if status == 200 { 2 } else { 1 }).await;
        used += if status == 200 { 7.0 } else { 0.0 };
        assert_eq!(stage.used(&user, "tokens").await, used, "{max_tokens}");
    }
    // What is refused gives nothing back.
    let calls = stage.upstream.calls();
    let mut larger = chat(json!({}));
    larger["max_tokens"] = json!(9_000);
    assert_eq!(stage.envoy.chat(&user, &larger).await.status, 429);
    stage.ended(1).await;
    assert_eq!((stage.used(&user, "tokens").await, stage.upstream.calls()), (used, calls));
    // Two at the same time of which only one fits: the other is refused while the first is under way.
    let body = chat(json!({ "silent": true }));
    let tight = stage.user("tokens", bound(&body) + 20.0).await;
    let under_way = stage.envoy.chat_unfinished(&tight, &body, &stage.upstream).await;
    assert_eq!(stage.envoy.chat(&tight, &chat(json!({ "completion": 1 }))).await.status, 429);
    drop(under_way);
    stage.ended(2).await;
    assert_eq!(stage.used(&tight, "tokens").await, bound(&body));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_reached_has_used_nothing() {
    let config = patient(&text("bound-then-refund.yaml"));
    // A port that nobody listens on: it was just given back.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let stage = Stage::start_with(&[], |_, tollgate| {
        let config = replace(&config, "port_value: 10000", "port_value: 0");
        let config = replace(&config, "port_value: 8000", &format!("port_value: {nobody}"));
        replace(&config, "port_value: 8081", &format!("port_value: {tollgate}"))
    });
    let Some(mut stage) = stage.await else { return };
    let user = stage.user("tokens", 10_000.0).await;
    assert_eq!(stage.envoy.chat(&user, &chat(json!({}))).await.status, 503);
    stage.ended(2).await;
    assert_eq!(stage.used(&user, "tokens").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_priced_by_model_prompt_and_completion() {
    let Some(mut stage) = Stage::start("priced-by-tokens").await else { return };
    let user = stage.user("spend", 10.0).await;
    // In millionths of a cent, which are whole.
    let millionths = |cents: f64| (cents * 1e6).round() as i64;
    let mut used = 0;
    for (fake, status, charge) in [
        (json!({ "prompt": 1200, "completion": 350 }), 200, 650_000),
        (json!({ "prompt": 4, "completion": 1000, "sse": true }), 200, 1_001_000),
        (json!({ "status": 429 }), 429, 0),
    ] {
        assert_eq!(stage.envoy.chat(&user, &chat(fake.clone())).await.status, status);
        stage.ended(2).await;
        used += charge;
        assert_eq!(millionths(stage.used(&user, "spend").await), used, "{fake}");
    }
    drop(stage.envoy.chat_unfinished(&user, &chat(json!({ "cut": true })), &stage.upstream).await);
    stage.ended(2).await;
    used += 250_000 + 4_096_000;
    assert_eq!(millionths(stage.used(&user, "spend").await), used);
    // No price, no call: neither for a model that the plan does not know, nor for none.
    let calls = stage.upstream.calls();
    for model in [json!("gpt-5"), json!("x".repeat(300)), Json::Null] {
        let mut body = chat(json!({ "prompt": 5, "completion": 5 }));
        body["model"] = model;
        assert_eq!(stage.envoy.chat(&user, &body).await.status, 429, "{body}");
        stage.ended(2).await;
    }
    assert_eq!((millionths(stage.used(&user, "spend").await), stage.upstream.calls()), (used, calls));
}

/// Why the descriptors of the configurations do not stand where descriptors usually do.
#[tokio::test(flavor = "multi_thread")]
async fn envoy_ignores_hits_addend_under_the_rate_limits_of_a_route() {
    let config = patient(&text("plain-limits.yaml"));
    let descriptor = |key: &str| {
        format!(
            "{key}: [{{ hits_addend: {{ number: 7 }}, actions: [{{ request_headers: {{ header_name: x-user-id, descriptor_key: user_id }} }}, \
             {{ generic_key: {{ descriptor_key: event, descriptor_value: llm.tokens }} }}] }}]"
        )
    };
    let per_route = config.find("                          typed_per_filter_config:").unwrap();
    let end = config.find("                        - match: { prefix: / }").unwrap();
    let (before, after) = (&config[..per_route], &config[end..]);
    let per_filter = "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute";
    for (place, counted) in [("route", 1.0), ("filter", 7.0)] {
        let config = match place {
            "route" => {
                let route = "route: { cluster: llm, timeout: 600s";
                let before = replace(before, route, &format!("{route}, {}", descriptor("rate_limits")));
                format!("{before}{after}")
            }
            _ => {
                let descriptor = descriptor("rate_limits");
                let typed = "                          typed_per_filter_config:";
                format!(
                    "{before}{typed} {{ envoy.filters.http.ratelimit: {{ \"@type\": {per_filter}, {descriptor} }} }}\n{after}"
                )
            }
        };
        let stage = Stage::start_with(&[], |upstream, tollgate| {
            let config = replace(&config, "port_value: 10000", "port_value: 0");
            let config = replace(&config, "port_value: 8000", &format!("port_value: {upstream}"));
            replace(&config, "port_value: 8081", &format!("port_value: {tollgate}"))
        });
        let Some(mut stage) = stage.await else { return };
        let user = stage.user("tokens", 100.0).await;
        assert_eq!(stage.envoy.chat(&user, &chat(json!({}))).await.status, 200);
        stage.ended(1).await;
        assert_eq!(stage.used(&user, "tokens").await, counted, "{place}");
    }
}

/// Whether these lines stand in a text, all of them moved to the right by as much.
fn contains(text: &str, lines: &[&str]) -> bool {
    let text: Vec<_> = text.lines().collect();
    text.windows(lines.len()).any(|window| {
        let moved = window[0].len().saturating_sub(lines[0].len());
        window.iter().zip(lines).all(|(there, line)| match line.is_empty() {
            true => there.is_empty(),
            false => there.get(moved..) == Some(line) && there[..moved].trim().is_empty(),
        })
    })
}

#[test]
fn every_snippet_of_the_guide_is_part_of_a_file_that_is_tested() {
    let guide = include_str!("../../docs/guides/envoy.md");
    let files: Vec<_> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let texts: Vec<_> = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let blocks = guide.split("\n```").skip(1).step_by(2);
    let snippets: Vec<_> =
        blocks.filter_map(|block| block.strip_prefix("yaml\n").or(block.strip_prefix("toml\n"))).collect();
    assert!(snippets.len() >= 4, "{snippets:?}");
    for snippet in snippets {
        let lines: Vec<_> = snippet.lines().collect();
        assert!(texts.iter().any(|text| contains(text, &lines)), "no file of deploy/envoy has:\n{snippet}");
    }
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(guide.contains(&name) || name == "envoy-gateway.toml", "the guide names {name}");
    }
}
