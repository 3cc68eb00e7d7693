//! Matching and pricing, in rational arithmetic.

use num_bigint::BigUint;

use crate::sketch::{Event, Group, MICRO, Measure, PICO, Rule, Term, Unit};

/// Whether `pattern` is for events of this name.
pub fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some("") => true,
        // One or more further segments.
        Some(prefix) => name.len() > prefix.len() && name.starts_with(prefix),
        None => pattern == name,
    }
}

/// Whether some name fits both: an example of the narrower one does.
pub fn overlap(one: &str, two: &str) -> bool {
    let example = |pattern: &str| pattern.replace('*', "x");
    fits(one, &example(two)) || fits(two, &example(one))
}

fn holds(rule: &Rule, event: &Event, name: &str) -> bool {
    let accepts = |wanted: &String, value: &str| match wanted.strip_suffix('*') {
        Some(prefix) => value.starts_with(prefix),
        None => wanted == value,
    };
    fits(&rule.pattern, name)
        && rule.conditions.iter().all(|(key, values)| {
            event.metadata.get(key).is_some_and(|value| values.iter().any(|wanted| accepts(wanted, value)))
        })
}

/// The measures of the rules of `group` that hold by name and metadata; empty: the group does not match.
pub fn measures(group: &Group, event: &Event, name: &str) -> Vec<Measure> {
    group.rules.iter().filter(|rule| holds(rule, event, name)).map(|rule| rule.measure.clone()).collect()
}

/// A value that is a decimal number, in millionths.
fn number(text: &str) -> Option<u128> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) {
        return None;
    }
    Some(whole.parse::<u128>().ok()? * MICRO + format!("{decimals:0<6}").parse::<u128>().ok()?)
}

/// What an event has for a term.
enum Value {
    Known(u128),
    Missing,
    /// Its metadata has something that is no decimal number.
    Unreadable,
}

fn value(term: &Term, event: &Event, unit: Unit) -> Value {
    let own = if term.name == "quantity" { event.quantity } else { None };
    let named = event.quantities.get(&term.name).copied();
    // An absent quantity means 1, but only where things are counted.
    let implied = (term.name == "quantity" && unit == Unit::Count).then_some(MICRO);
    match (named.or(own), event.metadata.get(&term.name)) {
        (Some(value), _) => Value::Known(value),
        (None, Some(text)) => number(text).map_or(Value::Unreadable, Value::Known),
        (None, None) => term.default.or(implied).map_or(Value::Missing, Value::Known),
    }
}

/// Why an event has no price.
pub enum Unpriced {
    /// The first quantity that is missing.
    Missing(String),
    /// The name of what is no number.
    Unreadable,
}

/// The first measure that the event has everything for; else the first quantity that is missing.
pub fn choose<'a>(measures: &'a [Measure], event: &Event, unit: Unit) -> Result<&'a Measure, Unpriced> {
    let mut missing = None;
    for measure in measures {
        let Measure::Terms(terms) = measure else { return Ok(measure) };
        if terms.iter().any(|term| matches!(value(term, event, unit), Value::Unreadable)) {
            return Err(Unpriced::Unreadable);
        }
        match terms.iter().find(|term| matches!(value(term, event, unit), Value::Missing)) {
            None => return Ok(measure),
            Some(term) => missing = missing.or(Some(term.name.clone())),
        }
    }
    Err(Unpriced::Missing(missing.expect("a group that matches has a measure")))
}

/// In the unit's smallest, rounded up once, or down; `None` above the largest counter.
pub fn charge(measure: &Measure, event: &Event, unit: Unit, down: bool) -> Option<u128> {
    let Measure::Terms(terms) = measure else { return Some(1) };
    let known = |term: &Term| match value(term, event, unit) {
        Value::Known(value) => BigUint::from(value),
        Value::Missing | Value::Unreadable => unreachable!("it was chosen for that"),
    };
    let sum: BigUint = terms.iter().map(|term| known(term) * term.weight * unit.scale()).sum();
    let one = BigUint::from(MICRO * PICO);
    let units = if down { sum / one } else { (sum + &one - 1_u32) / one };
    u128::try_from(units).ok().filter(|units| *units <= unit.most())
}
