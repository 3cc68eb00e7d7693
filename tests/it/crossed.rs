//! Thresholds that consumption crosses: `crossed` of Commit and Track.

use tollgate::grpc::v1;

use crate::scenario::{Scenario, check};
use crate::support::Replica;

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: daily
    limit_groups:
      - id: tokens
        label: Tokens
        unit: tokens
        quota: 100
        thresholds: [0.8, { amount: 50 }, 1.0, 1.5]
        match: [{ event: t }, { event: s }]
      - { id: calls, unit: count, quota: 3, hard: false, thresholds: [0.5, 1.0], match: [{ event: t, measure: events }] }
      - { id: all, unit: tokens, quota: unlimited, period: lifetime, thresholds: [0.5, { amount: 60 }], match: [{ event: t }, { event: o }] }
  pro:
    period: daily
    limit_groups:
      - { id: tokens, unit: tokens, quota: 1000, thresholds: [0.8], match: [{ event: t }, { event: s }] }
  full:
    period: daily
    on_plan_change: block
    limit_groups:
      - { id: tokens, unit: tokens, quota: 200, thresholds: [0.8, 1.0], match: [{ event: t }] }
";

#[tokio::test]
async fn a_plan_shows_its_thresholds() {
    let mut replica = Replica::start(CATALOG).await;
    let request = v1::GetPlanRequest { plan_id: "free".to_owned() };
    let plan = replica.plans.get_plan(request).await.unwrap().into_inner().plan.unwrap();
    let thresholds = plan.limit_groups.iter().map(|group| (&group.thresholds[..], &group.threshold_amounts[..]));
    let expected = [(&[0.8, 1.0, 1.5][..], &[50.0][..]), (&[0.5, 1.0], &[]), (&[0.5], &[60.0])];
    assert_eq!(thresholds.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_track_crosses_what_it_reaches_once() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        track u t 49 => crossed=
        track u t 1 id=a => crossed=tokens@50,calls:0.5@2 tokens.used=50 # exactly reached, and half of 3 rounded up
        track u t 1 id=a => replayed crossed=
        track u t 29 => crossed=calls:1@3,all@60 crossed:calls.used=3 # a soft group, and an unlimited one
        track u s 1 => crossed=tokens:0.8@80 crossed:tokens.label=Tokens crossed:tokens.unit=tokens crossed:tokens.used=80 crossed:tokens.quota=100 crossed:tokens.start=2031-01-15T00:00:00Z crossed:tokens.reset=2031-01-16T00:00:00Z !crossed:tokens.unlimited
        track u s 80 => crossed=tokens:1@100,tokens:1.5@150 crossed:tokens.used=160
        track u s 1 enforce => BLOCKED crossed=
        track u t 1 => crossed= # the unlimited group has no shares
        clock v 2031-01-15T10:00:00Z
        track v t 60 => crossed=tokens@50,all@60 crossed:all.unlimited crossed:all.quota=inf crossed:all.start=none crossed:all.reset=none
        track v s 20 enforce => MATCHED crossed=tokens:0.8@80
        clock v 2031-01-16T10:00:00Z
        track v s 50 time=2031-01-15T23:00:00Z => crossed=tokens:1@100 crossed:tokens.used=130 crossed:tokens.start=2031-01-15T00:00:00Z
        track v s 50 => crossed=tokens@50 crossed:tokens.start=2031-01-16T00:00:00Z
    ",
    )
    .await;
}

#[tokio::test]
async fn a_commit_crosses_by_what_it_counts_and_a_hold_crosses_nothing() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u s 100 as=A
        commit A 50 => crossed=tokens@50
        commit A 50 => replayed crossed=
        reserve u s 10 as=B
        commit B 60 => overage crossed=tokens:0.8@80,tokens:1@100 crossed:tokens.used=110
        clock v 2031-01-15T10:00:00Z
        reserve v s 100 as=C
        commit C part 40 => HELD crossed=
        commit C part 50 => crossed=tokens@50
        commit C part 50 => crossed=
        commit C part 45 ttl=60s => tokens.used=50 crossed=
        commit C part 81 => crossed=tokens:0.8@80
        commit C 60 => COMMITTED tokens.used=60 crossed= # less than was counted before
        track v s 20 => crossed=tokens:0.8@80 # once more
        clock w 2031-01-15T10:00:00Z
        reserve w s 90 as=D
        clock w 2031-01-15T10:01:00Z
        usage w => tokens.used=0
        commit D 55 => late crossed=tokens@50
    ",
    )
    .await;
}

#[tokio::test]
async fn a_deadline_that_counts_crosses_in_the_call_that_writes_it() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u s 85 as=A counting
        reserve u o 70 as=B counting
        clock u 2031-01-15T10:01:00Z
        usage u => tokens.used=85 all.used=70
        commit A 85 => late tokens.used=85 crossed=tokens@50,tokens:0.8@80,all@60 crossed:all.used=70 # another group's as well
        commit B => late all.used=70 crossed=
        track u t 15 => tokens.used=100 crossed=tokens:1@100
        clock v 2031-01-15T10:00:00Z
        reserve v s 60 as=C counting
        clock v 2031-01-15T10:01:00Z
        track v o 60 => groups=all crossed=tokens@50,all@60 crossed:tokens.used=60
        commit C 82 => late crossed=tokens:0.8@80
        clock w 2031-01-15T10:00:00Z
        reserve w s 95 as=D counting
        clock w 2031-01-15T10:01:00Z
        track w s 6 enforce => BLOCKED tokens.used=95 crossed=tokens@50,tokens:0.8@80
        track w s 6 enforce => BLOCKED crossed=
        clock x 2031-01-15T10:00:00Z
        reserve x s 95 as=E counting
        clock x 2031-01-15T10:01:00Z
        commit E 40 => late tokens.used=40 crossed= # it replaces what the deadline counts
        reserve x s 60 as=F counting
        reserve x o 5 as=G
        clock x 2031-01-15T10:02:00Z
        release F => RELEASED tokens.used=40 # takes it back
        reserve x s 60 as=H counting
        reserve x o 1 as=I
        clock x 2031-01-15T10:02:30Z
        commit I part 1 => all.used=1 crossed=
        clock x 2031-01-15T10:03:00Z
        commit I part 1 => late all.used=1 crossed= # writes nothing
        track x o.refund 1 => all.used=0 crossed=tokens@50,tokens:0.8@80,tokens:1@100 crossed:tokens.used=100
        clock y 2031-01-15T23:59:30Z
        reserve y s 60 as=J counting
        clock y 2031-01-16T10:00:00Z
        track y s 1 => tokens.used=1 crossed=tokens@50 crossed:tokens.start=2031-01-15T00:00:00Z crossed:tokens.used=60
    ",
    )
    .await;
}

#[tokio::test]
async fn what_lowers_used_or_raises_the_quota_arms_a_threshold_again() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        track u s 85 => crossed=tokens@50,tokens:0.8@80
        track u s.refund 10 => tokens.used=75 crossed=
        track u s 5 => crossed=tokens:0.8@80
        reset u groups=tokens => tokens.used=0
        track u s 80 => crossed=tokens@50,tokens:0.8@80
        subscribe u free quota:tokens=200
        track u s 79 => tokens.quota=200 crossed=
        track u s 1 => crossed=tokens:0.8@160 crossed:tokens.quota=200
        subscribe u free quota:tokens=100 # nothing is crossed by it
        track u s 1 => tokens.used=161 crossed=
        subscribe u free quota:tokens=unlimited
        track u s 1000 => crossed=
        reserve u s 100 as=A
        commit A 10 => crossed=
        track u s.refund 3 of=A => crossed=
        clock v 2031-01-15T10:00:00Z
        subscribe v free quota:tokens=unlimited
        track v s 100 => crossed=tokens@50 crossed:tokens.unlimited
        clock w 2031-01-15T10:00:00Z
        track w s 30
        subscribe w full => plan=full
        usage w => tokens.used=200
        track w t 1 => tokens.used=201 crossed=
    ",
    )
    .await;
}

#[tokio::test]
async fn a_reservation_crosses_by_its_own_plan_and_other_windows_by_the_quota_of_their_owner() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u s 90 as=A
        subscribe u pro
        commit A => tokens.quota=100 crossed=tokens@50,tokens:0.8@80 crossed:tokens.quota=100
        clock v 2031-01-15T10:00:00Z
        subscribe v free quota:tokens=110
        reserve v s 90 as=B counting
        reserve v o 1 as=C
        clock v 2031-01-15T10:01:00Z
        commit C => late groups=all crossed=tokens@50,tokens:0.8@88 crossed:tokens.quota=110
        clock w 2031-01-15T10:00:00Z
        subscribe w free quota:tokens=110 end=2031-01-15T10:00:30Z
        reserve w s 90 as=D counting
        reserve w o 1 as=E
        clock w 2031-01-15T10:01:00Z
        commit E => late crossed=tokens@50,tokens:0.8@80 crossed:tokens.quota=100 # the subscription has ended
        clock x 2031-01-15T10:00:00Z
        reserve x s 90 as=F counting
        reserve x o 1 as=G
        subscribe x full
        clock x 2031-01-15T10:01:00Z
        commit G => late crossed= # the plan was full before
        clock z 2031-01-15T10:00:00Z
        reserve z s 90 as=H counting
        reserve z o 4 as=I
        commit I 4
        clock z 2031-01-15T10:01:00Z
        track z o.refund 1 of=I => all.used=3 crossed=tokens@50,tokens:0.8@80
    ",
    )
    .await;
}

#[tokio::test]
async fn a_plan_that_is_entered_in_the_same_script_begins_anew() {
    let catalog = |change: &str| {
        format!(
            r"
default_plan: free
plans:
  free:
    period: daily
    on_plan_change: {change}
    limit_groups: [{{ id: a, unit: tokens, quota: 100, thresholds: [{{ amount: 40 }}, 0.7, 1.0, 1.1], match: [{{ event: t }}] }}]
  pro:
    period: daily
    limit_groups: [{{ id: a, unit: tokens, quota: 1000, match: [{{ event: t }}] }}]
"
        )
    };
    // The hold lapses after the end of the subscription, and nobody has written since.
    let table = |track: &str| {
        format!(
            "
            clock u 2031-01-15T10:00:00Z
            subscribe u pro end=2031-01-15T10:00:30Z
            track u t 30
            reserve u t 20 counting
            clock u 2031-01-15T10:02:00Z
            {track}
        "
        )
    };
    check(&catalog("carry"), &table("track u t 20 => a.used=70 crossed=a@40,a:0.7@70")).await;
    check(&catalog("block"), &table("track u t 10 => a.used=110 crossed=a:1.1@110")).await;
    check(&catalog("reset"), &table("track u t 45 => a.used=45 crossed=a@40")).await;
}

#[tokio::test]
async fn a_plan_is_told_with_its_thresholds_and_settled_by_a_replica_without_them() {
    let without = CATALOG.replace("thresholds: [0.8, { amount: 50 }, 1.0, 1.5]", "thresholds: [0.1]");
    let replicas = vec![("one", Replica::start(CATALOG).await), ("other", Replica::start(&without).await)];
    Scenario::new(replicas)
        .run(
            "
            on one
            clock u 2031-01-15T10:00:00Z
            reserve u s 60 as=A
            on other
            commit A => crossed=tokens@50
            track u s 10 => tokens.used=70 crossed=
        ",
        )
        .await;
}

#[tokio::test]
async fn a_commit_of_another_event_crosses_in_the_groups_that_it_matches_then() {
    let catalog = "
default_plan: p
plans:
  p:
    period: daily
    limit_groups:
      - { id: all, unit: tokens, quota: 100, thresholds: [0.5], match: [{ event: e }] }
      - { id: big, unit: tokens, quota: 100, thresholds: [0.1], match: [{ event: e, metadata: { model: big } }] }
      - { id: small, unit: tokens, quota: 100, thresholds: [0.2, { amount: 40 }], match: [{ event: e, metadata: { model: small } }] }
";
    check(
        catalog,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u e 60 @model=big as=A
        commit A @model=small 45 => COMMITTED crossed=small:0.2@20,small@40
        commit A @model=small 45 => replayed crossed=
        reserve u e 20 @model=big as=B
        commit B part 5 => crossed=all:0.5@50
        commit B @model=small 30 => crossed=
        usage u => all.used=75 small.used=75 big.used=0
    ",
    )
    .await;
}
