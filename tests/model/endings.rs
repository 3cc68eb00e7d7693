//! How each case ends: holds count at their deadlines, and the next calls tell which thresholds that has crossed, in groups of their own and in
//! others. What happens before does not depend on it.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::{KEYS, NAMES, QUANTITIES, USERS, VALUES, once_in, pick};
use crate::operations::{Call, OnExpiry, Operation, Refund, When};
use crate::sketch::{Event, MICRO};

/// What happens after the operation before `number`.
pub fn ending(random: &mut Rng, mut number: u32) -> Vec<Operation> {
    let mut operations = Vec::new();
    for _ in 0..3 {
        let user = random.usize(..USERS);
        // Mostly by one catalog, as groups that another one edits are others.
        let replica = if once_in(random, 4) { 2 } else { random.usize(..2) };
        for call in round(random, number) {
            operations.push(Operation { number, replica, user, call });
            number += 1;
        }
    }
    operations
}

fn round(random: &mut Rng, number: u32) -> Vec<Call> {
    let (counting, other) = (number, number + 1);
    let ttl_ms = Some(random.i64(1000..5000));
    let (most, event) = (event(random, 12), event(random, 8));
    let refund =
        |in_metadata| Event { name: format!("{}.refund", event.name), ..event.clone() }.refunding(other, in_metadata);
    let mut calls = vec![
        Call::Reserve { event: most, ttl_ms, request_id: String::new(), on_expiry: OnExpiry::Count },
        Call::Reserve {
            event: event.clone(),
            ttl_ms: Some(60_000),
            request_id: String::new(),
            on_expiry: OnExpiry::Unsaid,
        },
    ];
    let is_refunded = once_in(random, 4);
    if is_refunded {
        calls.push(Call::commit(other, None));
    }
    calls.push(Call::Step(When::Deadline(counting, pick(random, &[0, 0, 700]))));
    if is_refunded {
        calls.push(refund(once_in(random, 2)));
    }
    match random.u32(..5) {
        0 => calls.push(Call::commit(other, None)),
        1 => calls.push(Call::commit(counting, None)),
        2 => calls.push(track(self::event(random, 2000), true)),
        3 => calls.push(track(Event { name: format!("{}.refund", event.name), ..event }, false)),
        _ => calls.push(track(event, false)),
    }
    calls.push(Call::commit(counting, None));
    calls
}

fn track(event: Event, enforce: bool) -> Call {
    Call::Track { event, request_id: String::new(), enforce, refund: None, at: None }
}

/// An event that names every quantity.
fn event(random: &mut Rng, most: u128) -> Event {
    let quantities: BTreeMap<_, _> =
        QUANTITIES.iter().map(|name| ((*name).to_owned(), random.u128(1..=most) * MICRO)).collect();
    let metadata = KEYS.iter().map(|key| ((*key).to_owned(), pick(random, &VALUES).to_owned())).collect();
    Event { name: pick(random, &NAMES).to_owned(), quantity: Some(random.u128(1..=most) * MICRO), quantities, metadata }
}

impl Event {
    /// A Track of this refund of what the operation has reserved.
    fn refunding(self, of: u32, in_metadata: bool) -> Call {
        let refund = Some(Refund { of, in_metadata });
        Call::Track { event: self, request_id: String::new(), enforce: false, refund, at: None }
    }
}
