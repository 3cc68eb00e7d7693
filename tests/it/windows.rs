//! Which window an event counts in, whatever plans, catalogs, anchors, replicas and clocks come and go.

use crate::scenario::{Scenario, check};
use crate::support::Replica;

async fn replicas(catalogs: &[(&'static str, &str)]) -> Scenario {
    let mut replicas = Vec::new();
    for (name, catalog) in catalogs {
        replicas.push((*name, Replica::start(catalog).await));
    }
    Scenario::new(replicas)
}

const BLOCKING: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    on_plan_change: block
    limit_groups: [{ id: t, unit: tokens, quota: 50, match: [{ event: t }] }]
  pro:
    period: monthly
    limit_groups: [{ id: t, unit: tokens, quota: 10000, match: [{ event: t }] }]
";

#[tokio::test]
async fn block_never_lowers_what_is_used() {
    // The plan changes, the subscription is cancelled, or it is renewed 5 s after its end, without any call in between.
    let leaves = [
        "subscribe u free => plan=free",
        "cancel u => plan=pro",
        "subscribe u pro end=2031-01-15T13:00:00Z\nclock u 2031-01-15T13:00:05Z",
    ];
    for leaves in leaves {
        let table = format!(
            "
            clock u 2031-01-15T12:00:00Z
            subscribe u pro => plan=pro
            track u t 10000 => t.used=10000
            {leaves}
            subscribe u pro => plan=pro
            usage u => t.used=10000 t.quota=10000 t.remaining=0
            reserve u t 1 => denied t.shortfall=1
        "
        );
        check(BLOCKING, &table).await;
    }
}

#[tokio::test]
async fn block_fills_what_is_below_the_quota() {
    check(
        BLOCKING,
        "
        clock u 2031-01-15T12:00:00Z
        subscribe u pro
        track u t 20
        reserve u t 5 as=A => t.held=5
        subscribe u free
        usage u => t.used=50 t.held=5
        commit A 5 => t.used=55
    ",
    )
    .await;
}

#[tokio::test]
async fn moving_the_anchor_along_its_own_grid_keeps_the_window() {
    let catalog = "
plans:
  p:
    anchor: subscription_start
    limit_groups:
      - { id: month, unit: tokens, period: monthly, quota: 100, match: [{ event: t }] }
      - { id: day, unit: tokens, period: daily, quota: 100, match: [{ event: t }] }
      - { id: calendar, unit: tokens, period: monthly, anchor: calendar, quota: 100, match: [{ event: t }] }
";
    check(
        catalog,
        "
        clock u 2031-01-15T10:00:00Z
        subscribe u p => anchor=2031-01-15T10:00:00Z
        clock u 2031-02-15T12:00:00Z
        track u t 70 => month.used=70 month.start=2031-02-15T10:00:00Z month.reset=2031-03-15T10:00:00Z
        reserve u t 5 as=A => month.held=5
        subscribe u p anchor=2031-02-15T10:00:00Z => anchor=2031-02-15T10:00:00Z # what a payment provider's period start gives
        usage u => month.used=70 month.held=5 month.start=2031-02-15T10:00:00Z month.reset=2031-03-15T10:00:00Z
        usage u => day.used=70 day.held=5 day.start=2031-02-15T10:00:00Z calendar.used=70
        commit A 5 => month.used=75 day.used=75
        subscribe u p anchor=2031-02-10T10:00:00Z # the day starts where it did, the month does not
        usage u => month.used=0 month.start=2031-02-10T10:00:00Z day.used=75 calendar.used=75
        subscribe u p anchor=2031-01-15T10:00:00Z # and back
        usage u => month.used=75 month.start=2031-02-15T10:00:00Z day.used=75
    ",
    )
    .await;
}

#[tokio::test]
async fn a_window_whose_anchor_moved_keeps_its_end() {
    let catalog = "
plans:
  p:
    anchor: subscription_start
    limit_groups: [{ id: g, unit: tokens, period: monthly, quota: 100, match: [{ event: t }] }]
";
    check(
        catalog,
        "
        clock u 2031-01-31T10:00:00Z
        subscribe u p
        clock u 2031-02-28T12:00:00Z
        track u t 7 => g.start=2031-02-28T10:00:00Z g.reset=2031-03-31T10:00:00Z
        subscribe u p anchor=2031-02-28T10:00:00Z
        usage u => g.used=7 g.start=2031-02-28T10:00:00Z g.reset=2031-03-31T10:00:00Z
        clock u 2031-03-31T10:00:00Z
        usage u => g.used=0 g.start=2031-03-31T10:00:00Z g.reset=2031-04-28T10:00:00Z # no earlier than the one before ended
    ",
    )
    .await;
}

#[tokio::test]
async fn of_the_windows_that_the_anchor_left_behind_the_last_is_kept() {
    let catalog = "
plans:
  p:
    anchor: subscription_start
    limit_groups: [{ id: g, unit: tokens, period: monthly, quota: 100, match: [{ event: t }] }]
";
    check(
        catalog,
        "
        clock u 2031-01-20T00:00:00Z
        subscribe u p anchor=2031-01-10T00:00:00Z
        reserve u t 1 as=A => g.held=1
        track u t 10 => g.used=10
        subscribe u p anchor=2031-01-11T00:00:00Z
        usage u => g.used=0 g.held=0
        reserve u t 2 as=B => g.held=2
        subscribe u p anchor=2031-01-10T00:00:00Z
        usage u => g.used=10 g.held=1
        subscribe u p anchor=2031-01-12T00:00:00Z
        reserve u t 3 as=C => g.used=0 g.held=3
        commit A => g.used=11
        commit B => g.closed
        commit C => g.used=3
    ",
    )
    .await;
}

#[tokio::test]
async fn the_last_window_left_behind_is_the_last_one_in_use_although_another_replica_moved_the_anchor() {
    let own = "
plans:
  p:
    anchor: subscription_start
    limit_groups: [{ id: g, unit: tokens, period: monthly, quota: 100, match: [{ event: t }] }]
";
    let other = own.replace("unit: tokens", "unit: count");
    let mut scenario = replicas(&[("own", own), ("other", &other)]).await;
    scenario
        .run(
            "
            clock u 2031-01-25T12:00:00Z
            on own
            subscribe u p anchor=2031-01-20T10:00:00Z
            reserve u t 1 as=A => g.held=1 g.start=2031-01-20T10:00:00Z
            subscribe u p anchor=2031-01-10T00:00:00Z
            on other
            subscribe u p anchor=2031-01-20T10:00:00Z # it does not have the group of tokens
            on own
            reserve u t 2 as=B => g.held=3 g.start=2031-01-20T10:00:00Z
            subscribe u p anchor=2031-01-12T00:00:00Z
            commit A => g.used=1 g.held=2 !g.closed
            subscribe u p anchor=2031-01-20T10:00:00Z
            usage u => g.used=1 g.held=2 g.start=2031-01-20T10:00:00Z
            commit B => g.used=3
        ",
        )
        .await;
}

const MONTHLY: &str = r"
default_plan: p
plans: { p: { limit_groups: [{ id: n, unit: tokens, period: monthly, quota: 10, match: [{ event: t }] }] } }
";

#[tokio::test]
async fn an_open_window_stands_whatever_other_windows_of_its_group_come_and_go() {
    let other = |group: &str| MONTHLY.replace("unit: tokens, period: monthly, quota: 10", group);
    let minute = other("unit: tokens, period: minute, quota: unlimited");
    let count = other("unit: count, period: hourly, quota: unlimited");
    let mut scenario = replicas(&[("monthly", MONTHLY), ("minute", &minute), ("count", &count)]).await;
    scenario
        .run(
            "
            clock u 2031-01-15T12:00:00Z
            on monthly
            track u t 6
            reserve u t 4 ttl=1h as=A => allowed n.used=6 n.held=4
            on minute
            track u t 1 => n.used=1 n.reset=2031-01-15T12:01:00Z
            clock u +60s
            track u t 1 => n.used=1 n.reset=2031-01-15T12:02:00Z
            on count
            track u t 1 => n.used=1 n.unit=count
            on monthly
            usage u => n.used=6 n.held=4 n.remaining=0 n.start=2031-01-01T00:00:00Z
            reserve u t 1 => denied
            commit A 4 => n.used=10 n.held=0 !n.closed
            on minute
            usage u => n.used=1
        ",
        )
        .await;
}

#[tokio::test]
async fn a_group_goes_on_in_its_own_window_whatever_plans_lay_between() {
    let catalog = "
default_plan: a
plans:
  a: { limit_groups: [{ id: n, unit: tokens, period: monthly, quota: 10, match: [{ event: t }] }] }
  b: { limit_groups: [{ id: n, unit: tokens, period: daily, quota: 10, match: [{ event: t }] }] }
  c: { limit_groups: [{ id: n, unit: count, period: monthly, quota: 10, match: [{ event: t }] }] }
  d: { limit_groups: [{ id: n, unit: tokens, period: monthly, anchor: subscription_start, quota: 10, match: [{ event: t }] }] }
";
    check(
        catalog,
        "
        clock u 2031-01-15T12:00:00Z
        subscribe u a
        track u t 1
        subscribe u b
        track u t 2 => n.used=2
        subscribe u c
        track u t 3 => n.used=3
        subscribe u d
        track u t 4 => n.used=4
        subscribe u a
        usage u => n.used=1
        subscribe u b
        usage u => n.used=2
        subscribe u c
        usage u => n.used=3
        subscribe u d
        usage u => n.used=4
    ",
    )
    .await;
}

#[tokio::test]
async fn a_catalog_edit_of_the_anchor_waits_until_the_window_ends() {
    let before = "
plans: { p: { limit_groups: [{ id: n, unit: tokens, period: monthly, quota: 10, match: [{ event: t }] }] } }
";
    let after = before.replace("quota: 10", "anchor: subscription_start, quota: 10");
    let mut scenario = replicas(&[("before", before), ("after", &after)]).await;
    scenario
        .run(
            "
            clock u 2031-01-15T12:00:00Z
            on before
            subscribe u p
            track u t 6
            reserve u t 4 ttl=1h as=A => n.used=6 n.held=4
            on after
            usage u => n.used=6 n.held=4 n.reset=2031-02-01T00:00:00Z
            subscribe u p quota:n=20 # overrides alone do not move the window
            usage u => n.used=6 n.held=4 n.reset=2031-02-01T00:00:00Z n.quota=20
            reserve u t 11 => denied n.shortfall=1
            commit A 4 => n.used=10
            clock u 2031-02-01T00:00:00Z
            track u t 1 => n.used=1 n.start=2031-02-01T00:00:00Z n.reset=2031-02-15T12:00:00Z # no earlier than the one before ended
            on before
            usage u => n.used=1 n.reset=2031-02-15T12:00:00Z
        ",
        )
        .await;
}

#[tokio::test]
async fn the_first_subscription_to_the_default_plan_moves_no_window_that_is_open() {
    let catalog = "
default_plan: p
plans:
  p:
    anchor: subscription_start
    limit_groups: [{ id: n, unit: tokens, period: monthly, quota: 10, match: [{ event: t }] }]
";
    check(
        catalog,
        "
        clock u 2031-01-15T12:00:00Z
        track u t 6 => n.used=6 n.start=2031-01-01T00:00:00Z
        reserve u t 1 ttl=1h as=A => n.held=1
        subscribe u p => anchor=2031-01-15T12:00:00Z
        usage u => n.used=6 n.held=1 n.start=2031-01-01T00:00:00Z n.reset=2031-02-01T00:00:00Z
        commit A 1 => n.used=7
        reserve u t 4 => denied n.shortfall=1
        clock u 2031-02-01T00:00:00Z
        track u t 2 => n.used=2 n.start=2031-02-01T00:00:00Z n.reset=2031-02-15T12:00:00Z
    ",
    )
    .await;
}

#[tokio::test]
async fn a_moved_anchor_makes_a_catalog_edit_of_the_anchor_take_effect() {
    let before = "
plans: { p: { limit_groups: [{ id: n, unit: tokens, period: monthly, quota: 10, match: [{ event: t }] }] } }
";
    let after = before.replace("quota: 10", "anchor: subscription_start, quota: 10");
    let mut scenario = replicas(&[("before", before), ("after", &after)]).await;
    scenario
        .run(
            "
            clock u 2031-01-15T12:00:00Z
            on before
            subscribe u p
            track u t 6
            on after
            subscribe u p anchor=2031-01-10T00:00:00Z
            usage u => n.used=0 n.start=2031-01-10T00:00:00Z
        ",
        )
        .await;
}

#[tokio::test]
async fn a_window_that_the_anchor_left_behind_is_left_by_all_replicas() {
    let calendar = "
plans: { p: { limit_groups: [{ id: n, unit: tokens, period: monthly, quota: 10, match: [{ event: t }] }] } }
";
    let anchored = calendar.replace("quota: 10", "anchor: subscription_start, quota: 10");
    let mut scenario = replicas(&[("calendar", calendar), ("anchored", &anchored)]).await;
    scenario
        .run(
            "
            clock u 2031-01-15T12:00:00Z
            on anchored
            subscribe u p
            track u t 6 => n.used=6 n.start=2031-01-15T12:00:00Z
            clock u 2031-01-15T13:00:00Z
            subscribe u p anchor=2031-01-15T13:00:00Z
            on calendar
            usage u => n.used=0 n.start=2031-01-15T13:00:00Z
            on anchored
            track u t 10 => n.used=10 n.start=2031-01-15T13:00:00Z
            on calendar
            reserve u t 1 => denied n.used=10
        ",
        )
        .await;
}

#[tokio::test]
async fn at_most_eight_windows_of_a_group_are_kept_and_the_one_that_ends_first_goes_first() {
    let periods = ["yearly", "monthly", "weekly", "daily", "hourly"];
    let mut catalogs = Vec::new();
    for unit in ["tokens", "seconds"] {
        for period in periods {
            let group = format!("id: n, unit: {unit}, period: {period}, quota: 1000000");
            let plan = format!("plans: {{ p: {{ limit_groups: [{{ {group}, match: [{{ event: t }}] }}] }} }}");
            catalogs.push((format!("{unit}-{period}"), plan));
        }
    }
    let mut started = Vec::new();
    for (name, catalog) in &catalogs {
        started.push((name.as_str(), Replica::start(catalog).await));
    }
    let mut scenario = Scenario::new(started);
    scenario
        .run(
            "
            clock u 2031-01-15T12:00:00Z
            on tokens-hourly
            subscribe u p
            reserve u t 1 as=H => allowed
            on tokens-daily
            reserve u t 2 as=D => allowed
            on tokens-weekly
            track u t 3
            on tokens-monthly
            track u t 4
            on tokens-yearly
            track u t 5
            on seconds-yearly
            track u t 6
            on seconds-monthly
            track u t 7
            on seconds-weekly
            track u t 8
            on tokens-hourly
            usage u => n.held=1
            on seconds-daily
            track u t 9
            commit H => n.closed # it ended first
            commit D => n.used=2
            on tokens-hourly
            usage u => n.used=0 n.held=0
            on tokens-weekly
            usage u => n.used=3
            on seconds-weekly
            usage u => n.used=8
            on tokens-yearly
            usage u => n.used=5
        ",
        )
        .await;
}

/// Two plans whose windows of group `n` are of one unit and period, and of these anchors.
fn two_anchors(period: &str, a: &str, b: &str) -> String {
    let plan = |id: &str, anchor: &str| {
        let group = format!("id: n, unit: tokens, period: {period}, anchor: {anchor}, quota: 100");
        format!("  {id}: {{ limit_groups: [{{ {group}, match: [{{ event: t }}] }}] }}\n")
    };
    format!("plans:\n{}{}", plan("a", a), plan("b", b))
}

/// Replicas with a catalog of this name, and with as many others in which plan `b` has another unit or period for group `n`.
async fn with_others(name: &'static str, catalog: &str, count: usize) -> Scenario {
    let units = ["tokens", "seconds", "count"].into_iter();
    let kinds = units.flat_map(|unit| ["yearly", "monthly", "weekly"].map(|period| (unit, period)));
    let names: Vec<_> = (1..=count).map(|number| format!("other{number}")).collect();
    let mut started = vec![(name, Replica::start(catalog).await)];
    for (name, (unit, period)) in names.iter().zip(kinds) {
        let group = format!("id: n, unit: {unit}, period: {period}, quota: 1000000");
        let other = format!("plans: {{ b: {{ limit_groups: [{{ {group}, match: [{{ event: t }}] }}] }} }}");
        started.push((name, Replica::start(&other).await));
    }
    Scenario::new(started)
}

/// One event at each of these replicas.
fn track_at_others(count: usize) -> String {
    (1..=count).map(|number| format!("on other{number}\ntrack u t 1\n")).collect()
}

#[tokio::test]
async fn what_entering_a_plan_has_left_stays_so_when_eight_other_windows_come() {
    let catalog = two_anchors("daily", "first_use", "calendar");
    let mut scenario = with_others("own", &catalog, 7).await;
    let others = track_at_others(7);
    scenario
        .run(&format!(
            "
            clock u 2031-01-15T12:00:00Z
            subscribe u a
            track u t 6 => n.used=6 n.start=2031-01-15T12:00:00Z n.reset=2031-01-16T12:00:00Z
            subscribe u b
            reserve u t 1 ttl=1h as=A => n.held=1 n.start=2031-01-15T00:00:00Z n.reset=2031-01-16T00:00:00Z
            {others}
            commit A => n.closed # its window ended first
            on own
            usage u => n.used=0 n.held=0 n.start=2031-01-15T00:00:00Z n.reset=2031-01-16T00:00:00Z
            subscribe u a
            usage u => n.used=6 n.start=2031-01-15T12:00:00Z
            subscribe u b
            track u t 2 => n.used=2 n.start=2031-01-15T00:00:00Z
        "
        ))
        .await;
}

#[tokio::test]
async fn a_window_that_was_left_for_one_not_yet_open_stays_so_when_others_come() {
    let catalog = two_anchors("daily", "calendar", "first_use");
    let mut scenario = with_others("own", &catalog, 7).await;
    let others = track_at_others(7);
    scenario
        .run(&format!(
            "
            clock u 2031-01-15T12:00:00Z
            subscribe u a
            track u t 6 => n.used=6 n.start=2031-01-15T00:00:00Z
            subscribe u b
            {others}
            on own
            usage u => n.used=0 !n.start=2031-01-15T00:00:00Z
            subscribe u a
            usage u => n.used=6 n.start=2031-01-15T00:00:00Z
        "
        ))
        .await;
}

#[tokio::test]
async fn what_entering_a_plan_has_left_stays_so_after_the_windows_of_that_plan() {
    let catalog = two_anchors("monthly", "subscription_start", "calendar");
    check(
        &catalog,
        "
        clock u 2031-02-28T12:00:00Z
        subscribe u a anchor=2031-02-28T10:00:00Z
        track u t 1 => n.used=1 n.start=2031-02-28T10:00:00Z n.reset=2031-03-28T10:00:00Z
        clock u 2031-03-02T12:00:00Z
        subscribe u b
        track u t 5 => n.used=5 n.start=2031-03-01T00:00:00Z n.reset=2031-04-01T00:00:00Z
        subscribe u a anchor=2031-01-31T10:00:00Z # its window goes on, and is kept until the end of a short one after it
        usage u => n.used=1 n.reset=2031-03-28T10:00:00Z
        clock u 2031-03-31T12:00:00Z
        usage u => n.used=0 n.start=2031-03-31T10:00:00Z
        track u t 2 => n.used=2 n.start=2031-03-31T10:00:00Z n.reset=2031-04-30T10:00:00Z
        subscribe u b
        usage u => n.used=5 n.start=2031-03-01T00:00:00Z
    ",
    )
    .await;
}

const CLOCKS: &str = r"
default_plan: p
plans:
  p:
    limit_groups:
      - { id: minute, unit: count, period: minute, quota: 5, match: [{ event: t }] }
      - { id: month, unit: count, period: monthly, quota: 100, match: [{ event: t }] }
      - { id: life, unit: count, period: lifetime, quota: 100, match: [{ event: t }] }
";

#[tokio::test]
async fn a_clock_that_was_wrong_is_followed_back() {
    check(
        CLOCKS,
        "
        clock u 2031-01-15T12:00:00Z
        track u t 3 => month.used=3
        clock u 2031-01-25T12:00:00Z # ten days ahead, in the same month
        reserve u t 1 ttl=2s as=A => allowed minute.held=1 month.used=3 month.held=1
        track u t 2 => minute.used=2
        clock u 2031-01-15T12:00:30Z
        usage u => month.used=5 month.held=0 life.used=5 life.held=0 minute.start=2031-01-15T12:00:00Z
        reserve u t 2 ttl=2s as=B => allowed expires-in=2s month.used=5 month.held=2
        commit A 1 => late month.used=6 month.held=2
        clock u +2s
        usage u => month.held=0
    ",
    )
    .await;
}

#[tokio::test]
async fn a_window_that_starts_in_the_future_is_set_aside_until_then() {
    check(
        CLOCKS,
        "
        clock u 2031-01-31T23:50:00Z
        track u t 3 => month.used=3
        clock u 2031-02-01T00:10:00Z
        track u t 2 => month.used=2 month.start=2031-02-01T00:00:00Z
        clock u 2031-01-31T23:51:00Z # 19 minutes back
        usage u => month.used=3 month.start=2031-01-01T00:00:00Z
        track u t 1 => month.used=4 month.start=2031-01-01T00:00:00Z
        clock u 2031-02-01T00:00:00Z
        usage u => month.used=2 month.start=2031-02-01T00:00:00Z
        usage u at=2031-01-15T00:00:00Z => month.used=4
    ",
    )
    .await;
}

#[tokio::test]
async fn a_clock_that_goes_back_five_minutes_does_not_move_time() {
    check(
        CLOCKS,
        "
        clock u 2031-01-15T12:05:00Z
        reserve u t 1 ttl=10s as=A => allowed minute.start=2031-01-15T12:05:00Z
        clock u 2031-01-15T12:00:00Z
        usage u => minute.held=1 minute.start=2031-01-15T12:05:00Z
        commit A => !late minute.used=1
        clock u 2031-01-15T11:59:59.999Z # more than 5 minutes: that time was wrong
        usage u => minute.used=0 minute.start=2031-01-15T11:59:00Z month.used=1
    ",
    )
    .await;
}
