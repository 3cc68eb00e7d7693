//! What answers say of thresholds that deadlines have crossed.

use tollgate::domain::answer::Crossed;
use tollgate::domain::event::Event;
use tollgate::domain::reservation::OnExpiry;
use tollgate::ledger::Ledger;

use super::user::{MINUTE, START, User, event, made, set_clock, used};

/// `first` counts `e` and `both`, and `second` counts `f` and `both`. 5 of 10 are worth telling.
fn groups() -> String {
    let group = |id, own| {
        format!(
            "{{ period: lifetime, id: {id}, unit: tokens, quota: 10, thresholds: [0.5], match: [{{ event: {own} }}, {{ event: both }}] }}"
        )
    };
    format!("{}, {}", group("first", "e"), group("second", "f"))
}

fn units(name: &str, quantity: &str) -> Event {
    event(name, &[("quantity", quantity)])
}

fn are(crossed: &[Crossed], expected: &[&str]) -> bool {
    crossed.iter().map(|crossed| crossed.group_id.as_str()).eq(expected.iter().copied())
}

/// A user of whom the deadline of a hold in `second` has just counted 5, and nothing has written it. Another hold of 2 is live.
async fn lapsed<'a>(ledger: &'a Ledger, live: &str) -> Option<(User<'a>, tollgate::domain::id::ReservationId)> {
    let user = User::on(ledger, &groups()).await;
    let (held, _) = made(user.reserve_for("", 10 * MINUTE, &units(live, "2")).await)?;
    made(user.reserve_until("", MINUTE, OnExpiry::Count, &units("f", "5")).await)?;
    set_clock(&user.name, START + MINUTE).await;
    Some((user, held))
}

/// Each call that writes it tells it, whether the group is one of its own or not.
pub async fn by_deadlines(ledger: &Ledger) -> bool {
    let mut right = true;
    for name in ["e", "both"] {
        for call in 0..10 {
            let Some((user, held)) = lapsed(ledger, name).await else { return false };
            // What crosses by itself is told as well.
            let amount = if call < 7 { "1" } else { "6" };
            let one = units(name, amount);
            let actual = used(&[("quantity", amount)]);
            let crossed = match call {
                0 | 7 => user.track_for("", MINUTE, &one, false).await.ok().map(|done| done.crossed),
                1 | 8 => user.track_at("", &one, START).await.ok().map(|done| done.crossed),
                2 => user.refund("", &one).await.ok().map(|done| done.crossed),
                3 | 9 => user.commit(&held, Some(&actual)).await.ok().map(|done| done.crossed),
                4 => user.commit_part(&held, &actual, None).await.ok().map(|done| done.crossed),
                5 => user.track_for("", MINUTE, &units(name, "9"), true).await.ok().map(|done| done.crossed),
                _ => user.commit(&held, None).await.ok().map(|done| done.crossed),
            };
            // A refund of what the deadline has counted leaves 4.
            let expected: &[&str] = match (call, name) {
                (2, "both") => &[],
                (7.., _) => &["first", "second"],
                _ => &["second"],
            };
            right &= crossed.is_some_and(|crossed| are(&crossed, expected));
            // It is told once.
            let again = user.track_for("", MINUTE, &units("f", "0"), false).await;
            right &= again.is_ok_and(|done| done.crossed.is_empty());
            user.delete().await;
        }
    }
    right
}
