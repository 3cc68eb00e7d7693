//! The reference model's long reservations: Extend, and commits of a part.

use tollgate::grpc::v1;
use tonic::Code;

use super::{Priced, counted};
use crate::answers::{Answer, already_committed, claim_row, duration, fault, invalid, timestamp};
use crate::operations::Actual;
use crate::price::{self, Usage};
use crate::reference::{Model, Outcome};
use crate::sketch::{LARGEST, MICRO, Measure};
use crate::user::{Claim, Counted, Id, Reservation, State, User};

impl Model {
    /// The total so far: in each group it counts by how much that has grown.
    pub fn commit_part(&mut self, of: u32, actual: &Actual, ttl_ms: Option<i64>) -> Outcome {
        let user = self.owner(of)?;
        let reservation = self.users[user].reservations[&of].clone();
        let now = self.users[user].now;
        let state = reservation.state_at(now);
        let named = reservation.named.then(actual);
        let usage = Usage { event: &reservation.event, added: &reservation.added, named: Some(&named) };
        let priced = self.priced(&reservation, usage, Some(("actual", actual)))?;
        if state == State::Committed {
            self.cover("a partial commit after the final one");
            return Err(already_committed(&reservation));
        }
        let late = state != State::Held;
        // SPEC does not say which of several wrong clocks ended it.
        if reservation.again {
            self.silent();
        }
        // Nor whether it takes back what was refunded before.
        if reservation.is_refunded() {
            self.silent();
        }
        let totals: Option<Vec<_>> = priced.iter().map(|used| used.charge).collect();
        let totals = totals.ok_or_else(|| self.no_counter())?;
        let grows = reservation.claims.iter().zip(&totals).any(|(claim, total)| *total > claim.partial);
        if grows {
            self.take_over(user, of, actual, &priced)?;
        }
        let moves = self.moves_deadline(user, of, ttl_ms.filter(|_| !late));
        self.cover_part(user, &reservation, &totals, ttl_ms);
        let exhausted = self.is_exhausted(user, of, &priced);
        let user = &self.users[user];
        let part = &user.reservations[&of];
        let rows = part.claims.iter().zip(&totals).map(|(claim, total)| claim_row(user, claim, *total, 0));
        let answer = Answer::Commit(v1::CommitResponse {
            state: state.shown().into(),
            limits: rows.collect(),
            overage: part.claims.iter().zip(&totals).any(|(claim, total)| *total > claim.charge),
            late,
            replayed: false,
            exhausted,
            expire_time: Some(timestamp(part.deadline)),
            crossed: Vec::new(),
        });
        // What changes nothing does not certainly write the time.
        if grows || moves { Ok(answer) } else { Err(answer) }
    }

    /// Counts what has grown, and remembers what the call has named.
    fn take_over(&mut self, user: usize, of: u32, actual: &Actual, priced: &[Priced]) -> Result<(), Answer> {
        for (index, Priced { measure, event, charge, .. }) in priced.iter().enumerate() {
            let this = self.users[user].reservations.get_mut(&of).unwrap();
            let claim = &mut this.claims[index];
            let total = claim.partial.max(charge.unwrap_or_default());
            let more = total - claim.partial;
            // What the deadline has counted of it is counted.
            let counted_before = claim.lapsed.take(more);
            let beyond = more - counted_before.total();
            claim.tally.append(counted_before);
            claim.partial = total;
            let is_more = *charge < Some(total);
            claim.counted = counted(measure, event, total).map(|counted| Counted { is_more, ..counted });
            if !self.users[user].is_kept(self.users[user].reservations[&of].claims[index].window) {
                self.cover("a partial commit whose window is gone");
            }
            self.count_more(user, of, index, beyond)?;
        }
        let now = self.users[user].now;
        let part = self.users[user].reservations.get_mut(&of).unwrap();
        part.named = part.named.then(actual);
        part.added_before = part.added.len();
        // Late, it settles a part.
        if part.state_at(now) != State::Held {
            part.is_remembered_until(now + self.settings.replay_ms);
        }
        Ok(())
    }

    /// The deadline moves to so long from now, if that is later. Returns whether it was moved.
    fn moves_deadline(&mut self, user: usize, of: u32, ttl_ms: Option<i64>) -> bool {
        let Some(ttl_ms) = ttl_ms else { return false };
        let (now, settlement_ms) = (self.users[user].now, self.settings.settlement_ms);
        let reservation = self.users[user].reservations.get_mut(&of).unwrap();
        let moves = reservation.hold_until(now + ttl_ms, settlement_ms);
        let is_capped = reservation.last_deadline() < now + ttl_ms;
        if is_capped {
            self.cover("a deadline that is as late as can be");
        }
        moves
    }

    /// Whether some hard group has no room for the smallest further charge, neither in what the reservation holds nor in the window.
    fn is_exhausted(&mut self, user: usize, of: u32, priced: &[Priced]) -> bool {
        let this = &self.users[user];
        let reservation = &this.reservations[&of];
        let is_held = reservation.state_at(this.now) == State::Held;
        let mut exhausted = false;
        for (claim, used) in reservation.claims.iter().zip(priced) {
            let Some(quota) = claim.quota.filter(|_| claim.hard) else { continue };
            let Some(window) = claim.window.filter(|_| this.is_kept(claim.window)) else { continue };
            let Some(smallest) = price::smallest_charge(&used.measure, claim.unit) else { continue };
            let hold = if is_held { claim.hold() } else { 0 };
            let room = quota.saturating_sub(this.counted(window));
            // SPEC does not say whether a charge fits that takes some of both.
            if smallest > hold && smallest > room && smallest <= hold + room {
                self.silent();
            }
            exhausted |= smallest > hold && smallest > room;
        }
        self.cover(if exhausted { "exhausted" } else { "not exhausted" });
        exhausted
    }

    fn cover_part(&mut self, user: usize, before: &Reservation, totals: &[u128], ttl_ms: Option<i64>) {
        let now = self.users[user].now;
        let state = before.state_at(now);
        let pairs = || before.claims.iter().zip(totals);
        let higher = pairs().any(|(claim, total)| *total > claim.partial);
        let lower = pairs().any(|(claim, total)| *total < claim.partial);
        self.cover(match (state, higher) {
            (State::Held, true) if before.named.is_empty() => "a partial commit",
            (State::Held, true) if lower => "a partial commit that is lower in some groups",
            (State::Held, true) => "a partial commit after another one",
            (State::Held, false) if lower => "a partial commit with a lower total",
            (State::Held, false) => "a partial commit with the same total",
            (State::Expired, true) if before.counts => "a partial commit after a deadline that counts",
            (State::Expired, true) => "a partial commit after the deadline",
            (_, true) => "a partial commit after a release",
            (_, false) => "a late partial commit with no higher total",
        });
        if before.counts
            && state == State::Expired
            && pairs().any(|(claim, total)| claim.partial < *total && *total <= claim.total())
        {
            self.cover("a late partial commit within what the deadline has counted");
        }
        if state == State::Held && pairs().any(|(claim, total)| *total > claim.charge) {
            self.cover("a partial commit of more than is reserved");
        }
        if ttl_ms.is_some() {
            self.cover(if state == State::Held {
                "a partial commit moves the deadline"
            } else {
                "a late partial commit does not move the deadline"
            });
        }
        if higher && !before.added.is_empty() {
            self.cover("a partial commit after an extend");
        }
    }

    pub fn extend(&mut self, of: u32, ttl_ms: i64, add: Option<&Actual>, request_id: &str) -> Outcome {
        if add.is_some_and(|add| !add.metadata.is_empty()) {
            self.cover("an extend with metadata");
            return Err(invalid("INVALID_FIELD"));
        }
        if add.is_some_and(Actual::is_nothing) {
            self.cover("an extend by nothing");
            return Err(invalid("INVALID_FIELD"));
        }
        // Its id names the user, also when it is forgotten.
        let Some(user) = self.users.iter().position(|user| user.reserved.contains(&of)) else {
            self.cover("an extend of what is unknown or forgotten");
            return Err(fault(Code::NotFound, "RESERVATION_NOT_FOUND"));
        };
        let body = format!("extend {of} {ttl_ms} {add:?}");
        if let Some(memory) = self.users[user].recall(request_id) {
            let Id::Extend { body: first, of, costs } = memory else { return Err(self.reused("other RPC")) };
            if first != body {
                return Err(self.reused("other body"));
            }
            self.cover_replay(user, of);
            let costs: Vec<_> = costs.into_iter().map(|cost| cost as i128).collect();
            let answer = extended(&self.users[user], of, &costs);
            return Err(Answer::Extend(v1::ExtendResponse { replayed: true, ..answer }));
        }
        if !self.users[user].remembers_reservation(of) {
            self.cover("an extend of what is unknown or forgotten");
            return Err(fault(Code::NotFound, "RESERVATION_NOT_FOUND"));
        }
        let reservation = self.users[user].reservations[&of].clone();
        let now = self.users[user].now;
        match reservation.state_at(now) {
            State::Held => {}
            State::Expired => {
                self.cover(if now == reservation.deadline {
                    "an extend exactly at the deadline"
                } else {
                    "an extend after the deadline"
                });
                return Err(fault(Code::FailedPrecondition, "RESERVATION_EXPIRED"));
            }
            State::Released => {
                self.cover("an extend after a release");
                return Err(fault(Code::FailedPrecondition, "RESERVATION_RELEASED"));
            }
            State::Committed => {
                self.cover("an extend after a commit");
                return Err(already_committed(&reservation));
            }
        }
        let costs = match add {
            None => vec![0; reservation.claims.len()],
            Some(add) => self.costs(&reservation, add)?,
        };
        for (claim, cost) in reservation.claims.iter().zip(&costs) {
            let window = claim.window.filter(|_| self.users[user].is_kept(claim.window));
            let there = window.map_or(0, |window| self.users[user].counted(window));
            // `block` may have filled a window beside holds, so that both together pass the maximum. Time alone adds nothing to that.
            if add.is_some() && there as i128 + cost > claim.unit.most() as i128 {
                return Err(self.no_counter());
            }
        }
        let full: Vec<_> =
            reservation.claims.iter().zip(&costs).map(|(claim, cost)| !self.fits_more(user, claim, *cost)).collect();
        if full.contains(&true) {
            self.cover(if full.contains(&false) {
                "an extend that fits some groups"
            } else {
                "an extend that fits no group"
            });
            return Err(self.not_extended(user, of, &costs, &full));
        }
        self.cover_extend(user, &reservation, add, &costs);
        let extended_one = self.users[user].reservations.get_mut(&of).unwrap();
        for (claim, cost) in extended_one.claims.iter_mut().zip(&costs) {
            claim.charge = claim.charge.checked_add_signed(*cost).expect("it is the price of what is reserved");
        }
        extended_one.added.extend(add.cloned());
        let moves = self.moves_deadline(user, of, Some(ttl_ms));
        self.cover(if moves { "an extend moves the deadline" } else { "an extend that leaves the deadline" });
        let answer = Answer::Extend(extended(&self.users[user], of, &costs));
        if !request_id.is_empty() {
            let costs = costs.iter().map(|cost| (*cost).max(0) as u128).collect();
            self.users[user].ids.insert(request_id.to_owned(), Id::Extend { body, of, costs });
        }
        // What changes nothing does not certainly write the time.
        if moves || add.is_some() || !request_id.is_empty() { Ok(answer) } else { Err(answer) }
    }

    /// What more costs in each group: the price of all that is reserved then, less the price of what is reserved so far.
    fn costs(&mut self, reservation: &Reservation, add: &Actual) -> Result<Vec<i128>, Answer> {
        let added: Vec<_> = reservation.added.iter().chain([add]).cloned().collect();
        let usage = Usage { event: &reservation.event, added: &added, named: None };
        // SPEC does not say what a quantity is that is larger than a caller can send one.
        let too_much = |name: &String| {
            let there = price::value_of(name, &reservation.event).unwrap_or_default();
            there + added.iter().map(|add| add.of(name)).sum::<u128>() > LARGEST * MICRO
        };
        if reservation.measured.iter().any(too_much) {
            self.silent();
        }
        let priced = self.priced(reservation, usage, Some(("add", add)))?;
        // The same of what is added to a default. A price that no counter can hold is out of range all the same.
        let passes = |used: &Priced| used.event.quantities.values().any(|there| *there > LARGEST * MICRO);
        if priced.iter().any(passes) && priced.iter().all(|used| used.charge.is_some()) {
            self.silent();
        }
        let mut costs = Vec::new();
        for (claim, all) in reservation.claims.iter().zip(priced) {
            let all = all.charge.ok_or_else(|| self.no_counter())?;
            costs.push(all as i128 - claim.charge as i128);
            if let Measure::Terms(terms) = &all_terms(claim, usage)
                && terms.iter().any(|term| {
                    term.default.is_some() && add.names(&term.name) && !price::names(term, &reservation.event)
                })
            {
                self.cover("an extend beyond a default");
            }
        }
        Ok(costs)
    }

    /// Whether a group of the reservation has room for so much more.
    fn fits_more(&self, user: usize, claim: &Claim, cost: i128) -> bool {
        let user = &self.users[user];
        // A window that is gone sets no limit.
        let Some(window) = claim.window.filter(|_| user.is_kept(claim.window)) else { return true };
        let Some(quota) = claim.quota.filter(|_| claim.hard) else { return true };
        cost <= 0 || user.counted(window) as i128 + cost <= quota as i128
    }

    /// Nothing changes, the deadline neither.
    fn not_extended(&mut self, user: usize, of: u32, costs: &[i128], full: &[bool]) -> Answer {
        let this = &self.users[user];
        let mut answer = extended(this, of, costs);
        let mut waits = true;
        for (((claim, cost), row), _) in
            this.reservations[&of].claims.iter().zip(costs).zip(&mut answer.limits).zip(full).filter(|(_, full)| **full)
        {
            let (quota, window) = (claim.quota.expect("it is full"), claim.window.expect("it is full"));
            let cost = cost.unsigned_abs();
            let shortfall = (this.counted(window) + cost - quota).min(LARGEST);
            row.shortfall = claim.unit.shown(shortfall);
            waits &= this.windows[window].used + cost <= quota;
        }
        // The reservation stays in its window, so that the end of that does not help.
        let retry_after = this.earliest_deadline().filter(|_| waits).map(|at| duration(at - this.now));
        self.cover(if waits { "an extend may be tried again" } else { "an extend that waiting does not help" });
        let reasons = vec![v1::Reason::LimitReached.into()];
        Answer::Extend(v1::ExtendResponse { extended: false, reasons, retry_after, ..answer })
    }

    fn cover_replay(&mut self, user: usize, of: u32) {
        let user = &self.users[user];
        let state = user.reservations[&of].state_at(user.now);
        self.cover(match state {
            State::Held => "an extend asked again",
            _ => "an extend asked again after its reservation has ended",
        });
    }

    fn cover_extend(&mut self, user: usize, before: &Reservation, add: Option<&Actual>, costs: &[i128]) {
        let this = &self.users[user];
        let is_gone = |claim: &Claim| !this.is_kept(claim.window);
        let any_gone = before.claims.iter().any(is_gone);
        let has_ended = |claim: &Claim| !is_gone(claim) && claim.bounds.1 <= this.now && claim.bounds.1 > 0;
        let any_ended = before.claims.iter().any(has_ended);
        if add.is_some() {
            self.cover("an extend by more");
        }
        if any_gone {
            self.cover("an extend whose window is gone");
        }
        if any_ended && add.is_some() {
            self.cover("an extend in a window that has ended");
        }
        if before.is_partly_committed() && add.is_some() {
            self.cover("an extend after partial commits");
        }
        if costs.iter().any(|cost| *cost < 0) {
            self.cover("an extend that costs less than nothing");
        }
        if !before.added.is_empty() && add.is_some() {
            self.cover("an extend by more after another one");
        }
    }
}

/// The measure that applies to what is reserved.
fn all_terms(claim: &Claim, usage: Usage<'_>) -> Measure {
    price::choose_used(&claim.measures, usage, claim.unit).map_or(Measure::Events, |(measure, _)| measure.clone())
}

/// The answer of an Extend that has held this much more.
fn extended(user: &User, of: u32, costs: &[i128]) -> v1::ExtendResponse {
    let reservation = &user.reservations[&of];
    // Nor does SPEC say whether groups that match only what was committed are among those of the reservation.
    if reservation.again || reservation.claims.iter().any(|claim| claim.only_committed) {
        user.windows.silent.set(true);
    }
    let rows = reservation.reserved_claims().zip(costs);
    v1::ExtendResponse {
        extended: true,
        expire_time: Some(timestamp(reservation.deadline)),
        limits: rows.map(|(claim, cost)| claim_row(user, claim, (*cost).max(0) as u128, 0)).collect(),
        ..Default::default()
    }
}
