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

/// Why no rule of a group that matches can measure the event.
#[derive(Debug)]
pub enum Unmeasured {
    /// The first quantity that is missing.
    Missing(String),
    /// A measured name whose value in the metadata is no decimal number.
    NotANumber,
}

/// The number that an event says of a quantity, if it says one.
pub fn value_of(name: &str, event: &Event) -> Option<u128> {
    let own = if name == "quantity" { event.quantity } else { None };
    let named = event.quantities.get(name).copied().or(own);
    named.or_else(|| event.metadata.get(name).and_then(|text| number(text)))
}

/// What the event has of a quantity: its own, else that of the metadata, else the default of the rule, else, for `quantity`, 1 where
/// the unit is `count`.
fn value(term: &Term, event: &Event, unit: Unit) -> Result<Option<u128>, Unmeasured> {
    let own = if term.name == "quantity" { event.quantity } else { None };
    let named = event.quantities.get(&term.name).copied().or(own);
    if named.is_some() {
        return Ok(named);
    }
    if let Some(text) = event.metadata.get(&term.name) {
        return number(text).map(Some).ok_or(Unmeasured::NotANumber);
    }
    let one = term.name == "quantity" && unit == Unit::Count;
    Ok(term.default.or(one.then_some(MICRO)))
}

/// The first measure that the event has everything for.
pub fn choose<'a>(measures: &'a [Measure], event: &Event, unit: Unit) -> Result<&'a Measure, Unmeasured> {
    let mut missing = None;
    for measure in measures {
        let Measure::Terms(terms) = measure else { return Ok(measure) };
        let mut complete = true;
        for term in terms {
            if value(term, event, unit)?.is_none() {
                complete = false;
                missing = missing.or(Some(term.name.clone()));
            }
        }
        if complete {
            return Ok(measure);
        }
    }
    Err(Unmeasured::Missing(missing.expect("a group that matches has a measure")))
}

/// Whether the event itself names this quantity.
pub fn names(term: &Term, event: &Event) -> bool {
    event.quantities.contains_key(&term.name) || (term.name == "quantity" && event.quantity.is_some())
}

/// In the unit's smallest, rounded up once, or down; `None` above the largest counter.
pub fn charge(measure: &Measure, event: &Event, unit: Unit, down: bool) -> Option<u128> {
    let Measure::Terms(terms) = measure else { return Some(1) };
    let value = |term: &Term| value(term, event, unit).ok().flatten().expect("it was chosen for that");
    let sum: BigUint = terms.iter().map(|term| BigUint::from(value(term)) * term.weight * unit.scale()).sum();
    let one = BigUint::from(MICRO * PICO);
    let units = if down { sum / one } else { (sum + &one - 1_u32) / one };
    u128::try_from(units).ok().filter(|units| *units <= unit.most())
}
