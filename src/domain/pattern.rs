//! Patterns of a match rule: which events, and which metadata values.

use std::fmt;

use super::event::EventName;

/// Longer text before `.*` leaves no room for a further segment.
const LONGEST_PREFIX: usize = EventName::LONGEST - 2;

/// The number of characters of a pattern that its error repeats. Callers may send any text.
const MAX_SHOWN_CHARS: usize = 64;

/// A pattern of the event names that a rule applies to. Case matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EventPattern {
    /// `*`: every event.
    Any,
    /// `llm.tokens`: this name.
    Exact(String),
    /// `llm.*`: the text before `.*`, for names with one or more further segments.
    Prefix(String),
}

impl EventPattern {
    /// Reads `*`, `prefix.*` or a name.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let (name, prefix) = match text.strip_suffix(".*") {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        let invalid = |problem: &dyn fmt::Display| {
            let shown: String = text.chars().take(MAX_SHOWN_CHARS).collect();
            let more = if shown.len() < text.len() { "..." } else { "" };
            format!("{shown:?}{more} is not an event pattern (a name, `prefix.*` or `*`): {problem}")
        };
        EventName::parse(name).map_err(|problem| invalid(&problem))?;
        if prefix && name.len() > LONGEST_PREFIX {
            return Err(invalid(&format!(
                "a prefix has at most {LONGEST_PREFIX} bytes, as an event name has at most 128"
            )));
        }
        Ok(if prefix { Self::Prefix(name.to_owned()) } else { Self::Exact(name.to_owned()) })
    }

    /// Returns whether the pattern matches events of this name. `lua/lib/match.lua` decides alike.
    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => {
                let rest = name.strip_prefix(prefix.as_str()).and_then(|rest| rest.strip_prefix('.'));
                rest.is_some_and(|rest| !rest.is_empty())
            }
        }
    }

    /// A name that fits both patterns, and no longer pattern by accident; none if no name does.
    #[must_use]
    pub fn common_name(&self, other: &Self) -> Option<String> {
        let example = |pattern: &Self| match pattern {
            Self::Any => "unlisted".to_owned(),
            Self::Exact(name) => name.clone(),
            Self::Prefix(prefix) => format!("{prefix}.unlisted"),
        };
        [self, other].map(example).into_iter().find(|name| self.fits(name) && other.fits(name))
    }

    /// Returns whether some event name matches both patterns.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let rest = |text: &str, prefix: &str| text.strip_prefix(prefix)?.strip_prefix('.').map(str::len);
        // A name needs something after the dot; a longer prefix has a dot of its own to come.
        let below = |name: &str, prefix: &str| rest(name, prefix).is_some_and(|length| length > 0);
        let within = |longer: &str, prefix: &str| longer == prefix || rest(longer, prefix).is_some();
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::Exact(one), Self::Exact(two)) => one == two,
            (Self::Exact(name), Self::Prefix(prefix)) | (Self::Prefix(prefix), Self::Exact(name)) => {
                below(name, prefix)
            }
            (Self::Prefix(one), Self::Prefix(two)) => within(one, two) || within(two, one),
        }
    }
}

impl fmt::Display for EventPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(name) => f.write_str(name),
            Self::Prefix(prefix) => write!(f, "{prefix}.*"),
        }
    }
}

/// A pattern of the metadata values that a condition accepts. Case matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ValuePattern {
    /// This value.
    Exact(String),
    /// `gpt-4o-*`: the text before the star; every value that starts with it.
    Prefix(String),
}

/// A star that is not the last character of a value: it would match only itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a star may only end a value")]
pub struct MisplacedStar;

impl ValuePattern {
    /// Reads `prefix*` or a value.
    ///
    /// # Errors
    /// [`MisplacedStar`].
    pub fn parse(text: &str) -> Result<Self, MisplacedStar> {
        let (begin, is_prefix) = text.strip_suffix('*').map_or((text, false), |prefix| (prefix, true));
        if begin.contains('*') {
            return Err(MisplacedStar);
        }
        Ok(if is_prefix { Self::Prefix(begin.to_owned()) } else { Self::Exact(begin.to_owned()) })
    }

    /// Returns whether the condition accepts this value.
    #[must_use]
    pub fn accepts(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => value == text,
            Self::Prefix(prefix) => value.starts_with(prefix.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_overlap_where_a_name_fits_both() {
        let cases = [
            ("*", "a", true),
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.b", "a.*", true),
            ("a", "a.*", false),
            ("ab.c", "a.*", false),
            ("a.b.c", "a.*", true),
            ("a.*", "a.b.*", true),
            ("a.*", "a.*", true),
            ("a.b", "a.b.*", false),
            ("a.b.*", "a.c.*", false),
            // Both are for `a..b`.
            ("a.*", "a..*", true),
            ("a.", "a.*", false),
        ];
        for (one, two, expected) in cases {
            let (left, right) = (EventPattern::parse(one).unwrap(), EventPattern::parse(two).unwrap());
            assert_eq!(left.overlaps(&right), expected, "{one} {two}");
            assert_eq!(right.overlaps(&left), expected, "{two} {one}");
        }
    }

    #[test]
    fn a_prefix_leaves_room_for_a_name() {
        assert!(EventPattern::parse(&format!("{}.*", "p".repeat(126))).is_ok());
        assert!(EventPattern::parse(&"p".repeat(128)).is_ok());
        let told = EventPattern::parse(&format!("{}.*", "p".repeat(127))).unwrap_err();
        assert!(told.ends_with("a prefix has at most 126 bytes, as an event name has at most 128"), "{told}");
    }

    #[test]
    fn an_error_repeats_only_the_beginning_of_a_long_pattern() {
        let told = EventPattern::parse(&"\u{1}".repeat(1 << 20)).unwrap_err();
        assert!(told.len() < 600 && told.contains("... is not an event pattern"), "{told}");
    }

    #[test]
    fn a_star_elsewhere_is_an_error() {
        for bad in ["", ".*", "a*", "a.*.b", "*.a", "a b", "ü"] {
            assert!(EventPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pattern_is_shown_as_it_was_written() {
        for text in ["*", "llm.tokens", "llm.*"] {
            assert_eq!(EventPattern::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn only_a_star_at_the_end_of_a_value_is_a_pattern() {
        let (exact, prefix) =
            (|text: &str| ValuePattern::Exact(text.to_owned()), ValuePattern::Prefix("gpt-".to_owned()));
        assert_eq!(ValuePattern::parse("gpt-*"), Ok(prefix));
        assert_eq!(ValuePattern::parse("*"), Ok(ValuePattern::Prefix(String::new())));
        for text in ["gpt-4o", ""] {
            assert_eq!(ValuePattern::parse(text), Ok(exact(text)));
        }
        for text in ["*gpt", "*-free", "gpt-*-mini", "gpt-**", "**", "a*b*"] {
            assert_eq!(ValuePattern::parse(text), Err(MisplacedStar), "{text}");
        }
    }

    #[test]
    fn a_value_is_accepted_as_it_is_or_by_its_beginning() {
        let accepts = |pattern: &str, value: &str| ValuePattern::parse(pattern).unwrap().accepts(value);
        assert!(accepts("gpt-4o", "gpt-4o") && !accepts("gpt-4o", "gpt-4o-mini") && !accepts("gpt-4o", "GPT-4o"));
        assert!(accepts("gpt-*", "gpt-4o") && accepts("gpt-*", "gpt-") && !accepts("gpt-*", "gpt"));
        assert!(accepts("*", "") && accepts("*", "any"));
    }

    #[test]
    fn a_pattern_is_for_its_names() {
        let fits = |pattern: &str, name: &str| EventPattern::parse(pattern).unwrap().fits(name);
        assert!(fits("*", "a") && fits("a.b", "a.b") && !fits("a.b", "a.b.c"));
        assert!(
            fits("a.*", "a.b")
                && fits("a.*", "a.b.c")
                && !fits("a.*", "a")
                && !fits("a.*", "ab.c")
                && !fits("a.*", "a.")
        );
    }

    #[test]
    fn a_common_name_fits_both_patterns_where_they_overlap() {
        for one in ["*", "a.b", "a.*", "a.b.*", "a", "ab.*", "a..*"] {
            for two in ["*", "a.b", "a.c", "a.*", "a.b.*", "a.b.c", "a.", "a..*"] {
                let (left, right) = (EventPattern::parse(one).unwrap(), EventPattern::parse(two).unwrap());
                let common = left.common_name(&right);
                assert_eq!(common.is_some(), left.overlaps(&right), "{one} {two}");
                assert!(common.is_none_or(|name| left.fits(&name) && right.fits(&name)), "{one} {two}");
            }
        }
    }
}
