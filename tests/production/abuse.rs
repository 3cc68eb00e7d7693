//! Callers who ask for too much: what they get instead, and that nobody else notices.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinHandle;
use tollgate::grpc::v1;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::access::{key, reason, refused, with};
use crate::raw::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, OPENING, PATIENCE, RST_STREAM, Raw, closed, frame, framed, frames,
    headers, next_frame, said,
};
use crate::rolling::until;
use crate::support::redis_server::RedisServer;
use crate::support::served::Served;
use crate::support::{Replica, fresh_user, load, redis_url, scratch};

pub const RESERVE: &str = "/tollgate.v1.MeteringService/Reserve";
pub const TRACK: &str = "/tollgate.v1.MeteringService/Track";
pub const LIST_PLANS: &str = "/tollgate.v1.PlanService/ListPlans";

/// A catalog of limits that nobody reaches.
static CATALOG: LazyLock<String> = LazyLock::new(|| {
    let path = scratch("abuse.yaml");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, load::catalog(1_000_000_000)).unwrap();
    path.to_str().unwrap().to_owned()
});

/// A replica with these flags, on the shared Redis unless they name another.
pub fn serve(flags: &[&str]) -> Served {
    let shared = ["--redis-url".to_owned(), redis_url()];
    let mut all: Vec<&str> = vec!["--catalog", &CATALOG];
    if !flags.contains(&"--redis-url") {
        all.extend(shared.iter().map(String::as_str));
    }
    all.extend(flags);
    Served::start(0, &all)
}

/// A replica with these flags, on a Redis of its own, whose answers it awaits for longer than any test stops that Redis.
async fn serve_own(name: &str, flags: &[&str]) -> (RedisServer, Served) {
    let redis = RedisServer::start(scratch(name), "");
    redis.ready().await;
    let url = redis.url();
    let own = ["--redis-url", &url, "--redis-timeout", "60s", "--call-timeout", "60s", "--redis-connections", "1"];
    let served = serve(&own.iter().chain(flags).copied().collect::<Vec<_>>());
    (redis, served)
}

fn event() -> v1::Event {
    v1::Event { name: "work".to_owned(), quantity: Some(1.0), ..v1::Event::default() }
}

pub fn reserve(user: &str) -> v1::ReserveRequest {
    v1::ReserveRequest { user_id: user.to_owned(), event: Some(event()), ..v1::ReserveRequest::default() }
}

pub fn track(user: &str) -> v1::TrackRequest {
    v1::TrackRequest { user_id: user.to_owned(), event: Some(event()), ..v1::TrackRequest::default() }
}

/// What a user has used, and holds.
pub async fn used_and_held(replica: &mut Replica, user: &str) -> (f64, f64) {
    let asked = v1::GetUsageRequest { user_id: user.to_owned(), ..v1::GetUsageRequest::default() };
    let usage = replica.metering.get_usage(asked).await.unwrap().into_inner();
    (usage.limits[0].used, usage.limits[0].held)
}

/// Whose calls nobody may hinder.
pub struct Honest {
    task: JoinHandle<()>,
    stop: &'static AtomicBool,
    served: &'static AtomicU64,
}

impl Honest {
    pub async fn start(served: &Served) -> Self {
        let mut replica = Replica::connect(served.address).await;
        let (stop, count): (&AtomicBool, &AtomicU64) =
            (Box::leak(Box::default()), Box::leak(Box::<AtomicU64>::default()));
        let user = fresh_user("honest");
        let task = tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = tokio::time::timeout(PATIENCE, replica.metering.track(track(&user))).await;
                answer.expect("an honest caller is answered").expect("an honest caller is served");
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self { task, stop, served: count }
    }

    /// It was served until now, and is once more.
    pub async fn end(self) {
        let before = self.served.load(Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        while self.served.load(Ordering::Relaxed) <= before && !self.task.is_finished() {
            assert!(Instant::now() < deadline, "an honest caller is served still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_refused_and_its_connection_lives_on() {
    let served = serve(&["--max-message-bytes", "2048"]);
    let mut raw = Raw::connect(served.address).await;
    let large = framed(&reserve(&"u".repeat(3000)));
    let status = raw.call(RESERVE, &[], large).await.unwrap().status();
    assert_eq!(reason(&status), (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned()));
    assert!(status.message().contains("2048"), "{status:?}");
    // By its length alone: the rest never comes.
    let mut begun = raw.begin(RESERVE, &[]).await.unwrap();
    begun.body.send_data(Bytes::from_static(b"\0\xff\xff\xff\xff"), false).unwrap();
    let status = begun.answer().await.unwrap().status();
    assert_eq!(reason(&status), (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned()));
    let fits = raw.call(RESERVE, &[], framed(&reserve(&fresh_user("fits")))).await.unwrap().status();
    assert_eq!(fits.code(), Code::Ok, "{fits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_too_large_are_refused_and_others_do_not_notice() {
    let served = serve(&["--max-header-bytes", "2048"]);
    let honest = Honest::start(&served).await;
    let mut raw = Raw::connect(served.address).await;
    let body = framed(&reserve(&fresh_user("headers")));
    let too_large = raw.call(RESERVE, &[("x-large", &"x".repeat(3000))], body.clone()).await.unwrap();
    assert_eq!(too_large.http, 431, "{too_large:?}");
    let fits = raw.call(RESERVE, &[("x-large", &"x".repeat(500))], body.clone()).await.unwrap().status();
    assert_eq!(fits.code(), Code::Ok, "the connection lives on: {fits:?}");
    // Without end: the connection does not live on.
    let block = headers(RESERVE);
    let mut tcp = said(served.address, &[OPENING, &frame(HEADERS, 0, 1, &block)].concat()).await;
    let (mut reading, mut writing) = tcp.split();
    let more = frame(9, 0, 1, &[[0x00, 1, b'x', 100].as_slice(), &[b'x'; 100]].concat().repeat(100));
    let write = async { while tokio::io::AsyncWriteExt::write_all(&mut writing, &more).await.is_ok() {} };
    let read = async {
        let mut buffer = [0; 1024];
        while tokio::io::AsyncReadExt::read(&mut reading, &mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    tokio::time::timeout(PATIENCE, futures_util::future::join(write, read))
        .await
        .expect("headers without end are ended");
    honest.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tonic_refuses_is_explained_like_every_fault() {
    let served = serve(&[]);
    let mut raw = Raw::connect(served.address).await;
    let good = framed(&reserve(&fresh_user("explained")));
    let zstd = ("grpc-encoding", "zstd");
    for (path, more, body, code, why) in [
        (RESERVE, None, Bytes::from_static(b"\0\0\0\0\x03\xff\xff\xff"), Code::InvalidArgument, "MESSAGE_MALFORMED"),
        (RESERVE, Some(zstd), good.clone(), Code::Unimplemented, "ENCODING_UNSUPPORTED"),
        ("/tollgate.v1.MeteringService/Steal", None, good.clone(), Code::Unimplemented, "METHOD_UNKNOWN"),
        ("/tollgate.v2.MeteringService/Reserve", None, good.clone(), Code::Unimplemented, "METHOD_UNKNOWN"),
        ("/", None, Bytes::new(), Code::Unimplemented, "METHOD_UNKNOWN"),
        (
            "/grpc.health.v1.Health/Check",
            None,
            framed(&HealthCheckRequest { service: "x".to_owned() }),
            Code::NotFound,
            "NOT_FOUND",
        ),
    ] {
        let status = raw.call(path, more.as_slice(), body).await.unwrap().status();
        assert_eq!(reason(&status), (code, why.to_owned()), "{path}: {status:?}");
        assert!(!status.message().is_empty(), "{path}: {status:?}");
    }
    assert_eq!(raw.call(RESERVE, &[], good).await.unwrap().status().code(), Code::Ok);
}

/// Starts six reservations at once, where five may be under way: returns the five, once the sixth was refused.
async fn six_at_once(replica: &Replica, user: &str) -> FuturesUnordered<JoinHandle<Result<(), Status>>> {
    let calls = FuturesUnordered::new();
    for _ in 0..6 {
        let (mut metering, request) = (replica.metering.clone(), reserve(user));
        calls.push(tokio::spawn(async move { metering.reserve(request).await.map(drop) }));
    }
    let mut calls = calls;
    let first = tokio::time::timeout(PATIENCE, calls.next()).await.expect("one is refused at once").unwrap().unwrap();
    overloaded(first);
    calls
}

fn overloaded<T>(answer: Result<T, Status>) {
    let status = answer.err().expect("as many calls are under way as may be");
    assert_eq!(reason(&status), (Code::Unavailable, "OVERLOADED".to_owned()));
    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_more_than_may_be_under_way_is_refused_at_once() {
    let (redis, served) = serve_own("in-flight", &["--max-in-flight", "5"]).await;
    let mut replica = Replica::connect(served.address).await;
    let user = fresh_user("in-flight");
    redis.signal("-STOP");
    let five = six_at_once(&replica, &user).await;
    let channel = Channel::from_shared(format!("http://{}", served.address)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    health.check(HealthCheckRequest::default()).await.expect("health is told however busy it is");
    // Their callers go away. What was asked of Redis is under way still.
    five.iter().for_each(JoinHandle::abort);
    for _ in 0..3 {
        overloaded(replica.metering.reserve(reserve(&user)).await);
        overloaded(replica.plans.list_plans(v1::ListPlansRequest {}).await);
    }
    redis.signal("-CONT");
    // Every place is free again once that work is done: five are under way, and all of them succeed.
    let deadline = Instant::now() + PATIENCE;
    while replica.metering.reserve(reserve(&user)).await.is_err() {
        assert!(Instant::now() < deadline, "no place becomes free");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    loop {
        redis.signal("-STOP");
        let five = six_at_once(&replica, &user).await;
        redis.signal("-CONT");
        let answers: Vec<_> = five.collect().await;
        if answers.iter().all(|answer| answer.as_ref().unwrap().is_ok()) {
            break;
        }
        assert!(Instant::now() < deadline, "not every place becomes free: {answers:?}");
    }
    // What the aborted calls held is held. No place was taken twice, so it is at most five of each time.
    let (_, held) = used_and_held(&mut replica, &user).await;
    assert!(held >= 10.0, "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_floods_does_not_touch_another() {
    let served = serve(&["--api-keys", "--rate-per-app", "5"]);
    let (flooding, quiet) = (key("flooding", "secret"), key("quiet", "secret"));
    let replica = Replica::connect(served.address).await;
    let ask = async |key: &str| {
        let mut plans = replica.plans.clone();
        plans.list_plans(with(v1::ListPlansRequest {}, key, "")).await
    };
    let flood: FuturesUnordered<_> = (0..100).map(|_| ask(&flooding)).collect();
    let calm = async {
        for _ in 0..5 {
            ask(&quiet).await.expect("another app's flood is none of its business");
        }
    };
    let (answers, ()) = futures_util::future::join(flood.collect::<Vec<_>>(), calm).await;
    let refusals: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(refusals.len() >= 50, "{} were refused", refusals.len());
    for status in refusals {
        let retry = status.get_error_details().retry_info().and_then(|info| info.retry_delay).expect("RetryInfo");
        assert!(retry > Duration::ZERO && retry <= Duration::from_secs(1), "{retry:?}");
        refused(Err::<(), _>(status), Code::ResourceExhausted, "TOO_MANY_CALLS");
    }
    let deadline = Instant::now() + PATIENCE;
    while ask(&flooding).await.is_err() {
        assert!(Instant::now() < deadline, "who waits is served again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// In KiB.
pub fn resident(served: &Served) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it runs");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_resets_ends_its_connection_and_nobody_else_notices() {
    let served = serve(&[]);
    let honest = Honest::start(&served).await;
    let message = framed(&track(&fresh_user("flood")));
    let before = resident(&served);
    for round in 0..10 {
        let mut flood = OPENING.to_vec();
        for stream in (1..20_000).step_by(2) {
            flood.extend(frame(HEADERS, END_HEADERS, stream, &headers(TRACK)));
            if round % 2 == 0 {
                flood.extend(frame(DATA, END_STREAM, stream, &message));
            }
            flood.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        let tcp = tokio::net::TcpStream::connect(served.address).await.unwrap();
        let (mut reading, mut writing) = tcp.into_split();
        let write = tokio::spawn(async move {
            // It need not listen to the end.
            let _: std::io::Result<()> = tokio::io::AsyncWriteExt::write_all(&mut writing, &flood).await;
            writing
        });
        let seen = frames(&mut reading).await;
        let told = seen.iter().find(|(kind, ..)| *kind == GOAWAY);
        let code = told.map(|(_, _, payload)| u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        assert_eq!(code, Some(0xb), "ENHANCE_YOUR_CALM, after {} frames", seen.len());
        drop(write.await.unwrap());
    }
    let grown = resident(&served).saturating_sub(before);
    println!("100,000 resets: {before} KiB, and {grown} KiB more");
    assert!(grown < 64 << 10, "{grown} KiB");
    honest.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_reset_are_bounded_like_those_that_wait() {
    let (redis, served) = serve_own("reset-calls", &["--max-in-flight", "20"]).await;
    let user = fresh_user("reset-calls");
    let message = framed(&track(&user));
    redis.signal("-STOP");
    for _ in 0..10 {
        let mut calls = OPENING.to_vec();
        for stream in (1..80).step_by(2) {
            calls.extend(frame(HEADERS, END_HEADERS, stream, &headers(TRACK)));
            calls.extend(frame(DATA, END_STREAM, stream, &message));
        }
        // An answered ping: they were read.
        calls.extend(frame(6, 0, 0, &[7; 8]));
        let mut tcp = said(served.address, &calls).await;
        while next_frame(&mut tcp).await.expect("it answers").2 != [7; 8] {}
        let resets: Vec<u8> =
            (1..80).step_by(2).flat_map(|stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).collect();
        tokio::io::AsyncWriteExt::write_all(&mut tcp, &resets).await.unwrap();
    }
    redis.signal("-CONT");
    let mut replica = Replica::connect(served.address).await;
    let deadline = Instant::now() + PATIENCE;
    while replica.metering.can_use(v1::CanUseRequest { user_id: user.clone(), event: Some(event()) }).await.is_err() {
        assert!(Instant::now() < deadline, "no place becomes free");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (used, _) = used_and_held(&mut replica, &user).await;
    println!("of 400 calls that were reset {used} took effect");
    assert!((1.0..=20.0).contains(&used), "{used} of 400 took effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_as_many_calls_under_way_as_it_may() {
    let served = serve(&["--max-streams", "3"]);
    let open: Vec<u8> =
        [1, 3, 5, 7, 9].into_iter().flat_map(|stream| frame(HEADERS, END_HEADERS, stream, &headers(TRACK))).collect();
    let mut tcp = said(served.address, &[OPENING, &open].concat()).await;
    let mut refused = Vec::new();
    while refused.len() < 2 {
        let (kind, stream, payload) = next_frame(&mut tcp).await.expect("the connection lives on");
        if kind == RST_STREAM {
            assert_eq!(payload, [0, 0, 0, 7], "REFUSED_STREAM: nothing was done");
            refused.push(stream);
        }
    }
    assert_eq!(refused, [7, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_more_than_there_may_be_is_closed_and_an_ended_one_frees_its_place() {
    let served = serve(&["--max-connections", "3"]);
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut tcp = said(served.address, OPENING).await;
        next_frame(&mut tcp).await.expect("it is served");
        open.push(tcp);
    }
    closed(&mut said(served.address, OPENING).await).await;
    until("the log says it", async || served.log().contains("as many as 3 connections")).await;
    drop(open.pop());
    let deadline = Instant::now() + PATIENCE;
    while next_frame(&mut said(served.address, OPENING).await).await.is_none() {
        assert!(Instant::now() < deadline, "the place stays taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ages_and_no_call_is_lost() {
    let served = serve(&["--max-connection-age", "1s"]);
    let replica = Replica::connect(served.address).await;
    let user = fresh_user("age");
    let until = Instant::now() + Duration::from_secs(4);
    let calls: FuturesUnordered<_> = (0..4)
        .map(|number| {
            let (mut metering, user) = (replica.metering.clone(), user.clone());
            tokio::spawn(async move {
                let (mut made, mut repeated) = (0, 0);
                while Instant::now() < until {
                    let request = v1::TrackRequest { request_id: format!("{number}-{made}"), ..track(&user) };
                    match metering.track(request).await {
                        Ok(answer) => {
                            assert!(!answer.into_inner().replayed, "an answer is lost");
                            made += 1;
                        }
                        Err(status) => {
                            // It says itself that it did not send it, or has heard that the server did not begin it.
                            let told = format!("{status:?}");
                            assert!(
                                ["Canceled", "GoAway(b\"\", NO_ERROR"].iter().any(|why| told.contains(why)),
                                "{told}"
                            );
                            repeated += 1;
                        }
                    }
                }
                (made, repeated)
            })
        })
        .collect();
    // Meanwhile one that is quiet is asked to go.
    let mut tcp = said(served.address, OPENING).await;
    let told = loop {
        let (kind, _, payload) = next_frame(&mut tcp).await.expect("it is asked to go first");
        if kind == GOAWAY {
            break payload;
        }
    };
    assert_eq!(told[4..8], [0; 4], "NO_ERROR");
    let made: Vec<(u32, u32)> = calls.map(|made| made.unwrap()).collect().await;
    let (made, repeated) = made.into_iter().fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
    println!("{made} calls over connections of a second each, {repeated} were not sent at first");
    assert_eq!(used_and_held(&mut replica.clone(), &user).await.0, f64::from(made));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_key_can_keep_neither_much_nor_for_ever() {
    let served = Served::start(0, &["--redis-url", &redis_url(), "--max-connection-age", "1s", "--call-timeout", "1s"]);
    let channel = Channel::from_shared(format!("http://{}", served.address)).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let large = HealthCheckRequest { service: "x".repeat(5000) };
    assert_eq!(health.check(large).await.unwrap_err().code(), Code::OutOfRange);
    // A stream without end keeps its connection past its age, and not for long.
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let ended =
        tokio::time::timeout(Duration::from_secs(60), async { while let Ok(Some(_)) = watch.message().await {} });
    ended.await.expect("it is cut");
}
