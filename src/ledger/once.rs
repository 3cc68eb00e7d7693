//! What makes the retry of a call recognisable (ONCE).

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::formats;
use crate::domain::amount::Quantity;
use crate::domain::event::{Event, QUANTITY};
use crate::domain::id::{Field, RequestId, ReservationId, Suffix, beginning, field_of, random};

/// The name under which a call is remembered, and what tells it from another one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Once {
    /// Its name in the user's memory.
    pub field: Field,
    /// Tells the request from others, if it has an id.
    pub digest: Option<[u8; 8]>,
    /// Tells what is remembered from what had the same name before.
    pub suffix: Suffix,
}

impl Once {
    /// Of a Reserve.
    #[must_use]
    pub fn reserve(request_id: Option<&RequestId>, event: &Event, ttl_ms: i64) -> Self {
        Self::of(request_id, || ("reserve", identity(event), ttl_ms))
    }

    /// Of a Track.
    #[must_use]
    pub fn track(
        request_id: Option<&RequestId>,
        event: &Event,
        enforce: bool,
        reservation: Option<&ReservationId>,
    ) -> Self {
        Self::of(request_id, || ("track", identity(event), enforce, reservation.map(ToString::to_string)))
    }

    fn of<T: Serialize>(request_id: Option<&RequestId>, request: impl FnOnce() -> T) -> Self {
        let digest = request_id.map(|_| digest(&request()));
        Self { field: field_of(request_id), digest, suffix: random() }
    }

    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let Self { field, digest, suffix } = *self;
        let has_id = digest.is_some().into();
        formats::Once { field, has_id, digest: digest.unwrap_or_default(), suffix }.write(bytes);
    }
}

/// The beginning of the SHA-256 of a request as it was parsed, defaults filled, maps sorted.
fn digest(request: &impl Serialize) -> [u8; 8] {
    let mut packed = Vec::with_capacity(512);
    rmp_serde::encode::write(&mut packed, request).expect("numbers and text can be encoded");
    beginning(&Sha256::digest(&packed))
}

/// Metadata, name, quantity and quantities.
type Identity<'a> = (&'a BTreeMap<String, String>, &'a str, Option<Quantity>, &'a BTreeMap<String, Quantity>);

/// What tells an event from another one under the same request id. An event without any number is the same as one with quantity 1.
fn identity(event: &Event) -> Identity<'_> {
    let Event { name, quantity, quantities, metadata } = event;
    let unsaid = quantities.is_empty() && !metadata.contains_key(QUANTITY);
    (metadata, name.as_str(), quantity.or_else(|| unsaid.then_some(Quantity::ONE)), quantities)
}

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
        let [one, two] = [Once::reserve(id().as_ref(), &event, 1_000), Once::reserve(id().as_ref(), &event, 1_000)];
        assert_eq!((one.field, one.digest), (two.field, two.digest));
        assert_ne!(one.suffix, two.suffix);
        assert!(one.digest.is_some());
        // Without an id nothing is the same.
        let [one, two] = [Once::reserve(None, &event, 1_000), Once::reserve(None, &event, 1_000)];
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
        let reserved = |event: &Event| Once::reserve(id().as_ref(), event, 1_000).digest;
        let owner = Owner::new(&AppId::default(), &UserId::parse("u").unwrap());
        let reservation = ReservationId { field: [1; 16], suffix: [2; 6], plan: [3; 8], owner };
        let other = ReservationId { suffix: [4; 6], ..reservation.clone() };
        let tracked =
            |event: &Event, enforce, of: Option<&ReservationId>| Once::track(id().as_ref(), event, enforce, of).digest;
        let mut digests: Vec<_> = others.iter().chain([&plain]).map(reserved).collect();
        digests.extend(others.iter().chain([&plain]).map(|event| tracked(event, false, None)));
        digests.extend([
            Once::reserve(id().as_ref(), &plain, 1_001).digest,
            tracked(&plain, true, None),
            tracked(&plain, false, Some(&reservation)),
            tracked(&plain, false, Some(&other)),
        ]);
        let count = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }

    #[test]
    fn an_event_without_a_number_is_one_with_quantity_1() {
        let digest = |event: &Event| Once::reserve(id().as_ref(), event, 1_000).digest;
        assert_eq!(digest(&event(None, &[], &[("k", "v")])), digest(&event(Some(1), &[], &[("k", "v")])));
        assert_ne!(digest(&event(None, &[("a", 1)], &[])), digest(&event(Some(1), &[("a", 1)], &[])));
        assert_ne!(digest(&event(None, &[], &[(QUANTITY, "7")])), digest(&event(Some(1), &[], &[(QUANTITY, "7")])));
    }
}
