//! The meanings of the entries of a proxy's descriptors: which one names the user, which one the event, and what the
//! rest is.
//!
//! Envoy describes a request by entries, each with a key and a value. Who writes Envoy's configuration chooses the keys, and then `user_id`
//! and `event` suffice. Where something else chooses them, as Envoy Gateway does (`rule-0-match-0`), an [`EntryMeanings`] translates.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::str::FromStr;

use super::event::EventName;

/// The key of the entry that names the user, unless it is mapped to something else.
pub const USER: &str = "user_id";

/// The key of the entry that names the event, unless it is mapped to something else.
pub const EVENT: &str = "event";

/// The longest key and the longest value of metadata, in bytes.
const LONGEST_METADATA: (usize, usize) = (64, 256);

/// The meaning of an entry of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Its value is the user.
    User,
    /// Its value is the event's name.
    Event,
    /// The event has this name, whatever the entry's value is.
    EventNamed(EventName),
    /// Its value is metadata with this key.
    Metadata(String),
    /// The event has this metadata (key, value), whatever the entry's value is.
    MetadataFixed(String, String),
    /// The descriptor's own hits are asked for before something happens: they count only if they fit.
    Enforce,
    /// The entry means nothing.
    Ignored,
}

/// One item of the setting `envoy-entries`: `KEY=MEANING`. A key may end in `*`, and then stands for all keys that begin so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryMeaning {
    key: String,
    meaning: Meaning,
}

/// The reason why text is not an item of `envoy-entries`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMeaning {
    /// The text lacks a key or a meaning.
    #[error("write KEY=MEANING, such as rule-0-match-0=user_id")]
    Form,
    /// A `*` that is not the key's end.
    #[error("a key may have one `*`, at its end, such as httproute/*=ignore")]
    Star,
    /// No meaning has this name.
    #[error("a meaning is user_id, event, event:NAME, metadata:KEY, metadata:KEY:VALUE, enforce or ignore")]
    Meaning,
    /// The name after `event:`.
    #[error("the name after `event:` must be 1 to 128 of A-Z, a-z, 0-9 and . _ : / -, and not end in .refund")]
    Event,
    /// The key or the value after `metadata:`.
    #[error("after `metadata:` write a key of 1 to 64 bytes, or KEY:VALUE with a value of at most 256 bytes")]
    Metadata,
}

impl FromStr for EntryMeaning {
    type Err = InvalidMeaning;

    fn from_str(text: &str) -> Result<Self, InvalidMeaning> {
        let (key, meaning) = text.split_once('=').ok_or(InvalidMeaning::Form)?;
        if key.is_empty() || meaning.is_empty() {
            return Err(InvalidMeaning::Form);
        }
        if key.find('*').is_some_and(|at| at + 1 < key.len()) {
            return Err(InvalidMeaning::Star);
        }
        Ok(Self { key: key.to_owned(), meaning: meaning.parse()? })
    }
}

impl FromStr for Meaning {
    type Err = InvalidMeaning;

    fn from_str(text: &str) -> Result<Self, InvalidMeaning> {
        let (longest_key, longest_value) = LONGEST_METADATA;
        match text.split_once(':') {
            None if text == USER => Ok(Self::User),
            None if text == EVENT => Ok(Self::Event),
            None if text == "enforce" => Ok(Self::Enforce),
            None if text == "ignore" => Ok(Self::Ignored),
            Some((EVENT, name)) => match EventName::parse(name) {
                Ok(name) if name.refunded().is_none() => Ok(Self::EventNamed(name)),
                _ => Err(InvalidMeaning::Event),
            },
            Some(("metadata", rest)) => {
                let (key, value) = rest.split_once(':').map_or((rest, None), |(key, value)| (key, Some(value)));
                let fits = (1..=longest_key).contains(&key.len());
                if !fits || value.is_some_and(|value| value.len() > longest_value) {
                    return Err(InvalidMeaning::Metadata);
                }
                Ok(match value {
                    None => Self::Metadata(key.to_owned()),
                    Some(value) => Self::MetadataFixed(key.to_owned(), value.to_owned()),
                })
            }
            _ => Err(InvalidMeaning::Meaning),
        }
    }
}

impl fmt::Display for EntryMeaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.meaning)
    }
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str(USER),
            Self::Event => f.write_str(EVENT),
            Self::EventNamed(name) => write!(f, "{EVENT}:{}", name.as_str()),
            Self::Metadata(key) => write!(f, "metadata:{key}"),
            Self::MetadataFixed(key, value) => write!(f, "metadata:{key}:{value}"),
            Self::Enforce => f.write_str("enforce"),
            Self::Ignored => f.write_str("ignore"),
        }
    }
}

impl Meaning {
    /// Returns whether one entry cannot have both meanings.
    fn contradicts(&self, other: &Self) -> bool {
        let is_event = |meaning: &Self| matches!(meaning, Self::Event | Self::EventNamed(_));
        let metadata = |meaning: &Self| match meaning {
            Self::Metadata(key) | Self::MetadataFixed(key, _) => Some(key.clone()),
            _ => None,
        };
        let same_metadata = metadata(self).is_some_and(|key| metadata(other) == Some(key));
        self == other
            || *self == Self::Ignored
            || *other == Self::Ignored
            || is_event(self) && is_event(other)
            || same_metadata
    }
}

/// The meanings of the entries of descriptors, by their keys. A key that is not mapped is its own meaning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EntryMeanings {
    exact: BTreeMap<String, Vec<Meaning>>,
    /// The meanings by the prefix of a key, longest prefix first.
    prefixes: Vec<(String, Vec<Meaning>)>,
}

/// The content of a descriptor, once its entries are understood. It is not checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Described {
    /// The user.
    pub user: Option<String>,
    /// The event, where an entry names it.
    pub event: Option<String>,
    /// The other entries.
    pub metadata: BTreeMap<String, String>,
    /// True if the descriptor's own hits count only if they fit.
    pub enforce: bool,
}

/// Two entries say the same thing: it is not ours to guess which of them is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("say {0} twice: give each entry a key, or a meaning in envoy-entries, of its own")]
pub struct SaidTwice(pub String);

impl EntryMeanings {
    /// Puts the items of the setting together.
    ///
    /// # Errors
    /// The contradiction of two items, as a sentence that continues "envoy-entries ...".
    pub fn new(items: &[EntryMeaning]) -> Result<Self, String> {
        let mut by_key: BTreeMap<&str, Vec<Meaning>> = BTreeMap::new();
        for EntryMeaning { key, meaning } in items {
            let known = by_key.entry(key).or_default();
            if let Some(other) = known.iter().find(|other| other.contradicts(meaning)) {
                return Err(match other == meaning {
                    true => format!("says {key}={meaning} twice: leave one out"),
                    false => {
                        format!("says {key}={other} and {key}={meaning}, which contradict each other: leave one out")
                    }
                });
            }
            known.push(meaning.clone());
        }
        let mut all = Self::default();
        for (key, meanings) in by_key {
            match key.strip_suffix('*') {
                Some(prefix) => all.prefixes.push((prefix.to_owned(), meanings)),
                None => drop(all.exact.insert(key.to_owned(), meanings)),
            }
        }
        all.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(all)
    }

    /// Returns the meanings that the setting gives to an entry: by its whole key, or else by the longest of the
    /// prefixes.
    fn of(&self, key: &str) -> Option<&[Meaning]> {
        let by_prefix = || self.prefixes.iter().find(|(prefix, _)| key.starts_with(prefix.as_str()));
        self.exact.get(key).or_else(|| by_prefix().map(|(_, meanings)| meanings)).map(Vec::as_slice)
    }

    /// Reads the entries (key, value) of a descriptor.
    ///
    /// # Errors
    /// [`SaidTwice`].
    pub fn read(&self, entries: impl IntoIterator<Item = (String, String)>) -> Result<Described, SaidTwice> {
        let mut described = Described::default();
        for (key, value) in entries {
            match self.of(&key) {
                Some(meanings) => meanings.iter().try_for_each(|meaning| described.take(meaning, &value))?,
                None if key == USER => described.take(&Meaning::User, &value)?,
                None if key == EVENT => described.take(&Meaning::Event, &value)?,
                None => described.take_metadata(key, value)?,
            }
        }
        Ok(described)
    }
}

impl Described {
    fn take(&mut self, meaning: &Meaning, value: &str) -> Result<(), SaidTwice> {
        let once = |place: &mut Option<String>, what: &str, value: &str| match place.replace(value.to_owned()) {
            None => Ok(()),
            Some(_) => Err(SaidTwice(what.to_owned())),
        };
        match meaning {
            Meaning::User => once(&mut self.user, "the user", value),
            Meaning::Event => once(&mut self.event, "the event", value),
            Meaning::EventNamed(name) => once(&mut self.event, "the event", name.as_str()),
            Meaning::Metadata(key) => self.take_metadata(key.clone(), value.to_owned()),
            Meaning::MetadataFixed(key, fixed) => self.take_metadata(key.clone(), fixed.clone()),
            Meaning::Enforce => {
                self.enforce = true;
                Ok(())
            }
            Meaning::Ignored => Ok(()),
        }
    }

    fn take_metadata(&mut self, key: String, value: String) -> Result<(), SaidTwice> {
        match self.metadata.entry(key) {
            Entry::Vacant(place) => {
                place.insert(value);
                Ok(())
            }
            Entry::Occupied(taken) => Err(SaidTwice(format!("{:?}", taken.key()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meanings(items: &[&str]) -> Result<EntryMeanings, String> {
        let items: Vec<EntryMeaning> = items.iter().map(|item| item.parse().unwrap()).collect();
        EntryMeanings::new(&items)
    }

    fn read(items: &[&str], entries: &[(&str, &str)]) -> Result<Described, SaidTwice> {
        let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        meanings(items).unwrap().read(entries)
    }

    fn described(user: Option<&str>, event: Option<&str>, metadata: &[(&str, &str)]) -> Described {
        Described {
            user: user.map(str::to_owned),
            event: event.map(str::to_owned),
            metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            enforce: false,
        }
    }

    #[test]
    fn without_a_mapping_the_keys_say_what_entries_mean() {
        let entries = [("user_id", "ann"), ("event", "llm.tokens"), ("model", "gpt-4o")];
        let expected = described(Some("ann"), Some("llm.tokens"), &[("model", "gpt-4o")]);
        assert_eq!(read(&[], &entries), Ok(expected));
        assert_eq!(read(&[], &[]), Ok(Described::default()));
    }

    #[test]
    fn keys_of_envoy_gateway_are_translated() {
        let items = [
            "httproute/*=ignore",
            "httproute/shop/*=event:llm.tokens",
            "rule-0-match-0=user_id",
            "rule-0-match-1=metadata:model",
            "rule-0-match-2=metadata:tier:gold",
        ];
        let entries = [
            ("httproute/shop/chat/rule/0/match/0/*", "httproute/shop/chat/rule/0/match/0/*"),
            ("rule-0-match-0", "ann"),
            ("rule-0-match-1", "gpt-4o"),
            ("rule-0-match-2", "rule-0-match-2"),
        ];
        let expected = described(Some("ann"), Some("llm.tokens"), &[("model", "gpt-4o"), ("tier", "gold")]);
        assert_eq!(read(&items, &entries), Ok(expected));
        // The shorter prefix is for the others.
        let other = [("httproute/blog/x", "httproute/blog/x"), ("rule-0-match-0", "ann")];
        assert_eq!(read(&items, &other), Ok(described(Some("ann"), None, &[])));
    }

    #[test]
    fn an_entry_may_mean_several_things_and_a_whole_key_goes_before_a_prefix() {
        let items = ["rule-*=ignore", "rule-0-match-0=user_id", "rule-0-match-0=event:a", "rule-0-match-0=enforce"];
        let entries = [("rule-0-match-0", "ann"), ("rule-1-match-0", "bob")];
        let expected = Described { enforce: true, ..described(Some("ann"), Some("a"), &[]) };
        assert_eq!(read(&items, &entries), Ok(expected));
        // A mapped key no longer means what it says.
        assert_eq!(
            read(&["user_id=metadata:who"], &[("user_id", "ann")]),
            Ok(described(None, None, &[("who", "ann")]))
        );
    }

    #[test]
    fn what_is_said_twice_is_not_guessed_and_no_value_is_repeated() {
        for (item, entries) in [
            ("sub=user_id", [("sub", "ann"), ("user_id", "bob")]),
            ("path=event:a", [("path", "ann"), ("event", "bob")]),
            ("header=metadata:model", [("header", "ann"), ("model", "bob")]),
            ("unused=ignore", [("user_id", "ann"), ("user_id", "bob")]),
        ] {
            let told = read(&[item], &entries).unwrap_err().to_string();
            assert!(!told.contains("ann") && !told.contains("bob"), "{told}");
        }
        assert!(read(&["x=ignore"], &[("x", "1"), ("x", "2")]).is_ok(), "nothing is read of it");
    }

    #[test]
    fn an_item_is_shown_as_it_is_written() {
        for text in [
            "k=user_id",
            "k=event",
            "k=event:a:b/c",
            "k*=metadata:m",
            "k=metadata:m:",
            "k=metadata:m:a:b=c",
            "k=enforce",
            "*=ignore",
        ] {
            assert_eq!(text.parse::<EntryMeaning>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_item_that_means_nothing_is_refused_with_what_to_write() {
        let long = "x".repeat(129);
        for (text, expected) in [
            ("user_id", InvalidMeaning::Form),
            ("=user_id", InvalidMeaning::Form),
            ("k=", InvalidMeaning::Form),
            ("a*b=user_id", InvalidMeaning::Star),
            ("a**=user_id", InvalidMeaning::Star),
            ("k=user", InvalidMeaning::Meaning),
            ("k=user_id:ann", InvalidMeaning::Meaning),
            ("k=ignore:x", InvalidMeaning::Meaning),
            ("k=event:", InvalidMeaning::Event),
            ("k=event:a b", InvalidMeaning::Event),
            ("k=event:a.refund", InvalidMeaning::Event),
            (&format!("k=event:{long}"), InvalidMeaning::Event),
            ("k=metadata", InvalidMeaning::Meaning),
            ("k=metadata:", InvalidMeaning::Metadata),
            (&format!("k=metadata:{}", &long[..65]), InvalidMeaning::Metadata),
            (&format!("k=metadata:m:{long}{long}"), InvalidMeaning::Metadata),
        ] {
            assert_eq!(text.parse::<EntryMeaning>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn items_that_contradict_each_other_are_refused() {
        for (items, told) in [
            (["k=user_id", "k=user_id"], "says k=user_id twice"),
            (["k=event", "k=event:a"], "says k=event and k=event:a, which contradict each other"),
            (["k=ignore", "k=user_id"], "says k=ignore and k=user_id, which contradict"),
            (["k=metadata:m", "k=metadata:m:v"], "says k=metadata:m and k=metadata:m:v, which contradict"),
        ] {
            let problem = meanings(&items).unwrap_err();
            assert!(problem.starts_with(told), "{problem}");
        }
        assert!(meanings(&["k=user_id", "k=metadata:m", "k=metadata:n", "k=event", "j=event"]).is_ok());
    }
}
