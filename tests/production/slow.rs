//! Callers and a Redis that are slow: deadlines, and who only pretends to be slow.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tollgate::access::{ApiKey, Role};
use tollgate::grpc::v1;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::abuse::{Honest, LIST_PLANS, RESERVE, TRACK, reserve, serve, track, used_and_held};
use crate::access::reason;
use crate::raw::{END_HEADERS, HEADERS, OPENING, PATIENCE, Raw, closed, frame, framed, headers, said};
use crate::support::redis_server::RedisServer;
use crate::support::{Replica, fresh_user, scratch};

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_is_told_and_what_was_begun_takes_effect_once() {
    let redis = RedisServer::start(scratch("deadlines"), "");
    redis.ready().await;
    let served = serve(&["--redis-url", &redis.url(), "--redis-timeout", "60s", "--call-timeout", "60s"]);
    let mut raw = Raw::connect(served.address).await;
    let mut replica = Replica::connect(served.address).await;
    let user = fresh_user("deadlines");
    redis.signal("-STOP");
    let request = |number: usize| v1::ReserveRequest { request_id: format!("late-{number}"), ..reserve(&user) };
    // By who cannot give up by themselves, as tonic's client would: tonic's server would say CANCELLED. Each length meets the clock
    // elsewhere.
    for number in 0..20 {
        let timeout = format!("{}m", 50 + number);
        let answer = raw.call(RESERVE, &[("grpc-timeout", &timeout)], framed(&request(number))).await.unwrap();
        let status = answer.status();
        assert_eq!(reason(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()), "{timeout}");
    }
    redis.signal("-CONT");
    for number in 0..20 {
        let again = replica.metering.reserve(request(number)).await.unwrap().into_inner();
        assert!(again.allowed && again.replayed, "it was under way, and is found: {again:?}");
    }
    assert_eq!(used_and_held(&mut replica, &user).await, (0.0, 20.0));
}

/// The caller waits at the gate then, before any service.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_while_a_key_is_looked_up_is_told_as_well() {
    let redis = RedisServer::start(scratch("deadline-of-a-key"), "");
    redis.ready().await;
    let served = serve(&["--redis-url", &redis.url(), "--redis-timeout", "60s", "--api-keys"]);
    let mut raw = Raw::connect(served.address).await;
    let unknown = ApiKey::random(Role::Secret).unwrap();
    let bearer = format!("Bearer {}", unknown.reveal());
    redis.signal("-STOP");
    let shown = [("authorization", &*bearer), ("grpc-timeout", "100m")];
    let answer = raw.call(LIST_PLANS, &shown, framed(&v1::ListPlansRequest {})).await;
    redis.signal("-CONT");
    assert_eq!(reason(&answer.unwrap().status()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_is_none_is_refused() {
    let served = serve(&[]);
    let mut raw = Raw::connect(served.address).await;
    for odd in ["50", "m", "50x", "-1S", "123456789m", "1.5S", " 5S"] {
        let answer = raw.call(LIST_PLANS, &[("grpc-timeout", odd)], framed(&v1::ListPlansRequest {})).await.unwrap();
        let status = answer.status();
        assert_eq!(reason(&status), (Code::InvalidArgument, "INVALID_FIELD".to_owned()), "{odd}");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "grpc-timeout", "{odd}");
    }
    let generous = raw.call(LIST_PLANS, &[("grpc-timeout", "99999999H")], framed(&v1::ListPlansRequest {})).await;
    assert_eq!(generous.unwrap().status().code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_takes_no_longer_than_calls_may() {
    let redis = RedisServer::start(scratch("call-timeout"), "");
    redis.ready().await;
    let served = serve(&["--redis-url", &redis.url(), "--redis-timeout", "60s", "--call-timeout", "200ms"]);
    let mut replica = Replica::connect(served.address).await;
    redis.signal("-STOP");
    let mut patient = Request::new(track(&fresh_user("patient")));
    patient.set_timeout(Duration::from_secs(20));
    let status = replica.metering.track(patient).await.unwrap_err();
    redis.signal("-CONT");
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_on_purpose_is_ended_in_time() {
    let served = serve(&["--handshake-timeout", "300ms", "--call-timeout", "500ms", "--keepalive", "300ms"]);
    let address = served.address;
    let honest = Honest::start(&served).await;

    let silent = async { closed(&mut said(address, b"").await).await };
    let half = async { closed(&mut said(address, &OPENING[..12]).await).await };
    // Each byte comes in time, all of them do not.
    let dripping = async {
        let mut tcp = said(address, b"").await;
        let (mut reading, mut writing) = tcp.split();
        let drip = async {
            for byte in OPENING.iter().cycle() {
                if writing.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let mut buffer = [0; 1024];
        let read = async {
            while tokio::io::AsyncReadExt::read(&mut reading, &mut buffer).await.is_ok_and(|read| read > 0) {}
        };
        let ended = async {
            tokio::select! { () = drip => {}, () = read => {} }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("a dripping preface is ended");
    };
    // It speaks HTTP/2, then stops within a frame, and answers no ping.
    let stuck = async {
        let headers = frame(HEADERS, END_HEADERS, 1, &headers(TRACK));
        closed(&mut said(address, &[OPENING, &headers[..20]].concat()).await).await;
    };
    let bodiless = async {
        let mut raw = Raw::connect(address).await;
        let begun = raw.begin(TRACK, &[]).await.unwrap();
        let status = tokio::time::timeout(PATIENCE, begun.answer()).await.expect("it is ended").unwrap().status();
        assert_eq!(reason(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
        // Its connection may be used again.
        let body = framed(&track(&fresh_user("slow")));
        assert_eq!(raw.call(TRACK, &[], body).await.unwrap().status().code(), Code::Ok);
    };
    let dripping_body = async {
        let mut raw = Raw::connect(address).await;
        let begun = raw.begin(TRACK, &[]).await.unwrap();
        let bytes = framed(&track(&"u".repeat(200)));
        let (mut body, answer) = begun.split();
        let drip = async {
            for byte in bytes {
                if body.send_data(Bytes::from(vec![byte]), false).is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<()>().await;
        };
        let status = tokio::select! {
            answer = answer => answer.unwrap().status(),
            () = drip => unreachable!(),
            () = tokio::time::sleep(PATIENCE) => panic!("a dripping body is ended"),
        };
        assert_eq!(reason(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
    };
    futures_util::join!(silent, half, dripping, stuck, bodiless, dripping_body);
    honest.end().await;
}
