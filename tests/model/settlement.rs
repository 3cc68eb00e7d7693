//! The reference model's settling: Commit, Release, and refunds of what a reservation committed.

use tollgate::grpc::v1;
use tonic::Code;

use crate::answers::{Answer, already_committed, claim_row, fault, fault_with, invalid, unpriced};
use crate::operations::Actual;
use crate::price;
use crate::reference::{Model, Outcome};
use crate::sketch::{Event, Measure};
use crate::user::{Claim, State, User};

impl Model {
    /// Whose reservation it is, unless that is unknown or forgotten.
    fn owner(&mut self, of: u32) -> Result<usize, Answer> {
        let known =
            |user: &User| user.reservations.get(&of).is_some_and(|reservation| user.now < reservation.forgotten);
        match self.users.iter().position(known) {
            Some(user) => Ok(user),
            None => {
                self.cover("a reservation that is unknown or forgotten");
                Err(fault(Code::NotFound, "RESERVATION_NOT_FOUND"))
            }
        }
    }

    pub fn commit(&mut self, of: u32, actual: Option<&Actual>) -> Outcome {
        let user = self.owner(of)?;
        let reservation = self.users[user].reservations[&of].clone();
        let now = self.users[user].now;
        let state = reservation.state_at(now);
        let event = actual.map(|actual| with_actual(&reservation.event, actual));
        let mut charges = Vec::new();
        for claim in &reservation.claims {
            charges.push(match &event {
                None => Some(claim.charge),
                Some(event) => {
                    let measure = price::choose(&claim.measures, event, claim.unit);
                    let measure = measure.map_err(|why| unpriced(&claim.group, &why))?;
                    price::charge(measure, event, claim.unit, false)
                }
            });
        }
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
        self.users[user].reservations.insert(of, settled);
        for (index, (claim, charge)) in reservation.claims.iter().zip(&charges).enumerate() {
            let most = claim.unit.most();
            let open = self.users[user].is_kept(claim.window);
            let there = if open { self.users[user].counted(claim.window) } else { 0 };
            let Some(charge) = charge.filter(|charge| there + charge <= most) else {
                self.cover("an amount that no counter can hold");
                return Err(fault(Code::OutOfRange, "OUT_OF_RANGE"));
            };
            if open {
                self.users[user].windows[claim.window].used += charge;
            } else {
                self.cover("a settling whose window is gone");
            }
            let user = &mut self.users[user];
            user.reservations.get_mut(&of).unwrap().claims[index].committed = Some(charge);
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
            .any(|claim| self.users[user].is_kept(claim.window) && self.users[user].windows[claim.window].end <= now)
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
        let mut claims = Vec::new();
        for claim in &reservation.claims {
            let measure = price::choose(&claim.measures, event, claim.unit);
            let measure = measure.map_err(|why| unpriced(&claim.group, &why))?;
            let charge = match measure {
                Measure::Events => Some(0),
                Measure::Terms(_) => price::charge(measure, event, claim.unit, true),
            };
            let charge = charge.ok_or_else(|| fault(Code::OutOfRange, "OUT_OF_RANGE"))?;
            claims.push(Claim { charge, ..claim.clone() });
        }
        let mut refunds = Vec::new();
        for (index, claim) in claims.into_iter().enumerate() {
            let user = &mut self.users[user];
            let mut applied = 0;
            if user.is_kept(claim.window) {
                let window = &mut user.windows[claim.window];
                applied = claim.charge.min(claim.committed.unwrap_or_default() - claim.refunded).min(window.used);
                window.used -= applied;
                user.reservations.get_mut(&of).unwrap().claims[index].refunded += applied;
            }
            let unapplied = claim.charge - applied;
            refunds.push((claim, unapplied));
        }
        self.cover("a refund of a reservation");
        if refunds.iter().any(|(_, unapplied)| *unapplied > 0) {
            self.cover("a refund of more than was committed");
        }
        Ok(refunds)
    }
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
