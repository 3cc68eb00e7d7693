//! The reference model's settling: Commit, Release, and refunds of what a reservation committed.

use tollgate::grpc::v1;
use tonic::Code;

use crate::answers::{
    Answer, already_committed, claim_row, fault, fault_with, invalid, nothing_measured, reservation, unmeasured,
};
use crate::operations::Actual;
use crate::price::{self, Unmeasured};
use crate::reference::{Model, Outcome};
use crate::sketch::{Event, Measure, Term};
use crate::user::{Claim, Counted, State};

/// What a refund asks of a group, what the reservation has counted there after it, and whether the group measures what it names.
type Ask = (u128, Option<Counted>, bool);

impl Model {
    /// Whose reservation it is, unless that is unknown or forgotten.
    fn owner(&mut self, of: u32) -> Result<usize, Answer> {
        match self.users.iter().position(|user| user.remembers_reservation(of)) {
            Some(user) => Ok(user),
            None => {
                self.cover("a reservation that is unknown or forgotten");
                Err(fault(Code::NotFound, "RESERVATION_NOT_FOUND"))
            }
        }
    }

    /// As it is remembered.
    pub fn reservation(&mut self, of: u32) -> Outcome {
        let user = self.owner(of)?;
        let found = reservation(&self.users[user], of);
        self.cover(match found.state() {
            v1::ReservationState::Held => "a live hold is looked up",
            _ => "what is not held any more is looked up",
        });
        if found.charges.iter().any(|charge| charge.refunded > 0.0) {
            self.cover("what was refunded is looked up");
        }
        Err(Answer::Reservation(found))
    }

    /// All that is live.
    pub fn reservations(&mut self, user: usize) -> Outcome {
        let user = &self.users[user];
        // SPEC does not say what is told of a hold whose memory a wrong time has made Redis drop.
        let live: Vec<_> = user.live_ones().into_iter().filter(|of| user.remembers_reservation(*of)).collect();
        let mut holds: Vec<_> = live.iter().map(|of| reservation(user, *of)).collect();
        holds.sort_by(|one, two| one.reservation_id.cmp(&two.reservation_id));
        match holds.len() {
            0 => {}
            1 => self.cover("a live hold is listed"),
            _ => self.cover("several live holds are listed"),
        }
        Err(Answer::Holds(holds))
    }

    pub fn commit(&mut self, of: u32, actual: Option<&Actual>) -> Outcome {
        let user = self.owner(of)?;
        let reservation = self.users[user].reservations[&of].clone();
        let now = self.users[user].now;
        let state = reservation.state_at(now);
        let event = actual.map(|actual| with_actual(&reservation.event, actual));
        let committed = event.as_ref().unwrap_or(&reservation.event);
        let (mut measures, mut events) = (Vec::new(), Vec::new());
        for claim in &reservation.claims {
            let chosen = price::choose_committed(&claim.measures, committed, actual, claim.unit);
            let (measure, event) = chosen.map_err(|why| {
                if let Unmeasured::Exceeded(..) = why {
                    self.cover("a commit of parts that exceed their whole");
                }
                unmeasured(&claim.group, why)
            })?;
            if event != *committed {
                self.cover("a commit whose parts take their default");
            }
            measures.push(measure);
            events.push(event);
        }
        if actual.is_some_and(|actual| measures_nothing(&measures, actual)) {
            self.cover("a commit that measures nothing");
            return Err(nothing_measured());
        }
        let charge =
            |((claim, measure), event): ((&Claim, &&Measure), &Event)| price::charge(measure, event, claim.unit, false);
        let charges: Vec<_> = reservation.claims.iter().zip(&measures).zip(&events).map(charge).collect();
        let overage = reservation
            .claims
            .iter()
            .zip(&charges)
            .any(|(claim, charge)| *charge > Some(claim.charge) || charge.is_none());
        let late = state != State::Held;
        if state == State::Committed {
            if reservation.claims.iter().zip(&charges).any(|(claim, charge)| claim.committed != *charge) {
                self.cover("commit twice, other charges");
                return Err(already_committed(&reservation));
            }
            self.cover("commit twice, same charges");
            let limits = reservation
                .claims
                .iter()
                .map(|claim| claim_row(&self.users[user], claim, claim.committed.unwrap_or_default(), 0));
            return Ok(Answer::Commit(v1::CommitResponse {
                state: v1::ReservationState::Committed.into(),
                limits: limits.collect(),
                overage,
                late: reservation.late,
                replayed: true,
            }));
        }
        let mut settled = reservation.clone();
        settled.state = State::Committed;
        settled.late = late;
        settled.forgotten = settled.forgotten.max(now + self.settings.replay_ms);
        settled.remembered = settled.remembered.max(now + self.settings.replay_ms);
        self.users[user].reservations.insert(of, settled);
        for (index, (claim, charge)) in reservation.claims.iter().zip(&charges).enumerate() {
            let most = claim.unit.most();
            let open = claim.window.filter(|_| self.users[user].is_kept(claim.window));
            let there = open.map_or(0, |window| self.users[user].counted(window));
            let Some(charge) = charge.filter(|charge| there + charge <= most) else {
                self.cover("an amount that no counter can hold");
                return Err(fault(Code::OutOfRange, "OUT_OF_RANGE"));
            };
            let mut resets = 0;
            if let Some(window) = open {
                let window = &mut self.users[user].windows[window];
                window.used += charge;
                resets = window.resets;
            } else {
                self.cover("a settling whose window is gone");
            }
            let user = &mut self.users[user];
            let claim = &mut user.reservations.get_mut(&of).unwrap().claims[index];
            claim.resets = resets;
            claim.committed = Some(charge);
            claim.counted = counted(measures[index], &events[index], charge);
        }
        self.cover(match state {
            State::Held => "commit in time",
            State::Expired => "commit at or after the deadline",
            _ => "commit after release",
        });
        if overage {
            self.cover("commit more than reserved");
        }
        if now == reservation.deadline {
            self.cover("deadline reached exactly");
        }
        if !late && reservation.claims.iter().zip(&charges).any(|(claim, charge)| *charge < Some(claim.charge)) {
            self.cover("commit less than reserved");
        }
        if reservation
            .claims
            .iter()
            .filter_map(|claim| claim.window.filter(|_| self.users[user].is_kept(claim.window)))
            .any(|window| self.users[user].windows[window].end <= now)
        {
            self.cover("hold across a window's end");
        }
        let user = &self.users[user];
        let rows = reservation.claims.iter().zip(&charges);
        let limits = rows.map(|(claim, charge)| claim_row(user, claim, charge.unwrap_or_default(), 0)).collect();
        let state = v1::ReservationState::Committed.into();
        Ok(Answer::Commit(v1::CommitResponse { state, limits, overage, late, replayed: false }))
    }

    pub fn release(&mut self, of: u32) -> Outcome {
        let user = self.owner(of)?;
        let now = self.users[user].now;
        let replay_ms = self.settings.replay_ms;
        let reservation = self.users[user].reservations.get_mut(&of).unwrap();
        let before = reservation.state_at(now);
        match before {
            State::Committed => {
                let refused = already_committed(reservation);
                self.cover("release after commit");
                return Err(refused);
            }
            State::Held => {
                reservation.state = State::Released;
                reservation.forgotten = reservation.forgotten.max(now + replay_ms);
                reservation.remembered = reservation.remembered.max(now + replay_ms);
                self.cover("release in time");
            }
            State::Released => self.cover("release twice"),
            State::Expired => self.cover("release after the deadline"),
        }
        let user = &self.users[user];
        let reservation = &user.reservations[&of];
        Ok(Answer::Release(v1::ReleaseResponse {
            state: reservation.state_at(now).shown().into(),
            limits: reservation.claims.iter().map(|claim| claim_row(user, claim, claim.charge, 0)).collect(),
            replayed: before == State::Released,
        }))
    }

    pub fn refund_reservation(
        &mut self,
        user: usize,
        of: u32,
        event: &Event,
        name: &str,
    ) -> Result<Vec<(Claim, u128)>, Answer> {
        // Another user's reservation is as good as unknown.
        if self.owner(of)? != user {
            return Err(fault(Code::NotFound, "RESERVATION_NOT_FOUND"));
        }
        let now = self.users[user].now;
        let reservation = self.users[user].reservations[&of].clone();
        let state = reservation.state_at(now);
        if state != State::Committed {
            self.cover("a refund of what is not committed");
            return Err(fault_with(
                Code::FailedPrecondition,
                "NOT_COMMITTED",
                vec![("state", state.word().to_owned())],
            ));
        }
        if reservation.event.name != name {
            self.cover("a refund of another event");
            return Err(invalid("REFUND_OF_ANOTHER_EVENT"));
        }
        // It names quantities that some group was counted by. Of the others it asks nothing.
        let mut asks = Vec::new();
        for claim in &reservation.claims {
            asks.push(self.lowered(claim, event)?);
        }
        let missing = asks.iter().find_map(|ask| ask.as_ref().err());
        if let Some(missing) = missing.filter(|_| !asks.iter().flatten().any(|(_, _, measured)| *measured)) {
            return Err(missing.clone());
        }
        let mut refunds = Vec::new();
        for (index, (claim, ask)) in reservation.claims.iter().zip(asks).enumerate() {
            let (requested, lower, _) = ask.unwrap_or((0, None, false));
            let user = &mut self.users[user];
            let mut applied = 0;
            if let Some(lower) = lower {
                let back = claim.counted.as_ref().map_or(0, |counted| counted.charge) - lower.charge;
                if let Some(window) = claim.window.filter(|_| user.is_kept(claim.window)) {
                    let window = &mut user.windows[window];
                    // What was counted before a reset cannot be refunded after it.
                    if window.resets == claim.resets {
                        applied = back.min(window.used);
                        window.used -= applied;
                    } else {
                        user.windows.note("a refund of what was counted before a reset");
                    }
                }
                // Also where its window is gone: it is settled anew.
                user.reservations.get_mut(&of).unwrap().claims[index].counted = Some(lower);
            }
            refunds.push((Claim { charge: requested, ..claim.clone() }, requested - applied));
        }
        self.cover("a refund of a reservation");
        if refunds.iter().any(|(_, unapplied)| *unapplied > 0) {
            self.cover("a refund of more than was committed");
        }
        Ok(refunds)
    }

    /// What a refund asks of a group, and what the reservation then has counted there: it is settled anew at the lower amount. And whether
    /// the group measures what the refund names; else an error inside, which counts if no group does.
    fn lowered(&mut self, claim: &Claim, refund: &Event) -> Result<Result<Ask, Answer>, Answer> {
        let chosen = price::choose(&claim.measures, refund, claim.unit);
        // Never a group that is measured by events. If only the refund is, SPEC does not say what is asked of it.
        let Some(counted) = &claim.counted else {
            if chosen.is_err() || chosen.is_ok_and(|measure| *measure != Measure::Events) {
                self.silent();
            }
            return Ok(Ok((0, None, false)));
        };
        for term in counted.terms.iter().filter(|term| !price::names(term, refund)) {
            // Nor does SPEC say what a refund is that names a quantity in its metadata.
            if refund.metadata.contains_key(&term.name) {
                self.silent();
            }
        }
        let named: Vec<Term> = counted.terms.iter().filter(|term| price::names(term, refund)).cloned().collect();
        if let Some(why) = price::exceeded(&counted.terms, |term| asked_of(term, refund)).filter(|_| !named.is_empty())
        {
            self.cover("a refund of parts that exceed their whole");
            return Err(unmeasured(&claim.group, why));
        }
        if named.is_empty() {
            // Another rule may price it. SPEC does not say by how much that lowers what was counted by this one.
            return Ok(match chosen {
                Err(why @ Unmeasured::Exceeded(..)) => return Err(unmeasured(&claim.group, why)),
                Err(why) => Err(unmeasured(&claim.group, why)),
                Ok(measure) => {
                    self.silent();
                    Ok((price::charge(measure, refund, claim.unit, true).unwrap_or_default(), None, true))
                }
            });
        }
        // Nor does it say what becomes of a default, or of what the metadata named.
        if counted.terms.iter().any(|term| !price::names(term, &counted.event)) {
            self.silent();
        }
        if counted.terms.iter().any(|term| term.part_of.is_some()) {
            return self.lowered_with_parts(claim, counted, refund, &named).map(Ok);
        }
        let all = Measure::Terms(named.clone());
        if price::charge(&all, refund, claim.unit, true).is_none() {
            return Err(fault(Code::OutOfRange, "OUT_OF_RANGE"));
        }
        let event = without(&counted.event, refund, &named);
        let asked_in_vain = without(refund, &counted.event, &named);
        let in_vain = price::charge(&all, &asked_in_vain, claim.unit, true).unwrap_or_default();
        let measure = Measure::Terms(counted.terms.clone());
        let lower = price::charge(&measure, &event, claim.unit, false).unwrap_or_default();
        let back = counted.charge - lower;
        if price::charge(&all, refund, claim.unit, true) < Some(back) {
            self.cover("a refund gives back what was rounded up");
        }
        Ok(Ok((back + in_vain, Some(Counted { event, charge: lower, ..counted.clone() }), true)))
    }

    /// The same where quantities have parts: parts that the refund does not name come back with the last of their whole.
    fn lowered_with_parts(
        &mut self,
        claim: &Claim,
        counted: &Counted,
        refund: &Event,
        named: &[Term],
    ) -> Result<Ask, Answer> {
        let Counted { terms, event, charge } = counted;
        let measure = Measure::Terms(terms.clone());
        let committed = &price::with_parts_lowered(terms, event, claim.unit);
        let event = without(committed, refund, named);
        let stays = price::with_parts_lowered(terms, &event, claim.unit);
        if stays != event {
            self.cover("a refund that leaves less of a whole than of its parts");
        }
        let lower = price::charge(&measure, &stays, claim.unit, false).unwrap_or_default();
        let back = charge.saturating_sub(lower);
        let beyond =
            |term: &Term| (term.name.clone(), asked_of(term, refund).saturating_sub(asked_of(term, committed)));
        let in_vain = Event { quantities: terms.iter().map(beyond).collect(), ..Event::default() };
        let in_vain = price::with_parts_lowered(terms, &in_vain, claim.unit);
        let in_vain = price::charge(&measure, &in_vain, claim.unit, true);
        let Some(asked) = in_vain.map(|in_vain| in_vain + back).filter(|asked| *asked <= claim.unit.most()) else {
            return Err(fault(Code::OutOfRange, "OUT_OF_RANGE"));
        };
        self.cover("a refund of a reservation with parts");
        Ok((asked, Some(Counted { event, charge: lower, ..counted.clone() }), true))
    }
}

/// What a refund asks of a quantity, or a commit has named of it.
fn asked_of(term: &Term, event: &Event) -> u128 {
    let own = if term.name == "quantity" { event.quantity } else { None };
    event.quantities.get(&term.name).copied().or(own).unwrap_or_default()
}

/// Whether an actual names no quantity that any group is measured by, though some group is measured by quantities.
fn measures_nothing(measures: &[&Measure], actual: &Actual) -> bool {
    let names = |name: &str| actual.quantities.contains_key(name) || (name == "quantity" && actual.quantity.is_some());
    let mut by_quantities = measures.iter().filter_map(|measure| match measure {
        Measure::Terms(terms) => Some(terms),
        Measure::Events => None,
    });
    measures.iter().any(|measure| **measure != Measure::Events)
        && !by_quantities.any(|terms| terms.iter().any(|term| names(&term.name)))
}

/// What a commit has counted, to be refunded; nothing where events are counted.
fn counted(measure: &Measure, event: &Event, charge: u128) -> Option<Counted> {
    let Measure::Terms(terms) = measure else { return None };
    Some(Counted { terms: terms.clone(), event: event.clone(), charge })
}

/// The event without the quantities of the refund, none of them below 0.
fn without(event: &Event, refund: &Event, terms: &[Term]) -> Event {
    let mut event = event.clone();
    for Term { name, .. } in terms {
        let of = |event: &Event| {
            let own = if name == "quantity" { event.quantity } else { None };
            event.quantities.get(name).copied().or(own)
        };
        if let (Some(there), Some(back)) = (of(&event), of(refund)) {
            event.quantities.insert(name.clone(), there.saturating_sub(back));
        }
    }
    event
}

/// The event with what was really used; what the actual does not name stays as reserved.
fn with_actual(event: &Event, actual: &Actual) -> Event {
    let mut event = event.clone();
    if let Some(quantity) = actual.quantity {
        event.quantity = Some(quantity);
        event.quantities.remove("quantity");
    }
    event.quantities.extend(actual.quantities.clone());
    event
}
