//! What an operator sees of the binary: metrics, health by component, log lines, and the files that are made from these.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tollgate::grpc::v1;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::promtool;
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis_server::RedisServer;
use crate::support::served::Served;
use crate::support::{Replica, fresh_user, put_ledger_ahead, redis_url, scratch};

const CATALOG: &str = "
default_plan: small
plans:
  small:
    period: lifetime
    limit_groups:
      - { id: tokens, unit: tokens, quota: 100, match: [ { event: llm.tokens } ] }
      - { id: images, unit: count, quota: 2, match: [ { event: image.render } ] }
  large:
    period: lifetime
    limit_groups:
      - { id: tokens, unit: tokens, quota: 1000, match: [ { event: llm.tokens } ] }
";

/// Serves [`CATALOG`] over a Redis, and shows what there is to see.
fn serve(name: &str, redis: &str, flags: &[&str]) -> Served {
    let catalog = scratch(&format!("{name}.yaml"));
    std::fs::create_dir_all(catalog.parent().unwrap()).unwrap();
    std::fs::write(&catalog, CATALOG).unwrap();
    let mut all = vec!["--catalog", catalog.to_str().unwrap(), "--redis-url", redis, "--admin-listen", "127.0.0.1:0"];
    all.extend(flags);
    Served::start(0, &all)
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every sample of a scrape.
fn scrape(served: &Served) -> BTreeMap<String, f64> {
    let (kind, text) = served.metrics("application/openmetrics-text");
    assert_eq!(kind, OPENMETRICS);
    assert!(text.ends_with("# EOF\n"), "{text}");
    samples(&text)
}

fn samples(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap())).unwrap())
        .collect()
}

/// How the counters have grown that do not depend on time.
fn growth(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let counts = |name: &str| {
        let family = name.split('{').next().unwrap_or(name);
        family != "process_cpu_seconds_total" && (family.ends_with("_total") || family.ends_with("_count"))
    };
    let grown = after.iter().filter(|(name, _)| counts(name));
    let grown = grown.map(|(name, value)| (name.clone(), value - before.get(name).copied().unwrap_or(0.0)));
    grown.filter(|(_, by)| *by != 0.0).collect()
}

fn event(name: &str, quantity: f64) -> Option<v1::Event> {
    Some(v1::Event { name: name.to_owned(), quantity: Some(quantity), ..v1::Event::default() })
}

fn reserve(user: &str, event: Option<v1::Event>, id: &str) -> v1::ReserveRequest {
    let ttl = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    v1::ReserveRequest {
        user_id: user.to_owned(),
        event,
        ttl,
        request_id: id.to_owned(),
        ..v1::ReserveRequest::default()
    }
}

fn track(user: &str, event: Option<v1::Event>, enforce: bool) -> v1::TrackRequest {
    v1::TrackRequest { user_id: user.to_owned(), event, enforce, ..v1::TrackRequest::default() }
}

fn commit(id: &str, quantity: f64) -> v1::CommitRequest {
    let actual = v1::Actual { quantity: Some(quantity), ..v1::Actual::default() };
    v1::CommitRequest { reservation_id: id.to_owned(), actual: Some(actual), ..v1::CommitRequest::default() }
}

/// A call of a method that nobody serves.
async fn call_unknown(channel: Channel, path: &str) -> Code {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::ListPlansRequest, v1::ListPlansResponse>::default();
    let path = path.parse().unwrap();
    client.unary(Request::new(v1::ListPlansRequest {}), path, codec).await.unwrap_err().code()
}

async fn channel(served: &Served) -> Channel {
    Channel::from_shared(format!("http://{}", served.address)).unwrap().connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_counts_each_call_and_what_it_decided_exactly() {
    let served = serve("exactly", &redis_url(), &[]);
    let mut replica = Replica::connect(served.address).await;
    let mut other = Replica::start(CATALOG).await;
    let (user, metering) = (fresh_user("seen"), &mut replica.metering);
    let before = scrape(&served);

    let first = metering.reserve(reserve(&user, event("llm.tokens", 10.0), "r1")).await.unwrap().into_inner();
    metering.reserve(reserve(&user, event("llm.tokens", 10.0), "r1")).await.unwrap();
    metering.reserve(reserve(&user, event("llm.tokens", 1e6), "")).await.unwrap();
    metering.reserve(reserve(&user, event("llm.tokns", 1.0), "")).await.unwrap();
    metering.reserve(reserve("", event("llm.tokens", 1.0), "")).await.unwrap_err();
    // More than was held, twice.
    metering.commit(commit(&first.reservation_id, 12.0)).await.unwrap();
    metering.commit(commit(&first.reservation_id, 12.0)).await.unwrap();
    metering.commit(commit(&first.reservation_id, 13.0)).await.unwrap_err();
    // Two lapse, and one of them is settled afterwards; the third is given back, twice.
    let lapsing = metering.reserve(reserve(&user, event("llm.tokens", 1.0), "")).await.unwrap().into_inner();
    metering.reserve(reserve(&user, event("llm.tokens", 1.0), "")).await.unwrap();
    put_ledger_ahead(&user, Duration::from_secs(61)).await;
    metering.commit(commit(&lapsing.reservation_id, 1.0)).await.unwrap();
    let held = metering.reserve(reserve(&user, event("llm.tokens", 1.0), "")).await.unwrap().into_inner();
    for _ in 0..2 {
        let release =
            v1::ReleaseRequest { reservation_id: held.reservation_id.clone(), ..v1::ReleaseRequest::default() };
        metering.release(release).await.unwrap();
    }
    metering.track(track(&user, event("image.render", 2.0), false)).await.unwrap();
    metering.track(track(&user, event("image.render", 1.0), true)).await.unwrap();
    metering.track(track(&user, event("image.rendr", 1.0), false)).await.unwrap();
    metering.track(track(&user, event("image.render.refund", 5.0), false)).await.unwrap();
    for name in ["llm.tokens", "llm.tokns"] {
        metering.can_use(v1::CanUseRequest { user_id: user.clone(), event: event(name, 1.0) }).await.unwrap();
    }
    // Another replica puts the user on another plan, of which this one hears from the script.
    let upsert = v1::UpsertSubscriptionRequest {
        user_id: user.clone(),
        plan_id: "large".to_owned(),
        ..v1::UpsertSubscriptionRequest::default()
    };
    other.subscriptions.upsert_subscription(upsert).await.unwrap();
    metering.reserve(reserve(&user, event("llm.tokens", 1e6), "")).await.unwrap();
    let path = format!("/tollgate.v1.MeteringService/{user}");
    assert_eq!(call_unknown(channel(&served).await, &path).await, Code::Unimplemented);

    let grown = growth(&before, &scrape(&served));
    let expected: BTreeMap<String, f64> = [
        ("tollgate_rpcs_total{rpc=\"Reserve\",code=\"OK\",outcome=\"allowed\"}", 4),
        ("tollgate_rpcs_total{rpc=\"Reserve\",code=\"OK\",outcome=\"replayed\"}", 1),
        ("tollgate_rpcs_total{rpc=\"Reserve\",code=\"OK\",outcome=\"denied\"}", 3),
        ("tollgate_rpcs_total{rpc=\"Reserve\",code=\"INVALID_ARGUMENT\",outcome=\"fault\"}", 1),
        ("tollgate_rpcs_total{rpc=\"Commit\",code=\"OK\",outcome=\"done\"}", 2),
        ("tollgate_rpcs_total{rpc=\"Commit\",code=\"OK\",outcome=\"replayed\"}", 1),
        ("tollgate_rpcs_total{rpc=\"Commit\",code=\"FAILED_PRECONDITION\",outcome=\"fault\"}", 1),
        ("tollgate_rpcs_total{rpc=\"Release\",code=\"OK\",outcome=\"done\"}", 1),
        ("tollgate_rpcs_total{rpc=\"Release\",code=\"OK\",outcome=\"replayed\"}", 1),
        ("tollgate_rpcs_total{rpc=\"Track\",code=\"OK\",outcome=\"allowed\"}", 2),
        ("tollgate_rpcs_total{rpc=\"Track\",code=\"OK\",outcome=\"denied\"}", 1),
        ("tollgate_rpcs_total{rpc=\"Track\",code=\"OK\",outcome=\"uncounted\"}", 1),
        ("tollgate_rpcs_total{rpc=\"CanUse\",code=\"OK\",outcome=\"allowed\"}", 1),
        ("tollgate_rpcs_total{rpc=\"CanUse\",code=\"OK\",outcome=\"denied\"}", 1),
        ("tollgate_rpcs_total{rpc=\"unknown\",code=\"UNIMPLEMENTED\",outcome=\"fault\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Reserve\",outcome=\"allowed\"}", 4),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Reserve\",outcome=\"replayed\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Reserve\",outcome=\"denied\"}", 3),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Reserve\",outcome=\"fault\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Commit\",outcome=\"done\"}", 2),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Commit\",outcome=\"replayed\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Commit\",outcome=\"fault\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Release\",outcome=\"done\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Release\",outcome=\"replayed\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Track\",outcome=\"allowed\"}", 2),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Track\",outcome=\"denied\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Track\",outcome=\"uncounted\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"CanUse\",outcome=\"allowed\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"CanUse\",outcome=\"denied\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"unknown\",outcome=\"fault\"}", 1),
        ("tollgate_denials_total{plan=\"small\",limit_group=\"tokens\"}", 1),
        ("tollgate_denials_total{plan=\"small\",limit_group=\"images\"}", 1),
        ("tollgate_denials_total{plan=\"large\",limit_group=\"tokens\"}", 1),
        ("tollgate_events_uncounted_total{rpc=\"Reserve\",reason=\"unmatched_event\"}", 1),
        ("tollgate_events_uncounted_total{rpc=\"Track\",reason=\"unmatched_event\"}", 1),
        ("tollgate_events_uncounted_total{rpc=\"CanUse\",reason=\"unmatched_event\"}", 1),
        ("tollgate_holds_lapsed_total", 2),
        ("tollgate_commits_late_total", 1),
        ("tollgate_commits_over_total", 1),
        ("tollgate_refunds_unapplied_total", 1),
        ("tollgate_stale_compilations_total", 1),
        ("tollgate_redis_duration_seconds_count{script=\"reserve\"}", 9),
        ("tollgate_redis_duration_seconds_count{script=\"commit\"}", 4),
        ("tollgate_redis_duration_seconds_count{script=\"release\"}", 2),
        ("tollgate_redis_duration_seconds_count{script=\"track\"}", 3),
        ("tollgate_redis_duration_seconds_count{script=\"refund\"}", 1),
        ("tollgate_redis_duration_seconds_count{script=\"can_use\"}", 2),
        ("tollgate_redis_batch_calls_count", 21),
    ]
    .into_iter()
    .map(|(name, by)| (name.to_owned(), f64::from(by)))
    .collect();
    assert_eq!(grown, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_counts_each_request_of_a_batch_as_one_of_track() {
    let served = serve("batch", &redis_url(), &[]);
    let mut replica = Replica::connect(served.address).await;
    let (user, other, metering) = (fresh_user("seen"), fresh_user("seen"), &mut replica.metering);
    let before = scrape(&served);
    let once = v1::TrackRequest { request_id: "t".to_owned(), ..track(&user, event("image.render", 1.0), false) };
    let requests = vec![
        once.clone(),
        once,
        track(&user, event("image.render", 1e6), true),
        track(&other, event("image.rendr", 1.0), false),
        track("", event("image.render", 1.0), false),
        track(&user, event("image.render.refund", 5.0), false),
    ];
    metering.batch_track(v1::BatchTrackRequest { requests }).await.unwrap();
    metering.batch_track(v1::BatchTrackRequest::default()).await.unwrap_err();
    let held = metering.reserve(reserve(&user, event("llm.tokens", 1.0), "")).await.unwrap().into_inner();
    metering.get_reservation(v1::GetReservationRequest { reservation_id: held.reservation_id }).await.unwrap();
    metering.list_reservations(v1::ListReservationsRequest { user_id: user, ..Default::default() }).await.unwrap();
    let mut grown = growth(&before, &scrape(&served));
    // How many calls travel together depends on the moment.
    grown.remove("tollgate_redis_batch_calls_count");
    let expected: BTreeMap<String, f64> = [
        ("tollgate_rpcs_total{rpc=\"BatchTrack\",code=\"OK\",outcome=\"done\"}", 1),
        ("tollgate_rpcs_total{rpc=\"BatchTrack\",code=\"INVALID_ARGUMENT\",outcome=\"fault\"}", 1),
        ("tollgate_rpcs_total{rpc=\"Reserve\",code=\"OK\",outcome=\"allowed\"}", 1),
        ("tollgate_rpcs_total{rpc=\"GetReservation\",code=\"OK\",outcome=\"done\"}", 1),
        ("tollgate_rpcs_total{rpc=\"ListReservations\",code=\"OK\",outcome=\"done\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"BatchTrack\",outcome=\"done\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"BatchTrack\",outcome=\"fault\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"Reserve\",outcome=\"allowed\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"GetReservation\",outcome=\"done\"}", 1),
        ("tollgate_rpc_duration_seconds_count{rpc=\"ListReservations\",outcome=\"done\"}", 1),
        // The refund counts as what Track counts of one.
        ("tollgate_batch_tracks_total{code=\"OK\",outcome=\"allowed\"}", 2),
        ("tollgate_batch_tracks_total{code=\"OK\",outcome=\"replayed\"}", 1),
        ("tollgate_batch_tracks_total{code=\"OK\",outcome=\"denied\"}", 1),
        ("tollgate_batch_tracks_total{code=\"OK\",outcome=\"uncounted\"}", 1),
        ("tollgate_batch_tracks_total{code=\"INVALID_ARGUMENT\",outcome=\"fault\"}", 1),
        ("tollgate_denials_total{plan=\"small\",limit_group=\"images\"}", 1),
        ("tollgate_events_uncounted_total{rpc=\"Track\",reason=\"unmatched_event\"}", 1),
        ("tollgate_refunds_unapplied_total", 1),
        ("tollgate_redis_duration_seconds_count{script=\"reserve\"}", 1),
        ("tollgate_redis_duration_seconds_count{script=\"track\"}", 4),
        ("tollgate_redis_duration_seconds_count{script=\"refund\"}", 1),
        ("tollgate_redis_duration_seconds_count{script=\"reservation_get\"}", 1),
        ("tollgate_redis_duration_seconds_count{script=\"reservations_list\"}", 1),
    ]
    .into_iter()
    .map(|(name, by)| (name.to_owned(), f64::from(by)))
    .collect();
    assert_eq!(grown, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_come_in_the_format_that_is_asked_for_and_pass_the_linter() {
    let served = serve("formats", &redis_url(), &[]);
    let mut replica = Replica::connect(served.address).await;
    replica.metering.reserve(reserve(&fresh_user("formats"), event("llm.tokens", 1e6), "")).await.unwrap();
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for (accept, expected) in [("*/*", TEXT), ("text/plain;version=0.0.4", TEXT), (prometheus, OPENMETRICS)] {
        assert_eq!(served.metrics(accept).0, expected, "{accept}");
    }
    let ((_, text), (_, open)) = (served.metrics("text/plain"), served.metrics("application/openmetrics-text"));
    // Each names a counter's family in its own way.
    assert!(text.contains("\n# TYPE tollgate_rpcs_total counter\n") && !text.contains("# EOF"), "{text}");
    assert!(open.contains("\n# TYPE tollgate_rpcs counter\n") && open.ends_with("\n# EOF\n"), "{open}");
    // The formats differ in the order of labels, and in whether the bound of a bucket is `1.0` or `1`.
    let normal = |name: &str| {
        let (family, labels) = name.split_once('{').unwrap_or((name, ""));
        let labels = labels.trim_end_matches('}').split(',').map(|label| match label.strip_prefix("le=") {
            Some(bound) => format!("le={}", bound.trim_end_matches('"').trim_end_matches(".0")),
            None => label.trim_end_matches('"').to_owned(),
        });
        (family.to_owned(), labels.collect::<BTreeSet<_>>())
    };
    let names = |text: &str| samples(text).keys().map(|name| normal(name)).collect::<BTreeSet<_>>();
    assert_eq!(names(&text), names(&open));
    promtool::check_metrics(&text);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn the_process_is_measured_as_by_every_prometheus_client() {
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let served = serve("process", &redis_url(), &[]);
    let figures = scrape(&served);
    let process = std::fs::read_to_string(format!("/proc/{}/status", served.id())).unwrap();
    assert!(process.contains("VmSize:"));
    assert!(figures["process_virtual_memory_bytes"] > figures["process_resident_memory_bytes"]);
    assert!(figures["process_resident_memory_bytes"] > 1e6);
    assert!(figures["process_virtual_memory_max_bytes"] >= figures["process_virtual_memory_bytes"]);
    assert!(figures["process_open_fds"] > 3.0 && figures["process_open_fds"] < figures["process_max_fds"]);
    assert!(figures["process_threads"] >= 1.0);
    // The kernel counts from a whole second, in hundredths.
    let started = figures["process_start_time_seconds"];
    assert!(started > before - 2.0 && started < before + 600.0, "{started} {before}");
    // Scrapes cost CPU time, which is told in hundredths of a second.
    let deadline = Instant::now() + Duration::from_secs(60);
    while scrape(&served)["process_cpu_seconds_total"] < figures["process_cpu_seconds_total"] + 0.02 {
        assert!(Instant::now() < deadline, "CPU time stands still");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_of_redis_that_is_wrong_or_jumps_is_seen() {
    let redis = RedisServer::start(scratch("clock"), "");
    redis.ready().await;
    let network = Proxy::start(([127, 0, 0, 1], redis.port()).into(), 1).await;
    let served = serve("clock", &format!("redis://{}", network.address()), &[]);
    let until = |what: &str, seen: &dyn Fn(f64, f64) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let figures = scrape(&served);
            let (ahead, jumps) =
                (figures["tollgate_redis_clock_offset_seconds"], figures["tollgate_redis_clock_jumps_total"]);
            if seen(ahead, jumps) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {ahead} s ahead, {jumps} jumps");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    // Both are this machine's clock.
    until("at first", &|ahead, jumps| ahead.abs() < 1.0 && jumps == 0.0);
    let days = 70 * 24 * 3600;
    network.set(Fault::Clock(days));
    until("70 days ahead", &|ahead, jumps| (ahead - days as f64).abs() < 1.0 && jumps == 1.0);
    network.set(Fault::Clock(-100));
    until("100 s behind", &|ahead, jumps| (ahead + 100.0).abs() < 1.0 && jumps == 2.0);
    network.set(Fault::None);
    until("at last", &|ahead, jumps| ahead.abs() < 1.0 && jumps == 3.0);
    assert_eq!(served.log().matches("redis's clock has jumped").count(), 3, "{}", served.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_can_add_a_time_series() {
    let served = serve("series", &redis_url(), &["--redis-timeout", "20s"]);
    let replica = Replica::connect(served.address).await;
    let channel = channel(&served).await;
    let round = async |from: usize, to: usize| {
        let mut calls = tokio::task::JoinSet::new();
        for number in from..to {
            let (mut metering, channel, user) = (replica.metering.clone(), channel.clone(), fresh_user("series"));
            calls.spawn(async move {
                let mut odd = event("llm.tokens", 1.0).unwrap();
                odd.metadata = [(format!("key{number}"), format!("value \"{number}\"\n{{}}"))].into();
                let mut request = Request::new(reserve(&user, Some(odd), &format!("id-{number}")));
                request.metadata_mut().insert("x-request-id", format!("request-{number}").parse().unwrap());
                metering.reserve(request).await.unwrap();
                metering.reserve(reserve(&user, event("llm.tokens", 1e6), "")).await.unwrap();
                metering.track(track(&user, event(&format!("event.{number}"), 1.0), false)).await.unwrap();
                metering.commit(commit(&format!("{number}.default:{user}"), 1.0)).await.unwrap_err();
                call_unknown(channel.clone(), &format!("/tollgate.v1.MeteringService/Method{number}")).await;
                call_unknown(channel, &format!("/service{number}/Reserve")).await;
            });
        }
        calls.join_all().await;
    };
    round(0, 5).await;
    let before = scrape(&served);
    round(5, 1000).await;
    let after = scrape(&served);
    let names = |samples: &BTreeMap<String, f64>| samples.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&before), names(&after));
    assert_eq!(after["tollgate_rpcs_total{rpc=\"unknown\",code=\"UNIMPLEMENTED\",outcome=\"fault\"}"], 2000.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_components_apart_and_liveness_does_not_depend_on_redis() {
    let redis = RedisServer::start(scratch("health-components"), "");
    redis.ready().await;
    let served = serve("components", &redis.url(), &[]);
    let report = |expected: u16| {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let (status, text) = served.get("/readyz");
            assert_eq!(served.get("/livez").0, 200);
            if status == expected {
                return serde_json::from_str::<serde_json::Value>(&text).unwrap();
            }
            assert!(Instant::now() < deadline, "{status} {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let mut health = HealthClient::new(channel(&served).await);
    let mut asked = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.check(request).await.unwrap().into_inner().status()
    };
    let up = serde_json::json!({ "server": "up", "redis": "up", "catalog": "up" });
    assert_eq!(report(200), serde_json::json!({ "ready": true, "components": up }));
    for service in ["", "tollgate.v1.MeteringService", "redis", "catalog", "liveness"] {
        assert_eq!(asked(service).await, ServingStatus::Serving, "{service}");
    }
    redis.signal("-STOP");
    let down = serde_json::json!({ "server": "up", "redis": "down", "catalog": "up" });
    assert_eq!(report(503), serde_json::json!({ "ready": false, "components": down }));
    for service in ["", "tollgate.v1.MeteringService", "redis"] {
        assert_eq!(asked(service).await, ServingStatus::NotServing, "{service}");
    }
    for service in ["catalog", "liveness"] {
        assert_eq!(asked(service).await, ServingStatus::Serving, "{service}");
    }
    let samples = scrape(&served);
    assert_eq!((samples["tollgate_ready"], samples["tollgate_component_up{component=\"redis\"}"]), (0.0, 0.0));
    redis.signal("-CONT");
    report(200);
    assert_eq!(asked("redis").await, ServingStatus::Serving);
    assert_eq!(served.get("/").0, 404);
    assert_eq!(served.get("/metrics/").0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_json_name_the_request_and_neither_the_user_nor_a_password() {
    let redis = RedisServer::start(scratch("json"), "--requirepass topsecret");
    let url = format!("redis://:topsecret@127.0.0.1:{}", redis.port());
    let flags = ["--log", "info,tollgate=debug", "--log-format", "json", "--redis-timeout", "300ms"];
    let mut served = serve("json", &url, &flags);
    let mut replica = Replica::connect(served.address).await;
    let user = fresh_user("secretuser");
    let mut call = async |id: &str| {
        let mut request = Request::new(reserve(&user, event("llm.tokens", 1.0), ""));
        if !id.is_empty() {
            request.metadata_mut().insert("x-request-id", MetadataValue::try_from(id).unwrap());
        }
        let answer = replica.metering.reserve(request).await;
        let metadata = answer.as_ref().map_or_else(|status| status.metadata(), |answer| answer.metadata());
        (metadata.get("x-request-id").unwrap().to_str().unwrap().to_owned(), answer.is_ok())
    };
    assert_eq!(call("chosen-1").await, ("chosen-1".to_owned(), true));
    let (made, _) = call("").await;
    let (replaced, _) = call("not sane\"").await;
    assert!(made != replaced && !made.is_empty() && !replaced.contains(' '), "{made} {replaced}");
    everything_about(&user, Replica::connect(served.address).await).await;
    redis.signal("-STOP");
    assert_eq!(call("chosen-2").await, ("chosen-2".to_owned(), false));
    redis.signal("-CONT");
    served.signal("-TERM");
    served.wait();
    let log = served.whole_log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for id in ["chosen-1", &made, &replaced, "chosen-2"] {
        let answered = lines.iter().find(|line| line["request_id"] == id && line["target"] == "tollgate::access");
        let answered = answered.unwrap_or_else(|| panic!("{id} is not in {log}"));
        assert!(
            answered["rpc"] == "Reserve" && answered["micros"].is_u64() && answered["level"] == "DEBUG",
            "{answered}"
        );
    }
    let fault = lines.iter().find(|line| line["request_id"] == "chosen-2" && line["level"] == "WARN").expect(&log);
    let chain = fault["error"].as_str().unwrap();
    assert!(chain.starts_with("the ledger did not answer") && chain.contains("timed out"), "{chain}");
    assert!(!log.contains(&user) && !log.contains("secretuser") && !log.contains("topsecret"), "{log}");
}

/// Calls whatever names the user, well and badly.
async fn everything_about(user: &str, mut replica: Replica) {
    let (metering, subscriptions) = (&mut replica.metering, &mut replica.subscriptions);
    let held = metering.reserve(reserve(user, event("llm.tokens", 1.0), "r")).await.unwrap().into_inner();
    metering.reserve(reserve(user, event("llm.tokens", 2.0), "r")).await.unwrap_err();
    metering.reserve(reserve(user, event("llm.tokens", -2.0), "")).await.unwrap_err();
    metering.commit(commit(&held.reservation_id, 1.0)).await.unwrap();
    let release = v1::ReleaseRequest { reservation_id: held.reservation_id, reason: "late".to_owned() };
    metering.release(release).await.unwrap_err();
    metering.commit(commit(&format!("nothing.default:{user}"), 1.0)).await.unwrap_err();
    metering.track(track(user, event("llm.tokens", 1.0), false)).await.unwrap();
    metering.can_use(v1::CanUseRequest { user_id: user.to_owned(), event: event("llm.tokens", 1.0) }).await.unwrap();
    let usage = v1::GetUsageRequest { user_id: user.to_owned(), ..v1::GetUsageRequest::default() };
    metering.get_usage(usage).await.unwrap();
    for plan in ["large", "none"] {
        let (user_id, plan_id) = (user.to_owned(), plan.to_owned());
        let upsert = v1::UpsertSubscriptionRequest { user_id, plan_id, ..v1::UpsertSubscriptionRequest::default() };
        assert_eq!(subscriptions.upsert_subscription(upsert).await.is_ok(), plan == "large");
    }
    subscriptions.get_subscription(v1::GetSubscriptionRequest { user_id: user.to_owned() }).await.unwrap();
    subscriptions.delete_user(v1::DeleteUserRequest { user_id: user.to_owned() }).await.unwrap();
}

/// Every word of a text that could be the name of a metric.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'));
    words.filter(|word| word.starts_with("tollgate_") || word.starts_with("process_")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboard_alerts_and_docs_name_what_there_is() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect(path);
    let (alerts, dashboard) = (read("deploy/prometheus/alerts.yaml"), read("deploy/grafana/tollgate.json"));
    let (runbook, documented) = (read("docs/operating/runbook.md"), read("docs/operating/metrics.md"));
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).expect("the dashboard is JSON");
    let panels = parsed["panels"].as_array().unwrap();
    assert!(panels.len() > 20);
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = &panel["title"];
        let described = panel["description"].as_str().is_some_and(|text| text.len() > 20 && text.ends_with('.'));
        assert!(described, "{title} is not described");
        for target in panel["targets"].as_array().unwrap() {
            // Each of its metrics is that of the chosen jobs and instances.
            let expression = target["expr"].as_str().unwrap();
            let chosen = expression.matches("job=~\"$job\",instance=~\"$instance\"").count();
            let named = expression.matches("tollgate_").count() + expression.matches("process_").count();
            assert!(named > 0 && chosen == named, "{title}: {expression}");
        }
    }
    let variables: Vec<_> =
        parsed["templating"]["list"].as_array().unwrap().iter().map(|variable| variable["name"].as_str()).collect();
    assert_eq!(variables, [Some("datasource"), Some("job"), Some("instance")]);
    assert!(dashboard.contains("rate(process_cpu_seconds_total{"), "a panel of CPU");

    let served = serve("files", &redis_url(), &[]);
    let mut replica = Replica::connect(served.address).await;
    replica.metering.reserve(reserve(&fresh_user("files"), event("llm.tokens", 1e6), "")).await.unwrap();
    let samples = scrape(&served);
    let there: BTreeSet<&str> = samples.keys().map(|name| name.split('{').next().unwrap()).collect();
    for (file, text) in [("the alerts", &alerts), ("the dashboard", &dashboard)] {
        let named = metrics_in(text);
        assert!(named.len() > 10, "{file} name metrics");
        let missing: Vec<_> = named.difference(&there).collect();
        assert!(missing.is_empty(), "{file} name what does not exist: {missing:?}");
    }
    // The docs name a histogram once, without the endings of its samples.
    let family = |name: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let (families, in_docs) = (there.iter().map(|name| family(name)), metrics_in(&documented));
    let families: BTreeSet<String> = families.collect();
    assert_eq!(families, in_docs.into_iter().map(str::to_owned).collect());
    assert!(metrics_in(&runbook).iter().all(|name| there.contains(name) || families.contains(*name)));
}
