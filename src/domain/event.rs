//! An event: what happened, how much of it, and what is known about it.

use std::collections::BTreeMap;

use super::amount::{InvalidQuantity, Quantity};

/// The reason why text cannot be an event name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEventName {
    /// Empty or longer than 128 bytes.
    #[error("an event name has 1 to 128 bytes")]
    Length,
    /// A character outside the alphabet.
    #[error("an event name consists of A-Z, a-z, 0-9 and . _ : / -")]
    Character,
}

/// A dotted name such as `llm.tokens`: 1 to 128 bytes of `[A-Za-z0-9._:/-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventName(String);

/// The name under which a measure finds the event's own quantity.
pub const QUANTITY: &str = "quantity";

/// The end of the name of an event that refunds another.
const REFUND: &str = ".refund";

impl EventName {
    /// The length of the longest name, in bytes.
    pub const LONGEST: usize = 128;

    /// Reads a name.
    ///
    /// # Errors
    /// See [`InvalidEventName`].
    pub fn parse(text: &str) -> Result<Self, InvalidEventName> {
        if text.is_empty() || text.len() > Self::LONGEST {
            return Err(InvalidEventName::Length);
        }
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
        if text.bytes().all(known) { Ok(Self(text.to_owned())) } else { Err(InvalidEventName::Character) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the event that a refund is for: `X` for `X.refund`.
    #[must_use]
    pub fn refunded(&self) -> Option<Self> {
        self.0.strip_suffix(REFUND).filter(|name| !name.is_empty()).map(|name| Self(name.to_owned()))
    }
}

/// An event, as a caller sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The name of what happened.
    pub name: EventName,
    /// The quantity. Absent, it means 1 in a limit group of unit `count`, and nothing in any other.
    pub quantity: Option<Quantity>,
    /// The quantities, by name.
    pub quantities: BTreeMap<String, Quantity>,
    /// Further facts about the event.
    pub metadata: BTreeMap<String, String>,
}

impl Event {
    /// An event of these parts.
    #[must_use]
    pub fn new(
        name: EventName,
        quantity: Option<Quantity>,
        quantities: BTreeMap<String, Quantity>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        Self { name, quantity, quantities, metadata }
    }

    /// Returns whether the event has no number outside of its metadata.
    #[must_use]
    pub fn names_no_quantity(&self) -> bool {
        self.quantity.is_none() && self.quantities.is_empty()
    }

    /// Reads the metadata of the names that `measured` accepts as numbers. A measure must not continue with a value
    /// that is not a number, so such values are distinguished from absent ones.
    pub fn measured_metadata(
        &self,
        measured: impl Fn(&str) -> bool,
    ) -> BTreeMap<&str, Result<Quantity, InvalidQuantity>> {
        let entries = self.metadata.iter().filter(|(key, _)| measured(key));
        entries.map(|(key, value)| (key.as_str(), Quantity::from_decimal(value))).collect()
    }
}

/// The actual usage of a reservation. It replaces the quantities that it names; the others stay as reserved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actual {
    /// Replaces the event's quantity.
    pub quantity: Option<Quantity>,
    /// Replace the quantities of these names.
    pub quantities: BTreeMap<String, Quantity>,
    /// Replace the metadata of these keys: the event was another one than was reserved, and matches its limit groups anew.
    pub metadata: BTreeMap<String, String>,
}

impl Actual {
    /// Returns whether it has no number outside of its metadata.
    #[must_use]
    pub fn names_no_quantity(&self) -> bool {
        self.quantity.is_none() && self.quantities.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refund_names_the_event_it_refunds() {
        let refunded = |name| EventName::parse(name).unwrap().refunded().map(|name| name.0);
        assert_eq!(refunded("llm.tokens.refund").as_deref(), Some("llm.tokens"));
        assert_eq!(refunded("llm.tokens"), None);
        assert_eq!(refunded(".refund"), None);
        assert_eq!(refunded("refund"), None);
    }

    #[test]
    fn a_name_has_1_to_128_bytes_of_its_alphabet() {
        let longest = "x".repeat(128);
        for name in ["a", "llm.tokens", "AZaz09._:/-", &longest] {
            assert_eq!(EventName::parse(name).unwrap().as_str(), name);
        }
        for name in ["", &format!("{longest}x"), &"x".repeat(200)] {
            assert_eq!(EventName::parse(name), Err(InvalidEventName::Length), "{name}");
        }
        for name in ["a b", "a*", "ü", "a\n", "@"] {
            assert_eq!(EventName::parse(name), Err(InvalidEventName::Character), "{name}");
        }
    }

    #[test]
    fn metadata_is_a_number_or_told_apart_from_what_is_absent() {
        let metadata =
            [("seconds", "1.5"), ("model", "gpt-4o"), ("price", "1e3"), ("debt", "-1"), ("thousand", "1,000")];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let event = Event::new(EventName::parse("a").unwrap(), None, BTreeMap::new(), metadata);
        let read = event.measured_metadata(|name| name != "model" && name != "price");
        let expected = BTreeMap::from([
            ("seconds", Ok(Quantity::from_f64(1.5).unwrap())),
            ("debt", Err(InvalidQuantity::Negative)),
            ("thousand", Err(InvalidQuantity::NotANumber)),
        ]);
        assert_eq!(read, expected);
        assert_eq!(event.quantity, None, "the plan says what an absent quantity means");
        assert!(event.names_no_quantity());
        let one = Quantity::ONE;
        assert!(!Event { quantity: Some(one), ..event.clone() }.names_no_quantity());
        assert!(!Event { quantities: BTreeMap::from([("n".to_owned(), one)]), ..event }.names_no_quantity());
    }
}
