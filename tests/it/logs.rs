//! The log under calls that go wrong by the thousand.

use crate::support::redis_server::RedisServer;
use crate::support::served::Served;
use crate::support::{Replica, scratch};
use tollgate::grpc::v1;

const CALLS: usize = 600;

/// Ten lines, and one more for every ten seconds that the calls take on a machine however busy.
const MOST: usize = CALLS / 10;

/// Starts a server over a Redis that then ends, makes calls that all have no answer, and returns the log.
async fn log_without_redis(name: &str, flags: &[&str]) -> Vec<serde_json::Value> {
    let mut redis = RedisServer::start(scratch(name), "");
    redis.ready().await;
    let url = redis.url();
    let mut all = vec!["--redis-url", &url, "--redis-timeout", "200ms", "--log-format", "json"];
    all.extend(flags);
    let mut served = Served::start(0, &all);
    let replica = Replica::connect(served.address).await;
    redis.kill();
    let mut calls = tokio::task::JoinSet::new();
    for index in 0..CALLS {
        let mut metering = replica.metering.clone();
        let event = v1::Event { name: "image.render".to_owned(), ..v1::Event::default() };
        let request = v1::ReserveRequest { user_id: format!("u{index}"), event: Some(event), ..Default::default() };
        calls.spawn(async move { metering.reserve(request).await.map(|answer| answer.into_inner().degraded) });
    }
    let degraded = calls.join_all().await.into_iter().filter(|answer| matches!(answer, Ok(true))).count();
    assert!(degraded == 0 || degraded == CALLS, "{degraded}");
    served.signal("-TERM");
    let log = served.whole_log();
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// How many lines have this message, and how many are said to have been left out.
fn lines(log: &[serde_json::Value], message: &str) -> (usize, u64) {
    let written = log.iter().filter(|line| line["message"] == message).count();
    let told = format!("more lines like this one were left out: {message}");
    let left_out = log.iter().filter(|line| line["message"] == told.as_str());
    (written, left_out.map(|line| line["left_out"].as_u64().expect("a count")).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_an_answer_are_counted_in_the_log_and_not_listed() {
    let log = log_without_redis("log-unanswered", &[]).await;
    let (written, left_out) = lines(&log, "a call has no answer");
    assert!((1..=MOST).contains(&written), "{written} lines for {CALLS} calls");
    assert_eq!(written as u64 + left_out, CALLS as u64, "every line is written or counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_open_are_counted_in_the_log_and_not_listed() {
    let log = log_without_redis("log-degraded", &["--fail-open"]).await;
    let (written, left_out) = lines(&log, "allowed without a decision: redis did not answer");
    assert!((1..=MOST).contains(&written), "{written} lines for {CALLS} calls");
    assert_eq!(written as u64 + left_out, CALLS as u64, "every line is written or counted");
    let last = log.last().expect("it has said something");
    assert!(last["target"].is_string(), "what was written last is whole: {last}");
}
