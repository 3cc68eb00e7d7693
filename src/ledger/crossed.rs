//! The thresholds that a script's consumption has crossed. No script decides by them: it says how `used` has changed, and this file compares.

use super::answer::{description, misfit, units};
use super::packed::Reader;
use super::plan::GroupDescription;
use super::subscription::Overrides;
use super::{formats, window_ms};
use crate::domain::amount::Units;
use crate::domain::answer::{Crossed, Standing};
use crate::domain::fault::Fault;
use crate::domain::plan::Quota;

/// What a script has counted by the rows of its answer, where no column says what was used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Counted {
    /// Nothing: it has read, held or given back.
    #[default]
    Nothing,
    /// What each row requests, unless the call was denied or replayed.
    Requested,
}

/// How `used` of one window has changed in one script.
struct Change {
    /// The place of the group in the plan, from 1.
    place: i64,
    window_ms: Option<(i64, i64)>,
    quota: Quota,
    before: Units,
    after: Units,
}

/// The rows of an answer, and the places of those of their groups that have thresholds.
pub(super) struct Rows<'a> {
    pub standings: &'a [Standing],
    /// Which row, and the place of its group in the plan.
    pub watched: Vec<(usize, i64)>,
    /// Whether the script has counted what each row requests, and nothing else.
    pub are_counted: bool,
}

/// Reads what follows the columns of an answer that says what was used before: `reader` begins there. Returns the thresholds that were
/// crossed, in the order of the plan.
pub(super) fn read_crossed(
    rows: &Rows<'_>,
    reader: Option<&mut Reader<'_>>,
    plan_id: &str,
    groups: &[GroupDescription],
) -> Result<Vec<Crossed>, Fault> {
    let (befores, mut changes) = match reader {
        Some(reader) => {
            let before = |_| units(formats::Amount::read(reader).map_err(misfit)?.units);
            let befores = (0..rows.standings.len()).map(before).collect::<Result<Vec<_>, Fault>>()?;
            (Some(befores), read_others(rows, reader, plan_id, groups)?)
        }
        None => (None, Vec::new()),
    };
    for (row, place) in &rows.watched {
        let standing = &rows.standings[*row];
        let counted = if rows.are_counted { standing.requested.saturating_sub(standing.unapplied) } else { 0 };
        let before = match &befores {
            Some(befores) => befores[*row],
            None => standing.used.saturating_sub(counted),
        };
        if !standing.window_closed {
            let Standing { window_ms, quota, used: after, .. } = *standing;
            changes.push(Change { place: *place, window_ms, quota, before, after });
        }
    }
    changes.sort_by_key(|change| (change.place, change.window_ms));
    let mut crossed = Vec::new();
    for Change { place, window_ms, quota, before, after } in changes {
        let GroupDescription { id, label, unit, thresholds, .. } = description(groups, place)?;
        crossed.extend(thresholds.crossed(quota, before, after).into_iter().map(|threshold| Crossed {
            group_id: id.clone(),
            label: label.clone(),
            unit: *unit,
            threshold,
            used: after,
            quota,
            window_ms,
        }));
    }
    Ok(crossed)
}

/// Reads the windows without a row in which deadlines have counted. Their quota is that of their group's row, or else the owner's own one.
fn read_others(
    rows: &Rows<'_>,
    reader: &mut Reader<'_>,
    plan_id: &str,
    groups: &[GroupDescription],
) -> Result<Vec<Change>, Fault> {
    let formats::Others { windows, blob } = formats::Others::read(reader).map_err(misfit)?;
    let own = if blob.is_empty() { None } else { Some(Overrides::read(&blob)?) };
    let own = own.filter(|own| own.plan_id == plan_id);
    let mut changes = Vec::new();
    for _ in 0..windows {
        let formats::OtherWindow { group: place, span, before, used } =
            formats::OtherWindow::read(reader).map_err(misfit)?;
        let group = description(groups, place)?;
        let of_group = rows.watched.iter().find(|(_, other)| *other == place);
        let quota = match (of_group, own.as_ref().and_then(|own| own.overrides.get(&group.id))) {
            (Some((row, _)), _) => rows.standings[*row].quota,
            (None, Some(own)) => own.in_unit(group.unit),
            (None, None) => group.quota,
        };
        let span = formats::Span::read(&mut Reader(&span)).map_err(misfit)?;
        changes.push(Change { place, window_ms: window_ms(&span), quota, before: units(before)?, after: units(used)? });
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::amount::{Quantity, Unit};
    use crate::domain::plan::Thresholds;
    use crate::domain::subscription::{QuotaOverride, Subscription};
    use crate::ledger::encode_subscription;

    fn groups() -> Vec<GroupDescription> {
        let thresholds = Thresholds { shares: vec![Quantity::of_parts(0, 500_000)], amounts: vec![8] };
        let group = |id: &str, thresholds: &Thresholds| GroupDescription {
            id: id.to_owned(),
            label: id.to_uppercase(),
            unit: Unit::Tokens,
            quota: Quota::Limited(10),
            hard: true,
            thresholds: thresholds.clone(),
        };
        vec![group("a", &thresholds), group("b", &thresholds), group("c", &Thresholds::default())]
    }

    /// A standing that has used 9 of 10, of which this call requests 5.
    fn standing() -> Standing {
        Standing {
            group_id: "b".to_owned(),
            label: "B".to_owned(),
            unit: Unit::Tokens,
            quota: Quota::Limited(10),
            hard: true,
            window_ms: Some((1_000, 2_000)),
            used: 9,
            held: 0,
            requested: 5,
            shortfall: 0,
            window_closed: false,
            unapplied: 0,
        }
    }

    fn told(
        standing: Standing,
        are_counted: bool,
        column: Option<&[u8]>,
    ) -> Result<Vec<(String, Units, Units)>, Fault> {
        let rows = Rows { standings: &[standing], watched: vec![(0, 2)], are_counted };
        let mut reader = column.map(Reader);
        let crossed = read_crossed(&rows, reader.as_mut(), "p", &groups())?;
        assert!(reader.is_none_or(|reader| reader.is_at_end()));
        Ok(crossed.into_iter().map(|crossed| (crossed.group_id, crossed.threshold.units, crossed.used)).collect())
    }

    fn crossed(expected: &[(&str, Units, Units)]) -> Vec<(String, Units, Units)> {
        expected.iter().map(|(id, units, used)| ((*id).to_owned(), *units, *used)).collect()
    }

    #[test]
    fn a_row_says_what_was_used_before_if_the_script_has_counted_what_it_requests() {
        let both = crossed(&[("b", 5, 9), ("b", 8, 9)]);
        assert_eq!(told(standing(), true, None).unwrap(), both);
        assert_eq!(told(standing(), false, None).unwrap(), []);
        assert_eq!(told(Standing { unapplied: 4, ..standing() }, true, None).unwrap(), []);
        assert_eq!(told(Standing { requested: 4, ..standing() }, true, None).unwrap(), crossed(&[("b", 8, 9)]));
        assert_eq!(told(Standing { window_closed: true, ..standing() }, true, None).unwrap(), []);
    }

    #[test]
    fn a_column_says_it_otherwise_and_other_windows_have_the_quota_of_their_owner() {
        let column = |before: i64, others: &[formats::OtherWindow], subscription: Option<&str>| {
            let mut bytes = Vec::new();
            formats::Amount { units: before }.write(&mut bytes);
            let own = |plan_id: &str| Subscription {
                revision: [0; 8],
                plan_id: plan_id.to_owned(),
                start_ms: 0,
                end_ms: None,
                cycle_anchor_ms: 0,
                fallen_to: None,
                overrides: BTreeMap::from(
                    ["a", "b"].map(|id| (id.to_owned(), QuotaOverride::Amount(Quantity::of_parts(14, 0)))),
                ),
            };
            let blob = subscription.map(|plan_id| encode_subscription(&own(plan_id))).unwrap_or_default();
            let windows = i64::try_from(others.len()).unwrap();
            formats::Others { windows, blob }.write(&mut bytes);
            others.iter().for_each(|other| other.write(&mut bytes));
            bytes
        };
        let other = |group, start, before, used| {
            let mut span = Vec::new();
            formats::Span { start, ends: start + 1_000 }.write(&mut span);
            formats::OtherWindow { group, span: span.try_into().unwrap(), before, used }
        };
        let told = |column: &[u8]| told(standing(), true, Some(column));
        assert_eq!(told(&column(8, &[], None)).unwrap(), []);
        assert_eq!(told(&column(5, &[], None)).unwrap(), crossed(&[("b", 8, 9)]));
        // The group of a row has the row's quota, also in another window.
        let others = [other(2, 0, 4, 7), other(1, 0, 4, 7)];
        let both = [("a", 5, 7), ("b", 5, 7), ("b", 8, 9)];
        assert_eq!(told(&column(7, &others, None)).unwrap(), crossed(&both));
        assert_eq!(told(&column(7, &others, Some("of another plan"))).unwrap(), crossed(&both));
        let own = [("a", 7, 7), ("b", 5, 7), ("b", 8, 9)];
        assert_eq!(told(&column(7, &others, Some("p"))).unwrap(), crossed(&own));
        assert!(matches!(told(&column(7, &[other(4, 0, 4, 7)], None)), Err(Fault::Internal(_))));
    }
}
