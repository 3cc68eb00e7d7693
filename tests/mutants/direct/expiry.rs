//! What expires by itself, what people see of it, and how much there may be.

use tollgate::domain::fault::Fault;
use tollgate::ledger::packed::Reader;
use tollgate::ledger::{Apply, Ledger, NoAnswer, formats};

use super::stored::Stored;
use super::user::{DAY, MINUTE, START, TTL, User, event, group, held, made};

/// Until when the key of the state lives, if it also says so.
async fn state_expires(user: &User<'_>) -> Option<i64> {
    let stored = Stored::read(&user.state().await).ok()?;
    let expires: i64 = user.look("PEXPIRETIME", user.keys.state()).await;
    let said = if stored.head.expires == 0 { -1 } else { stored.head.expires };
    (said == expires).then_some(expires)
}

/// Until when the young memory lives, if the state also says so.
pub async fn memory_expires(user: &User<'_>) -> Option<i64> {
    let stored = Stored::read(&user.state().await).ok()?;
    let key = &user.keys.memories()[usize::try_from(stored.head.young).ok()?.checked_sub(1)?];
    let expires: i64 = user.look("PEXPIRETIME", key).await;
    (stored.memory?.young_expires == expires).then_some(expires)
}

pub async fn visible(ledger: &Ledger) -> bool {
    let second = group("minute").replace("id: g", "id: h");
    let user = User::on(ledger, &format!("{}, {second}", group("minute"))).await;
    let mut right = true;
    for commit in [true, false] {
        let Some((id, 1)) = made(user.reserve("").await) else { return false };
        let shown: Option<String> = user.look("GET", &user.keys.hold(&id.field)).await;
        let left: i64 = user.look("PTTL", &user.keys.hold(&id.field)).await;
        right &= shown.as_deref() == Some("e") && (1..=TTL).contains(&left);
        right &= if commit { user.commit(&id, None).await.is_ok() } else { user.release(&id).await.is_ok() };
        right &= user.look::<u32>("EXISTS", &user.keys.hold(&id.field)).await == 0;
    }
    user.delete().await;
    right
}

/// Says that so many holds are live, where some are.
async fn set_live(user: &User<'_>, live: i64) {
    let state = user.state().await;
    let mut reader = Reader(&state);
    let Ok(head) = formats::Head::read(&mut reader) else { return };
    let mut changed = Vec::new();
    formats::Head { live, ..head }.write(&mut changed);
    changed.extend_from_slice(reader.0);
    user.put_state(&changed).await;
}

pub async fn most_holds(ledger: &Ledger) -> bool {
    fn too_many<T>(answer: Result<T, NoAnswer>) -> bool {
        matches!(answer, Err(NoAnswer::Fault(Fault::TooManyHolds)))
    }
    let user = User::new(ledger).await;
    let (Some((a, 1)), Some((b, 2))) = (made(user.reserve("").await), made(user.reserve("").await)) else {
        return false;
    };
    set_live(&user, 9999).await;
    let e = event("e", &[]);
    let mut right = user.can_use(&e).await.is_ok() && held(user.reserve("").await).is_some();
    right &= too_many(user.reserve("").await) && too_many(user.can_use(&e).await);
    for (id, commit) in [(a, true), (b, false)] {
        right &= if commit { user.commit(&id, None).await.is_ok() } else { user.release(&id).await.is_ok() };
        right &= held(user.reserve("").await).is_some() && too_many(user.reserve("").await);
    }
    // What lapses makes room as well.
    user.step(TTL).await;
    right &= held(user.reserve("").await) == Some(1);
    user.delete().await;
    right
}

/// A deadline is rounded up to a tenth of a second, and is then exact.
pub async fn rounded(ledger: &Ledger) -> bool {
    let user = User::new(ledger).await;
    let deadline = |answer: Result<tollgate::ledger::ReserveAnswer, NoAnswer>| {
        answer.ok().and_then(|answer| answer.hold).map(|hold| hold.deadline_ms - START)
    };
    let e = event("e", &[]);
    let mut right = deadline(user.reserve_for("a", 1001, &e).await) == Some(1100);
    right &= deadline(user.reserve_for("b", 1000, &e).await) == Some(1000);
    user.step(999).await;
    right &= user.standing().await == Some((0, 2));
    right &= deadline(user.reserve_for("a", 1001, &e).await) == Some(1100);
    user.step(1000).await;
    right &= user.standing().await == Some((0, 1));
    user.step(1100).await;
    right &= user.standing().await == Some((0, 0));
    user.delete().await;
    right
}

pub async fn remembered(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let mut right = user.replays("x", MINUTE).await == Some(false);
    user.step(MINUTE - 1).await;
    right &= user.replays("x", MINUTE).await == Some(true);
    user.step(MINUTE).await;
    right &= user.replays("x", MINUTE).await == Some(false);
    user.delete().await;
    right
}

/// The memory of a long reservation outlives shorter ones, and is made longer in time.
pub async fn outlives(ledger: &Ledger) -> bool {
    const LONG: i64 = 50 * MINUTE;
    let user = User::on(ledger, &group("yearly")).await;
    let mut right =
        held(user.reserve("").await) == Some(1) && memory_expires(&user).await >= Some(START + TTL + MINUTE);
    right &= held(user.reserve_for("", LONG, &event("e", &[])).await) == Some(2);
    right &= memory_expires(&user).await >= Some(START + LONG + MINUTE);
    user.step(TTL + MINUTE).await;
    for live in [2, 3] {
        right &= held(user.reserve("").await) == Some(live);
        right &= memory_expires(&user).await >= Some(START + LONG + MINUTE);
    }
    // A clock that was ahead has made Redis drop the memory: the next one expires as well.
    right &= user.look::<u32>("DEL", &user.keys.memories()[0]).await == 1;
    right &= held(user.reserve("").await) == Some(4) && memory_expires(&user).await.is_some();
    user.delete().await;
    right
}

/// NO-LEAK: who comes back late finds the state, and no memory.
pub async fn returns(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let mut right = held(user.reserve("").await) == Some(1) && held(user.reserve("").await) == Some(2);
    right &= user.look::<u32>("DEL", &user.keys.memories()[0]).await == 1;
    user.step(TTL + 60 * MINUTE).await;
    right &= held(user.reserve("").await) == Some(1);
    user.delete().await;
    right
}

/// Everything expires by itself, later than what needs it.
pub async fn expires(ledger: &Ledger) -> bool {
    let user = User::new(ledger).await;
    let Some((id, 1)) = made(user.reserve("").await) else { return false };
    // The memory lives 2 minutes longer than it must, and the state 7 days longer than that, and twice as long as that lasts.
    let needed = TTL + MINUTE + 2 * MINUTE;
    let mut right = memory_expires(&user).await == Some(START + needed);
    right &= state_expires(&user).await == Some(START + 2 * needed + 7 * DAY);
    right &= held(user.reserve("").await) == Some(2);
    right &= state_expires(&user).await == Some(START + 2 * needed + 7 * DAY);
    // A settling that comes late is remembered longer.
    user.step(TTL + MINUTE - 1).await;
    right &= user.commit(&id, None).await.is_ok();
    user.step(TTL + MINUTE).await;
    right &= user.commit(&id, None).await.is_ok_and(|committed| committed.replayed);
    right &= memory_expires(&user).await.is_some() && state_expires(&user).await.is_some();
    // What writes nothing new moves the expiry no less, if it is too early.
    user.step(60 * MINUTE).await;
    right &= held(user.reserve("").await).is_none();
    user.delete().await;
    right && late(ledger).await
}

/// What is written when all that was there is gone lives 7 days more.
async fn late(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    let mut right = held(user.reserve("").await) == Some(1);
    user.step(60 * MINUTE).await;
    user.compile(&group("minute").replace("quota: 9", "quota: 0"), None, 60 * MINUTE);
    let blocked = user.track_for("", MINUTE, &event("e", &[]), true).await;
    right &= blocked.is_ok_and(|tracked| tracked.uncounted.is_some());
    right &= state_expires(&user).await == Some(START + 60 * MINUTE + 7 * DAY);
    user.delete().await;
    right
}

/// What is kept of a window is needed until the end of the next one, also after another one has taken its place.
pub async fn outlived(ledger: &Ledger) -> bool {
    let mut user = User::on(ledger, &group("yearly")).await;
    let yearly = user.frames().until_ms;
    let mut right = user.track("t").await.is_ok();
    // As a clock that jumps ahead expires keys early, twice as long as the windows last.
    right &= state_expires(&user).await > Some(START + 2 * (yearly + 364 * DAY - START));
    user.compile(&group("minute"), None, 0);
    right &= user.track("").await.is_ok() && state_expires(&user).await > Some(yearly + 364 * DAY);
    user.delete().await;
    let mut user = User::new(ledger).await;
    right &= user.track("t").await.is_ok();
    user.compile(&group("yearly"), None, 0);
    right &= user.track("").await.is_ok() && state_expires(&user).await > Some(yearly + 364 * DAY);
    user.delete().await;
    right
}

/// A state with a subscription or a lifetime window never expires.
pub async fn outlasts(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    let mut right = user.track("").await.is_ok() && state_expires(&user).await > Some(START);
    right &= user.subscribe(1, &[Apply::Enter]).await && state_expires(&user).await == Some(-1);
    right &= user.track("").await.is_ok() && state_expires(&user).await == Some(-1);
    user.delete().await;
    // Once it has a lifetime group, it expires no more, also when that is not the group's first window.
    let mut user = User::new(ledger).await;
    right &= user.track("").await.is_ok() && state_expires(&user).await > Some(START);
    user.compile(&group("lifetime"), None, 0);
    for _ in 0..2 {
        right &= user.track("").await.is_ok() && state_expires(&user).await == Some(-1);
    }
    right &= held(user.reserve("").await) == Some(1) && state_expires(&user).await == Some(-1);
    user.step(3 * MINUTE).await;
    user.compile(&group("minute"), None, 3 * MINUTE);
    right &= user.track("").await.is_ok() && state_expires(&user).await == Some(-1);
    user.delete().await;
    right
}

pub async fn settled(ledger: &Ledger) -> bool {
    let mut right = true;
    for commit in [true, false] {
        let user = User::on(ledger, &group("yearly")).await;
        let Some((id, 1)) = made(user.reserve("").await) else { return false };
        right &= user.reserve_for("", 3 * TTL, &event("e", &[])).await.is_ok();
        right &= if commit { user.commit(&id, None).await.is_ok() } else { user.release(&id).await.is_ok() };
        user.step(TTL + 1).await;
        right &= held(user.reserve("").await) == Some(2);
        user.delete().await;
    }
    right
}

/// A user who is deleted is gone with everything, also what shows live holds of either memory.
pub async fn deleted(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let (Some((one, _)), Some((other, _)), Some((done, _))) =
        (made(user.reserve("").await), made(user.reserve("").await), made(user.reserve("").await))
    else {
        return false;
    };
    let mut right = user.release(&done).await.is_ok();
    // As if it had been made in the other memory.
    let memory = user.memory(1).await;
    let Some(record) = memory.get(&other.field[..]) else { return false };
    user.set_field(2, &other.field, record).await;
    user.forget_field(1, &other.field).await;
    right &= ledger.delete_user(&user.owner).await.is_ok();
    for key in user.keys.all().iter().chain(&[one, other].map(|id| user.keys.hold(&id.field))) {
        right &= user.look::<u32>("EXISTS", key).await == 0;
    }
    right
}
