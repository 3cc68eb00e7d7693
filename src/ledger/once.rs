//! Recognises the retry of a call (ONCE).

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::event::{write_map_of, write_number, write_quantity, write_text};
use super::formats;
use crate::domain::amount::Quantity;
use crate::domain::event::{Actual, Event, QUANTITY};
use crate::domain::id::{Field, RequestId, ReservationId, Suffix, beginning, field_of, random};
use crate::domain::reservation::OnExpiry;

/// The name under which a call is remembered, and what tells it from another one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Once {
    /// Its name in the user's memory.
    pub field: Field,
    /// Tells the request from others, if it has an id.
    pub digest: Option<[u8; 8]>,
    /// Distinguishes a remembered call from earlier ones of the same name.
    pub suffix: Suffix,
}

impl Once {
    /// The identity of a Reserve.
    #[must_use]
    pub fn reserve(request_id: Option<&RequestId>, event: &Event, ttl_ms: i64, on_expiry: OnExpiry) -> Self {
        Self::of(request_id, event, |request| {
            write_text(request, "reserve");
            // Nothing else for what earlier versions knew: a retry may come to a newer one.
            if on_expiry == OnExpiry::Count {
                write_text(request, "count");
            }
            write_number(request, u64::try_from(ttl_ms).unwrap_or_default());
        })
    }

    /// The identity of a Track.
    #[must_use]
    pub fn track(
        request_id: Option<&RequestId>,
        event: &Event,
        enforce: bool,
        reservation: Option<&ReservationId>,
        at_ms: Option<i64>,
    ) -> Self {
        Self::of(request_id, event, |request| {
            write_text(request, if enforce { "track enforced" } else { "track" });
            write_text(request, &reservation.map(ToString::to_string).unwrap_or_default());
            if let Some(at_ms) = at_ms {
                write_number(request, u64::try_from(at_ms).unwrap_or_default());
            }
        })
    }

    /// The identity of an Extend.
    #[must_use]
    pub fn extend(request_id: Option<&RequestId>, id: &ReservationId, ttl_ms: i64, add: Option<&Actual>) -> Self {
        let mut request = Vec::new();
        write_text(&mut request, "extend");
        write_text(&mut request, &id.to_string());
        write_number(&mut request, u64::try_from(ttl_ms).unwrap_or_default());
        // Metadata cannot be added.
        if let Some(Actual { quantity, quantities, metadata: _ }) = add {
            write_quantities(&mut request, *quantity, quantities);
        }
        Self::named(request_id, &request)
    }

    /// The identity of a ResetUsage.
    #[must_use]
    pub fn reset(request_id: Option<&RequestId>, groups: &[String]) -> Self {
        let mut request = Vec::new();
        write_text(&mut request, "reset");
        for group in groups {
            write_text(&mut request, group);
        }
        Self::named(request_id, &request)
    }

    /// The identity of a call about an event. `others` writes its other parts.
    fn of(request_id: Option<&RequestId>, event: &Event, others: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut request = Vec::new();
        if request_id.is_some() {
            request.reserve(512);
            others(&mut request);
            write_identity(&mut request, event);
        }
        Self::named(request_id, &request)
    }

    /// The identity of a call with these parts, which only count if it has an id.
    fn named(request_id: Option<&RequestId>, parts: &[u8]) -> Self {
        let digest = request_id.map(|_| beginning(&Sha256::digest(parts)));
        Self { field: field_of(request_id), digest, suffix: random() }
    }

    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let Self { field, digest, suffix } = *self;
        let has_id = digest.is_some().into();
        formats::Once { field, has_id, digest: digest.unwrap_or_default(), suffix }.write(bytes);
    }
}

/// Writes the parts of an event that distinguish it from another one under the same request id: all of it as it was
/// parsed, maps sorted, in MessagePack. An event without any number is the same as one with quantity 1.
fn write_identity(request: &mut Vec<u8>, event: &Event) {
    let Event { name, quantity, quantities, metadata } = event;
    write_text(request, name.as_str());
    let unsaid = quantities.is_empty() && !metadata.contains_key(QUANTITY);
    write_quantities(request, quantity.or_else(|| unsaid.then_some(Quantity::ONE)), quantities);
    write_map_of(request, metadata.len());
    for (key, value) in metadata {
        write_text(request, key);
        write_text(request, value);
    }
}

/// Writes the quantities of an event.
fn write_quantities(request: &mut Vec<u8>, quantity: Option<Quantity>, quantities: &BTreeMap<String, Quantity>) {
    match quantity {
        Some(quantity) => write_quantity(request, quantity),
        None => request.push(NIL),
    }
    write_map_of(request, quantities.len());
    for (name, quantity) in quantities {
        write_text(request, name);
        write_quantity(request, *quantity);
    }
}

/// The nil of MessagePack.
const NIL: u8 = 0xc0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::EventName;
    use crate::domain::id::{AppId, Owner, UserId};

    fn event(quantity: Option<u32>, quantities: &[(&str, u32)], metadata: &[(&str, &str)]) -> Event {
        let number = |number: u32| Quantity::from_f64(number.into()).unwrap();
        let quantities = quantities.iter().map(|(name, value)| ((*name).to_owned(), number(*value))).collect();
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Event::new(EventName::parse("e").unwrap(), quantity.map(number), quantities, metadata)
    }

    fn id() -> Option<RequestId> {
        RequestId::parse("r1").unwrap()
    }

    #[test]
    fn a_retry_has_the_name_and_the_digest_of_its_call_and_a_suffix_of_its_own() {
        let event = event(Some(1), &[("a", 2)], &[("k", "v")]);
        let [one, two] = [
            Once::reserve(id().as_ref(), &event, 1_000, OnExpiry::Release),
            Once::reserve(id().as_ref(), &event, 1_000, OnExpiry::Release),
        ];
        assert_eq!((one.field, one.digest), (two.field, two.digest));
        assert_ne!(one.suffix, two.suffix);
        assert!(one.digest.is_some());
        // Without an id nothing is the same.
        let [one, two] = [
            Once::reserve(None, &event, 1_000, OnExpiry::Release),
            Once::reserve(None, &event, 1_000, OnExpiry::Release),
        ];
        assert_ne!(one.field, two.field);
        assert_eq!(one.digest, None);
    }

    #[test]
    fn whatever_a_request_says_tells_it_from_others() {
        let plain = event(Some(2), &[("a", 2)], &[("k", "v")]);
        let others = [
            event(Some(3), &[("a", 2)], &[("k", "v")]),
            event(None, &[("a", 2)], &[("k", "v")]),
            event(Some(2), &[("a", 3)], &[("k", "v")]),
            event(Some(2), &[], &[("k", "v")]),
            event(Some(2), &[("a", 2)], &[("k", "w")]),
            event(Some(2), &[("a", 2)], &[]),
        ];
        let reserved = |event: &Event| Once::reserve(id().as_ref(), event, 1_000, OnExpiry::Release).digest;
        let owner = Owner::new(&AppId::default(), &UserId::parse("u").unwrap());
        let reservation = ReservationId { field: [1; 16], suffix: [2; 6], plan: [3; 8], owner };
        let other = ReservationId { suffix: [4; 6], ..reservation.clone() };
        let tracked = |event: &Event, enforce, of: Option<&ReservationId>| {
            Once::track(id().as_ref(), event, enforce, of, None).digest
        };
        let extend = |of: &ReservationId, ttl_ms, add: Option<Actual>| {
            Once::extend(id().as_ref(), of, ttl_ms, add.as_ref()).digest
        };
        let at = |at_ms| Once::track(id().as_ref(), &plain, false, None, Some(at_ms)).digest;
        let reset = |groups: &[&str]| {
            let groups: Vec<_> = groups.iter().map(|group| (*group).to_owned()).collect();
            Once::reset(id().as_ref(), &groups).digest
        };
        let mut digests: Vec<_> = others.iter().chain([&plain]).map(reserved).collect();
        digests.extend(others.iter().chain([&plain]).map(|event| tracked(event, false, None)));
        digests.extend([
            Once::reserve(id().as_ref(), &plain, 1_001, OnExpiry::Release).digest,
            Once::reserve(id().as_ref(), &plain, 1_000, OnExpiry::Count).digest,
            extend(&reservation, 1_000, None),
            extend(&other, 1_000, None),
            extend(&reservation, 1_001, None),
            extend(&reservation, 1_000, Some(Actual::default())),
            extend(&reservation, 1_000, Some(Actual { quantity: plain.quantity, ..Actual::default() })),
            tracked(&plain, true, None),
            tracked(&plain, false, Some(&reservation)),
            tracked(&plain, false, Some(&other)),
            at(1_000),
            at(1_001),
            reset(&[]),
            reset(&["ab"]),
            reset(&["a", "b"]),
        ]);
        let count = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }

    #[test]
    fn an_event_without_a_number_is_one_with_quantity_1() {
        let digest = |event: &Event| Once::reserve(id().as_ref(), event, 1_000, OnExpiry::Release).digest;
        assert_eq!(digest(&event(None, &[], &[("k", "v")])), digest(&event(Some(1), &[], &[("k", "v")])));
        assert_ne!(digest(&event(None, &[("a", 1)], &[])), digest(&event(Some(1), &[("a", 1)], &[])));
        assert_ne!(digest(&event(None, &[], &[(QUANTITY, "7")])), digest(&event(Some(1), &[], &[(QUANTITY, "7")])));
    }
}
