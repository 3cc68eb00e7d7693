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
