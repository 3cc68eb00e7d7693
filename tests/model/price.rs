//! Matching and pricing, in rational arithmetic.

use num_bigint::BigUint;

use crate::operations::Actual;
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

/// Whether a value is one that is wanted: a star stands for any text. It tries each.
fn accepts(wanted: &[u8], value: &[u8]) -> bool {
    match wanted {
        [] => value.is_empty(),
        [b'*', after @ ..] => (0..=value.len()).any(|at| accepts(after, &value[at..])),
        [first, after @ ..] => value.first() == Some(first) && accepts(after, &value[1..]),
    }
}

/// Whether some rule that holds has a star inside a value.
pub fn has_star_inside(group: &Group, event: &Event, name: &str) -> bool {
    let inside = |value: &String| value.trim_end_matches('*').contains('*');
    let mut rules = group.rules.iter().filter(|rule| holds(rule, event, name));
    rules.any(|rule| rule.conditions.iter().any(|(_, values)| values.iter().any(inside)))
}

fn holds(rule: &Rule, event: &Event, name: &str) -> bool {
    let accepts = |wanted: &String, value: &str| accepts(wanted.as_bytes(), value.as_bytes());
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
    NotANumber(String),
    /// A quantity, and its parts, which exceed it.
    Exceeded(String, Vec<String>),
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
        return number(text).map(Some).ok_or_else(|| Unmeasured::NotANumber(term.name.clone()));
    }
    let one = term.name == "quantity" && unit == Unit::Count;
    Ok(term.default.or(one.then_some(MICRO)))
}

/// The first measure that the event has everything for.
pub fn choose<'a>(measures: &'a [Measure], event: &Event, unit: Unit) -> Result<&'a Measure, Unmeasured> {
    choose_by(measures, unit, |_| event.clone()).map(|(measure, _)| measure)
}

/// What a reservation has of each quantity: its event, what Extend has added to that, and what commits have named.
#[derive(Clone, Copy)]
pub struct Usage<'a> {
    pub event: &'a Event,
    pub added: &'a [Actual],
    pub named: Option<&'a Actual>,
}

impl Usage<'_> {
    /// As a measure sees it.
    fn seen(&self, terms: &[Term], unit: Unit) -> Event {
        let mut event = self.event.clone();
        for add in self.added {
            event = with_added(terms, &event, add, unit);
        }
        self.named.map_or_else(|| event.clone(), |named| parts_anew(terms, &with_actual(&event, named), named, unit))
    }

    /// By what the groups are matched: the event with the metadata of the commit.
    pub fn matched(&self) -> Event {
        self.named.map_or_else(|| self.event.clone(), |named| with_metadata(self.event, named))
    }

    /// Whether a part that no commit has named takes its default, as its whole is named.
    pub fn takes_default(&self, measure: &Measure, unit: Unit) -> bool {
        let (Measure::Terms(terms), Some(named)) = (measure, self.named) else { return false };
        self.seen(terms, unit) != with_actual(&Usage { named: None, ..*self }.seen(terms, unit), named)
    }
}

/// The same of a reservation, and the event as that measure sees it.
pub fn choose_used<'a>(
    measures: &'a [Measure],
    usage: Usage<'_>,
    unit: Unit,
) -> Result<(&'a Measure, Event), Unmeasured> {
    choose_by(measures, unit, |terms| usage.seen(terms, unit))
}

/// The event with what was really used; what the actual does not name stays as it was.
fn with_actual(event: &Event, actual: &Actual) -> Event {
    let mut event = with_metadata(event, actual);
    if let Some(quantity) = actual.quantity {
        event.quantity = Some(quantity);
        event.quantities.remove("quantity");
    }
    event.quantities.extend(actual.quantities.clone());
    event
}

/// The event with the metadata of a commit. A measured name in it counts as a named quantity, and one that is no number is none.
fn with_metadata(event: &Event, actual: &Actual) -> Event {
    let mut event = event.clone();
    for (name, text) in &actual.metadata {
        event.metadata.insert(name.clone(), text.clone());
        event.quantities.remove(name);
        if name == "quantity" {
            event.quantity = None;
        }
        if let Some(number) = number(text) {
            event.quantities.insert(name.clone(), number);
        }
    }
    event
}

/// The event with more of some quantities. What it lacks is added to the default.
fn with_added(terms: &[Term], event: &Event, add: &Actual, unit: Unit) -> Event {
    let mut more = event.clone();
    for term in terms.iter().filter(|term| add.names(&term.name)) {
        if let Ok(there) = value(term, event, unit) {
            more.quantities.insert(term.name.clone(), there.unwrap_or_default() + add.of(&term.name));
        }
    }
    more
}

/// The smallest further charge of a group: the price of the smallest number of one of its quantities. None: its charge cannot grow.
pub fn smallest_charge(measure: &Measure, unit: Unit) -> Option<u128> {
    let Measure::Terms(terms) = measure else { return None };
    let grows = terms.iter().filter(|term| term.weight > 0);
    grows.map(|term| (term.weight * unit.scale()).div_ceil(MICRO * PICO)).min()
}

fn choose_by(
    measures: &[Measure],
    unit: Unit,
    seen: impl Fn(&[Term]) -> Event,
) -> Result<(&Measure, Event), Unmeasured> {
    let mut missing = None;
    for measure in measures {
        let Measure::Terms(terms) = measure else { return Ok((measure, seen(&[]))) };
        let event = seen(terms);
        let mut complete = true;
        for term in terms {
            if value(term, &event, unit)?.is_none() {
                complete = false;
                missing = missing.or(Some(term.name.clone()));
            }
        }
        if complete {
            return exceeded(terms, |term| value(term, &event, unit).ok().flatten().unwrap_or_default())
                .map_or(Ok((measure, event)), Err);
        }
    }
    Err(Unmeasured::Missing(missing.expect("a group that matches has a measure")))
}

/// The terms that are contained in this one, not in others of its parts.
fn parts<'a>(terms: &'a [Term], whole: &str) -> impl Iterator<Item = &'a Term> {
    terms.iter().filter(move |term| term.part_of.as_deref() == Some(whole))
}

pub fn has_parts(measure: &Measure) -> bool {
    matches!(measure, Measure::Terms(terms) if terms.iter().any(|term| term.part_of.is_some()))
}

/// All terms, those that contain others before these.
fn outermost_first(terms: &[Term]) -> Vec<&Term> {
    let (mut sorted, mut level) = (Vec::new(), terms.iter().filter(|term| term.part_of.is_none()).collect::<Vec<_>>());
    while !level.is_empty() {
        sorted.extend(level.iter().copied());
        let is_next = |term: &&Term| level.iter().any(|outer| term.part_of.as_ref() == Some(&outer.name));
        level = terms.iter().filter(is_next).collect();
    }
    sorted
}

/// The first whole that is less than its parts, if the terms have these amounts.
pub fn exceeded(terms: &[Term], amount: impl Fn(&Term) -> u128) -> Option<Unmeasured> {
    let is_less = |whole: &&&Term| amount(whole) < parts(terms, &whole.name).map(&amount).sum();
    outermost_first(terms).iter().find(is_less).map(|whole| {
        let parts = parts(terms, &whole.name).map(|part| part.name.clone());
        Unmeasured::Exceeded(whole.name.clone(), parts.collect())
    })
}

/// The event of a commit: where `actual` names a whole, parts that it does not name are what they are in an event without them, else 0.
fn parts_anew(terms: &[Term], event: &Event, actual: &Actual, unit: Unit) -> Event {
    let mut event = event.clone();
    let mut anew = Vec::new();
    for term in outermost_first(terms) {
        let Some(whole) = &term.part_of else { continue };
        if !actual.names(&term.name) && (actual.names(whole) || anew.contains(whole)) {
            let default = value(term, &Event::default(), unit).ok().flatten();
            event.quantities.insert(term.name.clone(), default.unwrap_or_default());
            anew.push(term.name.clone());
        }
    }
    event
}

/// The event with parts that exceed their whole lowered to what there is of it; the first ones get it.
pub fn with_parts_lowered(terms: &[Term], event: &Event, unit: Unit) -> Event {
    let mut event = event.clone();
    for whole in outermost_first(terms) {
        let mut rest = value(whole, &event, unit).ok().flatten().unwrap_or_default();
        for part in parts(terms, &whole.name) {
            let there = value(part, &event, unit).ok().flatten().unwrap_or_default();
            if there > rest {
                event.quantities.insert(part.name.clone(), rest);
            }
            rest = rest.saturating_sub(there);
        }
    }
    event
}

/// The smallest event that a measure takes: of what is missing, the smallest number that can be sent.
pub fn smallest(terms: &[Term], event: &Event, unit: Unit) -> Event {
    let mut smallest = event.clone();
    for term in outermost_first(terms).into_iter().rev() {
        let there = value(term, event, unit).ok().flatten().unwrap_or(1);
        let contained = parts(terms, &term.name).map(|part| smallest.quantities[&part.name]).sum();
        smallest.quantities.insert(term.name.clone(), there.max(contained));
    }
    smallest
}

/// Whether the event itself names this quantity.
pub fn names(term: &Term, event: &Event) -> bool {
    event.quantities.contains_key(&term.name) || (term.name == "quantity" && event.quantity.is_some())
}

/// In the unit's smallest, rounded up once, or down; `None` above the largest counter.
pub fn charge(measure: &Measure, event: &Event, unit: Unit, down: bool) -> Option<u128> {
    let Measure::Terms(terms) = measure else { return Some(1) };
    let value = |term: &Term| value(term, event, unit).ok().flatten().expect("it was chosen for that");
    let own = |term: &Term| value(term) - parts(terms, &term.name).map(value).sum::<u128>();
    let sum: BigUint = terms.iter().map(|term| BigUint::from(own(term)) * term.weight * unit.scale()).sum();
    let one = BigUint::from(MICRO * PICO);
    let units = if down { sum / one } else { (sum + &one - 1_u32) / one };
    u128::try_from(units).ok().filter(|units| *units <= unit.most())
}
