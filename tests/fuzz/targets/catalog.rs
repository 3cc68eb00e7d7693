//! The text of a catalog: what is wrong with it is told in bounds, and what is right compiles for any time.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::tz::TimeZoneDatabase;
use tollgate::catalog::{self, InvalidCatalog, Problem};
use tollgate::domain::amount::Quantity;
use tollgate::domain::plan::{Catalog, Plan};
use tollgate::domain::subscription::QuotaOverride;
use tollgate::ledger::{CompiledPlan, Frames};

/// The bytes in the program: what the system has may be less, or other.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// A report is for people to read, however long the file is.
const LONGEST_REPORT: usize = 4 << 20;

/// And then how many more there are.
const MOST_PROBLEMS: usize = 1000;

/// No problem is longer: a path of shortened keys, and a message with shortened words, or with the ids of twenty plans.
const LONGEST_PROBLEM: usize = 20 << 10;

/// The epoch, a common day, changes of clocks, a 29th of February and the last day of a year, in milliseconds.
const TIMES_MS: [i64; 6] =
    [0, 1_795_516_231_123, 1_774_746_000_000, 1_792_890_000_000, 1_835_395_199_999, 1_798_761_599_999];

/// A common day, a 31st, and the first and last anchors that a request may name.
const ANCHORS_MS: [Option<i64>; 5] =
    [None, Some(1_790_000_000_123), Some(1_801_389_600_000), Some(0), Some(253_370_764_799_999)];

/// Compiling many plans says no more than compiling a few.
const COMPILED: usize = 4;

pub(super) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match catalog::parse(&text, &ZONES) {
        Ok(catalog) => check_catalog(&catalog),
        Err(invalid) => check_report(&text, &invalid),
    }
}

fn check_report(text: &str, invalid: &InvalidCatalog) {
    assert!((1..=MOST_PROBLEMS + 1).contains(&invalid.problems.len()));
    assert!(invalid.problems.is_sorted_by_key(|problem| problem.line), "the report follows the file");
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
    for problem @ Problem { line, path, message } in &invalid.problems {
        assert!((1..=lines + 1).contains(line), "line {line} of {lines}");
        assert!(!message.is_empty() && path.len() + message.len() <= LONGEST_PROBLEM, "{}", message.len());
        assert!(!problem.to_string().chars().any(char::is_control), "{problem:?}");
    }
    let length = invalid.to_string().len();
    assert!(length <= LONGEST_REPORT, "a report of {length} bytes");
}

fn check_catalog(catalog: &Catalog) {
    assert!(!catalog.plans().is_empty());
    for plan in catalog.plans() {
        assert_eq!(catalog.plan(&plan.id).map(|found| &found.id), Some(&plan.id));
    }
    assert!(catalog.default_plan().is_none_or(|plan| catalog.plan(&plan.id).is_some()));
    catalog.plans().iter().take(COMPILED).for_each(check_plan);
}

fn check_plan(plan: &Plan) {
    let amount = |text| QuotaOverride::Amount(Quantity::from_decimal(text).unwrap());
    let quotas = [amount("0.000001"), amount("9007199254740991"), QuotaOverride::Unlimited];
    let compiled = CompiledPlan::of(plan);
    assert_eq!(compiled.groups.len(), plan.groups.len());
    let read = CompiledPlan::read(compiled.message.clone()).expect("what is written can be read");
    assert_eq!((read.digest, &read.groups), (compiled.digest, &compiled.groups));
    let ids = plan.groups.iter().map(|group| group.id.clone());
    let overrides: BTreeMap<_, _> = ids.zip(quotas.into_iter().cycle()).step_by(2).collect();
    for (anchor_ms, overrides) in ANCHORS_MS.into_iter().zip([&BTreeMap::new(), &overrides].into_iter().cycle()) {
        let compile = |at_ms| Frames::of(plan, anchor_ms, overrides, at_ms);
        for at_ms in TIMES_MS {
            let compiled = compile(at_ms).unwrap();
            assert!((compiled.from_ms..compiled.until_ms).contains(&at_ms), "{at_ms} {compiled:?}");
            // It is current for all these times.
            for other_ms in [compiled.from_ms.max(0), compiled.until_ms - 1] {
                if let Ok(other) = compile(other_ms) {
                    assert_eq!(other.bytes, compiled.bytes, "{at_ms} and {other_ms} from {anchor_ms:?}");
                }
            }
        }
        for at_ms in [i64::MIN, -1, 253_402_300_799_999, i64::MAX] {
            drop(compile(at_ms));
        }
    }
}
