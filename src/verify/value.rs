//! A MessagePack value of any shape, and readers that say precisely where it is not what it should be.

use std::fmt::{self, Display};

use serde::de::{Deserialize as _, MapAccess, SeqAccess, Visitor};

use crate::domain::counted::counted;

/// An error that locates an unexpected value: `held of window 3 is 0.5, and not an integer`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(String);

/// The MessagePack values that scripts write.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// The nil value.
    Nil,
    /// `true` or `false`.
    Flag(bool),
    /// An integer.
    Integer(i128),
    /// A number that is not an integer: EXACT forbids it everywhere.
    Float(f64),
    /// Text, which need not be UTF-8.
    Text(Vec<u8>),
    /// Values in order.
    List(Vec<Value>),
    /// Values by key.
    Map(Vec<(Value, Value)>),
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Integer(integer) => write!(f, "{integer}"),
            Self::Float(float) => write!(f, "{float:?}"),
            Self::Text(text) => write!(f, "{:?}", String::from_utf8_lossy(text)),
            Self::List(values) => write!(f, "a list of {}", values.len()),
            Self::Map(entries) => write!(f, "a map of {}", entries.len()),
        }
    }
}

struct AnyValue;

impl<'de> serde::Deserialize<'de> for Value {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a MessagePack value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nil)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Value, E> {
        Ok(Value::Integer(integer.into()))
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Value, E> {
        Ok(Value::Integer(integer.into()))
    }

    fn visit_f64<E>(self, float: f64) -> Result<Value, E> {
        Ok(Value::Float(float))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.as_bytes().to_vec()))
    }

    fn visit_bytes<E>(self, text: &[u8]) -> Result<Value, E> {
        Ok(Value::Text(text.to_vec()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

/// Fails, saying that `name` is `found`, and not `what` it should be.
///
/// # Errors
/// Always.
pub fn not_a<T>(name: impl Display, found: impl Display, what: &str) -> Result<T, Undecodable> {
    Err(Undecodable(format!("{name} is {found}, and not {what}")))
}

fn list_of(length: usize) -> String {
    format!("a list of {length}")
}

impl Undecodable {
    /// An error with this text.
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl Value {
    /// Reads values, one after the other, up to the end.
    ///
    /// # Errors
    /// If the bytes are not MessagePack.
    pub fn read_all(packed: &[u8], name: &str) -> Result<Vec<Self>, Undecodable> {
        let (mut rest, mut values) = (packed, Vec::new());
        while !rest.is_empty() {
            let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
            let value = Self::deserialize(&mut deserializer);
            values.push(value.map_err(|error| Undecodable(format!("{name} is no MessagePack: {error}")))?);
        }
        Ok(values)
    }

    /// Reads one value and nothing after it.
    ///
    /// # Errors
    /// If the bytes are not MessagePack.
    pub fn read(packed: &[u8]) -> Result<Self, Undecodable> {
        let mut rest = packed;
        let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
        let value = Self::deserialize(&mut deserializer)
            .map_err(|error| Undecodable(format!("the value is no MessagePack: {error}")))?;
        if rest.is_empty() {
            Ok(value)
        } else {
            Err(Undecodable(format!("the value is followed by {} too many", counted(rest.len(), "byte"))))
        }
    }

    /// Returns a list with `LENGTH` values.
    ///
    /// # Errors
    /// Anything else.
    pub fn list<const LENGTH: usize>(&self, name: impl Display) -> Result<&[Self; LENGTH], Undecodable> {
        match self {
            Self::List(values) => values.as_slice().try_into().or_else(|_| not_a(name, self, &list_of(LENGTH))),
            other => not_a(name, other, &list_of(LENGTH)),
        }
    }

    /// A list with any number of values.
    ///
    /// # Errors
    /// Anything else.
    pub fn values(&self, name: impl Display) -> Result<&[Self], Undecodable> {
        match self {
            Self::List(values) => Ok(values),
            other => not_a(name, other, "a list"),
        }
    }

    /// A map with text for keys. Lua cannot tell an empty map from an empty list.
    ///
    /// # Errors
    /// Anything else.
    pub fn map(&self, name: impl Display) -> Result<Vec<(&str, &Self)>, Undecodable> {
        match self {
            Self::List(values) if values.is_empty() => Ok(Vec::new()),
            Self::Map(entries) => {
                entries.iter().map(|(key, value)| Ok((key.text(format_args!("a key of {name}"))?, value))).collect()
            }
            other => not_a(name, other, "a map"),
        }
    }

    /// An integer.
    ///
    /// # Errors
    /// Anything else.
    pub fn integer(&self, name: impl Display) -> Result<i64, Undecodable> {
        match self {
            Self::Integer(integer) => i64::try_from(*integer).or_else(|_| not_a(name, self, "an integer of 64 bits")),
            other => not_a(name, other, "an integer"),
        }
    }

    /// Text in UTF-8.
    ///
    /// # Errors
    /// Anything else.
    pub fn text(&self, name: impl Display) -> Result<&str, Undecodable> {
        match self {
            Self::Text(text) => std::str::from_utf8(text).or_else(|_| not_a(name, self, "UTF-8")),
            other => not_a(name, other, "text"),
        }
    }
}
