//! Patterns of event names: what they say of each other is what names say of them.
//!
//! Two patterns in two lines; and two short ones over few letters, against every short name.

use std::sync::LazyLock;

use tollgate::domain::event::EventName;
use tollgate::domain::pattern::{EventPattern, MisplacedStar, ValuePattern};

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
    let value = match ValuePattern::parse(&text) {
        Ok(ValuePattern::Exact(value)) => value,
        Ok(ValuePattern::Prefix(prefix)) => format!("{prefix}*"),
        Err(MisplacedStar) => {
            assert!(text.contains('*'), "{text:?} has no star");
            return;
        }
    };
    assert_eq!(value, text);
    assert!(value.find('*').is_none_or(|at| at + 1 == value.len()), "{value:?}");
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
