//! TRUTH over all histories, held against what the real service reports and not against the model's counters: nothing but a refund,
//! a reset or a correction of the same reservation lowers what is used in a window, while that window is kept.
//!
//! The model only says which windows are kept, when a plan with `on_plan_change: reset` was entered, and how much of a reservation was
//! counted before a call that may correct it.

use std::collections::BTreeMap;

use tollgate::grpc::v1::{GetUsageResponse, LimitStatus};

use crate::answers::{Answer, timestamp};
use crate::operations::{Call, Operation};
use crate::reference::Model;
use crate::sketch::{Anchor, Group, Period};
use crate::user::Claim;
use crate::windows::{NEVER, frame};

/// A window as answers name it: user, group, unit, start and end in seconds and nanoseconds.
type Name = (usize, String, String, Option<(i64, i32, i64, i32)>);

/// What each window had used when the service last reported it.
#[derive(Default)]
pub struct Invariant {
    used: BTreeMap<Name, f64>,
}

impl Invariant {
    /// Takes in an answer of the service.
    pub fn holds(
        &mut self,
        operation: &Operation,
        found: &Answer,
        before: &Model,
        after: &Model,
    ) -> Result<(), String> {
        let kept = kept(after);
        self.used.retain(|name, _| kept.contains(name));
        let resets = |model: &Model| model.covered.get("plan change: reset").copied();
        let refunds = matches!(&operation.call, Call::Track { event, .. } if event.refunded().is_some())
            || matches!(operation.call, Call::Reset { .. });
        if refunds || resets(before) != resets(after) || matches!(operation.call, Call::Delete) {
            self.used.clear();
        }
        let user = owner(operation, after);
        // What an end does that nobody has written yet, each replica answers by its own default plan.
        let unseen = |model: &Model| {
            let user = &model.users[user];
            user.subscription.as_ref().is_some_and(|stored| stored.ended(user.now) && !stored.fallen)
        };
        if unseen(before) || unseen(after) {
            self.used.retain(|(of, ..), _| *of != user);
            return Ok(());
        }
        let corrected = correctable(operation, before);
        for row in rows(found).iter().filter(|row| !row.window_closed) {
            let may_fall = corrected.get(&row.limit_group_id).copied().unwrap_or_default();
            let name = name(user, row);
            if is_ambiguous(after, user, row) {
                self.used.remove(&name);
                continue;
            }
            if let Some(used) = self.used.get(&name).filter(|used| **used > row.used + may_fall) {
                return Err(format!(
                    "{name:?}: used was {used}, and is {}, though nothing was refunded or reset, and no more than {may_fall} corrected",
                    row.used
                ));
            }
            self.used.insert(name, row.used);
        }
        Ok(())
    }
}

fn owner(operation: &Operation, model: &Model) -> usize {
    match &operation.call {
        Call::Commit { of, .. } | Call::Extend { of, .. } | Call::Release { of } => {
            model.users.iter().position(|user| user.reservations.contains_key(of)).unwrap_or(operation.user)
        }
        _ => operation.user,
    }
}

/// How much a call may take off each group, as it corrects what its reservation has counted there: a final commit all of it, a release
/// what the deadline has counted.
fn correctable(operation: &Operation, before: &Model) -> BTreeMap<String, f64> {
    let (of, is_release) = match &operation.call {
        Call::Commit { of, partial: false, .. } => (of, false),
        Call::Release { of } => (of, true),
        _ => return BTreeMap::new(),
    };
    let found = before.users.iter().find_map(|user| user.reservations.get(of));
    let counted = |claim: &Claim| {
        // Also what the deadline has yet to count.
        let lapsed = claim.charge.max(claim.partial) - claim.partial;
        // A sum of doubles is not exact.
        claim.unit.shown(if is_release { lapsed } else { claim.partial + lapsed }) + 1e-7
    };
    found.iter().flat_map(|found| &found.claims).map(|claim| (claim.group.clone(), counted(claim))).collect()
}

fn name(user: usize, row: &LimitStatus) -> Name {
    let bounds = row.window_start.as_ref().zip(row.reset_time.as_ref());
    let bounds = bounds.map(|(start, end)| (start.seconds, start.nanos, end.seconds, end.nanos));
    (user, row.limit_group_id.clone(), row.unit.clone(), bounds)
}

/// Whether the row may be of a calendar window or of one that is counted from the user's anchor: where the anchor is on the calendar's
/// grid, two windows of one group have the same name.
fn is_ambiguous(model: &Model, user: usize, row: &LimitStatus) -> bool {
    let plans = || model.settings.catalogs.iter().flat_map(|catalog| &catalog.plans);
    let of_row = |group: &&Group| group.id == row.limit_group_id && group.unit.word() == row.unit;
    // A window that is not open has no times, as one of a lifetime.
    let opens_later = |group: &Group| group.anchor == Anchor::FirstUse && group.period != Period::Lifetime;
    if row.window_start.is_none() {
        return plans().any(|plan| plan.groups.iter().filter(of_row).any(opens_later));
    }
    // Windows of a given length, and those that open with an event, may begin and end as others do.
    let mut kinds: Vec<_> =
        plans().flat_map(|plan| plan.groups.iter().filter(of_row)).map(|group| (group.period, group.anchor)).collect();
    kinds.sort_by_key(|kind| format!("{kind:?}"));
    kinds.dedup();
    let is_free =
        |(period, anchor): &(Period, Anchor)| matches!(period, Period::Length(_)) || *anchor == Anchor::FirstUse;
    if kinds.len() > 1 && kinds.iter().any(is_free) {
        return true;
    }
    let (Some(subscription), Some(start)) = (&model.users[user].subscription, &row.window_start) else { return false };
    let start = start.seconds * 1000 + i64::from(start.nanos) / 1_000_000;
    let starts_there = |anchored: bool| {
        let anchor = anchored.then_some(subscription.anchor);
        let is_anchored = |group: &Group| group.anchor == Anchor::SubscriptionStart;
        plans().any(|plan| {
            let mut groups = plan.groups.iter().filter(of_row).filter(|group| group.period != Period::Lifetime);
            groups.any(|group| {
                (is_anchored(group) || !anchored) && frame(group.period, plan.zone, anchor, start).start == start
            })
        })
    };
    starts_there(true) && starts_there(false)
}

/// The names of the windows that are kept, as far as the model knows.
fn kept(model: &Model) -> Vec<Name> {
    let mut names = Vec::new();
    for (index, user) in model.users.iter().enumerate() {
        for (group, unit, window) in user.windows.kept(user.now) {
            let (start, end) = (timestamp(window.start), timestamp(window.end));
            let bounds = (window.end < NEVER).then_some((start.seconds, start.nanos, end.seconds, end.nanos));
            names.push((index, group.to_owned(), unit.word().to_owned(), bounds));
        }
    }
    names
}

fn rows(answer: &Answer) -> &[LimitStatus] {
    match answer {
        Answer::Reserve(answer) => &answer.limits,
        Answer::Commit(answer) => &answer.limits,
        Answer::Extend(answer) => &answer.limits,
        Answer::Release(answer) => &answer.limits,
        Answer::Track(answer) => &answer.limits,
        Answer::CanUse(answer) => &answer.limits,
        Answer::Usage(GetUsageResponse { limits, .. }) => limits,
        Answer::Reset(answer) => &answer.limits,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use tollgate::grpc::v1;

    use super::*;
    use crate::reference::Settings;

    #[test]
    fn a_counter_that_goes_down_by_itself_is_found() {
        let mut model = Model::new(Settings { catalogs: Vec::new(), settlement_ms: 0, replay_ms: 0 }, 1, 0);
        model.users[0].windows.begin("t", crate::sketch::Unit::Tokens, (0, 1000));
        let usage = |used: f64| {
            let row = LimitStatus {
                limit_group_id: "t".to_owned(),
                unit: "tokens".to_owned(),
                used,
                window_start: Some(timestamp(0)),
                reset_time: Some(timestamp(1000)),
                ..LimitStatus::default()
            };
            Answer::Usage(v1::GetUsageResponse { limits: vec![row], ..Default::default() })
        };
        let operation = Operation { number: 0, replica: 0, user: 0, call: Call::Subscription };
        let mut invariant = Invariant::default();
        assert_eq!(invariant.holds(&operation, &usage(70.0), &model, &model), Ok(()));
        assert!(invariant.holds(&operation, &usage(69.0), &model, &model).is_err());
    }
}
