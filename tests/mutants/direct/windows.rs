//! What no answer of the model's cases shows of windows: those of a moved anchor, and of a plan that is entered again.

use tollgate::ledger::{Apply, Ledger, NoAnswer};

use super::stored::Stored;
use super::user::{DAY, MINUTE, START, User, event, group, held, made, plan_at};

pub async fn window_end(ledger: &Ledger) -> bool {
    let user = User::new(ledger).await;
    let end = user.frames().until_ms - START;
    user.step(end - 1).await;
    let last = held(user.reserve("").await) == Some(1);
    user.step(end).await;
    let late = user.reserve("").await;
    let right =
        last && matches!(late, Err(NoAnswer::Stale(now)) if (now.now_ms, now.redis_ms) == (START + end, START + end));
    user.delete().await;
    right
}

fn anchored(period: &str) -> String {
    group(period).replace("id: g", "anchor: subscription_start, id: g")
}

/// Until when the latest window is kept.
async fn kept(user: &User<'_>) -> Option<i64> {
    Stored::read(&user.state().await).ok()?.schedules.first().map(|schedule| schedule.kept)
}

/// Whoever has started on a 28th of February has years that end like those of a 29th, but for the leap years.
pub async fn realigned(ledger: &Ledger) -> bool {
    // 2034-05-18, 2028-02-29, 2029-02-28 and 2036-02-29.
    let (now, leap_day, day_before) = (START + 365 * DAY, 1_835_395_200_000, 1_866_931_200_000);
    let until: i64 = 2_087_856_000_000;
    let mut user = User::new(ledger).await;
    user.step(now - START).await;
    user.basis.plan = plan_at(ledger, &anchored("yearly"), Some(day_before), now);
    let mut right = user.track("").await.is_ok() && kept(&user).await == Some(until - DAY);
    user.basis.plan = plan_at(ledger, &anchored("yearly"), Some(leap_day), now);
    right &= user.subscribe(1, &[Apply::Realign]).await && kept(&user).await == Some(until);
    user.delete().await;
    right
}

/// The windows of a moved anchor are counted as it says, also over the end of the last one before.
pub async fn moved_back(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    user.compile(&anchored("daily"), Some(START), 0);
    let mut right = user.track("").await.is_ok();
    let (now, anchor) = (DAY + 60 * MINUTE, START + DAY - 60 * MINUTE);
    user.step(now).await;
    user.compile(&anchored("daily"), Some(anchor), now);
    right &= user.subscribe(1, &[Apply::Realign]).await;
    let standings = user.usage().await;
    right &= standings.is_some_and(|standings| standings[0].window_ms == Some((anchor, anchor + DAY)));
    user.delete().await;
    right
}

/// Whoever enters a plan again is back in its window, which then also waits for a catalog edit of the anchor.
pub async fn entered_again(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    // Of May; and from the 28th of April to that of May.
    let anchor = Some(START - 20 * DAY);
    user.compile(&group("monthly"), None, 0);
    let mut right = user.track("").await.is_ok();
    for (revision, groups) in [(1, anchored("monthly")), (2, group("monthly"))] {
        user.compile(&groups, anchor, 0);
        right &= user.subscribe(revision, &[Apply::Enter]).await;
    }
    user.step(11 * DAY).await;
    user.compile(&anchored("monthly"), anchor, 11 * DAY);
    right &= user.standing().await.is_some_and(|(used, _)| used == 1);
    user.delete().await;
    right
}

/// A window that was left by entering a plan does not come back because the one in its place is the first of nine to go, or is not open yet.
pub async fn pushed_out(ledger: &Ledger) -> bool {
    let mut right = true;
    let anchored = |anchor: &str| group("daily").replace("id: g", &format!("anchor: {anchor}, id: g"));
    let once = event("e", &[("quantity", "1")]);
    for (first, second) in [("first_use", "calendar"), ("calendar", "first_use")] {
        let mut user = User::on(ledger, &anchored(first)).await;
        right &= user.track("").await.is_ok();
        user.compile(&anchored(second), None, 0);
        right &= user.subscribe(1, &[Apply::Enter]).await;
        for index in 0..7 {
            let (unit, period) = (["count", "tokens", "cents"][index / 3], ["yearly", "monthly", "weekly"][index % 3]);
            user.compile(&group(period).replace("unit: count", &format!("unit: {unit}")), None, 0);
            right &= user.track_for("", MINUTE, &once, false).await.is_ok();
        }
        for (anchor, used) in [(second, 0), (first, 1)] {
            user.compile(&anchored(anchor), None, 0);
            right &= user.standing().await == Some((used, 0));
        }
        user.delete().await;
    }
    right
}

/// Nor does it come back because the one in its place is kept no longer.
pub async fn outlived(ledger: &Ledger) -> bool {
    // The last days of January and of February, the 2nd of March, and its last day.
    let [january, february, second, march] = [258, 286, 288, 317].map(|days| days * DAY);
    let mut user = User::new(ledger).await;
    user.step(february).await;
    user.compile(&anchored("monthly"), Some(START + february), february);
    let mut right = user.track("").await.is_ok();
    user.step(second).await;
    user.compile(&group("monthly"), Some(START + february), second);
    right &= user.subscribe(1, &[Apply::Enter]).await && user.track("").await.is_ok() && user.track("").await.is_ok();
    user.compile(&anchored("monthly"), Some(START + january), second);
    right &= user.subscribe(2, &[Apply::Enter]).await && user.standing().await == Some((1, 0));
    user.step(march).await;
    user.compile(&anchored("monthly"), Some(START + january), march);
    right &= user.standing().await == Some((0, 0));
    user.delete().await;
    right
}

/// The anchor moves away, back by a replica that does not have the group, and away once more.
pub async fn last_left(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    let from = |days: i64| Some(START - days * DAY);
    user.compile(&anchored("monthly"), from(3), 0);
    let mut right = user.track("").await.is_ok();
    user.compile(&anchored("monthly"), from(10), 0);
    right &= user.subscribe(1, &[Apply::Realign]).await;
    user.compile(&anchored("monthly"), from(3), 0);
    right &= user.track("").await.is_ok();
    user.compile(&anchored("monthly"), from(12), 0);
    right &= user.subscribe(2, &[Apply::Realign]).await;
    user.compile(&anchored("monthly"), from(3), 0);
    right &= user.standing().await == Some((2, 0));
    user.delete().await;
    right
}

/// A denied call changes nothing; a hold that lapses meanwhile is written, and no window is left open.
pub async fn unopened(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    let e = event("e", &[]);
    let mut right = user.track_for("", MINUTE, &event("e", &[("quantity", "9")]), false).await.is_ok();
    let before = user.state().await;
    user.step(1).await;
    let denied = user.reserve("").await.is_ok_and(|answer| answer.decision.denied.is_some());
    let blocked = user.track_for("", MINUTE, &e, true).await.is_ok_and(|tracked| tracked.uncounted.is_some());
    right &= denied && blocked && user.state().await == before;
    user.delete().await;
    for reserves in [true, false] {
        user = User::new(ledger).await;
        right &= held(user.reserve("").await) == Some(1);
        user.step(MINUTE).await;
        user.compile(&group("minute").replace("quota: 9", "quota: 0"), None, MINUTE);
        let is_denied = if reserves {
            user.reserve("").await.is_ok_and(|answer| answer.decision.denied.is_some())
        } else {
            user.track_for("", MINUTE, &e, true).await.is_ok_and(|tracked| tracked.uncounted.is_some())
        };
        let Ok(stored) = Stored::read(&user.state().await) else { return false };
        right &= is_denied && (stored.head.time, stored.head.live, stored.windows) == (START + MINUTE, 0, 1);
        right &= stored.deadlines.is_empty() && stored.schedules.iter().all(|schedule| schedule.start < START);
        user.delete().await;
    }
    right
}

/// Windows of the same time share a schedule, and each has a counter of its own.
pub async fn shared(ledger: &Ledger) -> bool {
    let groups: Vec<_> = ["daily", "yearly", "daily", "yearly"]
        .iter()
        .enumerate()
        .map(|(index, period)| group(period).replace("id: g", &format!("id: g{index}")))
        .collect();
    let user = User::on(ledger, &groups.join(", ")).await;
    let Some((id, 1)) = made(user.reserve("").await) else { return false };
    let Ok(stored) = Stored::read(&user.state().await) else { return false };
    let mut right = (stored.head.schedules, stored.windows, stored.head.opened) == (2, 4, 4);
    right &= stored.counters.iter().map(|counter| counter.number).collect::<Vec<_>>() == [1, 2, 3, 4];
    right &= stored.counters.iter().map(|counter| counter.schedule).collect::<Vec<_>>() == [1, 2, 1, 2];
    right &= user.commit(&id, None).await.is_ok();
    let Ok(stored) = Stored::read(&user.state().await) else { return false };
    right &= stored.counters.iter().all(|counter| (counter.used, counter.held) == (1, 0));
    right &= stored.head.current_until == user.frames().until_ms;
    user.delete().await;
    right
}

/// More groups than one list of numbers takes.
pub async fn many(ledger: &Ledger) -> bool {
    const GROUPS: usize = 1000;
    let rule = |index: usize| if index.is_multiple_of(2) { "{ event: e }" } else { "{ event: e }, { event: f }" };
    let groups = (0..GROUPS)
        .map(|index| format!("{{ period: yearly, id: g{index}, unit: count, quota: 9000, match: [{}] }}", rule(index)));
    let user = User::on(ledger, &groups.collect::<Vec<_>>().join(", ")).await;
    let quantity = |name, quantity| event(name, &[("quantity", quantity)]);
    let Some((id, 3)) = made(user.reserve_for("", TTL_OF_MANY, &quantity("e", "3")).await) else { return false };
    let mut right = user.track_for("", MINUTE, &quantity("f", "2"), false).await.is_ok();
    let expected = |place: usize, held| if place.is_multiple_of(2) { (0, held) } else { (2, held) };
    let stands = async |held| {
        let standings = user.usage().await.unwrap_or_default();
        let found = standings.iter().map(|standing| (standing.used, standing.held));
        standings.len() == GROUPS && found.eq((0..GROUPS).map(|place| expected(place, held)))
    };
    right &= stands(3).await && user.release(&id).await.is_ok() && stands(0).await;
    right &= user.reserve_for("", TTL_OF_MANY, &quantity("e", "5")).await.is_ok() && stands(5).await;
    user.step(TTL_OF_MANY).await;
    right &= stands(0).await;
    user.delete().await;
    right
}

const TTL_OF_MANY: i64 = 1000;
