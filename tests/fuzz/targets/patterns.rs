//! Patterns of event names: what they say of each other is what names say of them. Patterns of metadata values: a star stands for any text.
//!
//! Two patterns in two lines, or a pattern and a value; and short ones over few letters, against every short name.

use std::sync::LazyLock;

use tollgate::domain::event::EventName;
use tollgate::domain::pattern::{EventPattern, ValuePattern};

/// Every name of up to six of these letters.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut names = vec![String::new()];
    let mut from = 0;
    for _ in 0..6 {
        let until = names.len();
        for index in from..until {
            let longer = ['a', 'b', '.'].map(|letter| format!("{}{letter}", names[index]));
            names.extend(longer);
        }
        from = until;
    }
    names.split_off(1)
});

pub(super) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (one, other) = text.split_once('\n').unwrap_or((&text, ""));
    if let (Some(one), Some(other)) = (parse(one), parse(other)) {
        let both = [witness(&one), witness(&other)].iter().any(|name| fits(&one, name) && fits(&other, name));
        assert_eq!(one.overlaps(&other), both, "{one} {other}");
        assert_eq!(other.overlaps(&one), both, "{one} {other}");
    }
    let small =
        |bytes: &[u8]| -> String { bytes.iter().map(|byte| ['a', 'b', '.', '*'][usize::from(*byte) % 4]).collect() };
    let (one, other) = input[..input.len().min(8)].split_at(input.len().min(4));
    if let (Some(one), Some(other)) = (parse(&small(one)), parse(&small(other))) {
        let both = NAMES.iter().any(|name| fits(&one, name) && fits(&other, name));
        assert_eq!(one.overlaps(&other), both, "{one} {other}");
    }
    let (pattern, value) = text.split_once('\n').unwrap_or((&text, &text));
    check_value(pattern, value);
    let few = |bytes: &[u8]| -> String { bytes.iter().map(|byte| ['a', 'b', '*'][usize::from(*byte) % 3]).collect() };
    let (pattern, value) = input[..input.len().min(24)].split_at(input.len().min(8));
    check_value(&few(pattern), &few(value).replace('*', "ab"));
}

/// A pattern of values accepts what is left if each star stands for something, and nothing else.
fn check_value(text: &str, value: &str) {
    let pattern = ValuePattern::parse(text);
    assert_eq!(pattern.accepts(value), accepts(text.as_bytes(), value.as_bytes()), "{text:?} {value:?}");
    for star in ["", "a", "*", value] {
        let example = pattern.example(star);
        assert!(pattern.accepts(&example), "{text:?} {example:?}");
    }
    // It is read again as the same.
    assert_eq!(ValuePattern::parse(&pattern.to_string()), pattern, "{text:?}");
    match &pattern {
        ValuePattern::Exact(exact) => assert_eq!(exact, text),
        ValuePattern::Prefix(prefix) => assert!(!prefix.contains('*') && text.starts_with(prefix.as_str()), "{text:?}"),
        ValuePattern::Pieces(pieces) => {
            assert!(pieces.len() >= 2 && pieces.iter().all(|piece| !piece.contains('*')), "{pieces:?}");
            assert!(pieces[1..pieces.len() - 1].iter().all(|piece| !piece.is_empty()), "{pieces:?}");
        }
    }
}

/// Whether the pattern accepts the value, by which beginnings of both fit each other.
fn accepts(pattern: &[u8], value: &[u8]) -> bool {
    let mut fits = vec![false; value.len() + 1];
    fits[0] = true;
    for wanted in pattern {
        let before = fits.clone();
        for length in 0..=value.len() {
            fits[length] = if *wanted == b'*' {
                before[..=length].contains(&true)
            } else {
                length > 0 && before[length - 1] && value[length - 1] == *wanted
            };
        }
    }
    fits[value.len()]
}

fn parse(text: &str) -> Option<EventPattern> {
    match EventPattern::parse(text) {
        Ok(pattern) => {
            assert_eq!(pattern.to_string(), text);
            let name = witness(&pattern);
            assert!(EventName::parse(&name).is_ok() && fits(&pattern, &name), "{text:?} fits no name");
            Some(pattern)
        }
        Err(problem) => {
            assert!(problem.len() <= 1024 && !problem.chars().any(char::is_control), "{problem:?}");
            None
        }
    }
}

/// The shortest name that a pattern is for.
fn witness(pattern: &EventPattern) -> String {
    match pattern {
        EventPattern::Any => "a".to_owned(),
        EventPattern::Exact(name) => name.clone(),
        EventPattern::Prefix(prefix) => format!("{prefix}.a"),
    }
}

/// As `lua/lib/match.lua` decides.
fn fits(pattern: &EventPattern, name: &str) -> bool {
    match pattern {
        EventPattern::Any => true,
        EventPattern::Exact(exact) => name == exact,
        EventPattern::Prefix(prefix) => {
            let prefix = format!("{prefix}.");
            name.len() > prefix.len() && name.starts_with(&prefix)
        }
    }
}
