//! Values of a later version, and calls whose plan is nowhere.

use tollgate::domain::fault::Fault;
use tollgate::domain::id::{field_of, random};
use tollgate::ledger::packed::{Misfit, Reader};
use tollgate::ledger::{Apply, Ledger, NoAnswer, Once, formats, read_answer};

use super::raw::{self, Call};
use super::user::{DAY, MINUTE, TTL, User, event, group, held, made, request, used};

/// A record, without what follows it.
pub fn record(packed: &[u8]) -> Result<formats::Record, Misfit> {
    formats::Record::read(&mut Reader(packed))
}

fn is_unknown<T>(answer: Result<T, Fault>) -> bool {
    matches!(answer, Err(Fault::FormatUnknown))
}

fn has_unknown<T>(answer: Result<T, NoAnswer>) -> bool {
    matches!(answer, Err(NoAnswer::Fault(Fault::FormatUnknown)))
}

/// What a later version has written is left alone by every script.
pub async fn later_formats(ledger: &Ledger) -> bool {
    let mut user = User::on(ledger, &group("yearly")).await;
    let e = event("e", &[]);
    let (Some((id, 1)), Some((other, 2))) = (made(user.reserve("r").await), made(user.reserve("").await)) else {
        return false;
    };
    let mut right = user.track("t").await.is_ok() && user.commit(&other, None).await.is_ok();
    // Records.
    for (place, field) in [id.field, other.field, field_of(request("t").as_ref())].into_iter().enumerate() {
        let Some(mut record) = user.memory(1).await.remove(&field[..]) else { return false };
        record[0] = 3;
        user.set_field(1, &field, &record).await;
        let before = (user.state().await, user.memory(1).await);
        right &= match place {
            0 => {
                has_unknown(user.reserve("r").await)
                    && is_unknown(user.commit(&id, None).await)
                    && is_unknown(user.release(&id).await)
            }
            1 => is_unknown(user.refund_reservation("", &other, &e).await),
            _ => has_unknown(user.track("t").await) && has_unknown(user.refund("t", &e).await),
        };
        right &= (user.state().await, user.memory(1).await) == before;
    }
    // The state.
    let mut state = user.state().await;
    state[0] = 3;
    user.put_state(&state).await;
    right &= has_unknown(user.reserve("").await) && has_unknown(user.track("").await);
    right &=
        has_unknown(user.can_use(&e).await) && has_unknown(user.refund("", &e).await) && user.usage().await.is_none();
    right &= is_unknown(user.commit(&id, None).await) && is_unknown(user.release(&id).await);
    right &= is_unknown(user.refund_reservation("", &id, &e).await);
    right &= is_unknown(ledger.subscription(&user.owner).await) && !user.subscribe(1, &[Apply::Enter]).await;
    right &= user.state().await == state;
    user.delete().await;
    right
}

/// What a later version has added behind what this one knows stays where it is.
pub async fn added_later(ledger: &Ledger) -> bool {
    const ADDED: &[u8] = b"added later";
    let mut user = User::on(ledger, &group("daily")).await;
    let Some((id, 1)) = made(user.reserve("").await) else { return false };
    user.put_state(&[&user.state().await, ADDED].concat()).await;
    let Some(record) = user.memory(1).await.remove(&id.field[..]) else { return false };
    user.set_field(1, &id.field, &[&record, ADDED].concat()).await;
    let stays = async |user: &User<'_>| user.state().await.ends_with(ADDED);
    let mut right = user.track("").await.is_ok() && stays(&user).await;
    right &= user.commit(&id, None).await.is_ok() && stays(&user).await;
    right &= user.refund_reservation("", &id, &event("e", &[])).await.is_ok();
    right &= user.memory(1).await.remove(&id.field[..]).is_some_and(|record| record.ends_with(ADDED));
    // Another day, and a subscription.
    user.step(DAY).await;
    user.compile(&group("daily"), None, DAY);
    right &= user.track("").await.is_ok() && stays(&user).await;
    right &= user.subscribe(1, &[Apply::Enter]).await && stays(&user).await;
    right &= ledger.subscription(&user.owner).await.is_ok_and(|stored| stored.subscription.is_some());
    user.delete().await;
    right
}

/// A settlement by a plan that is nowhere gives no wrong price, also beside one whose plan is there.
pub async fn not_archived(ledger: &Ledger) -> bool {
    let rule = "{ event: e, measure: { a: 2 } }";
    let user =
        User::on(ledger, &format!("{{ period: yearly, id: g, unit: tokens, quota: 900, match: [{rule}] }}")).await;
    let two = event("e", &[("a", "1")]);
    let (Some((one, _)), Some((other, _))) =
        (made(user.reserve_for("", TTL, &two).await), made(user.reserve_for("", TTL, &two).await))
    else {
        return false;
    };
    let neighbour = User::on(ledger, &group("yearly")).await;
    let Some((third, 1)) = made(neighbour.reserve("").await) else { return false };
    let actual = used(&[("a", "3")]);
    let scripts = ledger.scripts();
    let (with, without) =
        (|id, user: &User<'_>| raw::commit(id, &actual, Some(user.plan())), |id| raw::commit(id, &actual, None));
    let before = user.state().await;
    let mut right = true;
    for calls in [vec![without(&one)], vec![with(&third, &neighbour), without(&one)]] {
        let answers = raw::run(&scripts.commit, &calls).await;
        right &= answers.last().is_some_and(|answer| is_not_archived(answer));
    }
    right &= user.state().await == before;
    right &= user.commit(&other, None).await.is_ok_and(|done| done.standings[0].used == 2);
    let once = Once::track(None, &two, false, Some(&other), None);
    let refund = raw::refund_reservation(&other, &once, &two, None);
    let before = user.state().await;
    right &=
        raw::run(&scripts.refund_reservation, &[refund]).await.last().is_some_and(|answer| is_not_archived(answer));
    right &= user.state().await == before;
    // As it was reserved, it needs no plan.
    let call = Call { args: vec![raw::as_reserved(&one), Vec::new()], ..without(&one) };
    let answers = raw::run(&scripts.commit, &[call]).await;
    right &= answers.first().is_some_and(|answer| read_answer(answer, Some(user.plan())).is_ok());
    right &= user.standing().await == Some((4, 0));
    user.delete().await;
    neighbour.delete().await;
    right
}

fn is_not_archived(answer: &[u8]) -> bool {
    matches!(read_answer(answer, None), Err(NoAnswer::Fault(Fault::PlanNotArchived)))
}

/// ONCE and EXACT: a script that fails after it has written the memory, and before it has written the state, has done nothing.
pub async fn undone(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let mut right = user.track("first").await.is_ok();
    // A reservation that did not happen.
    let before = user.state().await;
    let Some((lost, 1)) = made(user.reserve("x").await) else { return false };
    user.put_state(&before).await;
    right &= matches!(user.release(&lost).await, Err(Fault::ReservationNotFound));
    // The next write of the memory takes it away.
    right &= user.track("y").await.is_ok() && !user.memory(1).await.contains_key(&lost.field[..]);
    right &= user.replays("first", MINUTE).await == Some(true) && user.replays("y", MINUTE).await == Some(true);
    let Some((id, 1)) = made(user.reserve("x").await) else { return false };
    // A settlement that did not happen.
    let before = user.state().await;
    right &= user.commit(&id, Some(&used(&[("quantity", "3")]))).await.is_ok();
    user.put_state(&before).await;
    right &= user
        .reserve("x")
        .await
        .ok()
        .and_then(|answer| answer.hold)
        .is_some_and(|hold| hold.replayed && hold.state == tollgate::domain::answer::ReservationState::Held);
    right &= user.track("z").await.is_ok() && user.standing().await == Some((3, 1));
    right &= user.commit(&id, None).await.is_ok_and(|done| !done.replayed && done.standings[0].used == 4);
    // A refund that did not happen: it writes two records.
    let e = event("e", &[]);
    let count = event("e", &[("quantity", "1")]);
    right &= user.standing().await == Some((4, 0));
    let before = user.state().await;
    let fields = user.memory(1).await.len();
    right &= user.refund_reservation("f", &id, &count).await.is_ok();
    user.put_state(&before).await;
    right &= user.replays("first", MINUTE).await == Some(true);
    right &= user.track("a").await.is_ok() && user.memory(1).await.len() == fields + 1;
    let refunded = user.refund_reservation("f", &id, &count).await;
    right &=
        refunded.is_ok_and(|done| !done.replayed && (done.standings[0].used, done.standings[0].unapplied) == (4, 0));
    right &= user.refund_reservation("f", &id, &count).await.is_ok_and(|done| done.replayed);
    right &= user.refund_reservation("", &id, &e).await.is_ok_and(|done| done.standings[0].unapplied == 1);
    user.delete().await;
    right
}

/// Where a state is gone, nothing of its memories counts.
pub async fn orphaned(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let Some((lost, 1)) = made(user.reserve("x").await) else { return false };
    let record = user.memory(1).await[&lost.field[..]].clone();
    user.set_field(2, &random::<16>(), &record).await;
    let mut right = user.look::<u32>("DEL", user.keys.state()).await == 1;
    right &= matches!(user.release(&lost).await, Err(Fault::ReservationNotFound));
    right &= user.track("y").await.is_ok();
    right &= user.memory(1).await.len() == 2 && user.memory(2).await.is_empty();
    right &= held(user.reserve("x").await) == Some(1);
    user.delete().await;
    // One that is older than its memory: what it does not know of is settled without harm.
    let user = User::on(ledger, &group("yearly")).await;
    right &= user.track("y").await.is_ok();
    let before = user.state().await;
    let Some((id, 1)) = made(user.reserve("x").await) else { return false };
    let memory = user.memory(1).await;
    right &= user.track("z").await.is_ok();
    let Ok(mut stored) = super::stored::Stored::read(&before) else { return false };
    // Its memory is what it was, and its sequence; the hold is not in it.
    if let Some(memory) = &mut stored.memory {
        memory.sequence += 2;
    }
    user.put_state(&raw::with_memory(&before, stored.memory.as_ref())).await;
    right &= memory.contains_key(&id.field[..]) && user.release(&id).await.is_ok();
    right &= user.standing().await == Some((1, 0));
    let Ok(stored) = super::stored::Stored::read(&user.state().await) else { return false };
    right &= stored.head.live == 0 && stored.deadlines.is_empty();
    user.delete().await;
    right
}
