//! Reserve, commit and release: the rows of SPEC section 5 about them.

use crate::scenario::{Scenario, check};
use crate::support::{Replica, keys, redis};

/// Hard groups of tokens per month and chats per day, a soft one, an unlimited one, and one that always denies.
const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - id: tokens
        label: Tokens
        unit: tokens
        quota: 1000
        match:
          - { event: llm.tokens, measure: { prompt_tokens: 1, completion_tokens: 1 } }
          - { event: llm.tokens }
      - id: chats
        unit: count
        period: daily
        quota: 3
        match: [{ event: llm.tokens, measure: events }]
      - id: soft
        unit: tokens
        hard: false
        quota: 500
        match: [{ event: llm.tokens, measure: [{ name: prompt_tokens, default: 0 }, { name: quantity, default: 0 }] }]
      - id: all
        unit: count
        quota: unlimited
        match: [{ event: '*', measure: events }]
      - id: none
        unit: count
        quota: 0
        match: [{ event: forbidden }]
";

#[tokio::test]
async fn a_hold_is_kept_until_it_is_settled() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u llm.tokens prompt_tokens=100 completion_tokens=200 as=A => allowed matched HELD !replayed !degraded expires-in=60s
        usage u => groups=tokens,chats,soft,all,none tokens.held=300 tokens.used=0 tokens.remaining=700 chats.held=1 in-force=free
        commit A completion_tokens=50 => COMMITTED tokens.used=150 tokens.held=0 tokens.requested=150 chats.used=1 !overage !late !replayed
        usage u => tokens.used=150 tokens.held=0 tokens.remaining=850 chats.used=1 chats.remaining=2 no-subscription
        reserve u llm.tokens 100 as=B => allowed groups=tokens,chats,soft,all
        release B => RELEASED !replayed tokens.held=0 tokens.used=150 tokens.requested=100
        release B => RELEASED replayed tokens.held=0
        usage u => tokens.used=150 tokens.held=0 chats.used=1
    ",
    )
    .await;
}

#[tokio::test]
async fn a_group_is_reported_as_the_catalog_describes_it() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        usage u => tokens.label=Tokens tokens.unit=tokens tokens.quota=1000 tokens.hard tokens.start=2031-01-01T00:00:00Z
        usage u => tokens.reset=2031-02-01T00:00:00Z chats.label=chats chats.reset=2031-01-16T00:00:00Z !soft.hard
        usage u => all.unlimited all.quota=inf all.remaining=inf !tokens.unlimited !tokens.exceeded
    ",
    )
    .await;
}

#[tokio::test]
async fn an_unlimited_group_has_infinitely_much_left_in_every_answer() {
    let left = "all.unlimited all.quota=inf all.remaining=inf";
    check(
        CATALOG,
        &format!(
            "
        reserve u llm.tokens 100 as=A => allowed {left} all.held=1
        can u llm.tokens 100 => allowed {left}
        reserve u llm.tokens 1000 => denied {left} all.shortfall=0
        commit A => {left} all.used=1
        reserve u llm.tokens 100 as=B => allowed
        release B => {left}
        track u other => MATCHED {left} all.used=2
        track u llm.tokens 1000 enforce => BLOCKED {left}
        track u other.refund => {left} # what happened is not undone
        usage u => {left} all.used=2 !tokens.unlimited tokens.quota=1000 tokens.remaining=900
        subscribe u free quota:tokens=unlimited => override:tokens=unlimited
        usage u => tokens.unlimited tokens.quota=inf tokens.remaining=inf
    "
        ),
    )
    .await;
}

#[tokio::test]
async fn a_quota_of_0_denies_also_what_costs_nothing_and_then_nothing_is_missing() {
    let catalog = "
default_plan: p
plans:
  p:
    period: monthly
    limit_groups: [{ id: none, unit: tokens, quota: 0, match: [{ event: t }] }]
";
    check(
        catalog,
        "
        reserve u t 0 => denied LIMIT_REACHED none.quota=0 none.requested=0 none.shortfall=0 none.remaining=0 retry=never
        can u t 0 => denied none.shortfall=0 retry=never
        track u t 0 enforce => BLOCKED none.shortfall=0
        reserve u t 2 => denied none.shortfall=2 retry=never
    ",
    )
    .await;
}

#[tokio::test]
async fn all_or_nothing_a_denied_call_holds_nothing_and_names_every_group() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u llm.tokens 900 as=A => allowed
        reserve u llm.tokens 101 as=B => denied matched no-id UNSPECIFIED LIMIT_REACHED groups=tokens,chats,soft,all
        reserve u llm.tokens 101 => tokens.requested=101 tokens.shortfall=1 chats.shortfall=0 tokens.remaining=100 chats.held=1
        usage u => tokens.held=900 chats.held=1 all.held=1 soft.held=900
        reserve u llm.tokens 100 => allowed tokens.held=1000 tokens.remaining=0
        reserve u llm.tokens 0 => allowed
        reserve u llm.tokens 0 => denied chats.shortfall=1 tokens.shortfall=0
    ",
    )
    .await;
}

#[tokio::test]
async fn retry_after_says_when_there_may_be_room() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T23:00:00Z
        reserve u llm.tokens 1001 => denied retry=never # more than the quota
        reserve u llm.tokens 600 ttl=30s => allowed
        reserve u llm.tokens 100 ttl=90s => allowed
        reserve u llm.tokens 500 => denied retry=30s # the earliest live deadline
        track u llm.tokens 600 => MATCHED tokens.exceeded
        reserve u llm.tokens 500 => denied retry=1386000s # used alone is too much: the window's end, which is later than the day's
        reserve u forbidden 1 => denied retry=never
        reserve u forbidden 0 => denied retry=never none.shortfall=0
        clock v 2031-01-15T23:00:00Z
        track v llm.tokens 1
        track v llm.tokens 1
        track v llm.tokens 1
        reserve v llm.tokens 1 => denied retry=3600s chats.shortfall=1
        clock v 2031-01-16T00:00:00Z
        reserve v llm.tokens 1 => allowed chats.used=0 tokens.used=3
    ",
    )
    .await;
}

#[tokio::test]
async fn no_group_matches_and_a_typo_is_not_free() {
    let catalog = "
default_plan: p
plans:
  p:
    period: daily
    limit_groups: [{ id: g, unit: count, quota: 1, match: [{ event: a.b.*, metadata: { k: [x, y*] } }] }]
";
    check(
        catalog,
        "
        reserve u a.b => denied !matched UNMATCHED_EVENT no-id groups= retry=never
        reserve u a.b.c => denied !matched UNMATCHED_EVENT # the metadata is missing
        reserve u a.b.c @k=X => denied !matched UNMATCHED_EVENT # case matters
        reserve u a.b. @k=x => denied !matched UNMATCHED_EVENT # no further segment
        reserve u a.bb.c @k=x => denied !matched UNMATCHED_EVENT
        can u a.b.c @k=z => denied !matched UNMATCHED_EVENT
        track u a.b.c @k=z => UNMATCHED UNMATCHED_EVENT no-id
        can u a.b.c.d @k=y1 @other=1 => allowed matched
        can u a.b.c @k=y => allowed matched
        can u a.b.c @k=x => allowed matched
    ",
    )
    .await;
}

#[tokio::test]
async fn without_subscription_and_default_plan_everything_is_denied() {
    let catalog = "
plans:
  p:
    period: daily
    limit_groups: [{ id: g, unit: count, quota: 5, match: [{ event: a }] }]
";
    check(
        catalog,
        "
        reserve u a => denied !matched NO_SUBSCRIPTION no-id groups=
        can u a => denied !matched NO_SUBSCRIPTION
        track u a => NO_SUBSCRIPTION no-id groups=
        usage u => groups= no-subscription in-force=
        subscribe u p
        reserve u a => allowed
        reserve u A => denied UNMATCHED_EVENT # case matters
        cancel u
        reserve u a => denied NO_SUBSCRIPTION
    ",
    )
    .await;
}

#[tokio::test]
async fn can_use_answers_as_reserve_would_and_holds_nothing() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        can u llm.tokens 600 => allowed matched tokens.held=0 tokens.requested=600 soft.exceeded !tokens.exceeded
        reserve u llm.tokens 600 ttl=40s => allowed soft.exceeded
        can u llm.tokens 500 => denied LIMIT_REACHED retry=40s tokens.shortfall=100 tokens.held=600
        clock u +40s
        can u llm.tokens 500 => allowed tokens.held=0 # as if the give-back had been written
        usage u => tokens.held=0
    ",
    )
    .await;
}

#[tokio::test]
async fn commit_below_the_hold_frees_the_rest_at_once() {
    check(
        CATALOG,
        "
        reserve u llm.tokens 1000 as=A => allowed
        reserve u llm.tokens 1 => denied
        commit A 400 => tokens.used=400 tokens.held=0 tokens.remaining=600
        reserve u llm.tokens 600 => allowed
    ",
    )
    .await;
}

#[tokio::test]
async fn truth_commit_above_the_hold_counts_in_full() {
    check(
        CATALOG,
        "
        reserve u llm.tokens 900 as=A => allowed
        commit A 1200 => COMMITTED overage !late tokens.used=1200 tokens.remaining=0 tokens.exceeded tokens.requested=1200
        reserve u llm.tokens 1 => denied tokens.shortfall=201
        usage u => tokens.used=1200 tokens.exceeded
    ",
    )
    .await;
}

#[tokio::test]
async fn commit_without_actual_counts_as_reserved() {
    check(
        CATALOG,
        "
        reserve u llm.tokens prompt_tokens=10 completion_tokens=20 as=A => allowed
        commit A => tokens.used=30 chats.used=1 !overage
        commit A prompt_tokens=10 => replayed tokens.used=30 # what is not named stays as reserved
    ",
    )
    .await;
}

#[tokio::test]
async fn the_first_rule_that_applies_prices_the_commit() {
    // Reserved by quantity, committed by the quantities that an earlier rule measures.
    check(
        CATALOG,
        "
        reserve u llm.tokens 500 as=A => allowed tokens.held=500
        commit A prompt_tokens=30 completion_tokens=12 => tokens.used=42
        reserve u llm.tokens 500 as=B => allowed
        commit B prompt_tokens=30 => tokens.used=542 # the first rule lacks completion_tokens; the quantity stays
    ",
    )
    .await;
}

#[tokio::test]
async fn at_the_deadline_a_hold_is_gone_and_a_commit_is_late() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u llm.tokens 700 as=A => allowed
        reserve u llm.tokens 200 as=B ttl=1h => allowed
        clock u +59s
        reserve u llm.tokens 700 => denied
        clock u +1s
        usage u => tokens.held=200 tokens.used=0
        reserve u llm.tokens 700 as=C => allowed tokens.held=900
        release A => EXPIRED !replayed tokens.held=900
        commit A 650 => COMMITTED late !overage tokens.used=650 tokens.held=900 tokens.exceeded
        commit A 650 => COMMITTED late replayed tokens.used=650
        commit C 1 => !late tokens.used=651 tokens.held=200
    ",
    )
    .await;
}

#[tokio::test]
async fn no_leak_every_hold_gives_back_exactly_what_it_held_once() {
    let mut table = "clock u 2031-01-15T12:00:00Z\nsubscribe u big\n".to_owned();
    for index in 0..40 {
        table += &format!("reserve u x {} ttl={}s as=H{index} => allowed\n", index + 1, index + 1);
    }
    // One by one they come back; the sum of what is left is known.
    let mut held = 40 * 41 / 2;
    for index in 0..40 {
        held -= index + 1;
        table += &format!("clock u +1s\nusage u => g.held={held} g.used=0\n");
        if index % 3 == 0 {
            table += &format!(
                "can u x 1 => allowed g.held={held}\nreserve u x 1 as=X => allowed\nrelease X => g.held={held}\n"
            );
        }
    }
    table += "usage u => g.held=0 g.used=0 g.remaining=1000\n";
    let catalog = "
plans:
  big:
    period: monthly
    limit_groups: [{ id: g, unit: count, quota: 1000, match: [{ event: x }] }]
";
    check(catalog, &table).await;
}

#[tokio::test]
async fn truth_a_commit_after_a_release_counts_in_full() {
    check(
        CATALOG,
        "
        reserve u llm.tokens 300 as=A => allowed
        release A => RELEASED
        commit A 250 => COMMITTED late tokens.used=250 tokens.held=0
        release A => code=FailedPrecondition ALREADY_COMMITTED
        usage u => tokens.used=250 chats.used=1
    ",
    )
    .await;
}

#[tokio::test]
async fn once_a_commit_repeats_its_decision_and_refuses_another() {
    check(
        CATALOG,
        "
        reserve u llm.tokens 300 as=A => allowed
        commit A 200 => !replayed tokens.used=200
        commit A 200 => replayed tokens.used=200 tokens.requested=200 COMMITTED
        commit A 201 => code=FailedPrecondition ALREADY_COMMITTED committed.tokens=200 committed.chats=1
        commit A => code=FailedPrecondition ALREADY_COMMITTED
        release A => code=FailedPrecondition ALREADY_COMMITTED committed.tokens=200
        usage u => tokens.used=200 chats.used=1
        reserve u llm.tokens prompt_tokens=10 completion_tokens=20 as=B => allowed
        commit B completion_tokens=5 => tokens.used=215
        commit B prompt_tokens=10 => code=FailedPrecondition # completion_tokens stays as reserved, not as committed
        commit B completion_tokens=5 prompt_tokens=10 => replayed
    ",
    )
    .await;
}

#[tokio::test]
async fn once_an_id_that_was_forgotten_protects_its_next_call_as_well() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u llm.tokens 1 id=r1 as=A => allowed
        track u llm.tokens 1 id=t1
        track u image id=t2
        clock u +2h
        reserve u llm.tokens 2 id=r1 as=B => allowed !replayed # clears the first one away
        reserve u llm.tokens 2 id=r1 => replayed same-as=B tokens.held=2
        reserve u image id=t1 as=C => allowed !replayed
        track u image id=x
        reserve u image id=t1 => replayed same-as=C
        track u image id=t2 => !replayed
        track u image id=t2 => replayed
        release B
        release C
        clock u +2h
        track u image id=r1 => !replayed
        track u image
        track u image id=r1 => replayed
        reserve u image id=t2 as=D => allowed !replayed
        reserve u image id=t2 => replayed same-as=D
        clock w 2031-01-15T12:00:00Z
        track w image id=t1
        clock w +2h
        reserve w image id=t1 as=W => allowed !replayed # clears the track away, and must not take its own id with it
        reserve w image id=t1 => replayed same-as=W
    ",
    )
    .await;
}

#[tokio::test]
async fn once_a_retried_reserve_finds_the_first_one() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u llm.tokens 300 @model=a @tier=b id=r1 as=A => allowed !replayed expires-in=60s
        clock u +20s
        reserve u llm.tokens 300 @tier=b @model=a id=r1 => allowed replayed same-as=A HELD expires-in=40s tokens.held=300
        reserve u llm.tokens 300 @tier=b @model=a ttl=60s id=r1 => replayed same-as=A # defaults filled
        reserve u llm.tokens 301 @model=a @tier=b id=r1 => code=InvalidArgument REQUEST_ID_REUSED field:request_id
        reserve u llm.tokens 300 @model=a id=r1 => code=InvalidArgument REQUEST_ID_REUSED
        reserve u llm.tokens 300 @model=a @tier=b ttl=61s id=r1 => code=InvalidArgument REQUEST_ID_REUSED
        track u llm.tokens 300 @model=a @tier=b id=r1 => code=InvalidArgument REQUEST_ID_REUSED
        usage u => tokens.held=300
        reserve v llm.tokens 5 id=r1 => allowed !replayed # another user's ids are others
        clock u +40s
        reserve u llm.tokens 300 @model=a @tier=b id=r1 => replayed same-as=A EXPIRED tokens.held=0
        commit A 10 => late tokens.used=10
        reserve u llm.tokens 300 @model=a @tier=b id=r1 => replayed same-as=A COMMITTED tokens.used=10 tokens.requested=300
        reserve u llm.tokens 1 id=r2 as=B => allowed
        release B
        reserve u llm.tokens 1 id=r2 => replayed same-as=B RELEASED
    ",
    )
    .await;
}

#[tokio::test]
async fn a_denial_is_not_remembered() {
    check(
        CATALOG,
        "
        reserve u llm.tokens 800 as=A => allowed
        reserve u llm.tokens 300 id=r1 => denied
        release A
        reserve u llm.tokens 300 id=r1 => allowed !replayed
        reserve u llm.tokens 300 id=r1 => allowed replayed
        reserve u nothing id=r2 => allowed # matches `all`
    ",
    )
    .await;
}

#[tokio::test]
async fn a_reservation_is_remembered_for_its_windows_and_then_unknown() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u llm.tokens 10 id=r1 as=A => allowed # deadline 12:01:00, remembered until 12:16:00
        reserve u llm.tokens 10 id=r2 as=B => allowed
        clock u 2031-01-15T12:15:59.999Z
        commit B 7 => late tokens.used=7 # remembered until 12:30:59.999
        reserve u llm.tokens 10 id=r1 => replayed EXPIRED
        clock u 2031-01-15T12:16:00Z
        commit A 10 => code=NotFound RESERVATION_NOT_FOUND
        release A => code=NotFound RESERVATION_NOT_FOUND
        reserve u llm.tokens 10 id=r1 as=A2 => allowed !replayed !same-as=A
        clock u 2031-01-15T12:30:59.998Z
        commit B 7 => replayed
        clock u 2031-01-15T12:30:59.999Z
        commit B 7 => code=NotFound RESERVATION_NOT_FOUND
        usage u => tokens.used=7 tokens.held=0
        commit \"nonsense\" => code=NotFound RESERVATION_NOT_FOUND
        commit \"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAdkZWZhdWx0BgBub2JvZHk\" => code=NotFound RESERVATION_NOT_FOUND
    ",
    )
    .await;
}

#[tokio::test]
async fn hold_and_commit_belong_to_the_window_of_the_reserve() {
    check(
        CATALOG,
        "
        clock u 2031-01-31T23:59:30Z
        reserve u llm.tokens 600 as=A => allowed
        reserve u llm.tokens 300 ttl=2m as=B => allowed
        clock u 2031-02-01T00:00:00Z
        reserve u llm.tokens 1000 as=C => allowed tokens.held=1000 tokens.used=0 chats.held=1 # the new windows start clean
        commit A 500 => tokens.used=500 tokens.held=300 tokens.start=2031-01-01T00:00:00Z chats.start=2031-01-31T00:00:00Z
        usage u => tokens.used=0 tokens.held=1000 tokens.start=2031-02-01T00:00:00Z
        usage u at=2031-01-31T12:00:00Z => tokens.used=500 tokens.held=300 groups=tokens,chats,soft,all,none none.used=0
        usage u at=2031-01-10T12:00:00Z => groups=tokens,soft,all,none # that day is neither today nor yesterday
        usage u at=2030-11-30T12:00:00Z => groups=
        clock u 2031-02-01T00:01:30Z
        usage u at=2031-01-31T12:00:00Z => tokens.held=0
        commit B 100 => late tokens.used=600 tokens.start=2031-01-01T00:00:00Z
        commit C 1 => late tokens.used=1
    ",
    )
    .await;
}

#[tokio::test]
async fn a_window_that_is_gone_is_closed_and_no_other_is_touched() {
    let catalog = "
default_plan: p
plans:
  p:
    period: minute
    limit_groups:
      - { id: minute, unit: count, quota: 10, match: [{ event: x }] }
      - { id: month, unit: count, period: monthly, quota: 10, match: [{ event: x }] }
";
    check(
        catalog,
        "
        clock u 2031-01-15T12:00:30Z
        reserve u x 3 ttl=10m as=A => allowed
        reserve u x 2 ttl=10m as=B => allowed
        clock u 2031-01-15T12:01:30Z
        usage u => minute.held=0 month.held=5
        commit A 4 => overage minute.used=4 minute.held=2 !minute.closed month.used=4 month.held=2 # the previous window
        track u x 1 => minute.used=1
        clock u 2031-01-15T12:02:00Z
        commit B 2 => COMMITTED minute.closed minute.used=0 !month.closed month.used=7 month.held=0
        usage u => minute.used=0 minute.held=0 month.used=7
        usage u at=2031-01-15T12:01:30Z => minute.used=1
        reserve u x 1 as=C => allowed minute.held=1
        commit B 2 => replayed minute.closed
        clock u 2031-01-15T12:03:00Z
        commit C => minute.used=1 minute.start=2031-01-15T12:02:00Z
        clock v 2031-01-15T12:00:30Z
        reserve v x 3 ttl=10m id=r1 as=D => allowed
        clock v 2031-01-15T12:02:00Z
        reserve v x 3 ttl=10m id=r1 => replayed minute.closed month.held=3
        commit D => minute.closed month.used=3 # also where nobody has opened a window since
    ",
    )
    .await;
}

#[tokio::test]
async fn more_than_ten_thousand_live_holds_are_refused() {
    use crate::support::{Replica, fresh_user};
    use tollgate::grpc::v1;
    let mut replica = Replica::start(CATALOG).await;
    let user = fresh_user("many");
    let request = |name: &str| v1::ReserveRequest {
        user_id: user.clone(),
        event: Some(v1::Event { name: name.to_owned(), ..v1::Event::default() }),
        ttl: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..v1::ReserveRequest::default()
    };
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut metering = replica.metering.clone();
        let request = request("other");
        calls.spawn(async move {
            for _ in 0..200 {
                assert!(metering.reserve(request.clone()).await.expect("an answer").into_inner().allowed);
            }
        });
    }
    while let Some(outcome) = calls.join_next().await {
        outcome.expect("the calls succeed");
    }
    let refused = replica.metering.reserve(request("other")).await.expect_err("one too many");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    // All of them come due at once, and come back at once.
    crate::support::step_clock(&user, crate::support::Step::By(std::time::Duration::from_secs(3601))).await;
    let answer = replica.metering.reserve(request("other")).await.expect("an answer").into_inner();
    assert!(answer.allowed);
    assert_eq!(answer.limits[0].held, 1.0);
}

#[tokio::test]
async fn a_shortfall_is_exact_at_the_largest_counter() {
    check(
        "
default_plan: p
plans:
  p:
    limit_groups:
      - { id: g, unit: tokens, quota: 9007199254740991, period: daily, match: [{ event: t }] }
",
        "
        track u t 9007199254740991 => g.used=9007199254740991
        reserve u t 28 => denied g.shortfall=28
        reserve u t 9007199254740991 => denied g.shortfall=9007199254740991
    ",
    )
    .await;
}

/// Nothing that Tollgate does leads there, but an evicting Redis or somebody with redis-cli.
#[tokio::test]
async fn who_has_lost_the_ledger_but_not_the_holds_begins_anew_and_is_not_stuck() {
    let mut scenario = Scenario::new(vec![("", Replica::start(CATALOG).await)]);
    scenario.run("reserve u llm.tokens 100 as=A => allowed\nreserve u llm.tokens 200 as=B => allowed").await;
    let user = keys(&scenario.user("u"));
    let _: () = redis::cmd("DEL").arg(user.state()).query_async(&mut redis().await).await.unwrap();
    scenario
        .run(
            "
            reserve u llm.tokens 10 => allowed tokens.held=10
            commit A => code=NotFound
            release B => code=NotFound
            reserve u llm.tokens 1 => allowed tokens.used=0 tokens.held=11
        ",
        )
        .await;
}
