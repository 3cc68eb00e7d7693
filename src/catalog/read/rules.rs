//! Reads the rules of a group from the tree: which events count, and how much.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;

use crate::domain::amount::{Quantity, Unit, Weight};
use crate::domain::event::QUANTITY;
use crate::domain::pattern::{EventPattern, ValuePattern};
use crate::domain::plan::{Condition, Measure, Rule, Term, containers, whole_of, wholes};

use super::walk::join;
use super::{MAX_ID_BYTES, MAX_TEXT_BYTES, Reader, exact};
use crate::catalog::problem_text::{is_plain_decimal, nearest, one_of, quoted, shown};
use crate::catalog::yaml::{Node, Value};

const MAX_RULES: usize = 100;
const MAX_TERMS: usize = 16;
const MAX_CONDITIONS: usize = 32;
const MAX_VALUES: usize = 100;

impl Reader<'_> {
    pub(super) fn rules(&mut self, node: &Node, path: &str, unit: Option<Unit>) -> Option<Vec<Rule>> {
        let items = self.list(node, path, MAX_RULES)?;
        let mut rules: Vec<Option<Rule>> = Vec::new();
        let mut reaches: Vec<Option<Reach>> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let rule = self.rule(item, &path);
            let reach = rule.as_ref().map(reach);
            let hidden =
                |reach| reaches.iter().position(|earlier| earlier.as_ref().is_some_and(|it| hides(it, reach, unit)));
            if let Some(earlier) = reach.as_ref().and_then(hidden) {
                // The same measure hides this one in either order.
                let same =
                    reaches[earlier].as_ref().map(|earlier| &earlier.measure) == reach.as_ref().map(|it| &it.measure);
                let instead = if same { "" } else { ", or write this one first" };
                let message =
                    format!("is never reached: rule {earlier} applies to the same events; remove one of them{instead}");
                self.report(item.line, &path, message);
            }
            rules.push(rule);
            reaches.push(reach);
        }
        rules.into_iter().collect()
    }

    fn rule(&mut self, node: &Node, path: &str) -> Option<Rule> {
        let fields = self.fields(node, path, &["event", "metadata", "measure"])?;
        let event = self.required(&fields, "event").and_then(|node| self.event(node, &fields.path_of("event")));
        let conditions = match fields.get("metadata") {
            Some(node) => self.conditions(node, &fields.path_of("metadata")),
            None => Some(Vec::new()),
        };
        let measure = match fields.get("measure") {
            Some(node) => self.measure(node, &fields.path_of("measure")),
            None => Some(Measure::Terms(vec![quantity()])),
        };
        Some(Rule { event: event?, conditions: conditions?, measure: measure? })
    }

    fn event(&mut self, node: &Node, path: &str) -> Option<EventPattern> {
        let text = self.text(node, path)?;
        if text.ends_with(".refund") {
            let message = "names a refund; refunds are routed by the rules of the event that they refund: remove it";
            self.report(node.line, path, message);
            return None;
        }
        EventPattern::parse(&text).map_err(|message| self.report(node.line, path, message)).ok()
    }

    fn conditions(&mut self, node: &Node, path: &str) -> Option<Vec<Condition>> {
        let entries = self.map(node, path)?;
        if entries.len() > MAX_CONDITIONS {
            let message = format!("has more than {MAX_CONDITIONS} keys, as no event has more; keep at most so many");
            self.report(node.line, path, message);
            return None;
        }
        let conditions = entries.iter().map(|entry| {
            let path = join(path, &entry.key);
            if entry.key.is_empty() || entry.key.len() > MAX_ID_BYTES {
                self.report(entry.line, &path, format!("a metadata key must have 1 to {MAX_ID_BYTES} bytes"));
            }
            self.refuse_star(&entry.key, entry.line, &path, "a metadata key");
            let values: Vec<(String, &Node)> = match &entry.value.value {
                Value::List(_) => {
                    let items = self.list(&entry.value, &path, MAX_VALUES)?.iter().enumerate();
                    items.map(|(index, item)| (format!("{path}[{index}]"), item)).collect()
                }
                _ => vec![(path, &entry.value)],
            };
            let values = values.into_iter().map(|(path, value_node)| {
                let text = self.scalar(value_node, &path, "a value, perhaps with stars in it, or a list of these")?;
                if text.len() > MAX_TEXT_BYTES {
                    let message = format!("has {} bytes; a metadata value has at most {MAX_TEXT_BYTES}", text.len());
                    self.report(value_node.line, &path, message);
                }
                Some(ValuePattern::parse(text))
            });
            let values = values.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()?;
            Some(Condition { key: entry.key.clone(), values })
        });
        conditions.collect::<Vec<_>>().into_iter().collect()
    }

    fn measure(&mut self, node: &Node, path: &str) -> Option<Measure> {
        // The terms in the long form, which may have parts.
        let mut long: Vec<(&Node, String)> = Vec::new();
        let terms: Vec<Option<Term>> = match &node.value {
            Value::Scalar { text, .. } if text == QUANTITY => vec![Some(quantity())],
            Value::Scalar { text, .. } if text == "events" => return Some(Measure::Events),
            Value::Scalar { .. } => {
                let message =
                    format!("is {}; write `quantity`, `events`, or a map from quantity to weight", node.describe());
                self.report(node.line, path, message);
                return None;
            }
            Value::Refused => return None,
            Value::List(items) => {
                long = items.iter().enumerate().map(|(index, item)| (item, format!("{path}[{index}]"))).collect();
                long.iter().map(|(item, path)| self.term(item, path)).collect()
            }
            Value::Map(entries) if entries.iter().any(|entry| entry.key == "name") => {
                long = vec![(node, path.to_owned())];
                vec![self.term(node, path)]
            }
            Value::Map(_) => {
                let entries = self.map(node, path)?;
                // The same name twice has been told already, as the same key twice.
                let mut seen = HashSet::new();
                let entries = entries.iter().filter(|entry| seen.insert(&entry.key));
                let terms = entries.map(|entry| {
                    let weight = self.weight(&entry.value, &join(path, &entry.key))?;
                    Some(Term { name: entry.key.clone(), weight, default: None, part_of: None })
                });
                terms.collect()
            }
        };
        if terms.is_empty() {
            self.report(node.line, path, "is empty; write at least one quantity");
        }
        if terms.len() > MAX_TERMS {
            self.report(
                node.line,
                path,
                format!("has more than {MAX_TERMS} terms, as no event has more; keep at most so many"),
            );
        }
        let terms = terms.into_iter().collect::<Option<Vec<_>>>()?;
        let mut seen = HashSet::new();
        for term in &terms {
            if term.name.is_empty() || term.name.len() > MAX_ID_BYTES {
                self.report(node.line, path, format!("a quantity's name must have 1 to {MAX_ID_BYTES} bytes"));
            }
            self.refuse_star(&term.name, node.line, path, "a quantity's name");
            if !seen.insert(&term.name) {
                self.report(node.line, path, format!("names {} twice; keep one", quoted(&term.name)));
            }
        }
        if seen.len() == terms.len() {
            self.check_parts(&long, &terms);
        }
        Some(Measure::Terms(terms))
    }

    /// Checks that parts are parts of other terms, and not of themselves, and that the defaults of parts fit into that of their whole. `long` has
    /// the nodes of the terms, and their paths.
    fn check_parts(&mut self, long: &[(&Node, String)], terms: &[Term]) {
        for (index, (part, (node, path))) in terms.iter().zip(long).enumerate() {
            let Some(name) = &part.part_of else { continue };
            let line = line_of(node, "part_of");
            let path = join(path, "part_of");
            match whole_of(terms, index) {
                None => {
                    let others = terms.iter().map(|term| &*term.name).filter(|other| *other != part.name);
                    let others: Vec<_> = others.collect();
                    let mut message = format!("is {}, which this measure does not count; ", quoted(name));
                    let _: std::fmt::Result = match nearest(&others, name) {
                        _ if others.is_empty() => write!(message, "add it as another term of this measure"),
                        Some(near) => write!(message, "did you mean {}?", quoted(near)),
                        None => write!(message, "write {}", shown(&one_of(&others))),
                    };
                    self.report(line, &path, message);
                }
                Some(whole) if whole == index => {
                    let message = format!("is {} itself; write the quantity that contains it", quoted(name));
                    self.report(line, &path, message);
                }
                // Each circle is told once.
                Some(_) if containers(terms, index).any(|other| other == index) => {
                    if containers(terms, index).all(|other| other >= index) {
                        let part = quoted(&part.name);
                        let message =
                            format!("makes {part} a part of itself, through {}; remove one `part_of`", quoted(name));
                        self.report(line, &path, message);
                    }
                }
                Some(_) => {}
            }
        }
        let micros =
            |quantity: Quantity| u128::from(quantity.whole_part()) * 1_000_000 + u128::from(quantity.micro_part());
        for (whole, parts) in wholes(terms) {
            let Some(default) = terms[whole].default else { continue };
            let sum: u128 = parts.iter().filter_map(|part| terms[*part].default).map(micros).sum();
            if sum > micros(default) {
                let (node, path) = &long[whole];
                let message =
                    format!("is {default}, but the defaults of its parts add up to more; raise it, or lower those");
                self.report(line_of(node, "default"), &join(path, "default"), message);
            }
        }
    }

    fn term(&mut self, node: &Node, path: &str) -> Option<Term> {
        let fields = self.fields(node, path, &["name", "weight", "default", "part_of"])?;
        let name = self.required(&fields, "name").and_then(|node| self.term_name(node, &fields.path_of("name")));
        let weight = match fields.get("weight") {
            Some(node) => self.weight(node, &fields.path_of("weight")),
            None => Some(Weight::ONE),
        };
        let default = match fields.get("default") {
            Some(node) => Some(self.default_quantity(node, &fields.path_of("default"))?),
            None => None,
        };
        let part_of = match fields.get("part_of") {
            Some(node) => Some(self.text(node, &fields.path_of("part_of"))?),
            None => None,
        };
        Some(Term { name: name?, weight: weight?, default, part_of })
    }

    /// Refuses a star in keys and names. They are not patterns: one with a star would match only itself.
    fn refuse_star(&mut self, text: &str, line: usize, path: &str, what: &str) {
        if text.contains('*') {
            let message = format!("{} is {what}, which takes no star: write each one that is meant", quoted(text));
            self.report(line, path, message);
        }
    }

    fn weight(&mut self, node: &Node, path: &str) -> Option<Weight> {
        let text = self.decimal(node, path, "a weight")?;
        let read = Weight::from_decimal(text);
        if read.is_err() {
            let message = format!("is {}; write a weight of at most 1000000, with at most 12 decimals", shown(text));
            self.report(node.line, path, message);
        }
        read.ok()
    }

    fn default_quantity(&mut self, node: &Node, path: &str) -> Option<Quantity> {
        let text = self.decimal(node, path, "a number")?;
        let read = exact(text);
        if read.is_none() {
            let message = format!(
                "is {}; write at most 6 decimals below 8000000000, or a whole number up to 9007199254740991",
                shown(text)
            );
            self.report(node.line, path, message);
        }
        read
    }

    /// `{ name: 1 }` was meant as a weight of the quantity `name`; its long form says so.
    fn term_name(&mut self, node: &Node, path: &str) -> Option<String> {
        if let Value::Scalar { text, quoted: false } = &node.value
            && is_plain_decimal(text)
        {
            let message = format!(
                "is the number {0}; write a quantity's name, and for one called `name`: {{ name: name, weight: {0} }}",
                shown(text)
            );
            self.report(node.line, path, message);
            return None;
        }
        self.text(node, path)
    }
}

fn quantity() -> Term {
    Term { name: QUANTITY.to_owned(), weight: Weight::ONE, default: None, part_of: None }
}

/// The line of the value of a key.
fn line_of(node: &Node, key: &str) -> usize {
    let Value::Map(entries) = &node.value else { return node.line };
    entries.iter().find(|entry| entry.key == key).map_or(node.line, |entry| entry.value.line)
}

/// The events that a rule applies to, however its conditions are ordered, and what it measures.
struct Reach {
    event: EventPattern,
    conditions: BTreeSet<(String, BTreeSet<ValuePattern>)>,
    measure: Measure,
}

fn reach(rule: &Rule) -> Reach {
    let condition =
        |condition: &Condition| (condition.key.clone(), condition.values.iter().cloned().collect::<BTreeSet<_>>());
    Reach {
        event: rule.event.clone(),
        conditions: rule.conditions.iter().map(condition).collect(),
        measure: rule.measure.clone(),
    }
}

/// Returns whether `earlier` applies whenever `later` does.
fn hides(earlier: &Reach, later: &Reach, unit: Option<Unit>) -> bool {
    let has_default = |term: &Term| match unit {
        Some(unit) => term.default_in(unit).is_some(),
        None => term.default.is_some(),
    };
    let always = match &earlier.measure {
        Measure::Events => true,
        Measure::Terms(terms) => terms.iter().all(has_default),
    };
    let same = earlier.event == later.event && earlier.conditions == later.conditions;
    same && (always || earlier.measure == later.measure)
}
