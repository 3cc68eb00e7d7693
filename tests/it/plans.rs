//! Subscriptions, plan changes and what they do to counters.

use crate::scenario::{Scenario, check};
use crate::support::Replica;

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    on_plan_change: block
    limit_groups:
      - { id: tokens, unit: tokens, quota: 100, match: [{ event: t }] }
      - { id: daily, unit: tokens, period: daily, quota: 50, match: [{ event: t }] }
      - { id: soft, unit: tokens, quota: unlimited, match: [{ event: t }] }
  pro:
    period: monthly
    on_plan_change: carry
    limit_groups:
      - { id: tokens, unit: tokens, quota: 1000, match: [{ event: t }] }
      - { id: extra, unit: tokens, quota: 10, match: [{ event: e }] }
  fresh:
    period: monthly
    on_plan_change: reset
    limit_groups:
      - { id: tokens, unit: tokens, quota: 500, match: [{ event: t }] }
  anchored:
    period: monthly
    anchor: subscription_start
    limit_groups:
      - { id: tokens, unit: tokens, quota: 500, match: [{ event: t }] }
  other_period:
    period: weekly
    limit_groups:
      - { id: tokens, unit: tokens, quota: 500, match: [{ event: t }] }
  other_unit:
    period: monthly
    limit_groups:
      - { id: tokens, unit: count, quota: 500, match: [{ event: t }] }
";

#[tokio::test]
async fn a_subscription_is_stored_as_it_is_asked_for() {
    check(
        CATALOG,
        "
        subscription u => code=NotFound SUBSCRIPTION_NOT_FOUND
        cancel u => code=NotFound SUBSCRIPTION_NOT_FOUND
        subscribe u => code=InvalidArgument field:plan_id
        subscribe u nosuch => code=InvalidArgument PLAN_UNKNOWN field:plan_id
        subscribe u pro quota:nosuch=1 => code=InvalidArgument GROUP_UNKNOWN
        subscribe u pro quota:tokens=0.5 => code=InvalidArgument
        clock u 2031-01-15T12:00:00Z
        subscribe u pro quota:tokens=7 quota:extra=unlimited => plan=pro start=2031-01-15T12:00:00Z anchor=2031-01-15T12:00:00Z end=none override:tokens=7 override:extra=unlimited
        clock u 2031-01-16T12:00:00Z
        subscribe u => plan=pro start=2031-01-15T12:00:00Z override:tokens=7 # fields left out keep what is stored
        subscribe u pro end=2031-03-01T00:00:00Z => end=2031-03-01T00:00:00Z override:tokens=7
        subscribe u pro => end=2031-03-01T00:00:00Z
        subscribe u pro no-end => end=none
        subscribe u pro quota:tokens=8 => override:tokens=8 !override:extra=unlimited # the map is replaced
        usage u => tokens.quota=8 plan=pro in-force=pro extra.quota=10
        subscribe u no-overrides => plan=pro !override:tokens=8
        usage u => tokens.quota=1000
        subscription u => plan=pro start=2031-01-15T12:00:00Z
        subscribe u fresh => plan=fresh start=2031-01-16T12:00:00Z anchor=2031-01-15T12:00:00Z
    ",
    )
    .await;
}

#[tokio::test]
async fn an_ended_subscription_falls_to_the_default_plan() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        subscribe u pro end=2031-01-15T13:00:00Z => plan=pro
        track u t 30 => tokens.used=30 tokens.quota=1000
        clock u 2031-01-15T12:59:59.999Z
        can u t 1 => allowed tokens.quota=1000
        clock u 2031-01-15T13:00:00Z
        usage u => in-force=free plan=pro tokens.quota=100 tokens.used=100 daily.used=50 # block, as if it had been written
        reserve u t 1 => denied tokens.shortfall=1
        usage u => tokens.used=100 daily.used=50
        clock u 2031-01-16T00:00:00Z
        usage u => tokens.used=100 daily.used=0 # applied once
        cancel u => end=2031-01-15T13:00:00Z # it stays as it ended
        subscribe u pro => plan=pro start=2031-01-16T00:00:00Z end=none
        usage u => tokens.used=100 tokens.quota=1000
        cancel u end=2031-01-20T00:00:00Z => end=2031-01-20T00:00:00Z
        usage u => in-force=pro
        cancel u => end=2031-01-16T00:00:00Z
        usage u => in-force=free
    ",
    )
    .await;
}

#[tokio::test]
async fn an_end_that_nobody_has_seen_comes_before_the_next_plan() {
    // As if a call had come in between: the default plan blocks, and what it carries on is full.
    for seen in ["", "reserve u t 1 => denied"] {
        for (plan, quota) in [("free", 100), ("pro", 1000)] {
            let table = format!(
                "
                clock u 2031-01-15T12:00:00Z
                subscribe u pro => plan=pro
                track u t 30 => tokens.used=30
                cancel u
                {seen}
                subscribe u {plan} => plan={plan}
                usage u => tokens.used=100 tokens.quota={quota}
            "
            );
            check(CATALOG, &table).await;
        }
    }
}

#[tokio::test]
async fn carry_keeps_what_equal_groups_have_counted() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        track u t 60 => tokens.used=60
        subscribe u pro => plan=pro
        usage u => tokens.used=60 tokens.remaining=940 extra.used=0
        track u t 40 => tokens.used=100
        subscribe u other_period
        usage u => tokens.used=0 tokens.start=2031-01-13T00:00:00Z # another period is another group
        subscribe v other_unit
        track v t 5
        subscribe v pro
        usage v => tokens.used=0
    ",
    )
    .await;
}

#[tokio::test]
async fn reset_starts_at_zero_and_block_at_the_quota() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        track u t 50 => tokens.used=50 daily.used=50
        subscribe u fresh
        usage u => tokens.used=0
        track u t 200 => tokens.used=200
        subscribe u free # the way back is closed, and what was used stays used
        usage u => tokens.used=200 tokens.remaining=0 daily.used=50 soft.used=50
        reserve u t 1 => denied
        clock u 2031-02-01T00:00:00Z
        reserve u t 1 => allowed
    ",
    )
    .await;
}

#[tokio::test]
async fn the_first_plan_ever_changes_nothing_and_the_same_plan_neither() {
    check(
        CATALOG,
        "
        subscribe u free => plan=free
        usage u => tokens.used=0
        track u t 10
        subscribe u free
        usage u => tokens.used=10 daily.used=10
        track v t 10
        subscribe v free # from the default plan to the same one
        usage v => tokens.used=10
        subscribe w pro
        subscribe w free # nobody has used anything, but a plan was entered
        usage w => tokens.used=100
    ",
    )
    .await;
}

#[tokio::test]
async fn holds_stand_when_the_plan_changes_and_settle_as_written() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u t 40 as=A => allowed tokens.held=40
        reserve u t 10 as=B => allowed
        subscribe u fresh
        usage u => tokens.used=0 tokens.held=50
        track u t 3 => tokens.used=3
        commit A 35 => tokens.used=38 tokens.held=10 daily.used=35 daily.held=10 tokens.quota=100 groups=tokens,daily,soft
        clock u +60s
        usage u => tokens.used=38 tokens.held=0
        commit B 10 => late tokens.used=48
        reserve u t 452 => allowed # used and held survive exactly
    ",
    )
    .await;
}

#[tokio::test]
async fn a_lower_quota_denies_new_calls_and_remaining_is_never_negative() {
    check(
        CATALOG,
        "
        subscribe u pro
        reserve u t 400 as=A => allowed
        track u t 300
        subscribe u pro quota:tokens=500
        usage u => tokens.quota=500 tokens.remaining=0 tokens.exceeded
        reserve u t 1 => denied tokens.shortfall=201
        commit A 400 => COMMITTED tokens.used=700
    ",
    )
    .await;
}

#[tokio::test]
async fn anchored_windows_follow_the_cycle_anchor_and_month_ends() {
    check(
        CATALOG,
        "
        clock u 2031-01-31T10:00:00Z
        subscribe u anchored => anchor=2031-01-31T10:00:00Z
        track u t 5 => tokens.start=2031-01-31T10:00:00Z tokens.reset=2031-02-28T10:00:00Z
        usage u at=2031-01-30T10:00:00Z => groups= # no window before the start
        clock u 2031-02-28T10:00:00Z
        track u t 6 => tokens.used=6 tokens.reset=2031-03-31T10:00:00Z
        clock u 2031-03-31T10:00:00Z
        usage u => tokens.used=0 tokens.reset=2031-04-30T10:00:00Z
        usage u at=2031-03-01T00:00:00Z => tokens.used=6
        track u t 2 => tokens.used=2
        subscribe u anchored anchor=2031-03-31T09:00:00Z # a new anchor is a new window
        track u t 1 => tokens.used=1 tokens.start=2031-03-31T09:00:00Z
        subscribe u anchored anchor=2031-03-31T09:00:00Z
        usage u => tokens.used=1
    ",
    )
    .await;
}

#[tokio::test]
async fn a_plan_that_left_the_catalog_is_unknown_never_the_default() {
    let smaller = CATALOG.replace("  fresh:", "  renamed:");
    let replicas = vec![("old", Replica::start(CATALOG).await), ("new", Replica::start(&smaller).await)];
    Scenario::new(replicas)
        .run(
            "
            on old
            subscribe u fresh
            reserve u t 10 id=r1 as=A => allowed
            on new
            reserve u t 1 => code=FailedPrecondition PLAN_UNKNOWN plan_id=fresh
            track u t 1 => code=FailedPrecondition PLAN_UNKNOWN
            can u t 1 => code=FailedPrecondition PLAN_UNKNOWN
            usage u => code=FailedPrecondition PLAN_UNKNOWN
            reserve u t 10 id=r1 => allowed replayed same-as=A # what was decided stays decided
            commit A 4 => COMMITTED tokens.used=4
            subscription u => plan=fresh
            on old
            usage u => tokens.used=4
            subscribe u pro
            on new
            usage u => tokens.used=4 in-force=pro
        ",
        )
        .await;
}

#[tokio::test]
async fn deleting_a_user_leaves_nothing() {
    let mut scenario = Scenario::new(vec![("", Replica::start(CATALOG).await)]);
    scenario
        .run(
            "
            subscribe u pro
            reserve u t 10 id=r1 as=A => allowed
            reserve u t 10 as=B => allowed
            commit B 3
            track u t 5 id=t1
            ",
        )
        .await;
    let user = scenario.user("u");
    assert_eq!(crate::support::dump(&user).await.len(), 3, "state, memory and one live hold");
    scenario.run("delete u\ndelete u").await;
    assert_eq!(crate::support::dump(&user).await.len(), 0);
    scenario
        .run(
            "
            commit A => code=NotFound RESERVATION_NOT_FOUND
            subscription u => code=NotFound
            usage u => in-force=free tokens.used=0 no-subscription
            reserve u t 10 id=r1 => allowed !replayed
            ",
        )
        .await;
}

#[tokio::test]
async fn lifetime_groups_have_one_window_for_ever() {
    let catalog = "
default_plan: p
plans:
  p:
    period: lifetime
    anchor: subscription_start
    limit_groups: [{ id: g, unit: count, quota: 10, match: [{ event: x }] }]
";
    check(
        catalog,
        "
        track u x 9 => g.used=9 g.start=none g.reset=none
        reserve u x 2 => denied retry=never
        clock u 2099-01-01T00:00:00Z
        usage u => g.used=9
        usage u at=2031-01-01T00:00:00Z => g.used=9
        subscribe u p anchor=2031-01-01T00:00:00Z
        reserve u x 2 => denied g.used=9
        reserve u x 1 ttl=5s => allowed
        reserve u x 1 => denied retry=5s
    ",
    )
    .await;
}

#[tokio::test]
async fn plans_are_shown_as_the_catalog_has_them() {
    use tollgate::grpc::v1;
    let mut replica = Replica::start(CATALOG).await;
    let plans = replica.plans.list_plans(v1::ListPlansRequest {}).await.unwrap().into_inner().plans;
    let ids: Vec<_> = plans.iter().map(|plan| (plan.plan_id.as_str(), plan.is_default)).collect();
    let expected = [
        ("free", true),
        ("pro", false),
        ("fresh", false),
        ("anchored", false),
        ("other_period", false),
        ("other_unit", false),
    ];
    assert_eq!(ids, expected);
    let request = v1::GetPlanRequest { plan_id: "free".to_owned() };
    let plan = replica.plans.get_plan(request).await.unwrap().into_inner().plan.unwrap();
    assert_eq!(plan, plans[0]);
    let groups: Vec<_> = plan
        .limit_groups
        .iter()
        .map(|group| {
            (group.limit_group_id.as_str(), group.unit.as_str(), group.quota, group.unlimited, group.period.as_str())
        })
        .collect();
    let expected = [
        ("tokens", "tokens", 100.0, false, "monthly"),
        ("daily", "tokens", 50.0, false, "daily"),
        ("soft", "tokens", f64::INFINITY, true, "monthly"),
    ];
    assert_eq!(groups, expected);
    assert_eq!((plan.on_plan_change.as_str(), plan.limit_groups[0].events.join(",").as_str()), ("block", "t"));
    let missing = replica.plans.get_plan(v1::GetPlanRequest { plan_id: "x".to_owned() }).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn changes_at_the_same_time_are_all_kept() {
    use tollgate::grpc::v1;
    let replicas = [Replica::start(CATALOG).await, Replica::start(CATALOG).await];
    let user = crate::support::fresh_user("changed");
    let upsert = |plan_id: &str| v1::UpsertSubscriptionRequest {
        user_id: user.clone(),
        plan_id: plan_id.to_owned(),
        ..v1::UpsertSubscriptionRequest::default()
    };
    replicas[0].subscriptions.clone().upsert_subscription(upsert("pro")).await.unwrap();
    for round in 1..30_i64 {
        let quota = v1::Quota { limit: Some(v1::quota::Limit::Amount(round as f64)) };
        let overrides = v1::QuotaOverrides { quotas: [("tokens".to_owned(), quota)].into() };
        let end_time = prost_types::Timestamp { seconds: 4_000_000_000 + round, nanos: 0 };
        let one = v1::UpsertSubscriptionRequest { overrides: Some(overrides.clone()), ..upsert("") };
        let two = v1::UpsertSubscriptionRequest { end_time: Some(end_time), ..upsert("") };
        let (mut left, mut right) = (replicas[0].subscriptions.clone(), replicas[1].subscriptions.clone());
        let (one, two) = tokio::join!(left.upsert_subscription(one), right.upsert_subscription(two));
        one.and(two).unwrap();
        let request = v1::GetSubscriptionRequest { user_id: user.clone() };
        let found = left.get_subscription(request).await.unwrap().into_inner().subscription.unwrap();
        assert_eq!((found.overrides, found.end_time), (Some(overrides), Some(end_time)), "round {round}");
    }
}

#[tokio::test]
async fn holds_survive_windows_that_are_left_and_entered_again() {
    let catalog = "
default_plan: daily
plans:
  daily:
    period: daily
    limit_groups: [{ id: g, unit: count, quota: 2, match: [{ event: x }] }]
  monthly:
    period: monthly
    limit_groups: [{ id: g, unit: count, quota: 2, match: [{ event: x }] }]
  anchored:
    period: monthly
    anchor: subscription_start
    limit_groups: [{ id: g, unit: count, quota: 2, match: [{ event: x }] }]
";
    check(
        catalog,
        "
        clock u 2031-01-15T12:00:00Z
        subscribe u anchored anchor=2031-01-10T00:00:00Z
        reserve u x as=A => allowed g.held=1
        subscribe u anchored anchor=2031-01-12T00:00:00Z
        usage u => g.held=0 g.start=2031-01-12T00:00:00Z
        subscribe u anchored anchor=2031-01-10T00:00:00Z
        usage u => g.held=1 g.start=2031-01-10T00:00:00Z
        reserve u x => allowed g.held=2
        reserve u x => denied
        clock u +60s
        usage u => g.held=0 g.used=0
        clock v 2031-01-15T12:00:00Z
        reserve v x as=B => allowed
        subscribe v monthly
        reserve v x as=C => allowed g.held=1
        subscribe v daily
        usage v => g.held=1
        subscribe v anchored
        usage v => g.held=0
        subscribe v monthly
        subscribe v daily
        subscribe v anchored
        clock v +60s
        usage v => g.held=0 g.used=0
        reserve v x 2 => allowed
        clock w 2031-01-15T12:00:00Z
        subscribe w anchored anchor=2031-01-10T00:00:00Z
        track w x => g.used=1
        subscribe w anchored anchor=2031-01-12T00:00:00Z
        track w x 2 => g.used=2
        subscribe w anchored anchor=2031-01-10T00:00:00Z
        usage w => g.used=1 g.start=2031-01-10T00:00:00Z
        clock w 2031-02-11T00:00:00Z # the window of the other anchor is open for another day
        track w x => g.used=1 g.start=2031-02-10T00:00:00Z g.reset=2031-03-10T00:00:00Z
        commit B => late
        commit C => late
        ",
    )
    .await;
}

#[tokio::test]
async fn replicas_with_two_catalogs_do_not_wipe_each_others_windows() {
    let one = "
default_plan: p
plans: { p: { period: monthly, limit_groups: [{ id: g, unit: count, quota: 2, match: [{ event: x }] }] } }
";
    let replicas = [
        ("one", Replica::start(one).await),
        ("unit", Replica::start(&one.replace("count", "tokens")).await),
        ("period", Replica::start(&one.replace("monthly", "yearly")).await),
    ];
    for other in ["unit", "period"] {
        let table = "
            on one
            clock U 2031-01-15T12:00:00Z
            track U x 1 enforce => MATCHED g.used=1
            reserve U x 1 as=A => allowed g.held=1
            on OTHER
            track U x 1 enforce => MATCHED
            track U x 1 enforce => MATCHED g.used=2
            track U x 1 enforce => BLOCKED
            on one
            usage U => g.used=1 g.held=1
            track U x 1 enforce => BLOCKED
            on OTHER
            commit A => COMMITTED g.used=2
            track U x 1 enforce => BLOCKED
            on one
            usage U => g.used=2 g.held=0
        ";
        let table = table.replace("OTHER", other).replace('U', &format!("u{other}"));
        Scenario::new(replicas.iter().map(|(name, replica)| (*name, replica.clone())).collect()).run(&table).await;
    }
}

#[tokio::test]
async fn cancelling_and_coming_back_is_entering_the_plan() {
    let catalog = "
default_plan: free
plans:
  free:
    period: monthly
    on_plan_change: block
    limit_groups: [{ id: g, unit: count, quota: 5, match: [{ event: x }] }]
  pro:
    period: monthly
    anchor: subscription_start
    on_plan_change: block
    limit_groups: [{ id: g, unit: count, quota: 10, match: [{ event: x }] }]
";
    check(
        catalog,
        "
        clock u 2031-01-15T12:00:00Z
        subscribe u pro
        track u x 10 => g.used=10
        cancel u
        subscribe u pro # with no call between
        reserve u x => denied g.used=10
        clock v 2031-01-15T12:00:00Z
        subscribe v pro
        track v x 3
        subscribe v free end=2031-01-01T00:00:00Z # over before it began: the default plan is entered
        usage v => in-force=free g.used=5
        reserve v x => denied
        clock w 2031-01-15T12:00:00Z
        subscribe w pro end=2031-01-01T00:00:00Z
        usage w => in-force=free g.used=0 # the first plan ever
        cancel u end=1970-01-01T00:00:00Z => code=InvalidArgument field:end_time
        subscription u => end=none
        ",
    )
    .await;
}

#[tokio::test]
async fn a_default_plan_has_left_nothing_once_its_reservations_are_forgotten() {
    let catalog = "
default_plan: free
plans:
  free: { period: minute, limit_groups: [{ id: g, unit: count, quota: 5, match: [{ event: x }] }] }
  pro: { period: hourly, on_plan_change: block, limit_groups: [{ id: g, unit: count, quota: 10, match: [{ event: x }] }] }
";
    let table = "
        clock USER 2031-01-15T12:00:00Z
        reserve USER x 1 as=AUSER => allowed
        extend AUSER 1 id=e => extended expires-in=60s # until 12:16:00 they are remembered
        release AUSER
        clock USER TIME
        subscribe USER pro
        usage USER => USED
    ";
    for (user, time, used) in
        [("u", "2031-01-15T12:15:59.999Z", "g.used=10"), ("v", "2031-01-15T12:16:00Z", "g.used=0")]
    {
        check(catalog, &table.replace("USER", user).replace("TIME", time).replace("USED", used)).await;
    }
}

#[tokio::test]
async fn a_plan_in_another_time_zone_begins_where_no_window_is_kept() {
    const ZONES: &str = "
plans:
  utc:
    limit_groups: [{ id: g, unit: tokens, quota: 5, period: daily, match: [{ event: t }] }]
  vienna:
    timezone: Europe/Vienna
    limit_groups: [{ id: g, unit: tokens, quota: 5, period: daily, match: [{ event: t }] }]
";
    // A window that is gone, and one that only a denied call would have opened, leave no trace of their plan.
    let table = "
        clock u 2031-01-15T12:00:00Z
        subscribe u utc
        track u t 1 => g.start=2031-01-15T00:00:00Z
        clock u 2031-01-25T12:00:00Z
        subscribe u vienna
        subscribe u utc
        usage u => g.start=2031-01-25T00:00:00Z
        clock v 2031-01-15T12:00:00Z
        subscribe v utc
        reserve v t 1 => allowed
        clock v 2031-01-25T12:00:00Z
        reserve v t 9 => denied g.start=2031-01-25T00:00:00Z
        subscribe v vienna
        usage v => g.start=2031-01-24T23:00:00Z
    ";
    check(ZONES, table).await;
}

#[tokio::test]
async fn the_example_counts_a_cached_token_once_and_prices_a_model_that_it_does_not_list() {
    check(
        tollgate::catalog::EXAMPLE,
        "
        subscribe u pro => plan=pro
        # OpenAI's usage: 117231 prompt tokens, 115584 of them cached, and 225 of the answer.
        reserve u llm.tokens prompt_tokens=117231 completion_tokens=225 @provider=openai @model=gpt-4o as=A => allowed tokens_total.held=117456
        commit A prompt_tokens=117231 cached_tokens=115584 => tokens_total.used=13431 spend.used=15.08475 !overage
        track u llm.tokens prompt_tokens=117231 completion_tokens=225 cached_tokens=115584 => tokens_total.requested=13431
        # Who does not send what was cached pays in full.
        track u llm.tokens prompt_tokens=117231 completion_tokens=225 => tokens_total.requested=117456
        # No more can be cached than was sent.
        track u llm.tokens prompt_tokens=10 completion_tokens=0 cached_tokens=11 => code=InvalidArgument PARTS_EXCEED_WHOLE limit_group_id=tokens_total quantity=prompt_tokens
        subscribe v pro => plan=pro
        track v llm.tokens prompt_tokens=1000 completion_tokens=1000 @provider=openai @model=gpt-5 => groups=tokens_total,spend spend.used=7.5
        track v llm.tokens 1000 => spend.requested=6 tokens_total.requested=1000
        reserve v llm.tokens prompt_tokens=1400000 completion_tokens=0 @model=gpt-5 => denied spend.requested=2100 tokens_total.shortfall=0
        track v image.render => spend.requested=4 images_total.requested=1
    ",
    )
    .await;
}
