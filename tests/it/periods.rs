//! Windows of a given length, windows that open with their first event, ResetUsage, and Track with a time.

use crate::scenario::{Scenario, check};
use crate::support::Replica;

const SESSIONS: &str = r"
default_plan: free
plans:
  free:
    limit_groups:
      - { id: session, unit: tokens, quota: 100, period: 5h, anchor: first_use, match: [{ event: t }] }
      - { id: week, unit: tokens, quota: 1000, period: 7d, anchor: subscription_start, match: [{ event: t }] }
  month:
    limit_groups:
      - { id: session, unit: tokens, quota: 100, period: monthly, anchor: first_use, match: [{ event: t }] }
";

#[tokio::test]
async fn a_session_opens_with_its_first_event_and_lasts_five_hours() {
    check(
        SESSIONS,
        "
        clock u 2031-01-15T10:20:30Z
        usage u => session.used=0 session.start=none session.reset=none week.start=2031-01-09T00:00:00Z # from the Unix epoch
        can u t 5 => allowed session.start=2031-01-15T10:20:30Z session.reset=2031-01-15T15:20:30Z
        can u t 101 => denied session.start=none session.shortfall=1
        reserve u t 101 => denied session.start=none session.reset=none retry=never
        usage u => session.start=none # what is denied opens nothing
        clock u 2031-01-15T11:00:00Z
        reserve u t 60 as=A => allowed session.start=2031-01-15T11:00:00Z session.reset=2031-01-15T16:00:00Z
        clock u 2031-01-15T11:00:30Z
        reserve u t 60 => denied session.start=2031-01-15T11:00:00Z session.reset=2031-01-15T16:00:00Z retry=30s
        commit A 90 => session.used=90
        reserve u t 60 => denied session.shortfall=50 retry=17970s
        clock u 2031-01-15T16:00:00Z
        usage u => session.used=0 session.start=none week.used=90
        usage u at=2031-01-15T15:59:59Z => session.used=90 session.start=2031-01-15T11:00:00Z
        clock u 2031-01-15T20:59:59Z
        track u t 7 => session.used=7 session.start=2031-01-15T20:59:59Z session.reset=2031-01-16T01:59:59Z week.used=97
        clock u 2031-01-16T00:00:00Z
        usage u => session.used=7 week.used=0 week.start=2031-01-16T00:00:00Z
        usage u at=2031-01-15T12:00:00Z => session.used=90 # the one before is kept while this one is open
    ",
    )
    .await;
}

#[tokio::test]
async fn what_is_held_when_a_session_ends_is_counted_in_that_session() {
    check(
        SESSIONS,
        "
        clock u 2031-01-15T10:00:00Z
        track u t 10
        clock u 2031-01-15T14:58:00Z
        reserve u t 60 as=A
        clock u 2031-01-15T14:59:30Z
        reserve u t 30 as=B => allowed session.used=10
        clock u 2031-01-15T15:00:10Z
        reserve u t 100 as=C => allowed session.start=2031-01-15T15:00:10Z session.held=100
        commit B 35 => session.used=45 session.start=2031-01-15T10:00:00Z overage !late
        commit A 20 => session.used=65 session.start=2031-01-15T10:00:00Z late
        track u t.refund 5 of=A => session.used=60 session.start=2031-01-15T10:00:00Z
    ",
    )
    .await;
}

#[tokio::test]
async fn a_month_from_the_first_use_ends_as_the_month_does() {
    check(
        SESSIONS,
        "
        clock u 2031-01-31T10:00:00Z
        subscribe u month
        track u t 5 => session.start=2031-01-31T10:00:00Z session.reset=2031-02-28T10:00:00Z
        clock u 2031-02-28T10:00:00Z
        usage u => session.start=none
        track u t 6 => session.start=2031-02-28T10:00:00Z session.reset=2031-03-28T10:00:00Z
    ",
    )
    .await;
}

#[tokio::test]
async fn lengths_are_counted_from_the_subscription_and_no_length_is_a_named_period() {
    let catalog = "
plans:
  a: { period: 60m, anchor: subscription_start, limit_groups: [{ id: g, unit: tokens, quota: 100, match: [{ event: t }] }] }
  b: { period: 1h, anchor: subscription_start, limit_groups: [{ id: g, unit: tokens, quota: 200, match: [{ event: t }] }] }
  c: { period: hourly, anchor: subscription_start, limit_groups: [{ id: g, unit: tokens, quota: 300, match: [{ event: t }] }] }
  d: { period: 61m, anchor: subscription_start, limit_groups: [{ id: g, unit: tokens, quota: 400, match: [{ event: t }] }] }
";
    check(
        catalog,
        "
        clock u 2031-01-15T10:20:30Z
        subscribe u a
        clock u 2031-01-15T12:00:00Z
        track u t 7 => g.used=7 g.start=2031-01-15T11:20:30Z g.reset=2031-01-15T12:20:30Z
        subscribe u b
        usage u => g.used=7 g.quota=200
        subscribe u c
        usage u => g.used=0 g.start=2031-01-15T11:20:30Z g.reset=2031-01-15T12:20:30Z
        subscribe u d
        usage u => g.used=0 g.start=2031-01-15T11:21:30Z g.reset=2031-01-15T12:22:30Z
        subscribe u a
        usage u => g.used=7 g.quota=100
    ",
    )
    .await;
}

#[tokio::test]
async fn a_plan_that_is_entered_opens_no_session_but_blocks_one() {
    let catalog = "
plans:
  calendar: { period: daily, limit_groups: [{ id: g, unit: tokens, quota: 100, match: [{ event: t }] }] }
  carry: { period: daily, anchor: first_use, limit_groups: [{ id: g, unit: tokens, quota: 200, match: [{ event: t }] }] }
  block:
    period: daily
    anchor: first_use
    on_plan_change: block
    limit_groups: [{ id: g, unit: tokens, quota: 50, match: [{ event: t }] }]
";
    check(
        catalog,
        "
        clock u 2031-01-15T10:00:00Z
        subscribe u calendar
        track u t 70 => g.used=70 g.start=2031-01-15T00:00:00Z
        subscribe u carry
        usage u => g.used=0 g.start=none # its own kind of window opens with the first event
        track u t 8 => g.used=8 g.start=2031-01-15T10:00:00Z
        subscribe u calendar
        usage u => g.used=70 g.start=2031-01-15T00:00:00Z # and its own goes on
        subscribe u carry
        usage u => g.used=8 g.start=2031-01-15T10:00:00Z
        clock v 2031-01-15T10:00:00Z
        subscribe v calendar
        clock v 2031-01-15T11:00:00Z
        subscribe v block
        usage v => g.used=50 g.start=2031-01-15T11:00:00Z g.reset=2031-01-16T11:00:00Z
    ",
    )
    .await;
}

#[tokio::test]
async fn a_catalog_edit_of_the_anchor_waits_for_the_end_of_a_session() {
    let first_use = "
default_plan: p
plans: { p: { period: daily, anchor: first_use, limit_groups: [{ id: g, unit: tokens, quota: 100, match: [{ event: t }] }] } }
";
    let calendar = first_use.replace("anchor: first_use", "anchor: calendar");
    let replicas = vec![("old", Replica::start(first_use).await), ("new", Replica::start(&calendar).await)];
    let table = "
        on old
        clock u 2031-01-15T10:00:00Z
        track u t 70 => g.used=70 g.start=2031-01-15T10:00:00Z
        on new
        track u t 5 => g.used=75 g.start=2031-01-15T10:00:00Z
        clock u 2031-01-16T09:59:59Z
        usage u => g.used=75 g.reset=2031-01-16T10:00:00Z
        clock u 2031-01-16T10:00:00Z
        track u t 1 => g.used=1 g.start=2031-01-16T10:00:00Z g.reset=2031-01-17T00:00:00Z # no earlier than the other one ended
    ";
    Scenario::new(replicas).run(table).await;
}

const RESETS: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - { id: tokens, unit: tokens, quota: 100, match: [{ event: t }] }
      - { id: calls, unit: count, quota: 10, match: [{ event: t, measure: events }] }
  pro:
    period: monthly
    on_plan_change: reset
    limit_groups:
      - { id: tokens, unit: tokens, quota: 200, match: [{ event: t }] }
";

#[tokio::test]
async fn a_reset_takes_back_what_was_counted_and_leaves_what_is_held() {
    check(
        RESETS,
        "
        clock u 2031-01-15T10:00:00Z
        reset u => tokens.used=0 calls.used=0 groups=tokens,calls # nothing was there, and nothing opens
        track u t 40
        reserve u t 30 as=A => tokens.held=30
        reset u groups=tokens id=r1 => groups=tokens tokens.used=0 tokens.held=30 tokens.remaining=70 !replayed
        usage u => tokens.used=0 tokens.held=30 calls.used=1 calls.held=1
        track u t 5
        reset u groups=tokens id=r1 => groups=tokens tokens.used=5 replayed # ONCE
        reset u groups=calls id=r1 => REQUEST_ID_REUSED
        track u t 5 id=r1 => REQUEST_ID_REUSED
        commit A 20 => tokens.used=25 calls.used=3
        reset u groups=tokens,none => GROUP_UNKNOWN
        usage u => tokens.used=25
        reset u => tokens.used=0 calls.used=0
    ",
    )
    .await;
}

#[tokio::test]
async fn what_was_counted_before_a_reset_cannot_be_refunded_after_it() {
    check(
        RESETS,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u t 40 as=A
        reserve u t 30 as=B
        commit A 40
        reset u
        commit B 30 => tokens.used=30
        track u t.refund 40 of=A => tokens.used=30 tokens.unapplied=40 tokens.requested=40
        track u t.refund 10 of=B => tokens.used=20 tokens.unapplied=0
        clock u 2031-01-15T10:00:01Z
        reserve u t 5 as=C
        commit C 5 => tokens.used=25
        track u t.refund 5 of=C => tokens.used=20 tokens.unapplied=0
        # A plan with on_plan_change: reset does the same.
        subscribe u free
        subscribe u pro
        usage u => tokens.used=0
        track u t 50
        track u t.refund 20 of=B => tokens.used=50 tokens.unapplied=20
    ",
    )
    .await;
}

#[tokio::test]
async fn a_reset_needs_a_plan() {
    let catalog =
        "plans: { p: { limit_groups: [{ id: g, unit: count, period: daily, quota: 1, match: [{ event: t }] }] } }";
    check(
        catalog,
        "
        clock u 2031-01-15T10:00:00Z
        reset u => NO_SUBSCRIPTION
    ",
    )
    .await;
}

const TIMES: &str = r"
default_plan: free
plans:
  free:
    limit_groups:
      - { id: day, unit: tokens, quota: 100, period: daily, match: [{ event: t }] }
      - { id: month, unit: tokens, quota: 1000, period: monthly, match: [{ event: t }] }
      - { id: life, unit: tokens, quota: unlimited, period: lifetime, match: [{ event: all }] }
";

#[tokio::test]
async fn what_is_tracked_with_a_time_counts_in_the_windows_of_that_time() {
    check(
        TIMES,
        "
        clock u 2031-02-15T10:00:00Z
        track u t 5
        track u t 7 time=2031-02-15T00:00:00Z => day.used=12 day.start=2031-02-15T00:00:00Z month.used=12
        track u t 8 time=2031-02-14T23:59:59Z id=x => day.used=8 day.start=2031-02-14T00:00:00Z month.used=20 !day.closed !replayed
        track u t 8 time=2031-02-14T23:59:59Z id=x => day.used=8 replayed
        track u t 8 time=2031-02-14T23:59:58Z id=x => REQUEST_ID_REUSED
        track u t 1 time=2031-02-14T00:00:00Z => day.used=9
        track u t 2 time=2031-02-13T23:59:59Z => day.closed day.used=0 day.requested=2 month.used=23 # the day is gone, the month is not
        track u t 3 time=2031-01-20T10:00:00Z => day.closed month.used=3 month.start=2031-01-01T00:00:00Z
        track u t 4 time=2030-12-31T23:59:59Z => WINDOW_CLOSED
        usage u => day.used=12 month.used=23
        usage u at=2031-02-14T10:00:00Z => day.used=9
        usage u at=2031-01-14T10:00:00Z => month.used=3
        track u all 4 time=1999-12-31T23:59:59Z => life.used=4
        track u t 6 time=2031-02-15T10:01:00Z => day.used=18 # 60 s ahead are now
        track u t 6 time=2031-02-15T10:01:00.001Z => field:time
        track u t 6 time=2031-02-15T09:00:00Z enforce => field:time
        track u t.refund 6 time=2031-02-15T09:00:00Z => field:time
        track u t 9007199254740991 time=2031-02-15T09:00:00Z => OUT_OF_RANGE
        usage u => day.used=18
        clock u 2031-02-16T09:59:00Z
        track u t 8 time=2031-02-14T23:59:59Z id=x => replayed # for 24 hours
        clock u 2031-02-16T10:00:00Z
        track u t 9 time=2031-02-15T23:00:00Z id=x => !replayed day.used=27
    ",
    )
    .await;
}

#[tokio::test]
async fn a_time_before_the_first_use_belongs_to_the_window_that_is_open_or_opens_one() {
    check(
        SESSIONS,
        "
        clock u 2031-01-15T10:00:00Z
        track u t 5 time=2031-01-15T04:59:59Z => session.closed week.used=5 # it would be over
        track u t 0 time=2031-01-15T05:00:00Z => session.closed # and ends now
        usage u => session.start=none
        track u t 6 time=2031-01-15T06:00:00Z => session.used=6 session.start=2031-01-15T06:00:00Z session.reset=2031-01-15T11:00:00Z
        track u t 7 time=2031-01-15T05:00:00Z => session.used=13 session.start=2031-01-15T06:00:00Z
        clock u 2031-01-15T11:00:00Z
        usage u => session.start=none
        track u t 8 time=2031-01-15T10:30:00Z => session.used=21 session.start=2031-01-15T06:00:00Z
        track u t 9 time=2031-01-15T05:30:00Z => session.closed # before a window that has ended
        track u t 1 => session.used=1 session.start=2031-01-15T11:00:00Z
        clock v 2031-02-10T10:00:00Z
        subscribe v month
        track v t 3 time=2031-01-15T10:00:00Z => session.start=2031-01-15T10:00:00Z session.reset=2031-02-15T10:00:00Z
    ",
    )
    .await;
}

#[tokio::test]
async fn no_time_is_too_far_for_an_answer() {
    check(
        SESSIONS,
        "
        clock u 2031-01-15T10:00:00Z
        subscribe u month
        track u t 6 time=9999-12-30T21:00:00Z => field:time
        track u t 6 time=1970-01-01T00:00:00Z => WINDOW_CLOSED
        track u t 6 time=0001-01-01T00:00:00Z => field:time
        usage u => session.start=none
    ",
    )
    .await;
}

#[tokio::test]
async fn the_first_call_to_a_replica_may_be_about_the_day_before() {
    let replicas = vec![("one", Replica::start(TIMES).await), ("other", Replica::start(TIMES).await)];
    let table = "
        on one
        clock u 2031-02-14T23:00:00Z
        track u t 5
        on other
        clock u 2031-02-15T10:00:00Z
        track u t 6 time=2031-02-14T20:00:00Z => day.used=11 day.start=2031-02-14T00:00:00Z month.used=11
        on one
        clock u 2031-02-16T10:00:00Z
        track u t 7 time=2031-02-14T20:00:00Z => day.closed month.used=18 # what it has compiled is of another day
    ";
    Scenario::new(replicas).run(table).await;
}

#[tokio::test]
async fn a_window_that_opens_leaves_what_is_known_of_the_resets_of_others() {
    let catalog = "
default_plan: free
plans:
  free:
    limit_groups:
      - { id: month, unit: tokens, quota: 100, period: monthly, match: [{ event: t }, { event: both }] }
      - { id: session, unit: tokens, quota: 100, period: 5h, anchor: first_use, match: [{ event: both }] }
";
    check(
        catalog,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u t 40 as=A
        commit A 40
        reset u groups=month
        track u both 9 => month.used=9 session.used=9
        track u t.refund 40 of=A => month.used=9 month.unapplied=40
        usage u => month.used=9 session.used=9
    ",
    )
    .await;
}
