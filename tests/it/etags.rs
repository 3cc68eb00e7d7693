//! Changes of a subscription by callers that name the version which they have read, and its end.

use crate::scenario::check;
use crate::support::Replica;

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups: [{ id: tokens, unit: tokens, quota: 100, match: [{ event: t }] }]
  pro:
    period: monthly
    limit_groups: [{ id: tokens, unit: tokens, quota: 1000, match: [{ event: t }] }]
";

#[tokio::test]
async fn the_end_of_a_subscription_is_cleared_by_a_field_of_its_own() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        subscribe u pro end=2031-02-01T00:00:00Z as=A => end=2031-02-01T00:00:00Z
        subscribe u pro end=1970-01-01T00:00:00Z => code=InvalidArgument INVALID_FIELD field:end_time
        subscribe u pro end=2031-03-01T00:00:00Z no-end => code=InvalidArgument INVALID_FIELD field:clear_end_time
        subscription u => end=2031-02-01T00:00:00Z etag=A
        subscribe u no-end as=B => end=none !etag=A
        subscribe u no-end => end=none etag=B
        subscribe u pro => end=none etag=B
        # After an end, clearing it begins a new subscription, as every other upsert does.
        cancel u
        clock u +1s
        subscribe u no-end => plan=pro end=none start=2031-01-15T12:00:01Z
        subscribe v pro no-end => plan=pro end=none
    ",
    )
    .await;
}

#[tokio::test]
async fn an_etag_names_one_version_of_a_subscription() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        subscribe u pro etag=\"00\" => code=Aborted ETAG_MISMATCH # there is none
        subscribe u etag=\"00\" => code=Aborted ETAG_MISMATCH
        subscription u => code=NotFound
        subscribe u pro as=A => plan=pro etag=A
        subscription u => etag=A
        usage u => etag=A
        subscribe u quota:tokens=7 etag=A as=B => override:tokens=7 etag=B !etag=A
        subscribe u quota:tokens=8 etag=A => code=Aborted ETAG_MISMATCH
        subscription u => override:tokens=7 etag=B
        # A retry finds everything in place, whatever version it names.
        subscribe u quota:tokens=7 etag=A => etag=B
        subscribe u pro etag=\"anything\" => etag=B
        subscribe u free etag=\"anything\" => code=Aborted ETAG_MISMATCH
        subscribe u pro quota:tokens=7 => etag=B # nothing changes
        cancel u end=2031-02-01T00:00:00Z as=C => !etag=B
        cancel u end=2031-02-01T00:00:00Z => etag=C
        subscribe u end=2031-03-01T00:00:00Z etag=B => code=Aborted ETAG_MISMATCH
        # To fall to the default plan is no change of the subscription.
        clock u 2031-02-02T00:00:00Z
        track u t 1
        usage u => in-force=free etag=C
        cancel u => etag=C
        subscribe u pro etag=C as=D => !etag=C end=none
        delete u
        subscribe u pro etag=D => code=Aborted ETAG_MISMATCH
        # What cannot be asked for at all is told first.
        subscribe v pro as=E
        subscribe v nonesuch etag=\"00\" => code=InvalidArgument PLAN_UNKNOWN
    ",
    )
    .await;
    let long = "e".repeat(65);
    let table = format!("subscribe w pro etag=\"{long}\" => code=InvalidArgument INVALID_FIELD field:etag");
    check(CATALOG, &table).await;
}

#[tokio::test]
async fn of_changes_with_the_same_etag_one_is_made() {
    use tollgate::grpc::v1;
    let replicas = [Replica::start(CATALOG).await, Replica::start(CATALOG).await];
    let user = crate::support::fresh_user("raced");
    let mut first = replicas[0].subscriptions.clone();
    let upsert = v1::UpsertSubscriptionRequest { user_id: user, plan_id: "pro".to_owned(), ..Default::default() };
    let mut etag = first.upsert_subscription(upsert.clone()).await.unwrap().into_inner().subscription.unwrap().etag;
    for round in 1..20_i64 {
        let change = |seconds: i64| v1::UpsertSubscriptionRequest {
            end_time: Some(prost_types::Timestamp { seconds: 4_000_000_000 + seconds, nanos: 0 }),
            etag: etag.clone(),
            ..upsert.clone()
        };
        let (mut left, mut right) = (replicas[0].subscriptions.clone(), replicas[1].subscriptions.clone());
        let (one, two) =
            tokio::join!(left.upsert_subscription(change(2 * round)), right.upsert_subscription(change(2 * round + 1)));
        let (made, refused) = if one.is_ok() { (one, two) } else { (two, one) };
        assert_eq!(refused.unwrap_err().code(), tonic::Code::Aborted, "round {round}");
        etag = made.unwrap().into_inner().subscription.unwrap().etag;
    }
}
