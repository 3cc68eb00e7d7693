//! Bad input for every field and bound, and what a client finds around the API: health and reflection.

use std::collections::BTreeMap;

use tollgate::grpc::v1;
use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::redis_server::RedisServer;
use crate::support::{Replica, fresh_user, nothing_contradicts_itself, redis_options, scratch};

const CATALOG: &str = "
default_plan: p
plans:
  p:
    period: monthly
    limit_groups: [{ id: g, unit: count, quota: 1000, match: [{ event: '*' }] }]
";

fn event(name: &str) -> v1::Event {
    v1::Event { name: name.to_owned(), ..v1::Event::default() }
}

/// Asserts the code, and that `BadRequest` names the field.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, field: &str) {
    let status = answer.expect_err(field);
    assert_eq!(status.code(), code, "{field}: {status}");
    let details = status.get_error_details();
    let fields: Vec<_> = details
        .bad_request()
        .into_iter()
        .flat_map(|bad| &bad.field_violations)
        .map(|found| found.field.as_str())
        .collect();
    assert_eq!(fields, [field], "{status}");
    assert!(!details.error_info().unwrap().reason.is_empty());
}

#[tokio::test]
async fn every_bound_of_an_event_is_kept_and_named() {
    let replica = Replica::start(CATALOG).await;
    let user = fresh_user("bounds");
    let long = |length| "x".repeat(length);
    let quantity = |number| v1::Event { quantity: Some(number), ..event("e") };
    let quantities =
        |entries: Vec<(String, f64)>| v1::Event { quantities: entries.into_iter().collect(), ..event("e") };
    let metadata = |entries: Vec<(String, String)>| v1::Event { metadata: entries.into_iter().collect(), ..event("e") };
    let many = |count: usize| (0..count).map(|index| format!("k{index}"));

    let good = [
        event("e"),
        event(&long(128)),
        event("AZaz09._:/-"),
        quantity(0.0),
        quantity(0.000_001),
        quantities(
            many(16)
                .map(|key| (key, 1.0))
                .chain([])
                .collect::<Vec<_>>()
                .into_iter()
                .take(15)
                .chain([("quantity".to_owned(), 1.0)])
                .collect(),
        ),
        metadata(many(32).map(|key| (key, long(256))).collect()),
        metadata(vec![(long(64), String::new())]),
    ];
    for event in good {
        let request = v1::CanUseRequest { user_id: user.clone(), event: Some(event.clone()) };
        let answer = replica.metering.clone().can_use(request).await;
        assert!(answer.is_ok(), "{event:?}: {answer:?}");
    }

    let invalid = Code::InvalidArgument;
    let cases = [
        (event(""), invalid, "event.name"),
        (event(&long(129)), invalid, "event.name"),
        (event("a b"), invalid, "event.name"),
        (event("ä"), invalid, "event.name"),
        (event("a*"), invalid, "event.name"),
        (quantity(-1.0), invalid, "event.quantity"),
        (quantity(f64::NAN), invalid, "event.quantity"),
        (quantity(f64::INFINITY), invalid, "event.quantity"),
        (quantity(f64::NEG_INFINITY), invalid, "event.quantity"),
        (quantity(0.000_000_1), invalid, "event.quantity"),
        (quantity(9_007_199_254_740_992.0), Code::OutOfRange, "event.quantity"),
        (quantity(1e300), Code::OutOfRange, "event.quantity"),
        (quantities(many(17).map(|key| (key, 1.0)).collect()), invalid, "event.quantities"),
        (quantities(vec![(String::new(), 1.0)]), invalid, "event.quantities"),
        (quantities(vec![(long(65), 1.0)]), invalid, "event.quantities"),
        (quantities(vec![("n".to_owned(), -0.5)]), invalid, "event.quantities[\"n\"]"),
        (quantities(vec![("n".to_owned(), 1e16)]), Code::OutOfRange, "event.quantities[\"n\"]"),
        (metadata(many(33).map(|key| (key, String::new())).collect()), invalid, "event.metadata"),
        (metadata(vec![(long(65), String::new())]), invalid, "event.metadata"),
        (metadata(vec![("k".to_owned(), long(257))]), invalid, "event.metadata[\"k\"]"),
    ];
    for (event, code, field) in cases {
        let mut metering = replica.metering.clone();
        let event = Some(event);
        let request = v1::CanUseRequest { user_id: user.clone(), event: event.clone() };
        refused(metering.can_use(request).await, code, field);
        let request =
            v1::ReserveRequest { user_id: user.clone(), event: event.clone(), ..v1::ReserveRequest::default() };
        refused(metering.reserve(request).await, code, field);
        let request = v1::TrackRequest { user_id: user.clone(), event, ..v1::TrackRequest::default() };
        refused(metering.track(request).await, code, field);
    }
}

#[tokio::test]
async fn every_other_field_is_checked_and_named() {
    let replica = Replica::start(CATALOG).await;
    let (mut metering, mut subscriptions) = (replica.metering.clone(), replica.subscriptions.clone());
    let invalid = Code::InvalidArgument;
    let user = fresh_user("fields");
    let reserve = |user: &str| v1::ReserveRequest {
        user_id: user.to_owned(),
        event: Some(event("e")),
        ..v1::ReserveRequest::default()
    };

    for bad in ["", &"u".repeat(257)] {
        let user_id = bad.to_owned();
        refused(metering.reserve(reserve(bad)).await, invalid, "user_id");
        let request = v1::CanUseRequest { user_id: user_id.clone(), event: Some(event("e")) };
        refused(metering.can_use(request).await, invalid, "user_id");
        let request =
            v1::TrackRequest { user_id: user_id.clone(), event: Some(event("e")), ..v1::TrackRequest::default() };
        refused(metering.track(request).await, invalid, "user_id");
        let request = v1::GetUsageRequest { user_id: user_id.clone(), ..v1::GetUsageRequest::default() };
        refused(metering.get_usage(request).await, invalid, "user_id");
        let request = v1::UpsertSubscriptionRequest {
            user_id: user_id.clone(),
            plan_id: "p".to_owned(),
            ..v1::UpsertSubscriptionRequest::default()
        };
        refused(subscriptions.upsert_subscription(request).await, invalid, "user_id");
        let request = v1::GetSubscriptionRequest { user_id: user_id.clone() };
        refused(subscriptions.get_subscription(request).await, invalid, "user_id");
        let request = v1::CancelSubscriptionRequest { user_id: user_id.clone(), end_time: None };
        refused(subscriptions.cancel_subscription(request).await, invalid, "user_id");
        refused(subscriptions.delete_user(v1::DeleteUserRequest { user_id }).await, invalid, "user_id");
    }
    assert!(metering.reserve(reserve(&"ü".repeat(128))).await.unwrap().into_inner().allowed, "256 bytes of any text");

    let request = v1::ReserveRequest { event: None, ..reserve(&user) };
    refused(metering.reserve(request).await, invalid, "event");
    refused(metering.can_use(v1::CanUseRequest { user_id: user.clone(), event: None }).await, invalid, "event");
    refused(
        metering.track(v1::TrackRequest { user_id: user.clone(), ..v1::TrackRequest::default() }).await,
        invalid,
        "event",
    );
    for (seconds, nanos, good) in
        [(0, 999_999_999, false), (1, 0, true), (3600, 0, true), (3600, 1, false), (-5, 0, false), (1, -1, false)]
    {
        let ttl = Some(prost_types::Duration { seconds, nanos });
        let answer = metering.reserve(v1::ReserveRequest { ttl, ..reserve(&user) }).await;
        if good { drop(answer.unwrap()) } else { refused(answer, invalid, "ttl") }
    }
    let request = v1::ReserveRequest { request_id: "r".repeat(256), ..reserve(&user) };
    refused(metering.reserve(request).await, invalid, "request_id");
    let request = v1::TrackRequest {
        user_id: user.clone(),
        event: Some(event("e")),
        request_id: "r".repeat(256),
        ..v1::TrackRequest::default()
    };
    refused(metering.track(request).await, invalid, "request_id");

    for reservation_id in [String::new(), "x".repeat(1201)] {
        let request =
            v1::CommitRequest { reservation_id: reservation_id.clone(), actual: None, ..v1::CommitRequest::default() };
        refused(metering.commit(request).await, invalid, "reservation_id");
        let request = v1::ReleaseRequest { reservation_id, reason: String::new() };
        refused(metering.release(request).await, invalid, "reservation_id");
    }
    let held = metering.reserve(reserve(&user)).await.unwrap().into_inner().reservation_id;
    let request = v1::ReleaseRequest { reservation_id: held.clone(), reason: "r".repeat(257) };
    refused(metering.release(request).await, invalid, "reason");
    for (quantity, quantities, field) in [
        (Some(f64::NAN), BTreeMap::new(), "actual.quantity"),
        (None, BTreeMap::from([("n".to_owned(), -1.0)]), "actual.quantities[\"n\"]"),
        (None, (0..17).map(|index| (index.to_string(), 1.0)).collect(), "actual.quantities"),
    ] {
        let actual = Some(v1::Actual { quantity, quantities, ..v1::Actual::default() });
        let request = v1::CommitRequest { reservation_id: held.clone(), actual, ..v1::CommitRequest::default() };
        refused(metering.commit(request).await, invalid, field);
    }

    let usage = |event: &str, at| v1::GetUsageRequest { user_id: user.clone(), event: event.to_owned(), at };
    refused(metering.get_usage(usage("a*b", None)).await, invalid, "event");
    for seconds in [-1, 253_402_300_800] {
        let time = Some(prost_types::Timestamp { seconds, nanos: 0 });
        refused(metering.get_usage(usage("", time)).await, invalid, "at");
        let upsert = v1::UpsertSubscriptionRequest {
            user_id: user.clone(),
            plan_id: "p".to_owned(),
            ..v1::UpsertSubscriptionRequest::default()
        };
        let request = v1::UpsertSubscriptionRequest { end_time: time, ..upsert.clone() };
        refused(subscriptions.upsert_subscription(request).await, invalid, "end_time");
        let request = v1::UpsertSubscriptionRequest { cycle_anchor: time, ..upsert };
        refused(subscriptions.upsert_subscription(request).await, invalid, "cycle_anchor");
        let request = v1::CancelSubscriptionRequest { user_id: user.clone(), end_time: time };
        refused(subscriptions.cancel_subscription(request).await, invalid, "end_time");
    }
    for limit in [None, Some(v1::quota::Limit::Unlimited(false)), Some(v1::quota::Limit::Amount(-1.0))] {
        let quotas = BTreeMap::from([("g".to_owned(), v1::Quota { limit })]);
        let request = v1::UpsertSubscriptionRequest {
            user_id: user.clone(),
            plan_id: "p".to_owned(),
            overrides: Some(v1::QuotaOverrides { quotas }),
            ..v1::UpsertSubscriptionRequest::default()
        };
        refused(subscriptions.upsert_subscription(request).await, invalid, "overrides.quotas[\"g\"]");
    }
    let request = v1::UpsertSubscriptionRequest {
        user_id: user.clone(),
        plan_id: "p".repeat(65),
        ..v1::UpsertSubscriptionRequest::default()
    };
    refused(subscriptions.upsert_subscription(request).await, invalid, "plan_id");
}

/// ONCE, through all that is kept of an id: the reservation's record counts its bytes in one.
#[tokio::test]
async fn a_request_id_may_have_255_bytes_and_is_remembered_whole() {
    let redis = RedisServer::start(scratch("long-ids"), "");
    redis.ready().await;
    let options = RedisOptions { urls: vec![redis.url()], ..redis_options() };
    let mut replica = Replica::start_with(CATALOG, jiff::tz::db(), MeterOptions::default(), options).await;
    let user = fresh_user("long-ids");
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    // The last two differ in their last byte.
    for request_id in [digest, "ü".repeat(127), format!("{}a", "r".repeat(254)), format!("{}b", "r".repeat(254))] {
        let request = v1::ReserveRequest {
            user_id: user.clone(),
            event: Some(event("e")),
            request_id: request_id.clone(),
            ..v1::ReserveRequest::default()
        };
        let held = replica.metering.reserve(request.clone()).await.unwrap().into_inner();
        assert!(held.allowed && !held.replayed, "{request_id}");
        let again = replica.metering.reserve(request.clone()).await.unwrap().into_inner();
        assert_eq!((again.replayed, &again.reservation_id), (true, &held.reservation_id), "{request_id}");
        let commit =
            v1::CommitRequest { reservation_id: held.reservation_id, actual: None, ..v1::CommitRequest::default() };
        replica.metering.commit(commit).await.unwrap();
        let again = replica.metering.reserve(request).await.unwrap().into_inner();
        assert_eq!((again.replayed, again.state()), (true, v1::ReservationState::Committed), "{request_id}");

        let request = v1::TrackRequest {
            user_id: format!("{user}-tracked"),
            event: Some(event("e")),
            request_id: request_id.clone(),
            ..v1::TrackRequest::default()
        };
        let first = replica.metering.track(request.clone()).await.unwrap().into_inner();
        let again = replica.metering.track(request).await.unwrap().into_inner();
        assert_eq!((first.replayed, again.replayed, first.event_id), (false, true, again.event_id), "{request_id}");
    }
    for user_id in [user.clone(), format!("{user}-tracked")] {
        let request = v1::GetUsageRequest { user_id, ..v1::GetUsageRequest::default() };
        let usage = replica.metering.get_usage(request).await.unwrap().into_inner();
        assert_eq!((usage.limits[0].used, usage.limits[0].held), (4.0, 0.0));
    }
    nothing_contradicts_itself(&[redis.url()]).await;
}

#[tokio::test]
async fn users_with_odd_names_do_not_meet() {
    let mut replica = Replica::start(CATALOG).await;
    let stem = fresh_user("odd");
    let users =
        [":", "%3A", "{", "}", "{}", " ", "\u{0}", "\r\n", "é", "*", "a:b", "a}:b"].map(|odd| format!("{stem}{odd}"));
    for (index, user) in users.iter().enumerate() {
        let request = v1::ReserveRequest {
            user_id: user.clone(),
            event: Some(v1::Event { quantity: Some(index as f64 + 1.0), ..event("e") }),
            ..v1::ReserveRequest::default()
        };
        let held = replica.metering.reserve(request).await.unwrap().into_inner();
        let request =
            v1::CommitRequest { reservation_id: held.reservation_id, actual: None, ..v1::CommitRequest::default() };
        replica.metering.commit(request).await.unwrap();
    }
    for (index, user) in users.iter().enumerate() {
        let request = v1::GetUsageRequest { user_id: user.clone(), ..v1::GetUsageRequest::default() };
        let usage = replica.metering.get_usage(request).await.unwrap().into_inner();
        assert_eq!(usage.limits[0].used, index as f64 + 1.0, "{user:?}");
    }
}

#[tokio::test]
async fn what_is_unlimited_is_infinity_in_json_and_no_field_is_left_out_for_it() {
    use prost::Message as _;
    use prost_reflect::{DescriptorPool, DynamicMessage};
    let catalog = CATALOG.replace("1000", "unlimited");
    let replica = Replica::start(&catalog).await;
    let pool = DescriptorPool::decode(tollgate::grpc::v1::FILE_DESCRIPTOR_SET).unwrap();
    let json = |name: &str, message: &[u8]| {
        let kind = pool.get_message_by_name(name).unwrap();
        serde_json::to_value(DynamicMessage::decode(kind, message).unwrap()).unwrap()
    };
    let request = v1::GetUsageRequest { user_id: fresh_user("infinity"), ..v1::GetUsageRequest::default() };
    let usage = replica.metering.clone().get_usage(request).await.unwrap().into_inner();
    let limit = &json("tollgate.v1.GetUsageResponse", &usage.encode_to_vec())["limits"][0];
    assert_eq!((&limit["quota"], &limit["remaining"]), (&"Infinity".into(), &"Infinity".into()), "{limit}");
    assert!(usage.limits[0].remaining >= 1e300, "a client that compares it lets the call through");
    let plan = replica.plans.clone().get_plan(v1::GetPlanRequest { plan_id: "p".to_owned() }).await.unwrap();
    let plan = json("tollgate.v1.GetPlanResponse", &plan.into_inner().encode_to_vec());
    assert_eq!(plan["plan"]["limitGroups"][0]["quota"], "Infinity");
}

#[tokio::test]
async fn usage_can_be_asked_for_some_events() {
    crate::scenario::check(
        "
default_plan: p
plans:
  p:
    period: monthly
    limit_groups:
      - { id: tokens, unit: tokens, quota: 10, match: [{ event: llm.tokens }, { event: llm.batch.tokens }] }
      - { id: images, unit: count, quota: 10, match: [{ event: image.* }] }
      - { id: all, unit: count, quota: unlimited, match: [{ event: '*', measure: events }] }
",
        "
        usage u => groups=tokens,images,all
        usage u event=llm.tokens => groups=tokens,all
        usage u event=image.render => groups=images,all
        usage u event=llm.* => groups=tokens,all
        usage u event=image.render.* => groups=images,all
        usage u event=nothing => groups=all
        usage u event=* => groups=tokens,images,all
        ",
    )
    .await;
}

#[tokio::test]
async fn health_and_reflection_are_on() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let replica = Replica::start(CATALOG).await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", replica.address)).unwrap().connect_lazy();
    let mut health = HealthClient::new(channel.clone());
    let names = ["", "tollgate.v1.MeteringService", "tollgate.v1.SubscriptionService", "tollgate.v1.PlanService"];
    for service in names {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let stream = tokio_stream::iter([request]);
    let mut answers =
        ServerReflectionClient::new(channel.clone()).server_reflection_info(stream).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let found: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in names.iter().skip(1) {
        assert!(found.contains(name), "{name} in {found:?}");
    }
    let alpha = tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([tonic_reflection::pb::v1alpha::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(
                tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                    "tollgate.v1.MeteringService".to_owned(),
                ),
            ),
        }]))
        .await
        .unwrap();
    assert!(alpha.into_inner().message().await.unwrap().is_some());
}
