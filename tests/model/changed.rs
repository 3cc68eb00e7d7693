//! The reference model's commits of another event than was reserved: `actual.metadata`.

use super::{Priced, charge_in};
use crate::answers::{Answer, invalid};
use crate::decisions::Match;
use crate::operations::Actual;
use crate::price::{self, Unmeasured, Usage};
use crate::reference::Model;
use crate::sketch::{Group, Measure};
use crate::user::{Claim, Reservation, State};
use crate::windows::Wanted;

impl Model {
    /// The groups of the reservation's plan that match what a call says of it, with the measures of the rules that hold.
    pub fn matched_anew(
        &mut self,
        reservation: &Reservation,
        usage: Usage<'_>,
    ) -> Result<Vec<(Group, Vec<Measure>)>, Answer> {
        let event = usage.matched();
        let groups = reservation.plan.groups.iter().map(|group| {
            let measures = price::measures(group, &event, &event.name);
            (group.clone(), measures)
        });
        let matched: Vec<_> = groups.filter(|(_, measures)| !measures.is_empty()).collect();
        if matched.is_empty() {
            self.cover("a commit of another event that no group matches");
            return Err(invalid("UNMATCHED_EVENT"));
        }
        Ok(matched)
    }

    /// Groups that match only what is committed: nothing was reserved there, and the window is the one in which an event would be counted
    /// now, by the plan of the reservation. The plan in force is not asked.
    pub(super) fn claim_anew(&mut self, user: usize, of: u32, priced: &[Priced]) {
        let reservation = self.users[user].reservations[&of].clone();
        let plan = &reservation.plan;
        let mut claims = reservation.claims.clone();
        for used in priced.iter().filter(|used| reservation.claim(&used.group.id).is_none()) {
            let this = &mut self.users[user];
            // SPEC does not say which of the user's own quotas is shown: that of the Reserve or that of now.
            let id = &used.group.id;
            if this.own_quotas().get(id) != reservation.own_quotas.get(id) {
                this.windows.silent.set(true);
                this.windows.note("a group matches only now whose own quota has changed");
            }
            let cycle_anchor = this.subscription.as_ref().map(|subscription| subscription.anchor);
            let wanted = Wanted { group: &used.group, zone: plan.zone, cycle_anchor };
            let is_open = this.windows.clone().open_one(wanted, this.now).is_ok();
            let window = this.windows.current(wanted, this.now);
            let found = Match {
                group: &used.group,
                window: Some(window),
                bounds: this.bounds(window),
                charge: 0,
                measures: used.measures.clone(),
                by_events: used.measure == Measure::Events,
            };
            claims.push(Claim { only_committed: true, ..found.claim() });
            self.cover(if is_open {
                "a group that matches only now goes on in its window"
            } else {
                "a group that matches only now opens a window"
            });
        }
        let place = |claim: &Claim| plan.groups.iter().position(|group| group.id == claim.group);
        claims.sort_by_key(place);
        self.users[user].reservations.get_mut(&of).unwrap().claims = claims;
    }

    pub fn cover_unmeasured(&mut self, why: &Unmeasured, said: Option<(&'static str, &Actual)>) {
        let is_changed = said.is_some_and(|(_, said)| !said.metadata.is_empty());
        match (why, said) {
            (Unmeasured::Exceeded(..), Some(("add", _))) => self.cover("an extend to parts that exceed their whole"),
            (Unmeasured::Exceeded(..), _) => self.cover("a commit of parts that exceed their whole"),
            (Unmeasured::Missing(_), _) if is_changed => self.cover("a commit of another event that lacks a quantity"),
            (Unmeasured::NotANumber(_), _) if is_changed => self.cover("a commit with metadata that is no number"),
            _ => {}
        }
        if is_changed && matches!(why, Unmeasured::Exceeded(..)) {
            self.cover("a commit of another event whose parts exceed their whole");
        }
    }

    pub(super) fn cover_changed(&mut self, user: usize, reservation: &Reservation, priced: &[Priced], named: &Actual) {
        if named.metadata.is_empty() {
            return;
        }
        let now = self.users[user].now;
        let state = reservation.state_at(now);
        let measured = |name: &String| reservation.measured.contains(name);
        if named.metadata.keys().any(measured) {
            self.cover("a commit with a quantity in its metadata");
        }
        if !changes_groups(reservation, priced) {
            self.cover("a commit with metadata that matches the same groups");
            return;
        }
        self.cover("a commit of another event");
        let comes = |used: &Priced| reservation.claim(&used.group.id).is_none();
        let goes = |claim: &Claim| priced.iter().all(|used| used.group.id != claim.group);
        let (any_comes, any_goes) = (priced.iter().any(comes), reservation.claims.iter().any(goes));
        if any_comes {
            self.cover("a group matches only what is committed");
        }
        if any_goes {
            self.cover("a group matches only what was reserved");
        }
        if any_comes && any_goes {
            self.cover("a commit in which one group takes the place of another");
        }
        match state {
            State::Held => self.cover("a commit of another event in time"),
            State::Expired if reservation.counts => {
                self.cover("a commit of another event after a deadline that counts")
            }
            State::Expired => self.cover("a commit of another event after the deadline"),
            _ => self.cover("a commit of another event after a release"),
        }
        if reservation.is_partly_committed() {
            self.cover("a commit of another event after partial ones");
        }
        if !reservation.added.is_empty() {
            self.cover("a commit of another event after an extend");
        }
        let has_ended = |claim: &Claim| claim.bounds.1 > 0 && claim.bounds.1 <= now;
        if any_comes && reservation.claims.iter().any(has_ended) {
            self.cover("a group matches only what is committed after a window's end");
        }
        let in_force = self.users[user].subscription.as_ref().map(|subscription| subscription.plan.clone());
        if any_comes && in_force.is_some_and(|plan| plan != reservation.plan.id) {
            self.cover("a group matches only what is committed after a plan change");
        }
        if priced.iter().any(|used| comes(used) && used.charge == Some(0)) {
            self.cover("a group that matches only now is charged 0");
        }
        let was_reset = |claim: &Claim| {
            let window = claim.window.map(|window| self.users[user].windows[window].resets);
            goes(claim) && window.is_some_and(|resets| claim.tally.since(resets) < claim.tally.total())
        };
        if reservation.claims.iter().any(was_reset) {
            self.cover("a group that no longer matches has counted before a reset");
        }
    }

    /// A commit of what was committed before.
    pub(super) fn cover_again(&mut self, reservation: &Reservation, priced: &[Priced], named: &Actual) {
        if named.metadata.is_empty() && reservation.claims.iter().all(|claim| !claim.is_changed()) {
            return;
        }
        self.cover(match (named.metadata.is_empty(), is_otherwise(reservation, priced)) {
            (true, _) => "a commit of what was reserved after one of another event",
            (false, true) => "a commit of another event twice, other charges",
            (false, false) => "a commit of another event twice, same charges",
        });
    }

    /// A refund of what a reservation has committed, with what it asks of each group.
    pub fn cover_refund(&mut self, reservation: &Reservation, refunds: &[(Claim, u128)]) {
        if reservation.claims.iter().any(|claim| claim.measures.is_empty()) {
            self.cover("a refund where a group no longer matches");
        }
        if refunds.iter().any(|(claim, unapplied)| claim.only_committed && claim.charge > *unapplied) {
            self.cover("a refund where a group matches only what was committed");
        }
    }
}

/// Whether a commit of these charges is another than the one before: a group that does not match is charged 0.
pub fn is_otherwise(reservation: &Reservation, priced: &[Priced]) -> bool {
    let differs = |claim: &Claim| claim.committed != charge_in(priced, claim);
    let is_new = |used: &Priced| reservation.claim(&used.group.id).is_none() && used.charge != Some(0);
    reservation.claims.iter().any(differs) || priced.iter().any(is_new)
}

/// Whether other groups match than those of the reservation.
fn changes_groups(reservation: &Reservation, priced: &[Priced]) -> bool {
    let reserved = reservation.claims.iter().map(|claim| &claim.group);
    !reserved.eq(priced.iter().map(|used| &used.group.id))
}
