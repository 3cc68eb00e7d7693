//! Reservations that are looked up: what the memories say of them, one step at a time.

use std::collections::BTreeSet;

use tollgate::domain::answer::ReservationState;
use tollgate::domain::fault::Fault;
use tollgate::domain::id::{Field, ReservationId, field_of};
use tollgate::ledger::{Ledger, ListCall, Scan};

use super::user::{MINUTE, START, TTL, User, event, group, made, redis, request};

const HOUR: i64 = 60 * MINUTE;

async fn hold(user: &User<'_>, request_id: &str) -> Option<ReservationId> {
    made(user.reserve_for(request_id, HOUR, &event("e", &[])).await).map(|(id, _)| id)
}

/// What one step of a listing finds, and where it goes on.
async fn step(user: &User<'_>, fields: &[Field], scan: Scan, count: i64) -> Option<(BTreeSet<Field>, Scan)> {
    let (found, scan) = user.ledger.live_holds(&user.owner, &ListCall { fields, scan, count }).await.ok()?;
    Some((found.into_iter().map(|hold| hold.field).collect(), scan))
}

/// What all steps of a listing find.
async fn listed(user: &User<'_>, count: i64) -> Option<BTreeSet<Field>> {
    let (mut all, mut scan) = (BTreeSet::new(), Scan::Everything);
    for _ in 0..1_000 {
        let (found, next) = step(user, &[], scan, count).await?;
        all.extend(found);
        if next == Scan::Nothing {
            return Some(all);
        }
        scan = next;
    }
    None
}

fn fields(ids: &[&ReservationId]) -> BTreeSet<Field> {
    ids.iter().map(|id| id.field).collect()
}

/// Field, suffix and plan are all of them asked for; a tracked event is no reservation.
pub async fn looked_up(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let Some((id, 1)) = made(user.reserve("x").await) else { return false };
    let mut right = user.track("t").await.is_ok();
    let Ok(found) = ledger.reservation(&id).await else { return false };
    right &= (found.state, found.deadline_ms, found.late) == (ReservationState::Held, START + TTL, false);
    right &= found.id == id && found.charges.len() == 1 && found.charges[0].reserved == 1;
    for odd in [
        ReservationId { field: [9; 16], ..id.clone() },
        ReservationId { suffix: [9; 6], ..id.clone() },
        ReservationId { plan: [9; 8], ..id.clone() },
        ReservationId { field: field_of(request("t").as_ref()), ..id.clone() },
    ] {
        right &= matches!(ledger.reservation(&odd).await, Err(Fault::ReservationNotFound));
    }
    user.step(TTL).await;
    right &= ledger.reservation(&id).await.is_ok_and(|found| found.state == ReservationState::Expired);
    user.delete().await;
    right
}

/// The old memory is read first, as far as the young one does not say otherwise.
pub async fn both_memories(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let (Some(a), Some(c)) = (hold(&user, "a").await, hold(&user, "c").await) else { return false };
    let Some((lapsing, _)) = made(user.reserve("lapses").await) else { return false };
    // There is one memory yet.
    let mut right =
        step(&user, &[], Scan::Everything, 1000).await == Some((fields(&[&a, &c, &lapsing]), Scan::Nothing));
    user.step(15 * MINUTE).await;
    let Some(b) = hold(&user, "b").await else { return false };
    let old = async || step(&user, &[], Scan::Everything, 1000).await;
    let Some((found, scan)) = old().await else { return false };
    right &= found == fields(&[&a, &c]) && scan == (Scan::From { memory: 2, is_last: true, cursor: 0 });
    right &= step(&user, &[], scan, 1000).await == Some((fields(&[&b]), Scan::Nothing));
    // Of parts as small as they come.
    right &= listed(&user, 1).await == Some(fields(&[&a, &b, &c]));
    // Given fields, and nothing else.
    let some = [a.field, [9; 16], b.field, lapsing.field];
    right &= step(&user, &some, Scan::Nothing, 1000).await == Some((fields(&[&a, &b]), Scan::Nothing));
    right &= user.release(&a).await.is_ok();
    right &= old().await.is_some_and(|(found, _)| found == fields(&[&c]));
    right &= listed(&user, 1000).await == Some(fields(&[&b, &c]));
    right &= step(&user, &some, Scan::Nothing, 1000).await == Some((fields(&[&b]), Scan::Nothing));
    // A release that did not happen. The next write takes it out of the young one, so that the old one must be believed.
    let before = user.state().await;
    right &= user.release(&c).await.is_ok();
    user.put_state(&before).await;
    right &= old().await.is_some_and(|(found, _)| found == fields(&[&c]));
    right &= listed(&user, 1000).await == Some(fields(&[&b, &c]));
    right &= step(&user, &[], scan, 1000).await == Some((fields(&[&b, &c]), Scan::Nothing));
    user.delete().await;
    right
}

/// What a script has written that failed before it wrote the state.
pub async fn undone(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let Some(x) = hold(&user, "x").await else { return false };
    let before = user.state().await;
    let mut right = user.commit(&x, None).await.is_ok();
    user.put_state(&before).await;
    right &= listed(&user, 1000).await == Some(fields(&[&x]));
    right &= hold(&user, "y").await.is_some();
    user.put_state(&before).await;
    right &= listed(&user, 1000).await == Some(fields(&[&x]));
    user.delete().await;
    right
}

/// A record that this version cannot read may be of a live hold.
pub async fn later_format(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let mut right = hold(&user, "x").await.is_some();
    for record in [&b"\x03\x02later"[..], b"\x03\x01later"] {
        user.set_field(1, &[9; 16], record).await;
        let call = ListCall { fields: &[], scan: Scan::Everything, count: 1000 };
        right &= matches!(user.ledger.live_holds(&user.owner, &call).await, Err(Fault::FormatUnknown));
    }
    user.delete().await;
    right
}

/// More fields than one command takes, of which the young memory knows better of every other one.
pub async fn large(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let Some(x) = hold(&user, "x").await else { return false };
    user.step(15 * MINUTE).await;
    let mut right = user.track("t").await.is_ok();
    let Some(held) = user.memory(1).await.remove(&x.field[..]) else { return false };
    let mut released = held.clone();
    released[1] = 4;
    let field = |number: u16| {
        let mut field = [7; 16];
        field[..2].copy_from_slice(&number.to_le_bytes());
        field
    };
    let mut all = fields(&[&x]);
    let (mut old, mut young) = (redis::cmd("HSET"), redis::cmd("HSET"));
    let [first, second] = user.keys.memories();
    old.arg(first);
    young.arg(second);
    for number in 0..1500 {
        all.insert(field(number));
        old.arg(&field(number)[..]).arg(&held);
        if number % 2 == 0 {
            young.arg(&field(number)[..]).arg(&released);
        }
    }
    let live = all.iter().filter(|name| (0..1500).step_by(2).all(|number| **name != field(number))).copied().collect();
    for (command, expected) in [(old, all), (young, live)] {
        let () = command.query_async(&mut redis().await).await.expect("records can be written");
        let part = step(&user, &[], Scan::Everything, 20_000).await;
        right &= part.is_some_and(|(found, scan)| found == expected && scan != Scan::Nothing);
        right &= listed(&user, 1000).await == Some(expected);
    }
    user.delete().await;
    right
}
