//! Clocks that jump: ONE-CLOCK, and what Redis expires while its clock is ahead.

use std::time::Duration;

use tollgate::meter::MeterOptions;

use crate::scenario::{Scenario, check};
use crate::support::{Replica, redis_options};

const CATALOG: &str = r"
default_plan: p
plans:
  p:
    limit_groups:
      - { id: minute, unit: count, quota: 5, period: minute, match: [{ event: x }] }
      - { id: month, unit: count, quota: 100, period: monthly, match: [{ event: x }] }
";

#[tokio::test]
async fn time_follows_redis_again_after_its_clock_was_far_ahead() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u x 2 ttl=1h as=A => allowed
        clock u 2031-02-24T12:00:00Z # 40 days ahead
        reserve u x 3 ttl=2s as=B => allowed month.used=0 month.held=3
        track u x 1 => month.used=1
        clock u 2031-01-15T12:00:30Z # and back
        # All live holds have lapsed, and the windows of January go on.
        usage u => minute.used=0 minute.held=0 minute.start=2031-01-15T12:00:00Z month.held=0 month.start=2031-01-01T00:00:00Z
        reserve u x 4 ttl=2s as=C => allowed minute.held=4
        reserve u x 2 => denied minute.shortfall=1 retry=2s
        clock u 2031-01-15T12:00:32Z
        reserve u x 2 => allowed
        # Settled late, and nothing is given back twice.
        commit A => late COMMITTED month.used=2 minute.closed
        commit B 3 => late COMMITTED month.used=4 month.start=2031-02-01T00:00:00Z
        clock u 2031-01-15T12:01:00Z
        track u x 1 => minute.used=1 month.used=3
        # What the clock has opened is set aside until it starts.
        clock u 2031-02-24T12:00:10Z
        usage u => month.used=4 month.start=2031-02-01T00:00:00Z
    ",
    )
    .await;
}

#[tokio::test]
async fn what_was_remembered_before_a_wrong_clock_is_remembered_as_long_as_before() {
    let days = Duration::from_secs(5 * 86_400);
    let options = MeterOptions { settlement_window: days, replay_window: days, ..MeterOptions::default() };
    let replica = Replica::start_with(CATALOG, jiff::tz::db(), options, redis_options()).await;
    let table = "
        clock u 2031-01-15T12:00:00Z
        reserve u x 2 as=A
        track u x 1 id=t
        reserve u x 1 as=B
        commit B
        clock u 2031-01-16T12:00:00Z # a day ahead
        reserve u x 1 ttl=10m id=r
        clock u 2031-01-15T12:00:00Z # and back
        track u x 1
        clock u 2031-01-20T11:59:59.999Z
        track u x 1 id=t => replayed
        commit B => replayed
        commit A => late
        clock v 2031-01-15T12:00:00Z
        track v x 1 id=t
        clock v 2031-01-16T12:00:00Z
        track v x 1 # which writes nothing but the time
        clock v 2031-01-15T12:00:00Z
        track v x 1
        clock v 2031-01-20T11:59:59.999Z
        track v x 1 id=t => replayed
        clock v 2031-01-20T12:00:00Z
        track v x 1 id=t => !replayed
    ";
    Scenario::new(vec![("", replica)]).run(table).await;
}

#[tokio::test]
async fn time_stands_still_while_a_clock_was_ahead_by_no_more_than_5_minutes() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:05:00Z
        reserve u x 2 ttl=10s as=A => allowed
        clock u 2031-01-15T12:00:00Z
        track u x 1 => minute.start=2031-01-15T12:05:00Z minute.held=2
        commit A => COMMITTED !late minute.used=3
        clock u 2031-01-15T11:59:59Z
        track u x 1 => minute.start=2031-01-15T11:59:00Z minute.used=1
    ",
    )
    .await;
}

#[tokio::test]
async fn a_release_and_a_repeated_commit_are_right_after_a_clock_was_far_ahead() {
    check(
        CATALOG,
        "
        clock u 2031-03-15T12:00:00Z
        reserve u x 1 as=A => allowed
        reserve u x 1 as=B => allowed
        commit B => COMMITTED
        clock u 2031-01-15T12:00:00Z
        release A => EXPIRED
        commit B => COMMITTED replayed !late
        reserve u x 5 => allowed minute.held=5
        commit A => late COMMITTED
        usage u => minute.held=5
    ",
    )
    .await;
}

#[tokio::test]
async fn a_replay_says_that_a_hold_lapsed_when_the_clock_was_corrected() {
    check(
        CATALOG,
        "
        clock u 2031-03-15T12:00:00Z
        reserve u x 1 ttl=1h id=r as=A => allowed HELD
        clock u 2031-01-15T12:00:00Z
        track u x 1 => minute.held=0
        # Not the deadline of before, which is still to come.
        reserve u x 1 ttl=1h id=r => allowed replayed same-as=A EXPIRED expires-in=0s
    ",
    )
    .await;
}

#[tokio::test]
async fn a_hold_that_lapsed_at_a_wrong_time_is_not_given_back_once_more() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u x 2 ttl=10m as=A => allowed
        reserve u x 2 ttl=10m as=C => allowed
        clock u 2031-01-15T12:10:00Z # their deadline, too early
        track u x 1 => month.used=1 month.held=0
        clock u 2031-01-15T12:00:01Z
        reserve u x 3 ttl=10m as=B => allowed month.held=3
        commit A 2 => late COMMITTED month.used=3 month.held=3
        release C => EXPIRED month.held=3
    ",
    )
    .await;
}
