//! NO-LEAK with many deadlines: beyond 2 KiB of them the state keeps pages, and still each hold comes back at its own deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tollgate::catalog;
use tollgate::domain::amount::Quantity;
use tollgate::domain::event::{Event, EventName};
use tollgate::domain::id::ReservationId;
use tollgate::ledger::formats;
use tollgate::ledger::packed::Reader;
use tollgate::meter::{Meter, MeterOptions};

use crate::support::{Step, fresh_user, keys, nothing_contradicts_itself_of, owner, redis, step_clock, stepped_ledger};

const CATALOG: &str = "
default_plan: p
plans:
  p:
    period: yearly
    limit_groups:
      - { id: units, unit: tokens, quota: 100000, match: [{ event: '*' }] }
      - { id: some, unit: tokens, quota: unlimited, match: [{ event: b }] }
";

/// A live hold.
struct Held {
    id: ReservationId,
    name: &'static str,
    units: u64,
    deadline_ms: i64,
}

/// The pages of deadlines in the user's state.
async fn pages(user: &str) -> i64 {
    let mut get = redis::cmd("GET");
    let state: Vec<u8> = get.arg(keys(user).state()).query_async(&mut redis().await).await.unwrap();
    formats::Head::read(&mut Reader(&state)).unwrap().pages
}

#[tokio::test]
async fn holds_in_pages_come_back_each_at_its_deadline() {
    let parsed = catalog::parse(CATALOG, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
    let meter = Meter::new(Arc::new(parsed), stepped_ledger().await, MeterOptions::default());
    for seed in 1..=4 {
        let mut random = fastrand::Rng::with_seed(seed);
        let user = fresh_user("pages");
        let owner = owner(&user);
        let mut now = step_clock(&user, Step::To(1_900_000_000_000)).await;
        let (mut live, mut used) = (Vec::<Held>::new(), BTreeMap::<&str, u64>::new());
        let (mut most_pages, mut settled, mut lapsed) = (0, 0, 0);
        for step in 0..700 {
            let is_filling = step % 350 < 220;
            match random.u32(0..10) {
                0..=5 if is_filling => {
                    let name = if random.bool() { "a" } else { "b" };
                    let units = random.u64(1..50);
                    let ttl = Duration::from_millis(random.u64(1_000..90_000));
                    let quantity = Quantity::from_decimal(&units.to_string()).unwrap();
                    let event = Event::new(EventName::parse(name).unwrap(), Some(quantity), [].into(), [].into());
                    let hold = meter.reserve(&owner, &event, ttl, None).await.unwrap().hold.unwrap();
                    let asked = now + i64::try_from(ttl.as_millis()).unwrap();
                    assert_eq!(
                        hold.deadline_ms,
                        (asked + 99) / 100 * 100,
                        "a deadline is rounded up to a tenth of a second"
                    );
                    live.push(Held { id: hold.id, name, units, deadline_ms: hold.deadline_ms });
                }
                6 | 7 if !live.is_empty() => {
                    let held = live.swap_remove(random.usize(..live.len()));
                    if random.bool() {
                        assert!(!meter.commit(&held.id, None).await.unwrap().late, "seed {seed}, step {step}");
                        *used.entry("units").or_default() += held.units;
                        *used.entry(held.name).or_default() += held.units;
                    } else {
                        meter.release(&held.id).await.unwrap();
                    }
                    settled += 1;
                }
                8 => {
                    let by = if !is_filling { 20_000 } else { random.u64(1..600) };
                    now = step_clock(&user, Step::By(Duration::from_millis(by))).await;
                    let before = live.len();
                    live.retain(|held| held.deadline_ms > now);
                    lapsed += before - live.len();
                }
                _ => {}
            }
            let standings = meter.usage(&owner, None, None).await.unwrap().standings;
            let held = |name: Option<&str>| {
                let matched = live.iter().filter(|held| name.is_none_or(|name| held.name == name));
                matched.map(|held| held.units).sum::<u64>()
            };
            let found: Vec<_> = standings.iter().map(|standing| (standing.used, standing.held)).collect();
            let of = |name| used.get(name).copied().unwrap_or_default();
            let expected = vec![(of("units"), held(None)), (of("b"), held(Some("b")))];
            assert_eq!(found, expected, "seed {seed}, step {step}, {} live holds", live.len());
            most_pages = most_pages.max(if live.is_empty() { 0 } else { pages(&user).await });
        }
        assert!(
            most_pages >= 3 && settled > 40 && lapsed > 40,
            "{most_pages} pages, {settled} settled, {lapsed} lapsed"
        );
    }
    nothing_contradicts_itself_of("pages").await;
}
