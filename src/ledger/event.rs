//! An event, as the scripts price it: of what a caller sends, what the plan asks for.

use std::collections::BTreeMap;

use super::formats;
use super::plan::CompiledPlan;
use crate::domain::amount::Quantity;
use crate::domain::event::{Actual, Event, QUANTITY};

/// An event under a name, for this plan.
#[must_use]
pub fn priced(plan: Option<&CompiledPlan>, name: &str, event: &Event) -> formats::Event {
    formats::Event { what: what(plan, name, event), quantities: measured(plan, event) }
}

/// The quantities of an event that this plan measures, for a reservation whose event is known by its name alone.
pub(super) fn refunded(plan: Option<&CompiledPlan>, name: &str, event: &Event) -> formats::Event {
    formats::Event { what: what(None, name, event), quantities: measured(plan, event) }
}

/// Encodes the actual usage, as far as the plan measures it.
#[must_use]
pub fn used(plan: Option<&CompiledPlan>, actual: &Actual) -> Vec<u8> {
    let Actual { quantity, quantities, metadata } = actual;
    values(plan, *quantity, quantities, metadata)
}

/// Encodes the metadata of the actual usage, as far as a condition of the plan asks for it.
#[must_use]
pub fn used_metadata(plan: Option<&CompiledPlan>, actual: &Actual) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    write_asked(&mut bytes, plan, &actual.metadata);
    bytes
}

/// The name, and then the metadata for which a condition of the plan asks: the same bytes for the same ones.
fn what(plan: Option<&CompiledPlan>, name: &str, event: &Event) -> Vec<u8> {
    let mut what = Vec::with_capacity(64);
    write_text(&mut what, name);
    write_asked(&mut what, plan, &event.metadata);
    what
}

/// Appends the metadata for which a condition of the plan asks.
fn write_asked(bytes: &mut Vec<u8>, plan: Option<&CompiledPlan>, metadata: &BTreeMap<String, String>) {
    let asked = plan.map_or(&[][..], |plan| &plan.asked);
    let found = || asked.iter().filter_map(|key| Some((key, metadata.get(key)?)));
    write_map_of(bytes, found().count());
    for (key, value) in found() {
        write_text(bytes, key);
        write_text(bytes, value);
    }
}

/// The value of an event for a measured name.
enum Value {
    Number(Quantity),
    /// Metadata that is not a decimal number. It is neither absent nor anything to count.
    NoNumber,
}

fn measured(plan: Option<&CompiledPlan>, event: &Event) -> Vec<u8> {
    values(plan, event.quantity, &event.quantities, &event.metadata)
}

/// Each of the plan's names is looked up in the quantities, and then in the metadata.
fn values(
    plan: Option<&CompiledPlan>,
    quantity: Option<Quantity>,
    named: &BTreeMap<String, Quantity>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    quantities(plan, |name| {
        let own = || quantity.filter(|_| name == QUANTITY);
        if let Some(quantity) = named.get(name).copied().or_else(own) {
            return Some(Value::Number(quantity));
        }
        let text = metadata.get(name)?;
        Some(Quantity::from_decimal(text).map_or(Value::NoNumber, Value::Number))
    })
}

/// A list of what each of the plan's names has: a value, or `false`. It ends with the last value.
fn quantities(plan: Option<&CompiledPlan>, value_of: impl Fn(&str) -> Option<Value>) -> Vec<u8> {
    // The most that the head of a list of one byte can say.
    const FEW: u8 = 15;
    const FALSE: u8 = 0xc2;
    let names = plan.map_or(&[][..], |plan| &plan.names);
    let mut list = Vec::with_capacity(32);
    list.push(0x90);
    let mut count = 0;
    for (place, name) in (1..).zip(names) {
        let Some(value) = value_of(name) else { continue };
        list.extend(std::iter::repeat_n(FALSE, place - 1 - count));
        match value {
            Value::Number(quantity) => write_quantity(&mut list, quantity),
            Value::NoNumber => list.push(0xc3),
        }
        count = place;
    }
    match u8::try_from(count) {
        Ok(few @ ..=FEW) => list[0] |= few,
        _ => {
            let [.., third, second, high, low] = count.to_be_bytes();
            drop(list.splice(0..1, [0xdd, third, second, high, low]));
        }
    }
    list
}

/// Appends a plain integer, or a pair with the millionths.
pub(super) fn write_quantity(bytes: &mut Vec<u8>, quantity: Quantity) {
    let micro = quantity.micro_part();
    if micro > 0 {
        bytes.push(0x92);
    }
    write_number(bytes, quantity.whole_part());
    if micro > 0 {
        write_number(bytes, micro.into());
    }
}

/// Appends the head of a map with `count` entries.
pub(super) fn write_map_of(bytes: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("an event has a few entries");
    rmp::encode::write_map_len(bytes, count).expect("memory takes it");
}

pub(super) fn write_number(bytes: &mut Vec<u8>, number: u64) {
    rmp::encode::write_uint(bytes, number).expect("memory takes it");
}

pub(super) fn write_text(bytes: &mut Vec<u8>, text: &str) {
    rmp::encode::write_str(bytes, text).expect("memory takes it");
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::catalog::parse;
    use crate::domain::event::EventName;

    /// A plan that measures these names, with conditions on `model` and `region`.
    fn plan(names: &[String]) -> CompiledPlan {
        let measure: Vec<_> = names.iter().map(|name| format!("{name}: 1")).collect();
        let metadata = "{ region: eu, model: [a, b-*] }";
        let rule = format!("{{ event: e, metadata: {metadata}, measure: {{ {} }} }}", measure.join(", "));
        let group = format!("{{ id: g, unit: tokens, period: daily, quota: 1, match: [ {rule} ] }}");
        let text = format!("plans: {{ p: {{ limit_groups: [ {group} ] }} }}");
        let catalog = parse(&text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
        CompiledPlan::of(&catalog.plans()[0])
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn number(text: &str) -> Quantity {
        Quantity::from_decimal(text).unwrap()
    }

    fn event(quantity: Option<&str>, quantities: &[(&str, &str)], metadata: &[(&str, &str)]) -> Event {
        let quantities = quantities.iter().map(|(name, value)| ((*name).to_owned(), number(value))).collect();
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Event::new(EventName::parse("e").unwrap(), quantity.map(number), quantities, metadata)
    }

    fn read(packed: &[u8]) -> Json {
        rmp_serde::from_slice(packed).unwrap()
    }

    #[test]
    fn the_metadata_that_conditions_ask_for_travels_and_no_other() {
        let plan = plan(&names(&["in"]));
        let event = event(None, &[], &[("user", "u"), ("region", "eu"), ("model", "a"), ("in", "5")]);
        let packed = priced(Some(&plan), "e.f", &event);
        assert_eq!(packed.what, b"\xa3e.f\x82\xa5model\xa1a\xa6region\xa2eu", "sorted by key");
        assert_eq!(read(&packed.quantities), json!([5]));
        // Without a plan, nothing is asked for.
        assert_eq!(priced(None, "e", &event).what, b"\xa1e\x80");
        assert_eq!(priced(None, "e", &event).quantities, b"\x90");
        let packed = refunded(Some(&plan), "e", &event);
        assert_eq!((&packed.what[..], read(&packed.quantities)), (&b"\xa1e\x80"[..], json!([5])));
    }

    #[test]
    fn a_name_is_looked_up_in_the_quantities_then_in_the_quantity_then_in_the_metadata() {
        let plan = plan(&names(&["debt", "in", "out", "quantity", "seconds"]));
        let measured = |quantity, quantities: &[_], metadata: &[_]| {
            read(&priced(Some(&plan), "e", &event(quantity, quantities, metadata)).quantities)
        };
        assert_eq!(measured(None, &[], &[]), json!([]));
        assert_eq!(measured(Some("2"), &[("out", "1.5"), ("other", "4")], &[]), json!([false, false, [1, 500_000], 2]));
        assert_eq!(measured(Some("2"), &[("quantity", "3")], &[("quantity", "4")]), json!([false, false, false, 3]));
        assert_eq!(measured(Some("2"), &[], &[("quantity", "4")]), json!([false, false, false, 2]));
        assert_eq!(
            measured(None, &[], &[("quantity", "4"), ("seconds", "0.25")]),
            json!([false, false, false, 4, [0, 250_000]])
        );
        assert_eq!(measured(None, &[], &[("debt", "-1"), ("in", "1,000")]), json!([true, true]));
        assert_eq!(
            measured(None, &[("in", "9007199254740991")], &[("in", "x")]),
            json!([false, 9_007_199_254_740_991_u64])
        );
    }

    #[test]
    fn what_was_used_is_what_the_plan_measures_of_it() {
        let plan = plan(&names(&["in", "quantity"]));
        let actual = |quantity: Option<&str>, quantities: &[(&str, &str)]| {
            let quantities = quantities.iter().map(|(name, value)| ((*name).to_owned(), number(value))).collect();
            Actual { quantity: quantity.map(number), quantities, ..Actual::default() }
        };
        let used = |actual| read(&super::used(Some(&plan), &actual));
        assert_eq!(used(actual(None, &[])), json!([]));
        assert_eq!(used(actual(Some("2"), &[("in", "0"), ("other", "1")])), json!([0, 2]));
        assert_eq!(used(actual(Some("2"), &[("quantity", "3")])), json!([false, 3]));
        assert_eq!(super::used(None, &actual(Some("2"), &[])), b"\x90");
    }

    #[test]
    fn the_largest_plan_leaves_room_for_every_event() {
        // So many names as a catalog may measure in one plan; one more is refused.
        let catalog = |count: usize| {
            let terms = |rule: &[String]| format!("{{ event: e, measure: {{ {} }} }}", rule.join(", "));
            let names: Vec<_> = (0..count).map(|index| format!("n{index:05}: 1")).collect();
            let rules: Vec<_> = names.chunks(16).map(terms).collect();
            let group = |(index, rules): (usize, &[String])| {
                format!("{{ id: g{index}, unit: tokens, period: daily, quota: 1, match: [ {} ] }}", rules.join(", "))
            };
            let groups: Vec<_> = rules.chunks(100).enumerate().map(group).collect();
            parse(&format!("plans: {{ p: {{ limit_groups: [ {} ] }} }}", groups.join(", ")), jiff::tz::db())
        };
        let plan = CompiledPlan::of(&catalog(10_000).unwrap().plans()[0]);
        let last: Vec<_> = (9_984..10_000).map(|index| format!("n{index:05}")).collect();
        let largest: Vec<_> = last.iter().map(|name| (name.as_str(), "7999999999.999999")).collect();
        let mut bytes = Vec::new();
        priced(Some(&plan), "e", &event(None, &largest, &[])).write(&mut bytes);
        assert!((10_000..1 << 16).contains(&bytes.len()), "{} bytes", bytes.len());
        let told = catalog(10_001).unwrap_err().to_string();
        assert_eq!(told, "line 1, plans.p: measures more than 10000 names in all; keep at most so many");
    }

    #[test]
    fn long_lists_are_as_well_formed_as_short_ones() {
        for count in [7, 15, 16] {
            let names: Vec<_> = (0..count).map(|index| format!("n{index:02}")).collect();
            let plan = plan(&names);
            let all: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
            let list = read(&priced(Some(&plan), "e", &event(None, &all, &[])).quantities);
            let expected = vec![1; count];
            assert_eq!(list, json!(expected), "{count}");
        }
    }
}
