//! The two memories: which one is written to, which one goes first, and what a wrong clock does to them.

use tollgate::domain::fault::Fault;
use tollgate::domain::id::field_of;
use tollgate::ledger::packed::Reader;
use tollgate::ledger::{Ledger, Once, formats};

use super::expiry::memory_expires;
use super::raw;
use super::stored::Stored;
use super::user::{DAY, MINUTE, START, TTL, User, event, group, made, request, used};

const HOUR: i64 = 60 * MINUTE;

/// The young memory, since when that is (after the start), and whether there is an old one.
async fn young(user: &User<'_>) -> Option<(i64, i64, bool)> {
    let stored = Stored::read(&user.state().await).ok()?;
    let memory = stored.memory?;
    Some((stored.head.young, memory.since - START, memory.old_expires > 0))
}

/// The two change places after 15 minutes, once all of the old one is forgotten.
pub async fn rotation(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let replays = async |id, hours| user.replays(id, hours * HOUR).await;
    let mut right = replays("a", 1).await == Some(false) && user.replays("r", 20 * MINUTE).await == Some(false);
    let Some((id, _)) = made(user.reserve_for("h", HOUR, &event("e", &[])).await) else { return false };
    user.step(15 * MINUTE - 1).await;
    right &= replays("b", 1).await == Some(false) && young(&user).await == Some((1, 0, false));
    user.step(15 * MINUTE).await;
    right &= replays("c", 1).await == Some(false) && young(&user).await == Some((2, 15 * MINUTE, true));
    right &= user.memory(1).await.len() == 5 && user.memory(2).await.len() == 2;
    right &= memory_expires(&user).await.is_some();
    // What the old one remembers counts.
    for id in ["a", "b", "c", "r"] {
        right &= replays(id, 1).await == Some(true);
    }
    // What is settled is written to the young one, which then goes first. An undo of that does not bring it there.
    let before = user.state().await;
    right &= user.release(&id).await.is_ok();
    user.put_state(&before).await;
    right &= replays("d", 1).await == Some(false) && user.memory(2).await.len() == 3;
    right &= user.commit(&id, Some(&used(&[("quantity", "2")]))).await.is_ok_and(|done| !done.replayed);
    right &= user.memory(2).await.contains_key(&id.field[..]) && user.memory(1).await.contains_key(&id.field[..]);
    right &= matches!(user.release(&id).await, Err(Fault::AlreadyCommitted { .. }));
    // A name that is used again: the old one still has it, forgotten.
    user.step(21 * MINUTE).await;
    right &= replays("r", 3).await == Some(false) && replays("r", 3).await == Some(true);
    // Not before all of the old one is forgotten.
    user.step(45 * MINUTE).await;
    right &= replays("s", 1).await == Some(false) && young(&user).await == Some((2, 15 * MINUTE, true));
    right &= replays("a", 1).await == Some(true);
    let field = field_of(request("r").as_ref());
    user.step(3 * HOUR).await;
    right &= user.memory(1).await.contains_key(&field[..]);
    right &= replays("t", 1).await == Some(false) && young(&user).await == Some((1, 3 * HOUR, true));
    right &= user.memory(1).await.len() == 2 && user.memory(2).await.contains_key(&field[..]);
    // Of the one that is old now; the other one had it before.
    right &= replays("r", 3).await == Some(true);
    user.step(3 * HOUR + 1).await;
    right &= replays("u", 1).await == Some(false) && young(&user).await == Some((1, 3 * HOUR, true));
    user.delete().await;
    right
}

/// After the young memory has expired, it begins anew, where it is.
pub async fn begun_anew(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let mut right = user.track("a").await.is_ok();
    user.step(10 * MINUTE).await;
    right &= user.track("b").await.is_ok() && young(&user).await == Some((1, 10 * MINUTE, false));
    right &= memory_expires(&user).await == Some(START + 13 * MINUTE);
    // What did not happen is undone to nothing, whatever Redis has not dropped yet.
    user.step(20 * MINUTE).await;
    let before = user.state().await;
    right &= user.replays("a", 30 * MINUTE).await == Some(false);
    user.put_state(&before).await;
    right &= user.replays("c", 30 * MINUTE).await == Some(false);
    right &= !user.memory(1).await.contains_key(&field_of(request("a").as_ref())[..]);
    user.step(34 * MINUTE).await;
    right &= user.replays("d", MINUTE).await == Some(false) && young(&user).await == Some((1, 20 * MINUTE, false));
    user.step(35 * MINUTE).await;
    right &= user.replays("e", MINUTE).await == Some(false) && young(&user).await == Some((2, 35 * MINUTE, true));
    user.delete().await;
    right
}

/// ONE-CLOCK: after a clock that was wrong, holds lapse, and the memories expire no later than they must.
pub async fn wrong_clock(ledger: &Ledger) -> bool {
    const AHEAD: i64 = 400 * DAY;
    let mut user = User::on(ledger, &group("yearly")).await;
    user.step(AHEAD).await;
    user.compile(&group("yearly"), None, AHEAD);
    let e = event("e", &[]);
    let mut right = user.replays("a", HOUR).await == Some(false);
    user.step(AHEAD + 15 * MINUTE).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let Some((id, _)) = made(user.reserve_for("", HOUR, &e).await) else { return false };
        ids.push(id);
    }
    // What is settled before is remembered as it was.
    right &= user.commit(&ids[3], None).await.is_ok();
    right &= young(&user).await == Some((2, AHEAD + 15 * MINUTE, true));
    user.step(0).await;
    user.compile(&group("yearly"), None, 0);
    // Both numbers are told.
    let script = &ledger.scripts().track;
    let once = Once::track(request("t").as_ref(), &e, false, None, None);
    let call = raw::track(&user.owner, &user.basis, &once, &e, false);
    right &= raw::told(script, &[call]).await == Some((3, 1));
    let Some(memory) = Stored::read(&user.state().await).ok().and_then(|stored| stored.memory) else { return false };
    right &= (memory.epoch, memory.corrected, memory.since) == (1, START, START);
    // The old one had 47 minutes left, the young one 63 minutes; they get a week more.
    right &=
        (memory.old_expires - START, memory.young_expires - START) == (7 * DAY + 47 * MINUTE, 7 * DAY + 63 * MINUTE);
    for (number, expires) in [(0, memory.old_expires), (1, memory.young_expires)] {
        right &= user.look::<i64>("PEXPIRETIME", &user.keys.memories()[number]).await == expires;
    }
    // The hold has lapsed when the clock was corrected; it is remembered for as long as it would have been after its deadline.
    right &= user.commit(&ids[0], None).await.is_ok_and(|done| done.late);
    user.step(MINUTE - 1).await;
    right &= user.commit(&ids[1], None).await.is_ok_and(|done| done.late);
    user.step(MINUTE).await;
    right &= matches!(user.release(&ids[2]).await, Err(Fault::ReservationNotFound));
    right &= matches!(user.release(&ids[3]).await, Err(Fault::AlreadyCommitted { .. }));
    // A later one holds.
    let Some((id, 1)) = made(user.reserve_for("", TTL, &e).await) else { return false };
    user.step(MINUTE + TTL - 1).await;
    right &= user.release(&id).await.is_ok();
    right &= user.standing().await == Some((1, 0));
    user.delete().await;
    right && subscribed_under_a_wrong_clock(ledger).await && lapsed_before(ledger).await
}

/// What had lapsed before the clock ran ahead is forgotten when it would have been.
async fn lapsed_before(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let Some((id, 1)) = made(user.reserve("").await) else { return false };
    user.step(HOUR).await;
    let mut right = user.track("").await.is_ok();
    user.step(MINUTE / 2).await;
    right &= user.track("").await.is_ok();
    user.step(TTL + MINUTE - 1).await;
    right &= user.release(&id).await.is_ok();
    user.step(TTL + MINUTE).await;
    right &= matches!(user.release(&id).await, Err(Fault::ReservationNotFound));
    user.delete().await;
    right
}

/// A subscription tells of a corrected clock as well.
async fn subscribed_under_a_wrong_clock(ledger: &Ledger) -> bool {
    let mut user = User::on(ledger, &group("lifetime")).await;
    user.step(HOUR).await;
    let mut right = user.track("a").await.is_ok();
    user.step(0).await;
    right &= user.subscribe_and_tell(1).await == Some(1);
    right &= user.subscribe_and_tell(2).await == Some(0);
    user.delete().await;
    right
}

/// How many holds have lapsed is told of all calls together.
pub async fn lapsed(ledger: &Ledger) -> bool {
    let [one, other] = [User::on(ledger, &group("yearly")).await, User::on(ledger, &group("yearly")).await];
    let e = event("e", &[]);
    let mut right = true;
    for (user, holds) in [(&one, 2), (&other, 1)] {
        for _ in 0..holds {
            right &= user.reserve("").await.is_ok();
        }
        user.step(TTL).await;
    }
    let call =
        |user: &User<'_>| raw::track(&user.owner, &user.basis, &Once::track(None, &e, false, None, None), &e, false);
    let script = &ledger.scripts().track;
    right &= raw::told(script, &[call(&one), call(&other)]).await == Some((3, 0));
    right &= raw::told(script, &[call(&one), call(&other)]).await == Some((0, 0));
    // And a corrected clock, where nothing has lapsed.
    one.step(-HOUR).await;
    right &= raw::told(script, &[call(&one), call(&other)]).await == Some((0, 1));
    let memory = Stored::read(&one.state().await).ok().and_then(|stored| stored.memory);
    right &= memory.is_some_and(|memory| (memory.epoch, memory.corrected) == (1, START - HOUR));
    for user in [one, other] {
        user.delete().await;
    }
    right
}

/// A memory lives as long as what a refund has left in it.
pub async fn refunded(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let one = event("e", &[("quantity", "1")]);
    let Some((id, 1)) = made(user.reserve_for("", HOUR, &one).await) else { return false };
    let mut right = user.commit(&id, None).await.is_ok();
    for request_id in ["", "f"] {
        // As if the memory had been made for less.
        let state = user.state().await;
        let mut reader = Reader(&state);
        let (Ok(_), Ok(memory)) = (formats::Head::read(&mut reader), formats::Memory::read(&mut reader)) else {
            return false;
        };
        let sooner = formats::Memory { young_expires: START + 2 * MINUTE, ..memory };
        user.put_state(&raw::with_memory(&state, Some(&sooner))).await;
        right &= user.refund_reservation(request_id, &id, &one).await.is_ok();
        right &= memory_expires(&user).await >= Some(START + HOUR + MINUTE);
    }
    // What was given back is remembered.
    right &= user.refund_reservation("", &id, &one).await.is_ok_and(|done| done.standings[0].unapplied == 1);
    user.delete().await;
    right
}
