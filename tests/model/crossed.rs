//! Which thresholds an answer tells: SPEC section 7. Nothing remembers what was crossed. What counts is how much a window had used when the
//! user's ledger was last written, and how much it has used after this call.

use tollgate::grpc::v1;

use super::{Model, Outcome};
use crate::answers::{Answer, timestamp};
use crate::operations::{Call, Operation};
use crate::sketch::{Group, MICRO, Plan, Threshold};
use crate::standing::quota;
use crate::windows::NEVER;

/// Whether a call has written the user's ledger, and with it what deadlines have counted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wrote {
    Yes,
    No,
    /// SPEC does not say it of a call that changes nothing.
    Perhaps,
}

impl Model {
    /// Adds the thresholds that were crossed to the answer, and notes what is written. `is_same`: the user's subscription is what it was.
    pub(super) fn tell_crossed(
        &mut self,
        user: usize,
        operation: &Operation,
        outcome: Outcome,
        is_same: bool,
    ) -> Outcome {
        let wrote = wrote(&operation.call, &outcome, is_same);
        let is_pending = self.users[user].has_risen();
        if wrote == Wrote::Perhaps && is_pending {
            self.users[user].windows.silent.set(true);
        }
        if wrote != Wrote::Yes {
            return outcome;
        }
        let outcome = outcome.map(|mut answer| {
            match &mut answer {
                Answer::Commit(told) => told.crossed = self.crossed(user, operation),
                Answer::Track(told) => told.crossed = self.crossed(user, operation),
                _ => {}
            }
            self.cover_told(operation, &answer);
            answer
        });
        self.users[user].note_written();
        outcome
    }

    /// The plan whose groups the answer is about, with the quotas that are in force: that of the reservation, or that of the user.
    fn plan_of(&self, user: usize, operation: &Operation) -> Option<Plan> {
        let of = match &operation.call {
            Call::Commit { of, .. } => *of,
            Call::Track { event, refund: Some(refund), .. } if event.refunded().is_some() => refund.of,
            _ => return self.in_force_plan(operation.replica, user).map(|(plan, _)| plan),
        };
        let this = &self.users[user];
        let reservation = &this.reservations[&of];
        let mut plan = Plan::clone(&reservation.plan_of_catalog);
        let own = this.subscription.as_ref().filter(|own| !own.ended(this.now) && own.plan == plan.id);
        for group in &mut plan.groups {
            if let Some(own) = own {
                group.quota = quota(group, &own.overrides);
            }
            if let Some(claim) = reservation.claims.iter().find(|claim| claim.group == group.id) {
                group.quota = claim.quota;
            }
        }
        Some(plan)
    }

    fn crossed(&mut self, user: usize, operation: &Operation) -> Vec<v1::CrossedThreshold> {
        let Some(plan) = self.plan_of(user, operation) else { return Vec::new() };
        let mut crossed = Vec::new();
        for group in &plan.groups {
            let this = &self.users[user];
            let mut risen: Vec<_> = this.risen().filter(|(window, ..)| this.windows[*window].is_of(group)).collect();
            risen.sort_by_key(|(window, ..)| this.windows[*window].start);
            for (window, before, after) in risen {
                let mut points: Vec<_> =
                    group.thresholds.iter().filter_map(|it| Some((point(it, group)?, it))).collect();
                points.retain(|(point, _)| before < *point && *point <= after);
                // An amount goes before a share at the same point.
                points.sort_by_key(|(point, threshold)| (*point, threshold.share()));
                if points.is_empty() || !self.users[user].is_kept(Some(window)) {
                    continue;
                }
                self.cover_points(user, group, window, &points, after);
                let bounds = Some(self.users[user].bounds(window)).filter(|bounds| *bounds != (0, NEVER));
                crossed.extend(points.iter().map(|(point, threshold)| v1::CrossedThreshold {
                    limit_group_id: group.id.clone(),
                    label: group.label.clone(),
                    unit: group.unit.word().to_owned(),
                    share: threshold.share().map(crate::sketch::double),
                    amount: group.unit.shown(*point),
                    used: group.unit.shown(after),
                    quota: group.quota.map_or(f64::INFINITY, |quota| group.unit.shown(quota)),
                    unlimited: group.quota.is_none(),
                    window_start: bounds.map(|(start, _)| timestamp(start)),
                    reset_time: bounds.map(|(_, end)| timestamp(end)),
                }));
            }
        }
        crossed
    }

    fn cover_points(&mut self, user: usize, group: &Group, window: usize, points: &[(u128, &Threshold)], after: u128) {
        for (point, threshold) in points {
            if *point == after {
                self.cover("a threshold is reached exactly");
            }
            if !self.users[user].told.insert((window, *point)) {
                self.cover("a threshold is crossed once more");
            }
            if let Threshold::Amount(_) = threshold {
                self.cover(if group.quota.is_none() {
                    "an amount of an unlimited group is crossed"
                } else {
                    "an amount is crossed"
                });
            }
        }
        if points.len() > 1 {
            self.cover("several thresholds are crossed at once");
        }
        if !group.hard {
            self.cover("a soft group crosses a threshold");
        }
        let this = &self.users[user];
        let has_ended = this.windows[window].end <= this.now;
        let has_own = this.subscription.as_ref().is_some_and(|own| own.overrides.contains_key(&group.id));
        if has_ended {
            self.cover("a threshold is crossed in a window that has ended");
        }
        if has_own {
            self.cover("a threshold is crossed by a quota of the user's own");
        }
    }

    fn cover_told(&mut self, operation: &Operation, answer: &Answer) {
        let (crossed, limits) = match answer {
            Answer::Commit(told) => (&told.crossed, &told.limits),
            Answer::Track(told) => (&told.crossed, &told.limits),
            _ => return,
        };
        if crossed.is_empty() {
            return;
        }
        let in_row = |crossed: &v1::CrossedThreshold| {
            let of_row = |row: &&v1::LimitStatus| {
                row.limit_group_id == crossed.limit_group_id && row.window_start == crossed.window_start
            };
            limits.iter().any(|row| of_row(&row))
        };
        let elsewhere = !crossed.iter().all(in_row);
        let is_refund = matches!(&operation.call, Call::Track { event, .. } if event.refunded().is_some());
        self.cover(match answer {
            Answer::Commit(told) if told.state() == v1::ReservationState::Committed && told.late => {
                "a late commit crosses a threshold"
            }
            Answer::Commit(told) if told.state() == v1::ReservationState::Committed => "a commit crosses a threshold",
            Answer::Commit(_) => "a partial commit crosses a threshold",
            Answer::Track(told) if told.event_id.is_empty() => "a blocked track tells what deadlines have crossed",
            Answer::Track(_) if is_refund => "a refund tells what deadlines have crossed",
            _ => "a track crosses a threshold",
        });
        if elsewhere {
            self.cover(match answer {
                Answer::Commit(_) => "a commit tells what deadlines have crossed elsewhere",
                _ => "a track tells what deadlines have crossed elsewhere",
            });
        }
    }
}

/// Where a threshold is under the group's quota, in smallest units, rounded up; a share of no quota is nowhere.
fn point(threshold: &Threshold, group: &Group) -> Option<u128> {
    match threshold {
        Threshold::Share(micros) => group.quota.map(|quota| (micros * quota).div_ceil(MICRO)),
        Threshold::Amount(micros) => Some((micros * group.unit.scale()).div_ceil(MICRO)),
    }
}

/// `is_same`: the user's subscription is what it was.
fn wrote(call: &Call, outcome: &Outcome, is_same: bool) -> Wrote {
    let Ok(answer) = outcome else {
        // An Extend that extends nothing is an answer, not a refusal.
        return match outcome {
            Err(Answer::Extend(answer)) if answer.extended && !answer.replayed => Wrote::Perhaps,
            _ => Wrote::No,
        };
    };
    let writes = match (call, answer) {
        // A denial as well writes what has lapsed.
        (_, Answer::Reserve(answer)) => !answer.replayed,
        (_, Answer::Commit(answer)) => !answer.replayed,
        (_, Answer::Track(answer)) => !answer.replayed,
        (_, Answer::Extend(_)) => true,
        (_, Answer::Reset(answer)) => !answer.replayed,
        // Late or twice, it changes nothing.
        (_, Answer::Release(answer)) => answer.state() == v1::ReservationState::Released && !answer.replayed,
        (Call::Upsert { .. } | Call::Cancel { .. }, _) if is_same => return Wrote::Perhaps,
        (Call::Upsert { .. } | Call::Cancel { .. }, _) => true,
        _ => false,
    };
    if writes { Wrote::Yes } else { Wrote::No }
}
