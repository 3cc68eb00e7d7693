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

/// A pattern of the metadata values that a condition accepts. A star stands for any text, also for none. Case matters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ValuePattern {
    /// This value.
    Exact(String),
    /// `gpt-4o-*`: the text before the star; every value that starts with it.
    Prefix(String),
    /// `gpt-*-mini`, `*-mini`: the pieces around the stars, at least two. The first begins the value and the last ends it; both may be
    /// empty. The others stand between these, in their order and without overlap; none of them is empty.
    Pieces(Vec<String>),
}

impl ValuePattern {
    /// Reads a value, with stars in it or without. Stars side by side say no more than one.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let Some((first, rest)) = text.split_once('*') else { return Self::Exact(text.to_owned()) };
        let (between, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        let mut pieces = vec![first.to_owned()];
        pieces.extend(between.split('*').filter(|piece| !piece.is_empty()).map(str::to_owned));
        if pieces.len() == 1 && last.is_empty() {
            return Self::Prefix(first.to_owned());
        }
        pieces.push(last.to_owned());
        Self::Pieces(pieces)
    }

    /// Returns whether the condition accepts this value. `lua/lib/match.lua` decides alike.
    #[must_use]
    pub fn accepts(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => value == text,
            Self::Prefix(prefix) => value.starts_with(prefix.as_str()),
            Self::Pieces(pieces) => {
                let [first, between @ .., last] = &pieces[..] else { return false };
                let inner = value.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()));
                // The leftmost place of a piece leaves the most to those after it, so that nothing is tried twice.
                let after = |rest: &str, piece: &String| rest.find(piece.as_str()).map(|at| at + piece.len());
                inner.is_some_and(|inner| {
                    let mut rest = inner;
                    between.iter().all(|piece| after(rest, piece).map(|at| rest = &rest[at..]).is_some())
                })
            }
        }
    }

    /// A value that the condition accepts: with this text in the place of each star.
    #[must_use]
    pub fn example(&self, star: &str) -> String {
        match self {
            Self::Exact(text) => text.clone(),
            Self::Prefix(prefix) => format!("{prefix}{star}"),
            Self::Pieces(pieces) => pieces.join(star),
        }
    }
}

impl fmt::Display for ValuePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.example("*"))
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
    fn a_value_is_read_as_the_pieces_around_its_stars() {
        let exact = |text: &str| ValuePattern::Exact(text.to_owned());
        let prefix = |text: &str| ValuePattern::Prefix(text.to_owned());
        let pieces = |pieces: &[&str]| ValuePattern::Pieces(pieces.iter().map(|piece| (*piece).to_owned()).collect());
        let cases = [
            ("gpt-4o", exact("gpt-4o"), "gpt-4o"),
            ("", exact(""), ""),
            ("gpt-*", prefix("gpt-"), "gpt-*"),
            ("*", prefix(""), "*"),
            // Stars side by side say no more than one.
            ("gpt-**", prefix("gpt-"), "gpt-*"),
            ("***", prefix(""), "*"),
            ("*-mini", pieces(&["", "-mini"]), "*-mini"),
            ("gpt-*-mini", pieces(&["gpt-", "-mini"]), "gpt-*-mini"),
            ("gpt-**-mini", pieces(&["gpt-", "-mini"]), "gpt-*-mini"),
            ("a*b*", pieces(&["a", "b", ""]), "a*b*"),
            ("**a***b**", pieces(&["", "a", "b", ""]), "*a*b*"),
        ];
        for (text, expected, shown) in cases {
            let read = ValuePattern::parse(text);
            assert_eq!(read, expected, "{text}");
            assert_eq!(read.to_string(), shown);
            assert!(read.accepts(&read.example("x")) && read.accepts(&read.example("")), "{text}");
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        let cases = [
            ("*-mini", &["-mini", "gpt-4o-mini", "-mini-mini"][..], &["mini", "gpt-4o-mini-2", "-min", ""][..]),
            ("gpt-*-mini", &["gpt-4o-mini", "gpt--mini"], &["gpt-mini", "gpt-4o", "o1-4o-mini", "gpt-4o-mini-2"]),
            // Neither end takes characters of the other.
            ("aba*aba", &["abaaba", "abaxaba"], &["aba", "ababa"]),
            ("*a*", &["a", "xa", "ax", "xax"], &["", "x"]),
            // Pieces do not overlap each other.
            ("*aa*aa*", &["aaaa", "xaaxaax"], &["aaa", "aaxa"]),
            ("a*b*c", &["abc", "abbc", "axbxc", "abcbc"], &["acb", "ac", "abcb"]),
            ("a*bc*c", &["abcc", "abcbcc"], &["abc"]),
            ("*ä*", &["ä", "xäx"], &["a", "ü"]),
        ];
        for (text, accepted, refused) in cases {
            let pattern = ValuePattern::parse(text);
            for value in accepted {
                assert!(pattern.accepts(value), "{text} {value}");
            }
            for value in refused {
                assert!(!pattern.accepts(value), "{text} {value}");
            }
        }
    }

    /// Tries every way in which a star may stand for something.
    fn accepts_naively(pattern: &[u8], value: &[u8]) -> bool {
        match (pattern.split_first(), value.split_first()) {
            (None, rest) => rest.is_none(),
            (Some((b'*', after)), _) => (0..=value.len()).any(|length| accepts_naively(after, &value[length..])),
            (Some((wanted, after)), Some((found, rest))) => wanted == found && accepts_naively(after, rest),
            (Some(_), None) => false,
        }
    }

    #[test]
    fn every_short_pattern_accepts_what_it_says() {
        let texts = |letters: &[char], length: usize| {
            let mut texts = vec![String::new()];
            let mut from = 0;
            for _ in 0..length {
                let until = texts.len();
                for index in from..until {
                    let longer: Vec<_> = letters.iter().map(|letter| format!("{}{letter}", texts[index])).collect();
                    texts.extend(longer);
                }
                from = until;
            }
            texts
        };
        let values = texts(&['a', 'b'], 6);
        for text in texts(&['a', 'b', '*'], 5) {
            let pattern = ValuePattern::parse(&text);
            for value in &values {
                let expected = accepts_naively(text.as_bytes(), value.as_bytes());
                assert_eq!(pattern.accepts(value), expected, "{text} {value}");
            }
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let value = "a".repeat(256);
        let started = std::time::Instant::now();
        for _ in 0..100 {
            for text in ["*a*a*a*a*b".to_owned(), format!("{}b", "*a".repeat(127)), format!("*{}b*", "a".repeat(120))] {
                assert!(!ValuePattern::parse(&text).accepts(&value), "{text}");
            }
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn a_value_is_accepted_as_it_is_or_by_its_beginning() {
        let accepts = |pattern: &str, value: &str| ValuePattern::parse(pattern).accepts(value);
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
