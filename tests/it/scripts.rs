//! The scripts themselves, called directly: matching and pricing are theirs.

use std::collections::BTreeMap;

use num_bigint::BigUint;
use tollgate::catalog;
use tollgate::domain::amount::{MAX_UNITS, Quantity};
use tollgate::domain::event::{Event, EventName};
use tollgate::domain::fault::Fault;
use tollgate::ledger::{Basis, CanUseCall, Frames, InForce, Ledger, NoAnswer};

use crate::support::{fresh_user, owner, redis_options};

/// Asks `can_use` about an event and the compiled groups of the catalog's only plan.
async fn can_use(ledger: &Ledger, catalog: &str, event: &Event) -> Result<Vec<(String, u64)>, Fault> {
    let catalog = catalog::parse(catalog, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let frames = Frames::of(&catalog.plans()[0], None, &BTreeMap::new(), now_ms).unwrap();
    let plan = ledger.compile(&catalog).remove(0);
    let basis = Basis { revision: None, ended: false, plan: InForce::Plan { plan, frames } };
    let call = CanUseCall { basis: &basis, event };
    let decision = match ledger.can_use(&owner(&fresh_user("direct")), &call).await {
        Ok(decision) => decision,
        Err(NoAnswer::Fault(fault)) => return Err(fault),
        Err(stale) => panic!("{stale:?}"),
    };
    Ok(decision.standings.into_iter().map(|standing| (standing.group_id, standing.requested)).collect())
}

fn event(name: &str, quantities: &[(&str, &str)], metadata: &[(&str, &str)]) -> Event {
    let quantities =
        quantities.iter().map(|(name, number)| ((*name).to_owned(), Quantity::from_decimal(number).unwrap())).collect();
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Event::new(EventName::parse(name).unwrap(), None, quantities, metadata)
}

#[tokio::test]
async fn one_event_feeds_every_group_that_it_matches() {
    let catalog = "
plans:
  p:
    period: yearly
    limit_groups:
      - id: tokens
        unit: tokens
        quota: 1000
        match:
          - { event: llm.tokens, metadata: { tier: batch }, measure: { prompt_tokens: 0.5 } }
          - { event: llm.tokens, measure: { prompt_tokens: 1, completion_tokens: 2 } }
          - { event: llm.tokens, measure: { prompt_tokens: 1 } }
      - { id: calls, unit: count, quota: 1000, match: [{ event: llm.*, measure: events }] }
      - id: spend
        unit: cents
        quota: 1000
        match: [{ event: '*', metadata: { model: [a, b-*] }, measure: { prompt_tokens: 0.000015 } }]
      - { id: other, unit: count, quota: 1000, match: [{ event: image.render }] }
";
    let ledger = Ledger::connect(&redis_options()).await.unwrap();
    let both = [("prompt_tokens", "101"), ("completion_tokens", "10")];
    let cases: [(Event, &[(&str, u64)]); 6] = [
        (event("llm.tokens", &both, &[]), &[("tokens", 121), ("calls", 1)]),
        (event("llm.tokens", &both, &[("tier", "batch")]), &[("tokens", 51), ("calls", 1)]),
        (event("llm.tokens", &both[..1], &[]), &[("tokens", 101), ("calls", 1)]),
        (event("llm.tokens", &both, &[("model", "b-1")]), &[("tokens", 121), ("calls", 1), ("spend", 1515)]),
        (event("llm.tokens", &both, &[("model", "b")]), &[("tokens", 121), ("calls", 1)]),
        (event("image.render", &[], &[]), &[("other", 1)]),
    ];
    for (event, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|(group, units)| ((*group).to_owned(), *units)).collect();
        assert_eq!(can_use(&ledger, catalog, &event).await.unwrap(), expected, "{event:?}");
    }
}

#[tokio::test]
async fn exact_prices_are_those_of_rational_arithmetic() {
    let ledger = Ledger::connect(&redis_options()).await.unwrap();
    let mut state = 20_261_124_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 20) % below
    };
    let mut seen = [0; 3];
    for round in 0..400 {
        let (unit, scale, most) =
            [("tokens", 1_u64, MAX_UNITS), ("seconds", 1_000, MAX_UNITS), ("cents", 1_000_000, 8_000_000_000_000_000)]
                [usize::try_from(random(3)).unwrap()];
        let mut terms = Vec::new();
        for index in 0..=random(16) {
            // Digits of every length, and the extremes.
            let digits = random(19);
            let below = 10_u64.pow(u32::try_from(digits).unwrap());
            let weight = if random(8) == 0 { 10_u64.pow(18) } else { random(below) };
            let below = 10_u64.pow(u32::try_from(random(10)).unwrap()) + 1;
            let whole = if random(8) == 0 { 7_999_999_999 } else { random(below) };
            let micro = if random(3) == 0 { 0 } else { random(1_000_000) };
            terms.push((format!("q{index}"), weight, whole, micro));
            if round % 3 == 0 {
                break;
            }
        }
        // Quantities are millionths, weights are millionths of millionths.
        let sum: BigUint = terms
            .iter()
            .map(|(_, weight, whole, micro)| BigUint::from(*weight) * (BigUint::from(*whole) * 1_000_000_u64 + *micro))
            .sum();
        let scaled = sum * scale;
        let one = BigUint::from(10_u64).pow(18);
        let exact = (&scaled + &one - 1_u64) / &one;
        let weights: Vec<_> = terms
            .iter()
            .map(|(name, weight, ..)| {
                format!("{name}: {}.{:012}", weight / 1_000_000_000_000, weight % 1_000_000_000_000)
            })
            .collect();
        let catalog = format!(
            "plans: {{ p: {{ period: yearly, limit_groups: [{{ id: g, unit: {unit}, quota: unlimited, \
             match: [{{ event: e, measure: {{ {} }} }}] }}] }} }}",
            weights.join(", ")
        );
        let quantities: Vec<_> =
            terms.iter().map(|(name, _, whole, micro)| (name.as_str(), format!("{whole}.{micro:06}"))).collect();
        let quantities: Vec<_> = quantities.iter().map(|(name, number)| (*name, number.as_str())).collect();
        let found = can_use(&ledger, &catalog, &event("e", &quantities, &[])).await;
        if exact > BigUint::from(most) {
            seen[0] += 1;
            assert!(matches!(found, Err(Fault::OutOfRange { .. })), "{terms:?} {found:?}");
        } else {
            seen[if scaled > BigUint::from(MAX_UNITS) * &one / 1000_u64 { 1 } else { 2 }] += 1;
            assert_eq!(found.unwrap(), [("g".to_owned(), u64::try_from(exact).unwrap())], "{terms:?}");
        }
    }
    assert!(seen.iter().all(|count| *count >= 10), "too large, near the largest, and small ones all occur: {seen:?}");
}

#[tokio::test]
async fn scripts_are_loaded_again_where_redis_has_lost_them() {
    let mut scenario = crate::scenario::Scenario::new(vec![(
        "",
        crate::support::Replica::start(
            "
default_plan: p
plans: { p: { period: yearly, limit_groups: [{ id: g, unit: count, quota: 10, match: [{ event: e }] }] } }
",
        )
        .await,
    )]);
    scenario.run("reserve u e as=A => allowed").await;
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut crate::support::redis().await).await.unwrap();
    scenario.run("commit A => g.used=1\nreserve u e => allowed g.held=1\nusage u => g.used=1").await;
}
