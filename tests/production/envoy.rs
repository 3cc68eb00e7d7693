//! Envoy's rate limit service, asked as Envoy asks it.

use tollgate::grpc::rls::rate_limit_response::{Code, rate_limit::Unit};
use tollgate::grpc::rls::rate_limit_service_client::RateLimitServiceClient;
use tollgate::grpc::rls::{RateLimitDescriptor, RateLimitRequest, RateLimitResponse, rate_limit_descriptor};
use tollgate::grpc::v1;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

use crate::support::redis_server::RedisServer;
use crate::support::served::{Served, tollgate};
use crate::support::{Replica, fresh_user, redis_url, say_live_holds, scratch};

const CATALOG: &str = "
default_plan: basic
plans:
  basic:
    name: Basic
    limit_groups:
      - { id: calls, label: Calls, unit: count, period: yearly, quota: 3, match: [{ event: api.call, measure: events }] }
      - { id: tokens, label: Tokens, unit: tokens, period: daily, quota: 100, match: [{ event: llm.tokens, metadata: { model: 'gpt-*' } }] }
      - { id: images, label: Images, unit: count, period: lifetime, quota: 1, match: [{ event: image }] }
      - { id: priced, label: Priced, unit: tokens, period: daily, quota: 9, match: [{ event: llm.priced, measure: { prompt_tokens: 1 } }] }
      - { id: soft, label: Soft, unit: count, period: hourly, quota: 1, hard: false, match: [{ event: soft }] }
";

struct Proxy {
    served: Served,
    client: RateLimitServiceClient<Channel>,
    replica: Replica,
    _catalog: tempfile::TempDir,
}

impl Proxy {
    async fn start(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.yaml");
        std::fs::write(&path, CATALOG).unwrap();
        let url = redis_url();
        let all = ["--redis-url", &url, "--catalog", path.to_str().unwrap(), "--envoy-listen", "127.0.0.1:0"];
        let all: Vec<_> = all.into_iter().chain(flags.iter().copied()).collect();
        let served = Served::start(0, &all);
        let address = served.envoy.expect("it answers Envoy");
        let client = RateLimitServiceClient::connect(format!("http://{address}")).await.unwrap();
        let replica = Replica::connect(served.address).await;
        Self { served, client, replica, _catalog: directory }
    }

    async fn ask(&mut self, descriptors: Vec<RateLimitDescriptor>) -> Result<RateLimitResponse, Status> {
        let request = RateLimitRequest { domain: "api.call".to_owned(), descriptors, hits_addend: 0 };
        self.client.should_rate_limit(request).await.map(tonic::Response::into_inner)
    }

    /// The codes of the whole and of each descriptor.
    async fn codes(&mut self, descriptors: Vec<RateLimitDescriptor>) -> (Code, Vec<Code>) {
        let answer = self.ask(descriptors).await.unwrap();
        (answer.overall_code(), answer.statuses.iter().map(|status| status.code()).collect())
    }

    /// A counter of the admin port.
    fn counter(&self, series: &str) -> f64 {
        let (_, text) = self.served.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is missing: {text}")).parse().unwrap()
    }

    /// All that it has logged. It has ended then.
    fn whole_log(&mut self) -> String {
        self.served.kill();
        self.served.whole_log()
    }

    async fn used(&mut self, user: &str, group: &str) -> f64 {
        let request = v1::GetUsageRequest { user_id: user.to_owned(), ..v1::GetUsageRequest::default() };
        let limits = self.replica.metering.get_usage(request).await.unwrap().into_inner().limits;
        let limit = limits.iter().find(|limit| limit.limit_group_id == group).unwrap();
        assert_eq!(limit.held, 0.0, "nothing stays held");
        limit.used
    }
}

fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entry =
        |(key, value): &(&str, &str)| rate_limit_descriptor::Entry { key: (*key).into(), value: (*value).into() };
    RateLimitDescriptor { entries: entries.iter().map(entry).collect(), ..RateLimitDescriptor::default() }
}

/// Tokens that are to be checked (0), or that were used.
fn tokens(user: &str, hits: u64) -> RateLimitDescriptor {
    let entries = [("user_id", user), ("event", "llm.tokens"), ("model", "gpt-4o")];
    RateLimitDescriptor { hits_addend: Some(hits), ..descriptor(&entries) }
}

fn call(user: &str) -> RateLimitDescriptor {
    descriptor(&[("user_id", user)])
}

fn event(user: &str, event: &str) -> RateLimitDescriptor {
    descriptor(&[("user_id", user), ("event", event)])
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_pass_until_the_limit_and_the_answer_says_which_and_when() {
    let mut proxy = Proxy::start(&[]).await;
    let user = fresh_user("envoy");
    for left in [2, 1, 0] {
        let answer = proxy.ask(vec![call(&user)]).await.unwrap();
        assert_eq!((answer.overall_code(), answer.statuses[0].limit_remaining), (Code::Ok, left));
        assert!(answer.response_headers_to_add.is_empty());
    }
    let answer = proxy.ask(vec![call(&user)]).await.unwrap();
    assert_eq!(answer.overall_code(), Code::OverLimit);
    let status = &answer.statuses[0];
    let limit = status.current_limit.as_ref().unwrap();
    assert_eq!((&*limit.name, limit.requests_per_unit, limit.unit()), ("calls", 3, Unit::Year));
    let reset = status.duration_until_reset.unwrap();
    assert!((0..366 * 24 * 3600).contains(&reset.seconds), "{reset:?}");
    let header = &answer.response_headers_to_add[0];
    assert_eq!((&*header.key, &*header.value), ("retry-after", &*(reset.seconds + 1).to_string()));
    assert_eq!(proxy.used(&user, "calls").await, 3.0, "what was denied is not counted");

    // The request's hits are for descriptors that say none.
    let user = fresh_user("envoy");
    let several = |hits_addend| RateLimitRequest {
        domain: "api.call".to_owned(),
        descriptors: vec![event(&user, "image")],
        hits_addend,
    };
    let denied = proxy.client.should_rate_limit(several(2)).await.unwrap().into_inner();
    let status = &denied.statuses[0];
    assert_eq!(
        (denied.overall_code(), status.duration_until_reset),
        (Code::OverLimit, None),
        "a lifetime has no reset"
    );
    assert!(denied.response_headers_to_add.is_empty(), "waiting does not help");
    assert_eq!(status.current_limit.as_ref().unwrap().unit(), Unit::Unknown);
    assert_eq!(proxy.client.should_rate_limit(several(1)).await.unwrap().into_inner().overall_code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_counts_nothing_and_what_has_happened_always_counts() {
    let mut proxy = Proxy::start(&[]).await;
    let user = fresh_user("gateway");
    assert_eq!(proxy.codes(vec![tokens(&user, 0)]).await, (Code::Ok, vec![Code::Ok]));
    assert_eq!(proxy.used(&user, "tokens").await, 0.0);
    assert_eq!(proxy.codes(vec![tokens(&user, 99)]).await.0, Code::Ok);
    assert_eq!(proxy.codes(vec![tokens(&user, 0)]).await.0, Code::Ok, "one more would fit");
    // TRUTH: the tokens were used.
    assert_eq!(proxy.codes(vec![tokens(&user, 51)]).await.0, Code::OverLimit);
    assert_eq!(proxy.used(&user, "tokens").await, 150.0);
    assert_eq!(proxy.codes(vec![tokens(&user, 0)]).await.0, Code::OverLimit);
    let back = RateLimitDescriptor { is_negative_hits: true, ..tokens(&user, 51) };
    assert_eq!(proxy.codes(vec![back]).await.0, Code::Ok);
    assert_eq!(proxy.used(&user, "tokens").await, 99.0);
    // Exactly full is not over, and lets nothing more in.
    assert_eq!(proxy.codes(vec![tokens(&user, 1)]).await.0, Code::Ok);
    assert_eq!(proxy.codes(vec![tokens(&user, 0)]).await.0, Code::OverLimit);
    for _ in 0..3 {
        assert_eq!(proxy.codes(vec![event(&user, "soft")]).await.0, Code::Ok, "a soft limit denies nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_are_counted_all_or_none_also_of_different_users() {
    let mut proxy = Proxy::start(&[]).await;
    let (one, two) = (fresh_user("envoy"), fresh_user("envoy"));
    let both = || vec![call(&one), event(&two, "image")];
    assert_eq!(proxy.codes(both()).await, (Code::Ok, vec![Code::Ok, Code::Ok]));
    assert_eq!(proxy.codes(both()).await, (Code::OverLimit, vec![Code::Ok, Code::OverLimit]));
    assert_eq!((proxy.used(&one, "calls").await, proxy.used(&two, "images").await), (1.0, 1.0));

    // A check that is denied keeps the others from counting, but not what has happened.
    assert_eq!(proxy.codes(vec![tokens(&two, 100)]).await.0, Code::Ok);
    let mixed = vec![call(&one), tokens(&two, 0), tokens(&one, 5)];
    assert_eq!(proxy.codes(mixed).await, (Code::OverLimit, vec![Code::Ok, Code::OverLimit, Code::Ok]));
    assert_eq!((proxy.used(&one, "calls").await, proxy.used(&one, "tokens").await), (1.0, 5.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_matches_nothing_is_not_free_and_what_cannot_be_read_is_named() {
    let mut proxy = Proxy::start(&[]).await;
    let user = fresh_user("envoy");
    let typo = proxy.ask(vec![event(&user, "image.typo")]).await.unwrap();
    assert_eq!((typo.overall_code(), typo.statuses[0].current_limit.clone()), (Code::OverLimit, None));
    let overriding = RateLimitDescriptor {
        limit: Some(rate_limit_descriptor::RateLimitOverride { requests_per_unit: 9, unit: 1 }),
        ..call(&user)
    };
    let negative = RateLimitDescriptor { is_negative_hits: true, ..call(&user) };
    for (descriptors, field) in [
        (vec![], "descriptors"),
        (vec![call(&user); 17], "descriptors"),
        (vec![call(&user), descriptor(&[("remote_address", "10.0.0.1")])], "descriptors[1].entries"),
        (vec![descriptor(&[("user_id", &user), ("a", "1"), ("a", "2")])], "descriptors[0].entries"),
        (vec![overriding], "descriptors[0].limit"),
        (vec![negative], "descriptors[0].is_negative_hits"),
    ] {
        let status = proxy.ask(descriptors).await.unwrap_err();
        let details = status.get_error_details();
        let told = &details.bad_request().unwrap_or_else(|| panic!("{field}: {status:?}")).field_violations[0];
        assert_eq!((status.code(), &*told.field), (tonic::Code::InvalidArgument, field), "{status:?}");
        assert!(!status.message().contains(&user), "a fault repeats no value: {status:?}");
    }
    for domain in ["white space", "image.refund", ""] {
        let request = RateLimitRequest {
            domain: domain.to_owned(),
            descriptors: vec![call(&user)],
            ..RateLimitRequest::default()
        };
        let status = proxy.client.should_rate_limit(request).await.unwrap_err();
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "domain", "{status:?}");
    }
    let huge = proxy.ask(vec![tokens(&user, u64::MAX)]).await.unwrap_err();
    assert_eq!(huge.code(), tonic::Code::OutOfRange);
    assert_eq!(proxy.used(&user, "calls").await, 0.0, "nothing is counted of what is not understood");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_needs_a_key_where_callers_do() {
    let mut proxy = Proxy::start(&["--api-keys"]).await;
    let made = tollgate()
        .args(["keys", "create", "--app", "proxied", "--role", "secret", "--redis-url", &redis_url()])
        .output()
        .unwrap();
    let key = String::from_utf8(made.stdout).unwrap();
    let user = fresh_user("envoy");
    assert_eq!(proxy.ask(vec![call(&user)]).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    let descriptors = vec![call(&user)];
    let mut request = Request::new(RateLimitRequest { domain: "api.call".to_owned(), descriptors, hits_addend: 0 });
    request.metadata_mut().insert("authorization", format!("Bearer {}", key.trim()).parse().unwrap());
    let answer = proxy.client.should_rate_limit(request).await.unwrap().into_inner();
    assert_eq!(answer.overall_code(), Code::Ok);
    let config = tollgate().args(["config", "--envoy-listen", "0.0.0.0:8081"]).output().unwrap();
    assert!(String::from_utf8_lossy(&config.stderr).contains("envoy-listen is 0.0.0.0:8081"), "{config:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_happened_counts_although_another_descriptor_cannot_be_decided() {
    let mut proxy = Proxy::start(&[]).await;
    let user = fresh_user("envoy");
    let unmeasured = RateLimitDescriptor { hits_addend: Some(0), ..event(&user, "llm.priced") };
    let status = proxy.ask(vec![unmeasured, tokens(&user, 5)]).await.unwrap_err();
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "QUANTITY_MISSING");
    assert_eq!(proxy.used(&user, "tokens").await, 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_fails_open_leaves_it_to_the_proxy() {
    let redis = RedisServer::start(scratch("envoy-open"), "");
    redis.ready().await;
    let url = redis.url();
    let flags = ["--redis-url", &url, "--envoy-listen", "127.0.0.1:0", "--fail-open", "--redis-timeout", "300ms"];
    let served = Served::start(0, &flags);
    let mut client = RateLimitServiceClient::connect(format!("http://{}", served.envoy.unwrap())).await.unwrap();
    let both = || vec![event("one", "llm.tokens"), event("two", "llm.tokens")];
    let mut ask = async || {
        let request = RateLimitRequest { domain: "d".to_owned(), descriptors: both(), hits_addend: 0 };
        client.should_rate_limit(request).await
    };
    ask().await.unwrap();
    redis.signal("-STOP");
    let answer = ask().await;
    redis.signal("-CONT");
    assert_eq!(answer.unwrap_err().code(), tonic::Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_a_caller_may_have_chosen_is_denied_and_not_free() {
    let mut proxy = Proxy::start(&["--admin-listen", "127.0.0.1:0"]).await;
    let user = fresh_user("envoy");
    let long = "x".repeat(257);
    let priced = |tokens: &str| descriptor(&[("user_id", &user), ("event", "llm.priced"), ("prompt_tokens", tokens)]);
    let mut not_text = call(&user);
    not_text.entries[0].value.push(0xff);
    let odd = [
        ("encoding", not_text),
        ("user_id", descriptor(&[("user_id", "")])),
        ("user_id", call(&long)),
        ("event", event(&user, "white space")),
        ("event", event(&user, "")),
        ("event", event(&user, "image.refund")),
        ("metadata", descriptor(&[("user_id", &user), ("model", &long)])),
        ("number", priced("1,000")),
        ("number", priced("-5")),
        ("number", priced("99999999999999999999")),
    ];
    for (what, descriptor) in odd {
        let series = format!("tollgate_envoy_values_denied_total{{value=\"{what}\"}}");
        for own in [None, Some(0)] {
            let descriptor = RateLimitDescriptor { hits_addend: own, ..descriptor.clone() };
            let before = proxy.counter(&series);
            let codes = proxy.codes(vec![call(&user), descriptor.clone(), tokens(&user, 5)]).await;
            let expected = (Code::OverLimit, vec![Code::Ok, Code::OverLimit, Code::Ok]);
            assert_eq!(codes, expected, "{descriptor:?}");
            assert_eq!(proxy.counter(&series), before + 1.0, "{descriptor:?}");
        }
    }
    assert_eq!(proxy.used(&user, "calls").await, 0.0, "all or none");
    assert_eq!(proxy.used(&user, "tokens").await, 100.0, "what has happened is counted");
    assert_eq!(proxy.codes(vec![priced("9")]).await.0, Code::Ok);
    assert_eq!(proxy.codes(vec![priced("1")]).await.0, Code::OverLimit);
    let log = proxy.whole_log();
    assert_eq!(
        log.matches("a value in a descriptor is not valid").count(),
        5,
        "one line a minute for each kind: {log}"
    );
    assert!(!log.contains(&user) && !log.contains(&long) && !log.contains("1,000"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_too_many_holds_is_denied_and_not_free() {
    let mut proxy = Proxy::start(&["--admin-listen", "127.0.0.1:0"]).await;
    let user = fresh_user("envoy");
    assert_eq!(proxy.codes(vec![call(&user)]).await.0, Code::Ok);
    // As many as Tollgate keeps, by the number in the ledger.
    say_live_holds(&user, 10_000).await;
    let asked = vec![call(&user), event(&user, "image")];
    assert_eq!(proxy.codes(asked).await, (Code::OverLimit, vec![Code::OverLimit; 2]));
    assert_eq!(proxy.counter("tollgate_envoy_values_denied_total{value=\"holds\"}"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_that_envoy_shows_to_nobody_are_counted_and_logged_once_a_minute_without_a_value() {
    let mut proxy = Proxy::start(&["--admin-listen", "127.0.0.1:0"]).await;
    let user = fresh_user("envoy-secret");
    let without_user = descriptor(&[("remote_address", &user)]);
    let twice = descriptor(&[("user_id", &user), ("user_id", &user)]);
    let unmeasured = event(&user, "llm.priced");
    let odd = [
        ("USER_ID_MISSING", without_user, "descriptors[0].entries has no \"user_id\""),
        ("ENTRY_AMBIGUOUS", twice, "descriptors[0].entries say the user twice"),
        ("QUANTITY_MISSING", unmeasured, "limit group \"priced\""),
    ];
    for (reason, descriptor, _) in &odd {
        for _ in 0..3 {
            let status = proxy.ask(vec![descriptor.clone()]).await.unwrap_err();
            assert_eq!(status.get_error_details().error_info().unwrap().reason, *reason);
        }
        assert_eq!(proxy.counter(&format!("tollgate_envoy_faults_total{{reason=\"{reason}\"}}")), 3.0);
    }
    let log = proxy.whole_log();
    for (reason, _, problem) in odd {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(reason)).collect();
        assert_eq!(lines.len(), 1, "{reason}: {log}");
        let problem = problem.replace('"', "\\\"");
        assert!(lines[0].contains("WARN") && lines[0].contains(&problem), "{problem}: {}", lines[0]);
    }
    assert!(!log.contains(&user), "{log}");
    // Who has no key never gets as far as the service.
    let mut proxy = Proxy::start(&["--api-keys", "--admin-listen", "127.0.0.1:0"]).await;
    proxy.ask(vec![call(&user)]).await.unwrap_err();
    assert_eq!(proxy.counter("tollgate_envoy_faults_total{reason=\"UNAUTHENTICATED\"}"), 1.0);
    assert!(proxy.whole_log().contains("UNAUTHENTICATED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_mean_what_the_configuration_says() {
    let entries = "rule-0-match-0=user_id,rule-1-match-0=user_id,rule-1-match-0=enforce,rule-1-match-1=metadata:model:gpt-4o,\
                   httproute/*=event:llm.tokens";
    let mut proxy = Proxy::start(&["--envoy-entries", entries]).await;
    let user = fresh_user("gateway");
    let route = "httproute/default/a-name-that-is-longer-than-a-key-of-metadata-may-be/rule/0/match/0/*";
    let rule = |number: usize, hits: Option<u64>| {
        let (who, model) = (format!("rule-{number}-match-0"), format!("rule-{number}-match-1"));
        let mut entries = vec![(route, route), (&*who, &*user)];
        entries.extend((number == 1).then_some((&*model, &*model)));
        RateLimitDescriptor { hits_addend: hits, ..descriptor(&entries) }
    };
    // No model, so that no group matches.
    assert_eq!(proxy.codes(vec![rule(0, Some(0))]).await.0, Code::OverLimit);
    // Hits that are asked for: what does not fit is not counted.
    assert_eq!(proxy.codes(vec![rule(1, Some(90))]).await.0, Code::Ok);
    assert_eq!(proxy.codes(vec![rule(1, Some(11))]).await.0, Code::OverLimit);
    assert_eq!(proxy.used(&user, "tokens").await, 90.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_says_what_was_charged_so_that_it_can_be_given_back() {
    use prost_types::value::Kind;
    let mut proxy = Proxy::start(&[]).await;
    let user = fresh_user("envoy");
    let bound = |hits_addend| RateLimitRequest {
        domain: "llm.tokens".to_owned(),
        descriptors: vec![tokens(&user, 0), descriptor(&[("user_id", &user), ("model", "gpt-4o")])],
        hits_addend,
    };
    let answer = proxy.client.should_rate_limit(bound(80)).await.unwrap().into_inner();
    let charged = answer.dynamic_metadata.unwrap().fields["charged"].clone();
    let Some(Kind::ListValue(list)) = charged.kind else { panic!("{charged:?}") };
    let numbers: Vec<_> = list.values.into_iter().map(|value| value.kind).collect();
    assert_eq!(numbers, [Some(Kind::NumberValue(0.0)), Some(Kind::NumberValue(80.0))]);
    // What is denied is not charged, and says nothing that could be given back.
    let answer = proxy.client.should_rate_limit(bound(21)).await.unwrap().into_inner();
    assert_eq!((answer.overall_code(), answer.dynamic_metadata), (Code::OverLimit, None));
    assert_eq!(proxy.ask(vec![tokens(&user, 0)]).await.unwrap().dynamic_metadata, None, "a check charges nothing");
    let back = |hits| RateLimitDescriptor { is_negative_hits: true, ..tokens(&user, hits) };
    assert_eq!(proxy.codes(vec![back(50), back(0), tokens(&user, 1)]).await, (Code::Ok, vec![Code::Ok; 3]));
    assert_eq!(proxy.used(&user, "tokens").await, 31.0, "to give back nothing is no fault");
    // Its refund has no name: that loses nothing else of the request.
    let unnamed =
        RateLimitDescriptor { is_negative_hits: true, hits_addend: Some(1), ..event(&user, &"x".repeat(128)) };
    assert_eq!(proxy.codes(vec![unnamed, tokens(&user, 1)]).await, (Code::OverLimit, vec![Code::OverLimit, Code::Ok]));
    assert_eq!(proxy.used(&user, "tokens").await, 32.0);
}
