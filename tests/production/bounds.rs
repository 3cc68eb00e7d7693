//! What callers can make the server hold who have no key, or one that anybody may have: memory, places and connections; and that nobody else
//! notices.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tollgate::access::{ApiKey, mint};
use tollgate::domain::id::UserId;
use tollgate::grpc::v1;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::abuse::{LIST_PLANS, TRACK, resident, serve};
use crate::access::{key, reason, refused, with};
use crate::raw::{
    DATA, END_HEADERS, END_STREAM, HEADERS, OPENING, OPENING_WITHOUT_ROOM, PATIENCE, RST_STREAM, Raw, frame, framed,
    headers_with, next_frame, said, said_and_read,
};
use crate::support::redis_server::RedisServer;
use crate::support::served::{Served, tollgate};
use crate::support::{Replica, fresh_user, scratch};

const GET_USAGE: &str = "/tollgate.v1.MeteringService/GetUsage";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// What a caller with a public key shows: the key, and a token for this user.
struct Public {
    bearer: String,
    token: String,
}

impl Public {
    fn of(app: &str, user: &str) -> Self {
        // The server may learn of the keys between the two, and finds only a public one by asking again.
        let secret = key(app, "secret");
        Self::signed(&key(app, "public"), &secret, user)
    }

    fn signed(public: &str, secret: &str, user: &str) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let ends = i64::try_from(now).unwrap() + 600;
        let token = mint(&ApiKey::parse(secret).unwrap(), &UserId::parse(user).unwrap(), ends);
        Self { bearer: format!("Bearer {public}"), token }
    }

    fn shown(&self) -> [(&str, &str); 2] {
        [("authorization", &self.bearer), ("tollgate-user-token", &self.token)]
    }
}

/// The headers of this call on 1,000 streams, each followed by this message if there is one.
fn thousand(path: &str, shown: &[(&str, &str)], message: Option<&[u8]>) -> Vec<u8> {
    let headers = headers_with(path, shown);
    let stream = |stream: u32| {
        let mut call = frame(HEADERS, END_HEADERS, stream, &headers);
        call.extend(message.into_iter().flat_map(|message| frame(DATA, END_STREAM, stream, message)));
        call
    };
    (1..2000).step_by(2).flat_map(stream).collect()
}

/// A caller of its own app, on a connection of its own: every call is answered.
async fn honest_calls(address: SocketAddr, key: &str, calls: usize) {
    let replica = Replica::connect(address).await;
    let answers: FuturesUnordered<_> = (0..calls)
        .map(|_| {
            let mut plans = replica.plans.clone();
            async move { tokio::time::timeout(PATIENCE, plans.list_plans(with(v1::ListPlansRequest {}, key, ""))).await }
        })
        .collect();
    let answers: Vec<_> = answers.collect().await;
    let failed: Vec<_> = answers.into_iter().filter_map(|answer| answer.expect("it is answered").err()).collect();
    assert!(failed.is_empty(), "{} of {calls} honest calls were not served: {:?}", failed.len(), failed[0]);
}

/// The server knows the key from now on.
async fn known(address: SocketAddr, public: &Public) {
    let answer = Raw::connect(address).await.call(LIST_PLANS, &public.shown(), framed(&v1::ListPlansRequest {})).await;
    assert_eq!(answer.unwrap().status().code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_whose_messages_never_come_take_no_place() {
    // Keys that are known are taken even if a busy machine has not read them anew for a while: that is not what is tested.
    let served = serve(&["--api-keys", "--fail-open", "--redis-timeout", "60s"]);
    let honest = key("honest-app", "secret");
    let public = Public::of("bodiless", &fresh_user("bodiless"));
    honest_calls(served.address, &honest, 10).await;
    known(served.address, &public).await;
    let before = resident(&served);
    let mut attack = Vec::new();
    for _ in 0..11 {
        let calls = [OPENING, &thousand(GET_USAGE, &public.shown(), None)].concat();
        attack.push(said_and_read(served.address, &calls).await);
        honest_calls(served.address, &honest, 20).await;
    }
    honest_calls(served.address, &honest, 200).await;
    let grown = resident(&served).saturating_sub(before);
    println!("11,000 calls without messages: {before} KiB, and {grown} KiB more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_come_is_awaited_for_a_while() {
    let served = serve(&["--message-timeout", "200ms"]);
    let mut raw = Raw::connect(served.address).await;
    let begun = raw.begin(TRACK, &[]).await.unwrap();
    let status = tokio::time::timeout(PATIENCE, begun.answer()).await.expect("it is answered").unwrap().status();
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "MESSAGE_LATE".to_owned()));
    let begun = raw.begin(CHECK, &[]).await.unwrap();
    let status = tokio::time::timeout(PATIENCE, begun.answer()).await.expect("it is answered").unwrap().status();
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "MESSAGE_LATE".to_owned()));
    let answer = raw.call(LIST_PLANS, &[], framed(&v1::ListPlansRequest {})).await.unwrap();
    assert_eq!(answer.status().code(), Code::Ok, "its connection may be used again");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_being_read_have_bounded_memory() {
    let served = serve(&["--api-keys", "--message-timeout", "20s"]);
    let honest = key("honest-reader", "secret");
    let public = Public::of("half-sent", &fresh_user("half-sent"));
    honest_calls(served.address, &honest, 10).await;
    known(served.address, &public).await;
    let before = resident(&served);
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::connect(served.address).await;
        for _ in 0..200 {
            let mut begun = raw.begin(GET_USAGE, &public.shown()).await.unwrap();
            // A message of 200,000 bytes, all but the last.
            let most = [&[0_u8, 0, 3, 13, 64][..], &[0; 199_999]].concat();
            // Refused streams take nothing.
            let _: Result<(), _> = begun.body.send_data(Bytes::from(most), false);
            open.push(begun);
        }
        honest_calls(served.address, &honest, 20).await;
    }
    // All that is going to be read has been read once a later call on each connection is answered.
    let grown = resident(&served).saturating_sub(before);
    println!("320 MB of messages without ends: {before} KiB, and {grown} KiB more");
    assert!(grown < 96 << 10, "{grown} KiB");
    honest_calls(served.address, &honest, 100).await;
}

/// While Redis does not answer, calls stay under way.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_and_the_public_callers_take_no_more_than_their_shares() {
    let redis = RedisServer::start(scratch("shares"), "");
    redis.ready().await;
    let url = redis.url();
    let make = |app: &str, role: &str| {
        let made = tollgate().args(["keys", "create", "--app", app, "--role", role, "--redis-url", &url]).output();
        String::from_utf8(made.unwrap().stdout).unwrap().trim().to_owned()
    };
    let (greedy, public, other) = (make("greedy", "secret"), make("greedy", "public"), make("other", "secret"));
    let user = fresh_user("shares");
    let shown = Public::signed(&public, &greedy, &user);
    let flags = ["--redis-url", &url, "--redis-timeout", "60s", "--call-timeout", "60s", "--api-keys", "--fail-open"];
    let shares = ["--max-in-flight", "100", "--app-share", "0.5", "--public-share", "0.2"];
    let served = serve(&[&flags[..], &shares].concat());
    let mut replica = Replica::connect(served.address).await;
    redis.signal("-STOP");
    let usage = || v1::GetUsageRequest { user_id: user.clone(), ..v1::GetUsageRequest::default() };
    let flood = |key: &str, token: &str| {
        let calls: FuturesUnordered<_> = (0..100)
            .map(|_| {
                let (mut metering, request) = (replica.metering.clone(), with(usage(), key, token));
                tokio::spawn(async move { metering.get_usage(request).await.map(drop) })
            })
            .collect();
        calls
    };
    // 20 places for public callers, of which one app gets half; 50 for an app, of which ten are taken by then.
    for (key, token, refusals) in [(&public, &*shown.token, 90), (&greedy, "", 60)] {
        let mut calls = flood(key, token);
        for _ in 0..refusals {
            let answer = tokio::time::timeout(PATIENCE, calls.next()).await.expect("it is refused at once");
            refused(answer.unwrap().unwrap(), Code::ResourceExhausted, "TOO_MANY_AT_ONCE");
        }
    }
    // Needs a place, and no Redis.
    replica.plans.list_plans(with(v1::ListPlansRequest {}, &other, "")).await.expect("another app has its share");
    redis.signal("-CONT");
    let deadline = std::time::Instant::now() + PATIENCE;
    while replica.metering.get_usage(with(usage(), &public, &shown.token)).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "places become free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_key_without_a_token_is_refused_before_its_message_is_read() {
    let served = serve(&["--api-keys", "--message-timeout", "100ms"]);
    let public = key("tokenless", "public");
    let mut raw = Raw::connect(served.address).await;
    let bearer = format!("Bearer {public}");
    // Known from now on.
    raw.call(LIST_PLANS, &[("authorization", &bearer)], framed(&v1::ListPlansRequest {})).await.unwrap();
    let begun = raw.begin(GET_USAGE, &[("authorization", &bearer)]).await.unwrap();
    let status = tokio::time::timeout(PATIENCE, begun.answer()).await.expect("it is answered").unwrap().status();
    assert_eq!(reason(&status), (Code::PermissionDenied, "NOT_YOUR_USER".to_owned()));
}

/// A question of reflection whose answer is large.
fn question() -> Bytes {
    let symbol = MessageRequest::FileContainingSymbol("tollgate.v1.MeteringService".to_owned());
    framed(&ServerReflectionRequest { host: String::new(), message_request: Some(symbol) })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_key_can_keep_neither_much_nor_for_ever() {
    let served = serve(&["--api-keys"]);
    let honest = key("honest-neighbour", "secret");
    honest_calls(served.address, &honest, 10).await;
    let channel = Channel::from_shared(format!("http://{}", served.address)).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let large = HealthCheckRequest { service: "x".repeat(5000) };
    assert_eq!(health.check(large).await.unwrap_err().code(), Code::OutOfRange);

    // Callers who ask on 1,000 streams of each connection, and take no byte of the answers: nor one byte of each.
    let watch = framed(&HealthCheckRequest::default());
    let question = question();
    let mut one_byte = OPENING_WITHOUT_ROOM.to_vec();
    *one_byte.last_mut().unwrap() = 1;
    for (what, path, message) in [
        ("reflection", REFLECTION, &question[..]),
        ("watches", WATCH, &watch[..]),
        ("checks", CHECK, &watch[..]),
        ("calls without keys", GET_USAGE, &watch[..]),
    ] {
        let before = resident(&served);
        let mut open = Vec::new();
        for opening in [OPENING_WITHOUT_ROOM, &one_byte, OPENING_WITHOUT_ROOM] {
            let calls = [opening, &thousand(path, &[], Some(message))].concat();
            open.push(said_and_read(served.address, &calls).await);
            health.check(HealthCheckRequest::default()).await.expect("health is told however busy it is");
        }
        honest_calls(served.address, &honest, 20).await;
        let grown = resident(&served).saturating_sub(before);
        println!("{what} on 3,000 streams: {before} KiB, and {grown} KiB more");
        assert!(grown < 24 << 10, "{what}: {grown} KiB");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_is_for_holders_of_secret_keys_unless_it_is_open() {
    for (flags, without_a_key) in [
        (&["--api-keys"][..], Err((Code::Unauthenticated, "UNAUTHENTICATED"))),
        (&["--api-keys", "--open-reflection"], Ok(())),
        (&[], Ok(())),
    ] {
        let served = serve(flags);
        let mut raw = Raw::connect(served.address).await;
        let (secret, public) = (key("reflecting", "secret"), key("reflecting", "public"));
        let answer = raw.call(REFLECTION, &[], question()).await.unwrap().status();
        match without_a_key {
            Ok(()) => assert_eq!(answer.code(), Code::Ok),
            Err((code, why)) => {
                assert_eq!(reason(&answer), (code, why.to_owned()));
                let public = format!("Bearer {public}");
                let answer = raw.call(REFLECTION, &[("authorization", &public)], question()).await.unwrap().status();
                assert_eq!(reason(&answer), (Code::PermissionDenied, "SECRET_KEY_NEEDED".to_owned()));
            }
        }
        let secret = format!("Bearer {secret}");
        let answer = raw.call(REFLECTION, &[("authorization", &secret)], question()).await.unwrap().status();
        assert_eq!(answer.code(), Code::Ok, "{flags:?}");
    }
}

/// An answer is in memory until it is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_answer_is_not_taken_is_reset_and_frees_its_place() {
    let served = serve(&["--max-in-flight", "5", "--call-timeout", "2s"]);
    let calls: Vec<u8> = [(1, REFLECTION, question()), (3, LIST_PLANS, framed(&v1::ListPlansRequest {}))]
        .into_iter()
        .chain((0..4).map(|number| (5 + 2 * number, LIST_PLANS, framed(&v1::ListPlansRequest {}))))
        .flat_map(|(stream, path, message)| {
            let mut call = frame(HEADERS, END_HEADERS, stream, &headers_with(path, &[]));
            call.extend(frame(DATA, END_STREAM, stream, &message));
            call
        })
        .collect();
    let mut tcp = said_and_read(served.address, &[OPENING_WITHOUT_ROOM, &calls].concat()).await;
    // All five places are taken by answers.
    let mut replica = Replica::connect(served.address).await;
    let status = replica.plans.list_plans(v1::ListPlansRequest {}).await.unwrap_err();
    assert_eq!(reason(&status), (Code::Unavailable, "OVERLOADED".to_owned()));
    let mut reset = Vec::new();
    while reset.len() < 6 {
        let (kind, stream, _) = next_frame(&mut tcp).await.expect("the connection lives on");
        if kind == RST_STREAM {
            reset.push(stream);
        }
    }
    reset.sort_unstable();
    assert_eq!(reset, [1, 3, 5, 7, 9, 11]);
    replica.plans.list_plans(v1::ListPlansRequest {}).await.expect("the places are free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_key_has_few_calls_that_are_waited_for() {
    let served = serve(&["--api-keys", "--message-timeout", "100s", "--call-timeout", "200s"]);
    let calls = [OPENING, &thousand(GET_USAGE, &[], None)].concat();
    let mut tcp = said(served.address, &calls).await;
    // The others are refused while these are waited for.
    let mut refused = 0;
    while refused < 1000 - 128 {
        if next_frame(&mut tcp).await.expect("the connection lives on").0 == HEADERS {
            refused += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_sockets_stop_neither_new_callers_nor_the_probes() {
    let flags = ["--api-keys", "--admin-listen", "127.0.0.1:0", "--handshake-timeout", "10m", "--redis-url"];
    let url = crate::support::redis_url();
    let flags = [&flags[..], &[&url]].concat();
    let secret = key("not-idle", "secret");
    for (option, files) in [("-n", 300), ("-Sn", 100)] {
        let served = Served::start_with_files(option, files, &flags);
        assert_eq!(served.log().contains("there may be 172 connections"), option == "-n", "{}", served.log());
        let mut known = Replica::connect(served.address).await;
        known.plans.list_plans(with(v1::ListPlansRequest {}, &secret, "")).await.unwrap();
        // Some say what every caller says, and no more.
        let mut idle = Vec::new();
        for number in 0..400 {
            idle.push(said(served.address, if number % 2 == 0 { b"" } else { OPENING }).await);
        }
        for _ in 0..3 {
            let connecting = tokio::time::timeout(PATIENCE, Replica::connect(served.address)).await;
            let mut new = connecting.expect("a new caller is served");
            new.plans.list_plans(with(v1::ListPlansRequest {}, &secret, "")).await.unwrap();
            assert_eq!(served.get("/livez").0, 200);
        }
        // Who has authenticated is not ended for those who have not.
        known.plans.list_plans(with(v1::ListPlansRequest {}, &secret, "")).await.unwrap();
    }
}
