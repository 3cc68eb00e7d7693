//! Reservations that go on: Extend, partial commits, `exhausted`, and holds that count at their deadline.

use crate::scenario::{Scenario, check};
use crate::support::Replica;

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: daily
    limit_groups:
      - { id: tokens, unit: tokens, quota: 100, match: [{ event: t }, { event: llm, measure: { prompt: 1, completion: 1 } }] }
      - { id: calls, unit: count, quota: 10, match: [{ event: t, measure: events }, { event: llm, measure: events }] }
      - { id: spend, unit: cents, quota: 5, match: [{ event: llm, measure: { prompt: 0.01, completion: 0.03 } }] }
";

#[tokio::test]
async fn a_stream_is_counted_as_it_goes_and_holds_what_is_left() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u llm prompt=20 completion=60 as=A => allowed tokens.held=80 spend.held=2 calls.held=1
        commit A part prompt=20 completion=10 => HELD tokens.used=30 tokens.held=50 spend.used=0.5 spend.held=1.5 calls.used=1 calls.held=0 expires-in=60s !exhausted !late !overage !replayed
        usage u => tokens.used=30 tokens.held=50
        reservation A => HELD tokens.reserved=80 tokens.committed=30 spend.committed=0.5 calls.committed=1
        clock u 2031-01-15T10:00:50Z
        commit A part completion=20 ttl=60s => tokens.used=40 tokens.held=40 expires-in=60s
        commit A part completion=15 => tokens.used=40 tokens.held=40 # a late retry changes nothing
        commit A part completion=20 => tokens.used=40
        clock u 2031-01-15T10:01:49Z
        commit A part completion=21 => HELD tokens.used=41 expires-in=1s
        clock u 2031-01-15T10:01:50Z
        usage u => tokens.used=41 tokens.held=0 calls.used=1
        reservation A => EXPIRED tokens.committed=41
        commit A part completion=25 => EXPIRED late tokens.used=45 tokens.held=0
        commit A => COMMITTED late tokens.used=45 spend.used=0.95 # as last named
        commit A => replayed
        commit A part completion=30 => ALREADY_COMMITTED
        commit A completion=30 => ALREADY_COMMITTED
        usage u => tokens.used=45
    ",
    )
    .await;
}

#[tokio::test]
async fn a_final_commit_replaces_what_was_counted_so_far() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u t 60 as=A
        commit A part 40 => tokens.used=40 tokens.held=20
        commit A 25 => COMMITTED tokens.used=25 tokens.held=0 !overage tokens.unapplied=0
        commit A 25 => replayed tokens.used=25
        reserve u t 60 as=B
        commit B part 70 => HELD overage tokens.used=95 tokens.held=0
        commit B 75 => COMMITTED overage tokens.used=100
        track u t.refund 75 of=B => tokens.used=25 calls.used=2
        reserve u t 50 as=C
        commit C part 30 => tokens.used=55 tokens.held=20
        release C => RELEASED tokens.used=55 tokens.held=0
        release C => RELEASED replayed
        track u t.refund 10 of=C => tokens.used=45 # as if committed
        track u t.refund 100 of=C => tokens.used=25 tokens.unapplied=80
        reserve u t 50 as=D
        commit D part 0 => tokens.used=25 tokens.held=50 calls.used=4 calls.held=0
        track u t.refund 1 of=D => NOT_COMMITTED state=held
        release D
        track u t.refund 1 of=D => tokens.used=25 tokens.unapplied=1
    ",
    )
    .await;
}

#[tokio::test]
async fn a_stream_stops_when_nothing_more_fits() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u t 90 as=B
        reserve u t 10 as=A
        commit A part 9 => !exhausted tokens.held=91
        commit A part 10 => exhausted tokens.used=10 tokens.held=90
        release B
        commit A part 10 => !exhausted
        commit A part 99 => !exhausted overage
        commit A part 100 => exhausted tokens.used=100
        commit A part 101 => exhausted tokens.used=101
        commit A 101 => COMMITTED !exhausted
        clock v 2031-01-15T10:00:00Z
        reserve v llm prompt=10 completion=0 as=C => spend.held=0.1
        track v llm prompt=0 completion=0
        commit C part prompt=10 => !exhausted
        track v t 80 => tokens.used=90
        commit C part prompt=19 => !exhausted tokens.used=99 # nobody else has the room
        commit C part prompt=20 => exhausted
    ",
    )
    .await;
}

#[tokio::test]
async fn extend_moves_the_deadline_and_holds_more_or_nothing() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u t 40 as=A id=r1 => expires-in=60s
        clock u 2031-01-15T10:00:30Z
        extend A ttl=20s => extended expires-in=30s tokens.requested=0 # never earlier
        extend A => extended expires-in=60s
        extend A 50 id=e1 => extended tokens.requested=50 tokens.held=90 calls.requested=0 calls.held=1
        extend A 50 id=e1 => extended replayed tokens.requested=50 tokens.held=90
        extend A 49 id=e1 => REQUEST_ID_REUSED
        extend A 50 id=e1 ttl=61s => REQUEST_ID_REUSED
        reserve u t 1 id=e1 => REQUEST_ID_REUSED
        track u t 1 id=e1 => REQUEST_ID_REUSED
        reset u id=e1 => REQUEST_ID_REUSED
        extend A 1 id=r1 => REQUEST_ID_REUSED
        extend A 11 ttl=1h => denied LIMIT_REACHED tokens.shortfall=1 tokens.requested=11 tokens.held=90 expires-in=60s retry=60s
        reserve u t 40 id=r1 => replayed same-as=A expires-in=60s
        reservation A => quantity=90 tokens.reserved=90
        commit A part 95 => overage tokens.used=95 tokens.held=0
        extend A 5 => extended tokens.held=0 tokens.used=95 # what is counted already is not held again
        extend A 6 => denied tokens.shortfall=1 retry=never
        commit A => tokens.used=95
        extend A 1 => ALREADY_COMMITTED
        extend A 50 id=e1 => replayed
        reserve u t 1 as=B
        release B
        extend B => RESERVATION_RELEASED code=FailedPrecondition
        reserve u t 1 as=C ttl=1s
        clock u 2031-01-15T10:00:31Z
        extend C => RESERVATION_EXPIRED code=FailedPrecondition
        extend \"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAdkZWZhdWx0BgBub2JvZHk\" => RESERVATION_NOT_FOUND
    ",
    )
    .await;
}

#[tokio::test]
async fn what_extend_adds_counts_in_a_commit_that_names_nothing() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u llm prompt=10 completion=10 as=A => spend.held=0.4
        extend A completion=20 => spend.requested=0.6 spend.held=1 tokens.held=40
        commit A part prompt=5 => tokens.used=35 tokens.held=5 spend.used=0.95
        extend A prompt=3 completion=1 => tokens.requested=4 tokens.held=9 # of 44, 35 are counted
        commit A => tokens.used=36 spend.used=0.98 calls.used=1 # prompt as named, completion as reserved
        clock v 2031-01-15T10:00:00Z
        reserve v t as=B => QUANTITY_MISSING
    ",
    )
    .await;
    let defaults = "
default_plan: p
plans:
  p:
    period: daily
    limit_groups:
      - { id: runs, unit: count, quota: 10, match: [{ event: r }] }
      - { id: cost, unit: cents, quota: 100, match: [{ event: r, measure: [{ name: steps, weight: 2, default: 3 }] }] }
";
    check(
        defaults,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u r as=A => runs.held=1 cost.held=6
        extend A 2 => runs.held=3 cost.held=6 # on top of the 1 that it means
        extend A steps=4 => runs.requested=0 cost.requested=8 cost.held=14
        extend A other=4 => NOTHING_MEASURED field:add
        commit A steps=5 => runs.used=3 cost.used=10
    ",
    )
    .await;
}

#[tokio::test]
async fn an_extend_is_measured_by_what_was_reserved_whatever_was_named_since() {
    let rules = "
default_plan: p
plans:
  p:
    period: daily
    limit_groups:
      - { id: g, unit: tokens, quota: 100, match: [{ event: e, measure: { cached: 1 } }, { event: e, measure: { prompt: 1 } }] }
";
    check(
        rules,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u e prompt=5 as=A => g.held=5
        commit A part cached=2 => g.used=2 g.held=3 # by the first rule
        extend A prompt=3 => extended g.requested=3 g.held=6 # by the second one
        extend A other=3 => NOTHING_MEASURED field:add
        commit A => g.used=2 g.held=0
    ",
    )
    .await;
}

#[tokio::test]
async fn an_extend_beyond_the_largest_number_is_out_of_range_also_on_top_of_a_default() {
    let defaults = "
default_plan: p
plans:
  p:
    period: daily
    limit_groups:
      - { id: runs, unit: count, quota: 10, hard: false, match: [{ event: r }] }
      - { id: cost, unit: tokens, quota: 10, hard: false, match: [{ event: r, measure: [{ name: steps, weight: 0.1, default: 0.5 }] }] }
";
    check(
        defaults,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u r as=A => runs.held=1 cost.held=1
        extend A 9007199254740991 => OUT_OF_RANGE
        extend A 9007199254740990 => extended runs.held=9007199254740991
        extend A steps=9007199254740991 => OUT_OF_RANGE # it cannot be a number any more, whatever it costs
        extend A steps=9007199254740990 => extended cost.held=900719925474100
        release A
        reserve u r steps=1 as=B => cost.held=1
        extend B steps=9007199254740990 => extended cost.held=900719925474100 # what is named has no default
        extend B steps=1 => OUT_OF_RANGE
        release B
        reserve u r steps=0.5 as=C
        extend C steps=9007199254740991 => OUT_OF_RANGE # not by half a step either
    ",
    )
    .await;
}

#[tokio::test]
async fn what_no_call_may_say_is_told_by_its_field() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u t 40 as=A
        commit A part => field:actual
        commit A 5 ttl=60s => field:ttl
        commit A part 5 ttl=3601s => field:ttl
        commit A part nothing => NOTHING_MEASURED
        extend A 0 => field:add
        extend A ttl=0.5s => field:ttl
        extend A ttl=3601s => field:ttl
        extend A 9007199254740991 => OUT_OF_RANGE
        extend A -1 => field:add.quantity
        usage u => tokens.used=0 tokens.held=40
    ",
    )
    .await;
}

#[tokio::test]
async fn a_reservation_lives_at_most_a_day() {
    let mut table = "
        clock u 2031-01-15T10:00:00.050Z
        reserve u llm prompt=1 completion=1 as=A ttl=1h
    "
    .to_owned();
    for step in 1..=24 {
        let minutes = 600 + 58 * step;
        let (day, hour, minute) = (15 + minutes / 1440, minutes / 60 % 24, minutes % 60);
        table += &format!("clock u 2031-01-{day}T{hour:02}:{minute:02}:00Z\nextend A ttl=1h id=e{step} => extended\n");
    }
    table += "
        clock u 2031-01-16T09:30:00Z
        reservation A => HELD spend.reserved=0.04
        extend A ttl=1h => extended expires-in=1800100ms # 24 hours after the Reserve, rounded up
        commit A part prompt=2 ttl=1h => expires-in=1800100ms
        extend A ttl=1h id=e12 => replayed # the ids are known as long as the reservation
        clock u 2031-01-16T10:00:00.100Z
        extend A ttl=1h id=e12 => replayed
        extend A ttl=1h id=new => RESERVATION_EXPIRED
        commit A => late
        clock u 2031-01-16T10:15:00.099Z
        reserve u t 1 id=e13 => REQUEST_ID_REUSED
        clock u 2031-01-16T10:15:00.100Z
        extend A ttl=1h id=e13 => RESERVATION_NOT_FOUND
        reserve u t 1 id=e13 => allowed
    ";
    check(CATALOG, &table).await;
}

#[tokio::test]
async fn a_hold_can_count_at_its_deadline() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u t 40 as=A counting id=a => tokens.held=40
        reserve u t 40 id=a => REQUEST_ID_REUSED
        reservation A => ON_EXPIRY_COUNT tokens.committed=0
        clock u 2031-01-15T10:00:59.999Z
        usage u => tokens.used=0 tokens.held=40
        clock u 2031-01-15T10:01:00Z
        usage u => tokens.used=40 tokens.held=0 calls.used=1
        reservation A => EXPIRED tokens.committed=40
        track u t.refund 1 of=A => NOT_COMMITTED state=expired
        commit A 30 => COMMITTED late tokens.used=30 # in place of what the deadline has counted
        reserve u t 20 as=B counting
        commit B part 5 => tokens.used=35 tokens.held=15
        clock u 2031-01-15T10:02:00Z
        usage u => tokens.used=50
        commit B part 15 => late tokens.used=50 # less than what is counted
        commit B part 25 => late overage tokens.used=55
        release B => RELEASED tokens.used=55
        reserve u t 20 as=C counting
        commit C part 5
        clock u 2031-01-15T10:03:00Z
        release C => RELEASED tokens.used=60 calls.used=3 # what was counted in part stays
        release C => RELEASED replayed
        reserve u t 10 as=D counting
        release D => RELEASED tokens.used=60 tokens.held=0 calls.used=3
        reserve u t 10 as=E counting
        extend E 5 ttl=120s => tokens.held=15
        clock u 2031-01-15T10:05:00Z
        usage u => tokens.used=75 calls.used=4
        commit E => late tokens.used=75
        commit E => replayed
    ",
    )
    .await;
}

#[tokio::test]
async fn what_was_counted_before_a_reset_is_not_given_back() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u t 60 as=A
        commit A part 40 => tokens.used=40
        reset u => tokens.used=0 tokens.held=20
        commit A part 50 => tokens.used=10 tokens.held=10
        track u t 30 => tokens.used=40
        commit A 20 => tokens.used=30 tokens.unapplied=20 # 10 of 30 were counted since
        track u t.refund 20 of=A => tokens.used=30 tokens.unapplied=20
        reserve u t 10 as=B counting
        clock u 2031-01-15T10:01:00Z
        reset u
        usage u => tokens.used=0
        track u t 30
        commit B 4 => late tokens.used=30 tokens.unapplied=6
        reserve u t 10 as=C counting
        reset u
        clock u 2031-01-15T10:02:00Z
        usage u => tokens.used=10
        release C => RELEASED tokens.used=0 tokens.unapplied=0
    ",
    )
    .await;
}

#[tokio::test]
async fn a_refund_gives_back_nothing_that_only_the_deadline_has_counted() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u t 10 as=A counting
        commit A part 4 => tokens.used=4
        reset u => tokens.used=0 tokens.held=6
        clock u 2031-01-15T10:01:00Z
        usage u => tokens.used=6
        track u t.refund 3 of=A => tokens.used=6 tokens.unapplied=3 # counted before the reset
        release A => RELEASED tokens.used=0 tokens.unapplied=0 # all that the deadline has counted
        track u t.refund 1 of=A => tokens.used=0 tokens.unapplied=1
        reserve u t 10 as=B counting
        commit B part 4
        reset u
        commit B part 7 => tokens.used=3
        clock u 2031-01-15T10:02:00Z
        track u t.refund 5 of=B => tokens.used=3 tokens.unapplied=2 # 3 of 7 were counted since
        track u t.refund 2 of=B => tokens.used=3 tokens.unapplied=2
        release B => tokens.used=0 tokens.unapplied=0
        reserve u t 10 as=C counting
        commit C part 4
        clock u 2031-01-15T10:03:00Z
        usage u => tokens.used=10
        reset u
        track u t 20 => tokens.used=20
        track u t.refund 4 of=C => tokens.used=20 tokens.unapplied=4
        release C => tokens.used=20 tokens.unapplied=6 # the deadline came before the reset
        reserve u t 10 as=D counting
        commit D part 4
        clock u 2031-01-15T10:04:00Z
        track u t.refund 4 of=D => tokens.used=26 tokens.unapplied=0
        release D => tokens.used=20 tokens.unapplied=0
    ",
    )
    .await;
}

#[tokio::test]
async fn a_reservation_goes_on_across_the_end_of_its_window_and_another_plan() {
    let other = CATALOG.replace("quota: 100", "quota: 10");
    let replicas = vec![("one", Replica::start(CATALOG).await), ("other", Replica::start(&other).await)];
    let table = "
        on one
        clock u 2031-01-15T23:59:30Z
        reserve u t 60 as=A
        commit A part 10 ttl=1h => tokens.used=10 tokens.held=50
        on other
        extend A 30 => tokens.held=80 tokens.quota=100
        clock u 2031-01-16T00:10:00Z
        extend A 11 => denied tokens.shortfall=1 tokens.start=2031-01-15T00:00:00Z retry=2970s
        extend A 10 => extended tokens.used=10 tokens.held=90
        usage u => tokens.used=0 tokens.held=0 tokens.quota=10
        commit A part 20 => tokens.used=20 tokens.held=80 tokens.start=2031-01-15T00:00:00Z
        clock u 2031-01-17T00:00:00Z
        commit A part 30 => RESERVATION_NOT_FOUND
    ";
    Scenario::new(replicas).run(table).await;
}

#[tokio::test]
async fn what_counts_after_another_plan_was_entered_counts_in_its_own_window() {
    let catalog = "
default_plan: free
plans:
  free: { period: daily, limit_groups: [{ id: tokens, unit: tokens, quota: 100, match: [{ event: t }] }] }
  max: { period: weekly, on_plan_change: block, limit_groups: [{ id: tokens, unit: tokens, quota: 50, match: [{ event: t }] }] }
";
    check(
        catalog,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u t 40 as=A counting
        subscribe u max
        usage u => tokens.used=50 tokens.held=0
        clock u 2031-01-15T10:01:00Z
        usage u => tokens.used=50 tokens.held=0
        commit A 30 => late tokens.used=30 tokens.start=2031-01-15T00:00:00Z
    ",
    )
    .await;
}
