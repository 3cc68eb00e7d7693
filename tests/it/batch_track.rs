//! BatchTrack: each request is answered as Track answers it alone.

use std::time::{Duration, Instant};

use prost::Message as _;
use tollgate::grpc::v1::{self, batch_track_result::Result as Outcome};
use tollgate::meter::MeterOptions;
use tollgate::private_redis;
use tonic::{Code, Request, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::support::{Replica, fresh_user, redis_options, scratch};

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - { id: tokens, unit: tokens, quota: 100, match: [{ event: t }] }
      - { id: calls, unit: count, quota: 5000, match: [{ event: t, measure: events }] }
";

fn event(name: &str, quantity: f64) -> Option<v1::Event> {
    Some(v1::Event { name: name.to_owned(), quantity: Some(quantity), ..Default::default() })
}

fn track(user: &str, name: &str, quantity: f64, request_id: &str) -> v1::TrackRequest {
    v1::TrackRequest {
        user_id: user.to_owned(),
        event: event(name, quantity),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

async fn batch(replica: &Replica, requests: Vec<v1::TrackRequest>) -> Result<Vec<Outcome>, Status> {
    let answer = replica.metering.clone().batch_track(v1::BatchTrackRequest { requests }).await?.into_inner();
    Ok(answer.results.into_iter().map(|result| result.result.expect("an outcome")).collect())
}

async fn used(replica: &Replica, user: &str) -> f64 {
    let request = v1::GetUsageRequest { user_id: user.to_owned(), ..Default::default() };
    replica.metering.clone().get_usage(request).await.unwrap().into_inner().limits[0].used
}

/// The status as a call ends with it.
fn whole(status: &tonic_types::Status) -> Status {
    Status::with_details(status.code.into(), &status.message, status.encode_to_vec().into())
}

fn reason(outcome: &Outcome) -> String {
    let Outcome::Status(status) = outcome else { panic!("{outcome:?}") };
    let status = whole(status);
    let details = status.get_error_details();
    let info = details.error_info().expect("every fault carries ErrorInfo");
    assert_eq!(info.domain, "tollgate");
    assert_eq!(details.retry_info().is_some(), status.code() == Code::Unavailable);
    info.reason.clone()
}

/// Every kind of request that Track takes, for one user.
async fn requests(replica: &Replica, user: &str) -> Vec<v1::TrackRequest> {
    let reserve = v1::ReserveRequest { user_id: user.to_owned(), event: event("t", 10.0), ..Default::default() };
    let held = replica.metering.clone().reserve(reserve).await.unwrap().into_inner().reservation_id;
    let commit = v1::CommitRequest { reservation_id: held.clone(), actual: None, ..v1::CommitRequest::default() };
    replica.metering.clone().commit(commit).await.unwrap();
    vec![
        track(user, "t", 5.0, "a"),
        track(user, "t", 5.0, "a"),
        track(user, "t", 6.0, "a"),
        track("", "t", 1.0, ""),
        track(user, "", 1.0, ""),
        track(user, "unknown", 1.0, ""),
        v1::TrackRequest { event: None, ..track(user, "t", 1.0, "") },
        v1::TrackRequest { enforce: true, ..track(user, "t", 500.0, "") },
        track(user, "t", 500.0, "b"),
        v1::TrackRequest { enforce: true, ..track(user, "t", 1.0, "c") },
        track(user, "t", -1.0, ""),
        track(user, "t", 1e19, ""),
        v1::TrackRequest {
            event: Some(v1::Event { name: "t".to_owned(), ..Default::default() }),
            ..track(user, "t", 0.0, "")
        },
        track(user, "t.refund", 3.0, "d"),
        track(user, "t.refund", 9999.0, ""),
        v1::TrackRequest { reservation_id: held.clone(), ..track(user, "t.refund", 4.0, "e") },
        v1::TrackRequest { reservation_id: held.clone(), ..track(user, "t", 4.0, "") },
        v1::TrackRequest { reservation_id: "nonsense".to_owned(), ..track(user, "t.refund", 4.0, "") },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_answered_as_track_would() {
    let replica = Replica::start(CATALOG).await;
    let (one, other) = (fresh_user("batch"), fresh_user("batch"));
    let mut alone = Vec::new();
    for request in requests(&replica, &one).await {
        alone.push(match replica.metering.clone().track(request).await {
            Ok(answer) => Outcome::Response(answer.into_inner()),
            Err(status) => Outcome::Status(tonic_types::Status::decode(status.details()).unwrap()),
        });
    }
    let together = batch(&replica, requests(&replica, &other).await).await.unwrap();
    assert_eq!(together.len(), alone.len());
    for (number, pair) in alone.iter().zip(&together).enumerate() {
        match pair {
            // An id of an event tells only events apart.
            (Outcome::Response(alone), Outcome::Response(together)) => {
                assert_eq!(alone.event_id.is_empty(), together.event_id.is_empty(), "request {number}");
                let named = v1::TrackResponse { event_id: alone.event_id.clone(), ..together.clone() };
                assert_eq!(*alone, named, "request {number}");
            }
            (Outcome::Status(alone), Outcome::Status(together)) => {
                assert_eq!((alone.code, &alone.message), (together.code, &together.message), "request {number}");
                let [alone, together] = [alone, together].map(|status| whole(status).get_error_details());
                let [info, other] = [&alone, &together].map(|details| details.error_info().expect("ErrorInfo"));
                assert_eq!((&info.reason, &info.metadata), (&other.reason, &other.metadata), "request {number}");
                let more = |details: &ErrorDetails| format!("{:?} {:?}", details.bad_request(), details.retry_info());
                assert_eq!(more(&alone), more(&together), "request {number}");
            }
            _ => panic!("request {number}: {pair:?}"),
        }
    }
    let (Outcome::Response(first), Outcome::Response(again)) = (&together[0], &together[1]) else { panic!() };
    assert!(!first.replayed && again.replayed && first.event_id == again.event_id);
    let reasons: Vec<_> = [2, 3, 12, 17].map(|number| reason(&together[number])).into();
    assert_eq!(reasons, ["REQUEST_ID_REUSED", "INVALID_FIELD", "QUANTITY_MISSING", "RESERVATION_NOT_FOUND"]);
    assert_eq!(used(&replica, &one).await, used(&replica, &other).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_1_to_1000_requests() {
    let replica = Replica::start(CATALOG).await;
    let user = fresh_user("bounds");
    for count in [0, 1001] {
        let refused = batch(&replica, vec![track(&user, "t", 1.0, ""); count]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, "requests");
    }
    assert_eq!(used(&replica, &user).await, 0.0);
    assert_eq!(batch(&replica, vec![track(&user, "t", 1.0, "")]).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_ordinary_requests_fit_into_one_message_and_keep_the_order_of_each_user() {
    let replica = Replica::start(CATALOG).await;
    let users: Vec<_> = (0..40).map(|_| fresh_user("order-of-users-who-have-long-ids")).collect();
    let mut requests = Vec::new();
    // What is tracked is refunded next. In another order, something would be left or could not be given back.
    for number in 0..1000 {
        let (user, name) = (&users[(number / 2) % users.len()], if number % 2 == 0 { "t" } else { "t.refund" });
        let mut request = track(user, name, 7.0, &format!("01234567-89ab-cdef-0123-{number:012}"));
        let event = request.event.as_mut().unwrap();
        event.quantities = [("prompt_tokens".to_owned(), 1200.0), ("completion_tokens".to_owned(), 350.0)].into();
        event.metadata =
            [("provider".to_owned(), "openai".to_owned()), ("model".to_owned(), "gpt-4o-2024-08-06".to_owned())].into();
        requests.push(request);
    }
    let bytes = v1::BatchTrackRequest { requests: requests.clone() }.encoded_len();
    assert!((200_000..262_144).contains(&bytes), "{bytes} bytes");
    for replayed in [false, true] {
        let outcomes = batch(&replica, requests.clone()).await.unwrap();
        assert_eq!(outcomes.len(), 1000);
        for (number, outcome) in outcomes.iter().enumerate() {
            let Outcome::Response(answer) = outcome else { panic!("{number}: {outcome:?}") };
            assert_eq!(answer.match_status(), v1::MatchStatus::Matched);
            assert_eq!((answer.limits[0].unapplied, answer.replayed), (0.0, replayed), "{number}");
            let left = if number % 2 == 0 && !replayed { 7.0 } else { 0.0 };
            assert_eq!(answer.limits[0].used, left, "{number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_finished_although_its_caller_has_gone() {
    let replica = Replica::start(CATALOG).await;
    let users: Vec<_> = (0..3).map(|_| fresh_user("gone")).collect();
    let requests: Vec<_> = (0..600).map(|number| track(&users[number % 3], "t", 1.0, "")).collect();
    let mut request = Request::new(v1::BatchTrackRequest { requests });
    request.set_timeout(Duration::from_millis(30));
    let ended = replica.metering.clone().batch_track(request).await;
    if let Err(status) = &ended {
        assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{status:?}");
    }
    let until = Instant::now() + Duration::from_secs(30);
    for user in &users {
        while used(&replica, user).await < 200.0 {
            assert!(Instant::now() < until, "{ended:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_tried_after_a_request_of_the_same_user_without_an_answer() {
    let options = private_redis::Options { data_dir: scratch("batch-track"), ..private_redis::Options::default() };
    let redis = private_redis::start(options).await.unwrap();
    let options =
        tollgate::ledger::RedisOptions { urls: vec![redis.url()], timeout: Duration::from_secs(1), ..redis_options() };
    let replica = Replica::start_with(CATALOG, jiff::tz::db(), MeterOptions::default(), options).await;
    let (one, other) = (fresh_user("down"), fresh_user("down"));
    assert!(batch(&replica, vec![track(&one, "t", 1.0, "")]).await.is_ok());
    redis.stop().await;
    let requests = vec![
        track(&one, "t", 1.0, "a"),
        track(&other, "t", 1.0, "a"),
        track(&one, "t", 1.0, "b"),
        track("", "t", 1.0, ""),
        track(&one, "t", 1.0, "c"),
    ];
    let outcomes = batch(&replica, requests).await.unwrap();
    let reasons: Vec<_> = outcomes.iter().map(reason).collect();
    assert_eq!(reasons, ["UNAVAILABLE", "UNAVAILABLE", "NOT_TRIED", "INVALID_FIELD", "NOT_TRIED"]);
}
