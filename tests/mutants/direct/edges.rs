//! What few calls come to: windows of other kinds, rules before the one that applies, and counters that are nearly full.

use tollgate::catalog;
use tollgate::domain::fault::Fault;
use tollgate::ledger::packed::Reader;
use tollgate::ledger::{Apply, Frames, InForce, Ledger, NoAnswer, Once, formats};

use super::expiry::memory_expires;
use super::raw;
use super::stored::Stored;
use super::user::{DAY, MINUTE, START, TTL, User, event, group, is_stale, made, used};

const HOUR: i64 = 60 * MINUTE;
const MOST: i64 = (1 << 53) - 1;

fn anchored(period: &str) -> String {
    group(period).replace("id: g", "anchor: subscription_start, id: g")
}

fn count(quantity: &str) -> tollgate::domain::event::Event {
    event("e", &[("quantity", quantity)])
}

/// How much was used in the first group at a time after the start; none if it had no window then.
async fn used_at(user: &User<'_>, ms: i64) -> Option<u64> {
    user.usage_at(START + ms).await.and_then(|standings| standings.first().map(|standing| standing.used))
}

/// An earlier window of a group has its unit, its period and its kind of anchor.
pub async fn earlier_windows(ledger: &Ledger) -> bool {
    let now = DAY + HOUR;
    let daily = group("daily");
    let tokens = daily.replace("unit: count", "unit: tokens");
    let mut right = true;
    for (groups, expected) in
        [(daily.clone(), Some(1)), (tokens, Some(0)), (group("hourly"), None), (anchored("daily"), Some(0))]
    {
        let mut user = User::on(ledger, &daily).await;
        right &= user.track_for("", MINUTE, &count("1"), false).await.is_ok();
        user.step(now).await;
        user.compile(&groups, Some(START), now);
        right &= user.track_for("", MINUTE, &count("2"), false).await.is_ok();
        right &= used_at(&user, now).await == Some(2) && used_at(&user, HOUR).await == expected;
        user.delete().await;
    }
    // Who has compiled the call for another day knows of no window before this one.
    let mut user = User::on(ledger, &daily).await;
    right &= user.track("").await.is_ok() && used_at(&user, -DAY).await == Some(0);
    user.compile(&daily, None, DAY);
    right &= used_at(&user, 0).await == Some(1) && user.usage_at(START - DAY).await.is_none();
    user.delete().await;
    // A window ends before its end; where the anchor moved, nothing was used from there on.
    let mut user = User::on(ledger, &group("daily")).await;
    user.compile(&anchored("daily"), Some(START), 0);
    right &= user.track("").await.is_ok();
    user.step(DAY + 2 * HOUR).await;
    user.compile(&anchored("daily"), Some(START + HOUR), DAY + 2 * HOUR);
    right &= user.track("").await.is_ok();
    right &= used_at(&user, DAY - 1).await == Some(1) && used_at(&user, DAY).await == Some(0);
    user.delete().await;
    right
}

fn missing<T>(answer: Result<T, Fault>, name: &str) -> bool {
    matches!(answer, Err(Fault::QuantityMissing { quantity, .. }) if quantity == name)
}

/// What a refund of a reservation asks of each group, and what of that did not come back.
async fn refunds(user: &User<'_>, id: &tollgate::domain::id::ReservationId, parts: &[(&str, &str)]) -> Vec<(u64, u64)> {
    let answer = user.refund_reservation("", id, &event("e", parts)).await;
    let standings = answer.map(|tracked| tracked.standings).unwrap_or_default();
    standings.iter().map(|standing| (standing.requested, standing.unapplied)).collect()
}

fn tokens(id: &str, measures: &[&str]) -> String {
    let rules: Vec<_> = measures.iter().map(|measure| format!("{{ event: e, measure: {measure} }}")).collect();
    format!("{{ period: yearly, id: {id}, unit: tokens, quota: 900, match: [{}] }}", rules.join(", "))
}

/// What a refund of a reservation does not name stays as it was, and so does a rule that did not apply.
pub async fn refunded_by_name(ledger: &Ledger) -> bool {
    // Each refund leaves what it does not name as it was.
    let user = User::on(ledger, &format!("{}, {}", tokens("g", &["{ m: 1 }"]), tokens("h", &["{ n: 1 }"]))).await;
    let both = event("e", &[("m", "5"), ("n", "3")]);
    let mut right = user.track_for("", MINUTE, &both, false).await.is_ok();
    for order in [[("n", (0, 1)), ("m", (1, 0))], [("m", (1, 0)), ("n", (0, 1))]] {
        let Some((id, _)) = made(user.reserve_for("", TTL, &both).await) else { return false };
        right &= user.commit(&id, None).await.is_ok();
        for (name, (m, n)) in order {
            right &= refunds(&user, &id, &[(name, "1")]).await == [(m, 0), (n, 0)];
        }
    }
    user.delete().await;
    // An earlier rule that finds no number in the metadata is told, a later one is not asked.
    let user = User::on(ledger, &tokens("g", &["{ c: 1 }", "{ b: 1 }"])).await;
    for (name, other) in [("b", "@c"), ("c", "@b")] {
        let Some((id, 5)) = made(user.reserve_for("", TTL, &event("e", &[(name, "5")])).await) else { return false };
        right &= user.commit(&id, None).await.is_ok();
        let parts = [(other, "x"), (name, "1")];
        if name == "b" {
            right &= missing(user.refund_reservation("", &id, &event("e", &parts)).await, "c");
        } else {
            right &= refunds(&user, &id, &parts).await == [(1, 0)];
        }
    }
    user.delete().await;
    // What could not be given back is not given back later.
    let user = User::on(ledger, &tokens("g", &["{ n: 1 }"])).await;
    let five = event("e", &[("n", "5")]);
    let Some((id, 5)) = made(user.reserve_for("", TTL, &five).await) else { return false };
    right &= user.commit(&id, None).await.is_ok();
    right &= user.refund("", &event("e", &[("n", "3")])).await.is_ok() && user.standing().await == Some((2, 0));
    right &= refunds(&user, &id, &[("n", "4")]).await == [(4, 2)] && user.standing().await == Some((0, 0));
    right &= user.track_for("", MINUTE, &five, false).await.is_ok();
    right &= refunds(&user, &id, &[("n", "5")]).await == [(5, 4)] && user.standing().await == Some((4, 0));
    user.delete().await;
    // Nor what no counter holds.
    let user = User::on(ledger, &tokens("g", &["{ n: 2 }"])).await;
    let Some((id, 10)) = made(user.reserve_for("", TTL, &five).await) else { return false };
    right &= user.commit(&id, None).await.is_ok();
    let most = event("e", &[("n", &MOST.to_string())]);
    right &= is_out_of_range(user.refund_reservation("", &id, &most).await, "g");
    user.delete().await;
    // What has come back by another rule does not come back again.
    let user = User::on(ledger, &tokens("g", &["{ n: 1 }", "quantity"])).await;
    let Some((id, 5)) = made(user.reserve_for("", TTL, &event("e", &[("n", "5")])).await) else { return false };
    right &= user.commit(&id, None).await.is_ok();
    right &= refunds(&user, &id, &[("quantity", "3")]).await == [(3, 0)];
    right &= refunds(&user, &id, &[("n", "1")]).await == [(0, 0)];
    right &= user.standing().await == Some((2, 0));
    user.delete().await;
    right
}

/// A commit that lacks what a group measures is told which: of a record of which somebody has lost some.
pub async fn committed_without(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &tokens("g", &["{ a: 1, b: 1 }"])).await;
    let both = event("e", &[("a", "1"), ("b", "2")]);
    let Some((id, 3)) = made(user.reserve_for("", TTL, &both).await) else { return false };
    let memory = user.memory(1).await;
    let Some(packed) = memory.get(&id.field[..]) else { return false };
    let mut reader = Reader(packed);
    let Ok(record) = formats::Record::read(&mut reader) else { return false };
    // A list of the first one.
    let record = formats::Record { quantities: vec![0x91, 1], ..record };
    let mut changed = Vec::new();
    record.write(&mut changed);
    changed.extend_from_slice(reader.0);
    user.set_field(1, &id.field, &changed).await;
    let right = missing(user.commit(&id, Some(&used(&[("a", "1")]))).await, "b");
    user.delete().await;
    right
}

fn is_out_of_range<T>(answer: Result<T, Fault>, group: &str) -> bool {
    matches!(answer, Err(Fault::OutOfRange { field, .. }) if field.contains(group))
}

fn unlimited(id: &str) -> String {
    group("yearly").replace("quota: 9", "quota: unlimited").replace("id: g", &format!("id: {id}"))
}

/// EXACT: no counter passes its maximum.
pub async fn nearly_full(ledger: &Ledger) -> bool {
    // The maximum of cents is 8 x 10^9, with six decimals.
    let rule = "{ event: e, measure: { c: 1 } }";
    let user =
        User::on(ledger, &format!("{{ period: yearly, id: g, unit: cents, quota: unlimited, match: [{rule}] }}")).await;
    let Some((id, _)) = made(user.reserve_for("", TTL, &event("e", &[("c", "1")])).await) else { return false };
    let mut right = is_out_of_range(user.commit(&id, Some(&used(&[("c", "8500000000")]))).await, "g");
    right &= user.commit(&id, Some(&used(&[("c", "7500000000")]))).await.is_ok();
    user.delete().await;
    // A late commit has nothing held that makes room for it.
    let user = User::on(ledger, &unlimited("g")).await;
    let Some((id, 10)) = made(user.reserve_for("", TTL, &count("10")).await) else { return false };
    user.step(TTL).await;
    right &= user.reserve_for("", TTL, &count(&(MOST - 15).to_string())).await.is_ok();
    right &= is_out_of_range(user.commit(&id, Some(&used(&[("quantity", "20")]))).await, "g");
    right &= user.commit(&id, Some(&used(&[("quantity", "15")]))).await.is_ok_and(|done| done.late);
    user.delete().await;
    // A commit in time first gives back what its reservation holds.
    let user = User::on(ledger, &unlimited("g")).await;
    let Some((id, _)) = made(user.reserve_for("", TTL, &count(&(MOST - 1).to_string())).await) else { return false };
    right &= user.commit(&id, None).await.is_ok();
    user.delete().await;
    // The first of several is named.
    let user = User::on(ledger, &format!("{}, {}", unlimited("first"), unlimited("second"))).await;
    right &= user.track_for("", MINUTE, &count(&(MOST - 1).to_string()), false).await.is_ok();
    let out = |answer: Result<(), NoAnswer>| match answer {
        Err(NoAnswer::Fault(fault)) => is_out_of_range::<()>(Err(fault), "first"),
        _ => false,
    };
    right &= out(user.can_use(&count("2")).await.map(drop)) && user.can_use(&count("1")).await.is_ok();
    right &= out(user.reserve_for("", TTL, &count("2")).await.map(drop));
    right &= out(user.track_for("", MINUTE, &count("2"), false).await.map(drop));
    user.delete().await;
    right
}

/// A call that was compiled for a window that has not begun opens none.
pub async fn not_begun(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    user.compile(&group("minute"), None, MINUTE);
    let mut right = is_stale(&user.reserve("").await);
    user.compile(&group("minute"), None, 0);
    right &= user.reserve("").await.is_ok();
    user.delete().await;
    right
}

/// Of one group, eight windows are kept, whatever its unit and period were.
pub async fn most_windows(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    let mut right = true;
    let mut opened = 0;
    for unit in ["count", "tokens"] {
        for period in ["minute", "hourly", "daily", "weekly", "monthly", "yearly", "lifetime"] {
            user.compile(&group(period).replace("unit: count", &format!("unit: {unit}")), None, 0);
            right &= user.track_for("", MINUTE, &count("1"), false).await.is_ok();
            opened += 1;
            right &= Stored::read(&user.state().await).is_ok_and(|stored| stored.windows == opened.min(8));
        }
    }
    // The ones that end last are left.
    for (period, expected) in [("lifetime", 1), ("yearly", 1), ("hourly", 0), ("minute", 0)] {
        user.compile(&group(period), None, 0);
        right &= user.standing().await == Some((expected, 0));
    }
    user.delete().await;
    right
}

/// ONE-CLOCK: a window that a wrong clock has opened waits for its time, and then stands.
pub async fn set_aside(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    let daily = anchored("daily");
    user.compile(&daily, Some(START - HOUR), 0);
    let mut right = user.track_for("", MINUTE, &count("1"), false).await.is_ok();
    // Ahead of the time, and of another anchor.
    user.step(6 * HOUR).await;
    user.compile(&daily, Some(START + 5 * HOUR), 6 * HOUR);
    right &= user.track_for("", MINUTE, &count("2"), false).await.is_ok();
    right &= user.standing().await == Some((2, 0));
    user.step(0).await;
    user.compile(&group("daily"), None, 0);
    // The calendar waits for the end of the one that is in force.
    right &= user.standing().await == Some((1, 0));
    right &= user.track_for("", MINUTE, &count("3"), false).await.is_ok();
    right &= user.standing().await == Some((4, 0));
    right &= Stored::read(&user.state().await).is_ok_and(|stored| stored.head.current_until == START + 5 * HOUR);
    user.step(5 * HOUR - 1).await;
    right &= user.standing().await == Some((4, 0));
    user.step(5 * HOUR).await;
    right &= user.standing().await == Some((2, 0));
    user.delete().await;
    right
}

/// A window of another anchor does not stand in for the group's own: only one of another kind does, until its end.
pub async fn of_another_anchor(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    user.compile(&anchored("daily"), Some(START - HOUR), 0);
    let mut right = user.track("").await.is_ok();
    user.compile(&anchored("daily"), Some(START - 2 * HOUR), 0);
    right &= user.track_for("", MINUTE, &count("2"), false).await.is_ok();
    right &= user.standing().await == Some((2, 0));
    user.compile(&group("daily"), None, 0);
    right &= user.standing().await == Some((2, 0));
    // Of those that a moved anchor has left behind the last one is kept, beside one that counts something else.
    let windows = async |user: &User<'_>| Stored::read(&user.state().await).ok().map(|stored| stored.windows);
    right &= windows(&user).await == Some(2);
    user.compile(&group("daily").replace("unit: count", "unit: tokens"), None, 0);
    right &= user.track_for("", MINUTE, &count("4"), false).await.is_ok() && windows(&user).await == Some(3);
    for (hours, expected) in [(3, 3), (4, 3)] {
        user.compile(&anchored("daily"), Some(START - hours * HOUR), 0);
        right &= user.track("").await.is_ok() && windows(&user).await == Some(expected);
    }
    user.compile(&anchored("daily"), Some(START - 3 * HOUR), 0);
    right &= user.standing().await == Some((1, 0));
    user.delete().await;
    right
}

/// Daily windows of some groups by this time zone, when a day ends that summer time ends after.
fn zoned(ledger: &Ledger, zone: &str, groups: &str, at_ms: i64) -> InForce {
    let text = format!("plans: {{ p: {{ timezone: {zone}, limit_groups: [{groups}] }} }}");
    let catalog = catalog::parse(&text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
    let frames = Frames::of(&catalog.plans()[0], None, &std::collections::BTreeMap::new(), at_ms);
    let frames = frames.expect("the time has a calendar");
    InForce::Plan { plan: ledger.compile(&catalog).swap_remove(0), frames }
}

/// Windows of the same time have schedules of their own where their anchors differ, or until when they are kept.
pub async fn alike(ledger: &Ledger) -> bool {
    let schedules = async |user: &User<'_>| {
        let stored = Stored::read(&user.state().await).ok()?;
        let mut schedules: Vec<_> =
            stored.schedules.iter().map(|schedule| (schedule.anchor, schedule.kept, schedule.start)).collect();
        schedules.sort_unstable();
        Some(schedules)
    };
    let midnight = START / DAY * DAY;
    let second = |group: String| group.replace("id: g", "id: h");
    let mut user = User::new(ledger).await;
    user.compile(&format!("{}, {}", group("daily"), second(anchored("daily"))), Some(midnight), 0);
    let mut right = user.track("").await.is_ok();
    let kept = midnight + 2 * DAY;
    right &= schedules(&user).await == Some(vec![(midnight, kept, midnight), ((1 << 48) - 1, kept, midnight)]);
    user.delete().await;
    // 2033-10-29, a Saturday: in Berlin the next day has 25 hours.
    let now = 164 * DAY;
    let mut user = User::new(ledger).await;
    user.step(now).await;
    user.basis.plan = zoned(ledger, "Europe/Berlin", &group("daily"), START + now);
    right &= user.track("").await.is_ok();
    let both = format!("{}, {}", group("daily"), second(group("daily")));
    user.basis.plan = zoned(ledger, "Africa/Johannesburg", &both, START + now);
    right &= user.track("").await.is_ok() && user.standing().await == Some((2, 0));
    let (start, never) = (midnight + now - 2 * HOUR, (1 << 48) - 1);
    let kept = start + 2 * DAY;
    right &= schedules(&user).await == Some(vec![(never, kept, start), (never, kept + HOUR, start)]);
    user.delete().await;
    right
}

/// A window is kept until the end of the next one, and no millisecond more.
pub async fn kept_until(ledger: &Ledger) -> bool {
    let kept = START / MINUTE * MINUTE + 2 * MINUTE - START;
    let mut right = true;
    for (now, is_closed) in [(kept - 1, false), (kept, true)] {
        for later in [false, true] {
            let mut user = User::new(ledger).await;
            let Some((id, 1)) = made(user.reserve_for("", 100_000, &count("1")).await) else { return false };
            if later {
                // Another hold, whose window is another one.
                user.compile(&group("yearly"), None, 0);
                right &= user.reserve_for("", 10 * MINUTE, &count("1")).await.is_ok();
            }
            user.step(now).await;
            let done = user.commit(&id, None).await;
            right &= done.is_ok_and(|done| done.standings[0].window_closed == is_closed);
            user.delete().await;
        }
    }
    right
}

/// ONE-CLOCK: a denied call writes that a clock was corrected, with the expiry of the memories.
pub async fn denied_under_a_wrong_clock(ledger: &Ledger) -> bool {
    let mut right = true;
    for reserves in [true, false] {
        let user = User::on(ledger, &group("yearly")).await;
        // So far ahead that the memories must expire sooner.
        user.step(9 * DAY).await;
        right &= user.track_for("t", MINUTE, &count("9"), false).await.is_ok();
        user.step(0).await;
        let (once, e) = (Once { field: [1; 16], digest: None, suffix: [1; 6] }, count("1"));
        let scripts = ledger.scripts();
        let (script, call) = if reserves {
            (&scripts.reserve, raw::reserve(&user.owner, &user.basis, &once, &e, TTL))
        } else {
            (&scripts.track, raw::track(&user.owner, &user.basis, &once, &e, true))
        };
        right &= raw::told(script, std::slice::from_ref(&call)).await == Some((0, 1));
        right &= raw::told(script, &[call]).await == Some((0, 0));
        let Some(memory) = Stored::read(&user.state().await).ok().and_then(|stored| stored.memory) else {
            return false;
        };
        right &= (memory.epoch, memory.corrected) == (1, START);
        right &= memory_expires(&user).await.is_some();
        right &= user.standing().await == Some((9, 0));
        user.delete().await;
    }
    right
}

/// Whoever matches nothing is told by which plan.
pub async fn unmatched(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let (once, other) = (Once { field: [1; 16], digest: None, suffix: [1; 6] }, event("other", &[]));
    let scripts = ledger.scripts();
    let mut right = true;
    for (script, call) in [
        (&scripts.reserve, raw::reserve(&user.owner, &user.basis, &once, &other, TTL)),
        (&scripts.can_use, raw::can_use(&user.owner, &user.basis, &other)),
        (&scripts.track, raw::track(&user.owner, &user.basis, &once, &other, false)),
    ] {
        let answers = raw::run(script, &[call]).await;
        let told = answers.first().map(|answer| formats::Answer::read(&mut Reader(answer)));
        right &= matches!(told, Some(Ok(told)) if (told.outcome, told.plan) == (3, user.plan().digest));
    }
    right &= user.state().await.is_empty();
    user.delete().await;
    right
}

/// An anchor that moved to where the same window starts is the window's own from then on.
pub async fn moved_to_the_same_start(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    user.compile(&anchored("daily"), Some(START), 0);
    let mut right = user.track("").await.is_ok();
    user.compile(&anchored("daily"), Some(START - DAY), 0);
    right &= user.subscribe(1, &[Apply::Realign]).await;
    let anchor =
        Stored::read(&user.state().await).ok().and_then(|stored| stored.schedules.first().map(|one| one.anchor));
    right &= anchor == Some(START - DAY) && user.standing().await == Some((1, 0));
    user.delete().await;
    right
}

/// NO-LEAK: where somebody has lost what was held, what comes back leaves nothing less than nothing.
pub async fn lost_holds(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let Some((_, 1)) = made(user.reserve("").await) else { return false };
    let mut state = user.state().await;
    let mut reader = Reader(&state);
    let (Ok(head), Ok(_)) = (formats::Head::read(&mut reader), formats::Memory::read(&mut reader)) else {
        return false;
    };
    if (head.schedules, head.groups) != (1, 1) || formats::Schedule::read(&mut reader).is_err() {
        return false;
    }
    let Ok(counter) = formats::Counter::read(&mut reader) else { return false };
    // The last seven bytes of the counter.
    let after = state.len() - reader.0.len();
    state[after - 7..after].fill(0);
    user.put_state(&state).await;
    let mut right = counter.held == 1 && user.standing().await == Some((0, 0));
    user.step(TTL).await;
    right &= user.standing().await == Some((0, 0)) && user.reserve("").await.is_ok();
    right &= user.standing().await == Some((0, 1));
    user.delete().await;
    right
}
