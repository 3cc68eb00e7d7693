//! Calls that travel together: they arrive while Redis is busy, and are decided by few commands, each as if it were alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tollgate::grpc::v1::{self, GetUsageRequest, ReserveRequest, TrackRequest};
use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;
use tollgate::private_redis::{self, PrivateRedis};
use tonic::Code;

use crate::support::{Replica, connection_to, keys, nothing_contradicts_itself, redis_options, scratch};

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - { id: tokens, unit: tokens, quota: 1000, match: [{ event: t }] }
      - { id: calls, unit: count, quota: 10, match: [{ event: t, measure: events }] }
";

/// A Redis of its own, and a replica of the server on it.
struct Bench {
    redis: PrivateRedis,
    connection: MultiplexedConnection,
    replica: Replica,
}

impl Bench {
    async fn start(name: &str, change: impl FnOnce(&mut RedisOptions)) -> Self {
        let options = private_redis::Options { data_dir: scratch(name), ..private_redis::Options::default() };
        let redis = private_redis::start(options).await.unwrap();
        let connection = connection_to(&redis.url()).await;
        let mut options = RedisOptions { urls: vec![redis.url()], connections: 1, ..redis_options() };
        change(&mut options);
        let replica = Replica::start_with(CATALOG, jiff::tz::db(), MeterOptions::default(), options).await;
        Self { redis, connection, replica }
    }

    /// Redis takes commands, and executes them only after this.
    async fn pause(&mut self, ms: u64) {
        let mut pause = redis::cmd("CLIENT");
        let _: () = pause.arg("PAUSE").arg(ms).arg("ALL").query_async(&mut self.connection).await.unwrap();
    }

    async fn scripts_run(&mut self) -> u64 {
        let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut self.connection).await.unwrap();
        let calls = |name: &str| {
            let calls = info.split_once(&format!("cmdstat_{name}:calls="));
            calls.map_or(0, |(_, rest)| rest.split(',').next().unwrap().parse().unwrap())
        };
        calls("evalsha") + calls("fcall")
    }

    async fn reserve(&self, user: &str, quantity: f64) -> Result<v1::ReserveResponse, tonic::Status> {
        let request_id = format!("{user} {quantity}");
        let request = ReserveRequest {
            user_id: user.to_owned(),
            event: event(quantity),
            ttl: None,
            request_id,
            ..ReserveRequest::default()
        };
        self.replica.metering.clone().reserve(request).await.map(tonic::Response::into_inner)
    }

    async fn track(&self, user: &str, quantity: f64) -> Result<v1::TrackResponse, tonic::Status> {
        let request = TrackRequest { user_id: user.to_owned(), event: event(quantity), ..TrackRequest::default() };
        self.replica.metering.clone().track(request).await.map(tonic::Response::into_inner)
    }

    /// What the user has used and holds of each group.
    async fn usage(&self, user: &str) -> Vec<(f64, f64)> {
        let request = GetUsageRequest { user_id: user.to_owned(), ..GetUsageRequest::default() };
        let usage = self.replica.metering.clone().get_usage(request).await.unwrap().into_inner();
        usage.limits.iter().map(|limit| (limit.used, limit.held)).collect()
    }

    async fn stop(self) {
        nothing_contradicts_itself(&[self.redis.url()]).await;
        self.redis.stop().await;
    }
}

fn event(quantity: f64) -> Option<v1::Event> {
    Some(v1::Event { name: "t".to_owned(), quantity: Some(quantity), ..v1::Event::default() })
}

/// Runs all at the same time.
async fn together<T: Send + 'static>(
    calls: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let calls: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn calls_that_meet_a_busy_redis_are_decided_by_few_commands_and_each_by_itself() {
    let mut bench = Bench::start("together", |_| ()).await;
    let before = bench.scripts_run().await;
    bench.pause(300).await;
    let bench = Arc::new(bench);
    // 12 calls each of 10 users, of whom each may make 10.
    let answers = together((0..120).map(|number| {
        let (bench, user) = (Arc::clone(&bench), format!("user {}", number % 10));
        async move {
            match number % 2 {
                0 => bench.reserve(&user, f64::from(number + 1)).await.map(|answer| answer.allowed),
                _ => bench.track(&user, f64::from(number + 1)).await.map(|answer| !answer.event_id.is_empty()),
            }
        }
    }))
    .await;
    // Even users reserve, and are refused two of twelve; odd ones track, which counts in full.
    for (number, answer) in answers.iter().enumerate() {
        assert!(answer.is_ok(), "{number}: {answer:?}");
    }
    for user in 0..10 {
        let answers = answers.iter().skip(user).step_by(10).map(|answer| *answer.as_ref().unwrap());
        let counted = answers.clone().filter(|counted| *counted).count();
        assert_eq!(counted, if user % 2 == 0 { 10 } else { 12 }, "user {user}");
        let amounts = (user + 1..=120).step_by(10).zip(answers).filter(|(_, counted)| *counted);
        let sum = amounts.map(|(amount, _)| amount).sum::<usize>() as f64;
        let counts = counted as f64;
        let expected = if user % 2 == 0 { [(0.0, sum), (0.0, counts)] } else { [(sum, 0.0), (counts, 0.0)] };
        assert_eq!(bench.usage(&format!("user {user}")).await, expected, "user {user}");
    }
    let mut bench = Arc::into_inner(bench).unwrap();
    // The first alone, then 32 at most at a time of two scripts; 10 questions about usage, and a few calls that came too early.
    let commands = bench.scripts_run().await - before;
    assert!((10..40).contains(&commands), "{commands} commands");
    bench.stop().await;
}

#[tokio::test]
async fn a_call_that_fails_in_redis_leaves_its_neighbours_alone() {
    let mut bench = Bench::start("failing", |_| ()).await;
    let broken = ["user 3", "user 7"].map(|user| keys(user).state().to_owned());
    // One that ends too early, and one that is none at all.
    let _: () = redis::cmd("SET").arg(&broken[0]).arg(b"\x01").query_async(&mut bench.connection).await.unwrap();
    let _: () = redis::cmd("RPUSH").arg(&broken[1]).arg(b"\x01").query_async(&mut bench.connection).await.unwrap();
    bench.pause(200).await;
    let bench = Arc::new(bench);
    let answers = together((0..20).map(|number| {
        let bench = Arc::clone(&bench);
        async move { bench.reserve(&format!("user {number}"), 10.0).await }
    }))
    .await;
    for (number, answer) in answers.iter().enumerate() {
        match answer {
            Ok(answer) => assert!(answer.allowed && ![3, 7].contains(&number), "{number}"),
            Err(status) => assert!(status.code() == Code::Internal && [3, 7].contains(&number), "{number}: {status}"),
        }
    }
    let mut bench = Arc::into_inner(bench).unwrap();
    let _: () = redis::cmd("DEL").arg(&broken).query_async(&mut bench.connection).await.unwrap();
    bench.stop().await;
}

#[tokio::test]
async fn a_caller_who_goes_away_cuts_neither_the_own_call_short_nor_those_of_others() {
    let mut bench = Bench::start("leaving", |_| ()).await;
    bench.pause(400).await;
    let bench = Arc::new(bench);
    let calls: Vec<_> = (0..20)
        .map(|number| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move { bench.reserve(&format!("user {number}"), 10.0).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(150)).await;
    for (number, call) in calls.into_iter().enumerate() {
        if number % 2 == 0 {
            call.abort();
        } else {
            assert!(call.await.unwrap().unwrap().allowed, "user {number}");
        }
    }
    for number in 0..20 {
        // A retry finds what was done, also if it overtakes it.
        let retried = bench.reserve(&format!("user {number}"), 10.0).await.unwrap();
        assert!(retried.allowed && retried.replayed, "user {number}");
        assert_eq!(bench.usage(&format!("user {number}")).await, [(0.0, 10.0), (0.0, 1.0)], "user {number}");
    }
    Arc::into_inner(bench).unwrap().stop().await;
}

#[tokio::test]
async fn a_redis_that_forgets_the_scripts_gets_them_again_and_nothing_is_counted_twice() {
    let bench = Arc::new(Bench::start("forgetful", |_| ()).await);
    for round in 0..5 {
        let mut connection = bench.connection.clone();
        let flush = tokio::spawn(async move {
            for _ in 0..3 {
                for memory in ["SCRIPT", "FUNCTION"] {
                    let _: () = redis::cmd(memory).arg("FLUSH").query_async(&mut connection).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let answers = together((0..50).map(|number| {
            let bench = Arc::clone(&bench);
            async move { bench.track(&format!("user {number}"), 1.0).await }
        }))
        .await;
        flush.await.unwrap();
        for (number, answer) in answers.iter().enumerate() {
            assert!(answer.is_ok(), "round {round}, user {number}: {answer:?}");
        }
    }
    for number in 0..50 {
        assert_eq!(bench.usage(&format!("user {number}")).await, [(5.0, 0.0), (5.0, 0.0)], "user {number}");
    }
    Arc::into_inner(bench).unwrap().stop().await;
}

#[tokio::test]
async fn each_call_waits_as_long_as_it_may_from_its_own_start_and_nothing_is_sent_late() {
    let mut bench = Bench::start("late", |options| options.timeout = Duration::from_millis(400)).await;
    let _ = bench.usage("user 0").await;
    bench.pause(1500).await;
    let bench = Arc::new(bench);
    let answers = together((0..10).map(|number| {
        let bench = Arc::clone(&bench);
        async move {
            tokio::time::sleep(Duration::from_millis(number * 30)).await;
            let start = Instant::now();
            (bench.track(&format!("user {number}"), 1.0).await, start.elapsed())
        }
    }))
    .await;
    for (number, (answer, waited)) in answers.iter().enumerate() {
        assert_eq!(answer.as_ref().unwrap_err().code(), Code::Unavailable, "user {number}");
        assert!((390..800).contains(&waited.as_millis()), "user {number} waited {waited:?}");
    }
    // What was sent is executed in the end, at most once; what was still waiting is not.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for number in 0..10 {
        let used = bench.usage(&format!("user {number}")).await[1].0;
        assert!(used <= 1.0, "user {number} has used {used}");
    }
    Arc::into_inner(bench).unwrap().stop().await;
}
