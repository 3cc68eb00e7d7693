//! Bytes from the wire: what decodes is parsed, and what parses keeps the bounds of SPEC section 4.
//!
//! The first byte chooses the message, the rest is the message.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use prost::Message;
use tollgate::catalog;
use tollgate::domain::amount::{MAX_UNITS, Quantity};
use tollgate::domain::event::{Actual, Event};
use tollgate::domain::fault::Fault;
use tollgate::domain::id::{AppId, Owner, ReservationId, UserId};
use tollgate::grpc::request::CommitCall;
use tollgate::grpc::{request, v1};
use tollgate::ledger::{CompiledPlan, Position, priced, used};

use super::check_fault;

/// All that is said of an event: 16 quantities and 32 entries of metadata at their longest, each of which may be a number as well.
const LONGEST_EVENT: usize = 24 << 10;

static EXAMPLE: LazyLock<CompiledPlan> = LazyLock::new(|| {
    let catalog = catalog::parse(catalog::EXAMPLE, &jiff::tz::TimeZoneDatabase::bundled()).unwrap();
    CompiledPlan::of(&catalog.plans()[0])
});

pub(super) fn run(input: &[u8]) {
    let Some((kind, message)) = input.split_first() else { return };
    match kind % 16 {
        0 => {
            let Some(call) = parsed(message, request::reserve) else { return };
            assert!((1..=256).contains(&call.user.as_str().len()));
            assert!((Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&call.terms.ttl), "{:?}", call.terms);
            assert!(call.request_id.is_none_or(|id| (1..=255).contains(&id.as_str().len())));
            assert_eq!(call.event.name.refunded(), None);
            check_event(&call.event);
        }
        1 => {
            let Some((_, event)) = parsed(message, request::can_use) else { return };
            assert_eq!(event.name.refunded(), None);
            check_event(&event);
        }
        2 => {
            let Some(call) = parsed(message, request::commit) else { return };
            let (id, actual) = match call {
                CommitCall::Final(id, actual) => (id, actual),
                CommitCall::Partial(id, actual, ttl) => {
                    assert!(ttl.is_none_or(|ttl| (1_000..=3_600_000).contains(&ttl.as_millis())), "{ttl:?}");
                    (id, Some(actual))
                }
            };
            check_actual(actual.as_ref());
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        3 => {
            let Some((_, reason)) = parsed(message, request::release) else { return };
            assert!(reason.len() <= 256);
        }
        4 => {
            let Some((_, call)) = parsed(message, request::track) else { return };
            assert!(call.reservation.is_none() || call.event.name.refunded().is_some(), "only refunds name one");
            assert!(call.at_ms.is_none() || !call.enforce && call.event.name.refunded().is_none(), "{:?}", call.at_ms);
            call.at_ms.into_iter().for_each(check_time);
            check_event(&call.event);
        }
        5 => {
            let Some((_, pattern, at_ms)) = parsed(message, request::get_usage) else { return };
            assert!(pattern.is_none_or(|pattern| pattern.to_string().len() <= 128));
            at_ms.into_iter().for_each(check_time);
        }
        6 => {
            let Some((_, upsert)) = parsed(message, request::upsert) else { return };
            assert!(upsert.plan_id.is_none_or(|id| (1..=64).contains(&id.len())));
            let overrides = upsert.overrides.unwrap_or_default();
            assert!(overrides.len() <= 1000 && overrides.keys().all(|id| (1..=64).contains(&id.len())));
            upsert.end_ms.flatten().into_iter().for_each(check_time);
            assert_ne!(upsert.end_ms, Some(Some(0)), "the epoch is no end");
            assert!(upsert.etag.is_none_or(|etag| (1..=64).contains(&etag.len())));
            // Windows can be counted from it, in every zone.
            assert!(upsert.cycle_anchor_ms.is_none_or(|anchor_ms| (0..253_370_764_800_000).contains(&anchor_ms)));
        }
        7 => {
            let Some((_, end_ms)) = parsed(message, request::cancel) else { return };
            end_ms.into_iter().for_each(check_time);
        }
        8 => drop(parsed(message, |request: v1::GetSubscriptionRequest| request::user(&request.user_id))),
        9 => drop(parsed(message, |request: v1::DeleteUserRequest| request::user(&request.user_id))),
        10 => {
            let Some(plan_id) = parsed(message, request::get_plan) else { return };
            assert!(plan_id.len() <= 64);
        }
        11 => {
            let Some(requests) = parsed(message, request::batch) else { return };
            assert!((1..=1000).contains(&requests.len()));
            for request in requests {
                match request::track(request) {
                    Ok((_, call)) => check_event(&call.event),
                    Err(fault) => check_fault(&fault),
                }
            }
        }
        12 => {
            let Some(id) = parsed(message, request::get_reservation) else { return };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        13 => {
            let owner = |user: &UserId| Owner::new(&AppId::default(), user);
            let parse = |request| request::list_reservations(request, owner);
            let Some((owner, listing)) = parsed(message, parse) else { return };
            assert!((1..=1000).contains(&listing.page_size));
            if listing.from != Position::default() {
                assert_eq!(Position::parse(&listing.from.token(&owner), &owner), Some(listing.from));
            }
        }
        14 => {
            let Some(call) = parsed(message, request::reset_usage) else { return };
            assert!(call.groups.len() <= 1000 && call.groups.iter().all(|id| (1..=64).contains(&id.len())));
            assert!(call.reason.len() <= 256);
        }
        _ => {
            let Some(call) = parsed(message, request::extend) else { return };
            assert!((1_000..=3_600_000).contains(&call.ttl.as_millis()), "{:?}", call.ttl);
            let quantities =
                |add: &Actual| add.quantity.iter().chain(add.quantities.values()).any(|one| !one.is_zero());
            assert!(call.add.as_ref().is_none_or(quantities), "what is added is more than nothing");
            check_actual(call.add.as_ref());
            assert_eq!(call.reservation.to_string().parse(), Ok(call.reservation));
        }
    }
}

/// What a message asks, if it is one and keeps the bounds.
fn parsed<M: Message + Default, T>(message: &[u8], parse: impl Fn(M) -> Result<T, Fault>) -> Option<T> {
    parse(M::decode(message).ok()?).inspect_err(check_fault).ok()
}

fn check_event(event: &Event) {
    let Event { name, quantity, quantities, metadata } = event;
    assert!((1..=128).contains(&name.as_str().len()) && name.as_str().is_ascii(), "{name:?}");
    quantity.iter().copied().for_each(check_quantity);
    check_quantities(quantities);
    assert!(metadata.len() <= 32);
    for (key, value) in metadata {
        let longest = if key == "reservationId" { ReservationId::LONGEST } else { 256 };
        assert!((1..=64).contains(&key.len()) && value.len() <= longest, "{key:?}: {} bytes", value.len());
    }
    let priced = priced(Some(&EXAMPLE), name.as_str(), event);
    let length = priced.what.len() + priced.quantities.len();
    assert!(length <= LONGEST_EVENT, "an event of {length} bytes for the scripts");
}

fn check_actual(actual: Option<&Actual>) {
    let Some(actual) = actual else { return };
    check_quantities(&actual.quantities);
    actual.quantity.into_iter().for_each(check_quantity);
    drop(used(Some(&EXAMPLE), actual));
}

fn check_quantities<'a>(quantities: impl IntoIterator<Item = (&'a String, &'a Quantity)>) {
    let quantities: BTreeMap<_, _> = quantities.into_iter().collect();
    assert!(quantities.len() <= 16 && quantities.keys().all(|name| (1..=64).contains(&name.len())));
    quantities.into_values().copied().for_each(check_quantity);
}

fn check_quantity(quantity: Quantity) {
    let (whole, micro) = (quantity.whole_part(), quantity.micro_part());
    assert!(whole <= MAX_UNITS && micro < 1_000_000 && (micro == 0 || whole < 8_000_000_000), "{quantity}");
}

fn check_time(at_ms: i64) {
    assert!((0..253_402_300_800_000).contains(&at_ms), "{at_ms}");
}
