//! Finds parts of a catalog that are valid but perhaps not intended: an event that a plan prices for some metadata
//! values, and lets through for nothing with others.

use std::collections::BTreeMap;

use crate::domain::amount::Unit;
use crate::domain::plan::{Condition, LimitGroup, Rule};

/// The number of combinations of a rule's values that are tried.
const MOST_TRIED: usize = 1_000;

/// A value that no catalog lists. It stands for a model that came out yesterday, for example.
const UNLISTED: &str = "unlisted";

/// A rule that prices an event for some metadata only, and an event that therefore passes for nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FreePass {
    /// The index of the group.
    pub group: usize,
    /// The index of the rule in its group.
    pub rule: usize,
    /// The event's name.
    pub event: String,
    /// The event's metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Finds the events of a plan that no group in cents matches, although a rule of such a group is for events of their name, and that
/// some other group lets through.
///
/// Returns the free passes. An event that no group matches is denied, and therefore not one of them. Each event pattern
/// is reported once, by its last rule.
pub(super) fn free_passes(groups: &[LimitGroup]) -> Vec<FreePass> {
    let mut passes: Vec<FreePass> = Vec::new();
    let mut told = Vec::new();
    for (group, rule, priced) in rules(groups, true).rev() {
        if priced.conditions.is_empty() || told.contains(&&priced.event) {
            continue;
        }
        let found = rules(groups, false).find_map(|(_, _, other)| unpriced_event(groups, priced, other));
        if let Some((event, metadata)) = found {
            told.push(&priced.event);
            passes.push(FreePass { group, rule, event, metadata });
        }
    }
    passes.reverse();
    passes
}

/// The rules of the groups in cents, or those of the others, by their indices.
fn rules(groups: &[LimitGroup], in_cents: bool) -> impl DoubleEndedIterator<Item = (usize, usize, &Rule)> {
    let groups = groups.iter().enumerate().filter(move |(_, group)| (group.unit == Unit::Cents) == in_cents);
    groups.flat_map(|(index, group)| group.rules.iter().enumerate().map(move |(rule, it)| (index, rule, it)))
}

/// An event of the name that `priced` is for, which `other` matches and no group in cents does.
fn unpriced_event(groups: &[LimitGroup], priced: &Rule, other: &Rule) -> Option<(String, BTreeMap<String, String>)> {
    let name = priced.event.common_name(&other.event)?;
    let is_free =
        |metadata: &BTreeMap<String, String>| !rules(groups, true).any(|(_, _, rule)| holds(rule, &name, metadata));
    let metadata = combinations(&other.conditions, &priced.conditions).take(MOST_TRIED).find(is_free)?;
    Some((name, metadata))
}

/// Metadata that meets all of `met`. What only `unmet` names has a value that nobody lists, or is absent.
fn combinations<'a>(
    met: &'a [Condition],
    unmet: &'a [Condition],
) -> impl Iterator<Item = BTreeMap<String, String>> + use<'a> {
    let unlisted = unmet.iter().map(|condition| (condition.key.clone(), UNLISTED.to_owned()));
    let bases = [unlisted.collect(), BTreeMap::new()];
    let count = met.iter().map(|condition| condition.values.len()).fold(1_usize, usize::saturating_mul);
    (0..count.saturating_mul(bases.len())).map(move |mut number| {
        let mut metadata: BTreeMap<String, String> = bases[number % bases.len()].clone();
        number /= bases.len();
        for condition in met {
            let value = &condition.values[number % condition.values.len()];
            number /= condition.values.len();
            metadata.insert(condition.key.clone(), value.example(UNLISTED));
        }
        metadata
    })
}

/// Returns whether the rule applies to the event, apart from what it measures.
fn holds(rule: &Rule, name: &str, metadata: &BTreeMap<String, String>) -> bool {
    let met = |condition: &Condition| {
        metadata.get(&condition.key).is_some_and(|value| condition.values.iter().any(|wanted| wanted.accepts(value)))
    };
    rule.event.fits(name) && rule.conditions.iter().all(met)
}

#[cfg(test)]
mod tests {
    use super::super::{check, parse};
    use super::*;

    /// The free passes of a plan with these groups, each as group, rule, event and metadata.
    fn passes(groups: &str) -> Vec<(usize, usize, String, String)> {
        let text = format!("plans: {{ p: {{ period: daily, limit_groups: [ {groups} ] }} }}");
        let catalog = parse(&text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
        let told = free_passes(&catalog.plans()[0].groups).into_iter().map(|pass| {
            let metadata: Vec<_> = pass.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
            (pass.group, pass.rule, pass.event, metadata.join(" "))
        });
        told.collect()
    }

    fn group(id: &str, unit: &str, rules: &str) -> String {
        format!("{{ id: {id}, unit: {unit}, quota: 9, match: [ {rules} ] }}")
    }

    /// A group of tokens that lets every `llm.tokens` through, and one in cents with these rules.
    fn with_tokens(priced: &str) -> Vec<(usize, usize, String, String)> {
        passes(&format!("{}, {}", group("t", "tokens", "{ event: llm.tokens }"), group("c", "cents", priced)))
    }

    #[test]
    fn an_unknown_model_that_costs_nothing_is_found() {
        let told = |rule, metadata: &str| vec![(1, rule, "llm.tokens".to_owned(), metadata.to_owned())];
        let gpt = "{ event: llm.tokens, metadata: { model: gpt-4o* } }";
        assert_eq!(with_tokens(gpt), told(0, "model=unlisted"));
        // The last of its rules.
        let two = format!(
            "{gpt}, {{ event: llm.tokens, metadata: {{ provider: openai, model: [o1, o3] }} }}, {{ event: x }}"
        );
        assert_eq!(with_tokens(&two), told(1, "model=unlisted provider=unlisted"));
        // The rest of one provider is caught, and of others not.
        let provider = format!("{gpt}, {{ event: llm.tokens, metadata: {{ provider: openai }} }}");
        assert_eq!(with_tokens(&provider), told(1, "provider=unlisted"));
        // A key that may be anything must still be there.
        assert_eq!(with_tokens("{ event: llm.tokens, metadata: { model: \"*\" } }"), told(0, ""));
        // A wider pattern.
        assert_eq!(with_tokens("{ event: llm.*, metadata: { model: a } }"), told(0, "model=unlisted"));
    }

    #[test]
    fn what_is_priced_or_denied_is_no_free_pass() {
        let gpt = "{ event: llm.tokens, metadata: { model: gpt-4o* } }";
        for rest in ["{ event: llm.tokens }", "{ event: llm.* }", "{ event: \"*\", measure: events }"] {
            assert_eq!(with_tokens(&format!("{gpt}, {rest}")), [], "{rest}");
        }
        // By another group in cents.
        let other = format!("{}, {}", group("c", "cents", gpt), group("d", "cents", "{ event: llm.tokens }"));
        assert_eq!(passes(&format!("{}, {other}", group("t", "tokens", "{ event: llm.tokens }"))), []);
        // No other group knows the event: it is denied.
        assert_eq!(passes(&group("c", "cents", gpt)), []);
        let images = group("i", "count", "{ event: image.render }");
        assert_eq!(passes(&format!("{images}, {}", group("c", "cents", gpt))), []);
        // The other group lets through only what is priced.
        let same = group("t", "tokens", "{ event: llm.tokens, metadata: { model: [gpt-4o, gpt-4o-mini] } }");
        assert_eq!(passes(&format!("{same}, {}", group("c", "cents", gpt))), []);
        // Conditions of groups that count things are no prices.
        assert_eq!(
            passes(&format!("{images}, {}", group("f", "count", "{ event: image.render, metadata: { model: a } }"))),
            []
        );
    }

    #[test]
    fn the_other_group_may_have_conditions_of_its_own() {
        let tokens = group("t", "tokens", "{ event: llm.tokens, metadata: { model: [gpt-4o, gpt-5], tier: [a*, b] } }");
        let gpt = group("c", "cents", "{ event: llm.tokens, metadata: { model: gpt-4o } }");
        let found = vec![(1, 0, "llm.tokens".to_owned(), "model=gpt-5 tier=aunlisted".to_owned())];
        assert_eq!(passes(&format!("{tokens}, {gpt}")), found);
    }

    #[test]
    fn a_star_inside_a_value_catches_what_it_accepts() {
        let rule = |model: &str| format!("{{ event: llm.tokens, metadata: {{ model: '{model}' }} }}");
        let tokens = group("t", "tokens", &rule("*-mini"));
        let told = |model: &str| passes(&format!("{tokens}, {}", group("c", "cents", &rule(model))));
        assert_eq!(told("*-min*"), []);
        assert_eq!(told("gpt-*-mini"), [(1, 0, "llm.tokens".to_owned(), "model=unlisted-mini".to_owned())]);
    }

    #[test]
    fn a_warning_has_a_place_and_says_what_to_write() {
        let text = "plans:
  p:
    period: daily
    limit_groups:
      - { id: t, unit: tokens, quota: 9, match: [{ event: llm.tokens }] }
      - id: c
        unit: cents
        quota: 9
        match:
          - { event: x }
          - { event: llm.tokens, metadata: { model: gpt-4o } }
";
        let warnings: Vec<_> = check(text, jiff::tz::db()).unwrap().warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            warnings,
            [
                "line 11, plans.p.limit_groups[1].match[1]: prices \"llm.tokens\" for some metadata only: one with model \"unlisted\" costs \
                 no cents and passes; add a last rule without `metadata:` that is priced as the dearest, or has weight 0 if it is meant to \
                 be free"
            ]
        );
    }

    #[test]
    fn many_values_and_keys_are_bounded() {
        let values = (0..100).map(|index| format!("v{index}")).collect::<Vec<_>>().join(", ");
        let keys = (0..32).map(|index| format!("k{index}: [{values}]")).collect::<Vec<_>>().join(", ");
        let tokens = group("t", "tokens", &format!("{{ event: x, metadata: {{ {keys} }} }}"));
        let priced = group("c", "cents", &format!("{{ event: x, metadata: {{ {keys} }} }}"));
        assert_eq!(passes(&format!("{tokens}, {priced}")), []);
    }
}
