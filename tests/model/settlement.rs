//! The reference model's settling: Commit, Release, and refunds of what a reservation committed.

#[path = "changed.rs"]
mod changed;
#[path = "long.rs"]
mod long;

use changed::is_otherwise;
use tollgate::grpc::v1;
use tonic::Code;

use crate::answers::{
    Answer, already_committed, claim_row, fault, fault_with, invalid, nothing_measured, reservation, unmeasured,
};
use crate::operations::Actual;
use crate::price::{self, Unmeasured, Usage};
use crate::reference::{Model, Outcome};
use crate::sketch::{Event, Group, Measure, Term};
use crate::user::{Claim, Counted, Reservation, State, Tally};

/// What a refund asks of a group, what the reservation has counted there after it, and whether the group measures what it names.
type Ask = (u128, Option<Counted>, bool);

/// What a reservation has used in one group, by the measure that applies; no charge where no counter can hold it.
struct Priced {
    group: Group,
    measures: Vec<Measure>,
    measure: Measure,
    event: Event,
    charge: Option<u128>,
}

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

    /// What the reservation has used in each group that it matches, after what a call says of it in the field of this name.
    fn priced(
        &mut self,
        reservation: &Reservation,
        usage: Usage<'_>,
        said: Option<(&'static str, &Actual)>,
    ) -> Result<Vec<Priced>, Answer> {
        let mut priced = Vec::new();
        for (group, measures) in self.matched_anew(reservation, usage)? {
            let (measure, event) = price::choose_used(&measures, usage, group.unit).map_err(|why| {
                let is_said = |name: &str| said.is_none_or(|(_, said)| said.metadata.contains_key(name));
                let why = match why {
                    // The call cannot mend a field of the Reserve, but it can say the quantity.
                    Unmeasured::NotANumber(name) if !is_said(&name) => Unmeasured::Missing(name),
                    why => why,
                };
                self.cover_unmeasured(&why, said);
                unmeasured(&group.id, why)
            })?;
            if said.is_some() && usage.takes_default(measure, group.unit) {
                self.cover("a commit whose parts take their default");
            }
            let charge = price::charge(measure, &event, group.unit, false);
            priced.push(Priced { measure: measure.clone(), measures, event, charge, group });
        }
        if let Some((field, _)) = said.filter(|(_, said)| measures_nothing(&priced, said)) {
            // SPEC does not say whether a group measures what it does only since a partial commit has named something.
            if field == "add" && !reservation.named.is_empty() {
                self.silent();
            }
            self.cover(if field == "add" {
                "an extend that measures nothing"
            } else {
                "a commit that measures nothing"
            });
            return Err(nothing_measured(field));
        }
        Ok(priced)
    }

    pub fn commit(&mut self, of: u32, actual: Option<&Actual>) -> Outcome {
        let user = self.owner(of)?;
        let reservation = self.users[user].reservations[&of].clone();
        let now = self.users[user].now;
        let state = reservation.state_at(now);
        let named = actual.map_or_else(|| reservation.named.clone(), |actual| reservation.named.then(actual));
        let usage = Usage { event: &reservation.event, added: &reservation.added, named: Some(&named) };
        let priced = self.priced(&reservation, usage, actual.map(|actual| ("actual", actual)))?;
        let reserved = |group: &Group| reservation.claim(&group.id).map_or(0, |claim| claim.charge);
        let overage = priced.iter().any(|used| used.charge.is_none_or(|charge| charge > reserved(&used.group)));
        let late = state != State::Held;
        if state == State::Committed {
            self.cover_again(&reservation, &priced, &named);
            if is_otherwise(&reservation, &priced) {
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
                ..Default::default()
            }));
        }
        // SPEC does not say whether a commit takes back what was refunded before.
        if reservation.is_refunded() {
            self.silent();
        }
        self.cover_changed(user, &reservation, &priced, &named);
        self.claim_anew(user, of, &priced);
        let reservation = self.users[user].reservations[&of].clone();
        let settled = self.users[user].reservations.get_mut(&of).unwrap();
        settled.state = State::Committed;
        settled.late = late;
        settled.is_remembered_until(now + self.settings.replay_ms);
        let mut unapplied = Vec::new();
        for (index, claim) in reservation.claims.iter().enumerate() {
            let used = used_in(&priced, claim);
            let charge = used.map_or(Some(0), |used| used.charge).ok_or_else(|| self.no_counter())?;
            if !self.users[user].is_kept(reservation.claims[index].window) {
                self.cover("a settling whose window is gone");
            }
            unapplied.push(self.settle_at(user, of, index, charge)?);
            let claim = &mut self.users[user].reservations.get_mut(&of).unwrap().claims[index];
            claim.committed = Some(charge);
            claim.measures = used.map_or_else(Vec::new, |used| used.measures.clone());
            claim.counted = used.and_then(|used| counted(&used.measure, &used.event, charge));
        }
        self.cover(match state {
            State::Held => "commit in time",
            State::Expired => "commit at or after the deadline",
            _ => "commit after release",
        });
        self.cover_commit(user, &reservation, &priced, state);
        if overage {
            self.cover("commit more than reserved");
        }
        let user = &self.users[user];
        let rows = reservation.claims.iter().zip(unapplied);
        let row = |(claim, unapplied): (&Claim, u128)| {
            claim_row(user, claim, charge_in(&priced, claim).unwrap_or_default(), unapplied)
        };
        let (state, limits) = (v1::ReservationState::Committed.into(), rows.map(row).collect());
        Ok(Answer::Commit(v1::CommitResponse { state, limits, overage, late, ..Default::default() }))
    }

    fn cover_commit(&mut self, user: usize, reservation: &Reservation, priced: &[Priced], state: State) {
        let pairs = || reservation.claims.iter().map(|claim| (claim, charge_in(priced, claim)));
        let late = state != State::Held;
        if self.users[user].now == reservation.deadline {
            self.cover("deadline reached exactly");
        }
        if !late && pairs().any(|(claim, charge)| charge < Some(claim.charge)) {
            self.cover("commit less than reserved");
        }
        let kept = |claim: &Claim| claim.window.filter(|_| self.users[user].is_kept(claim.window));
        let mut windows = reservation.claims.iter().filter_map(kept);
        if windows.any(|window| self.users[user].windows[window].end <= self.users[user].now) {
            self.cover("hold across a window's end");
        }
        if reservation.is_partly_committed() {
            let lower = pairs().any(|(claim, charge)| charge < Some(claim.partial));
            self.cover(match (late, lower) {
                (false, false) => "a commit after partial ones",
                (false, true) => "a commit below its partial ones",
                (true, _) => "a late commit after partial ones",
            });
        }
        if !reservation.added.is_empty() {
            self.cover("a commit after an extend");
        }
        if pairs().any(|(claim, charge)| claim.lapsed.total() > 0 && charge < Some(claim.total())) {
            self.cover("a late commit below what the deadline has counted");
        }
        if pairs().any(|(claim, charge)| claim.lapsed.total() > 0 && charge > Some(claim.total())) {
            self.cover("a late commit above what the deadline has counted");
        }
    }

    pub fn no_counter(&mut self) -> Answer {
        self.cover("an amount that no counter can hold");
        fault(Code::OutOfRange, "OUT_OF_RANGE")
    }

    /// The final commit: the reservation has used this much in the group, whatever was counted before. Returns what cannot be given back.
    fn settle_at(&mut self, user: usize, of: u32, index: usize, charge: u128) -> Result<u128, Answer> {
        let claim = &mut self.users[user].reservations.get_mut(&of).unwrap().claims[index];
        let before = claim.total();
        let lapsed = std::mem::take(&mut claim.lapsed);
        claim.tally.append(lapsed);
        if charge < before {
            let back = claim.tally.take(before - charge);
            let window = claim.window;
            return Ok(self.give_back(user, window, &back));
        }
        self.count_more(user, of, index, charge - before)?;
        Ok(0)
    }

    /// The reservation has used this much more in the group.
    pub fn count_more(&mut self, user: usize, of: u32, index: usize, more: u128) -> Result<(), Answer> {
        let claim = &self.users[user].reservations[&of].claims[index];
        let (unit, window) = (claim.unit, claim.window.filter(|_| self.users[user].is_kept(claim.window)));
        let Some(window) = window else { return Ok(()) };
        if self.users[user].counted(window) + more > unit.most() {
            return Err(self.no_counter());
        }
        let user = &mut self.users[user];
        user.windows[window].used += more;
        let resets = user.windows[window].resets;
        user.reservations.get_mut(&of).unwrap().claims[index].tally.add(resets, more);
        Ok(())
    }

    /// Takes this off the window, as far as it was counted since the last reset. Returns how much could not be.
    pub fn give_back(&mut self, user: usize, window: Option<usize>, back: &Tally) -> u128 {
        let user = &mut self.users[user];
        // A window that is gone says only that.
        let Some(window) = window.filter(|_| user.is_kept(window)) else { return 0 };
        let since = back.since(user.windows[window].resets);
        if since < back.total() {
            user.windows.note("what was counted before a reset does not come back");
        }
        let window = &mut user.windows[window];
        let applied = since.min(window.used);
        window.used -= applied;
        back.total() - applied
    }

    pub fn release(&mut self, of: u32) -> Outcome {
        let user = self.owner(of)?;
        let now = self.users[user].now;
        let replay_ms = self.settings.replay_ms;
        let reservation = self.users[user].reservations[&of].clone();
        let before = reservation.state_at(now);
        let takes_back = before == State::Expired && reservation.counts;
        match before {
            State::Committed => {
                self.cover("release after commit");
                return Err(already_committed(&reservation));
            }
            State::Held if reservation.is_partly_committed() => self.cover("release after partial commits"),
            State::Held => self.cover("release in time"),
            State::Released => self.cover("release twice"),
            State::Expired if takes_back => self.cover("a late release takes back what the deadline has counted"),
            State::Expired => self.cover("release after the deadline"),
        }
        if before == State::Held || takes_back {
            let released = self.users[user].reservations.get_mut(&of).unwrap();
            released.state = State::Released;
            released.is_remembered_until(now + replay_ms);
        }
        let mut unapplied = Vec::new();
        for (index, claim) in reservation.claims.iter().enumerate() {
            let claims = &mut self.users[user].reservations.get_mut(&of).unwrap().claims;
            let back = if takes_back { std::mem::take(&mut claims[index].lapsed) } else { Tally::default() };
            unapplied.push(self.give_back(user, claim.window, &back));
        }
        let user = &self.users[user];
        let reservation = &user.reservations[&of];
        let rows = reservation.claims.iter().zip(unapplied);
        Ok(Answer::Release(v1::ReleaseResponse {
            state: reservation.state_at(now).shown().into(),
            limits: rows.map(|(claim, unapplied)| claim_row(user, claim, claim.charge, unapplied)).collect(),
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
        let ended = state == State::Expired || state == State::Released;
        if state != State::Committed && !(ended && reservation.is_partly_committed()) {
            self.cover(if reservation.is_partly_committed() {
                "a refund of partial commits that are still held"
            } else {
                "a refund of what is not committed"
            });
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
        // SPEC does not say what a partial commit has counted of a quantity of which there is more since.
        if state != State::Committed && reservation.added.len() > reservation.added_before {
            self.silent();
        }
        // Nor does SPEC say what becomes of a default to which more was added.
        let is_default = |term: &Term| {
            let said = price::names(term, &reservation.event) || reservation.named.names(&term.name);
            !said && reservation.added.iter().any(|add| add.names(&term.name))
        };
        let terms = |claim: &Claim| claim.counted.as_ref().map_or(Vec::new(), |counted| counted.terms.clone());
        if reservation.claims.iter().flat_map(terms).any(|term| is_default(&term)) {
            self.silent();
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
            let mut applied = 0;
            if let Some(lower) = lower {
                let before = claim.counted.as_ref().map_or(0, |counted| counted.charge);
                let settled = &mut self.users[user].reservations.get_mut(&of).unwrap().claims[index];
                let back = settled.tally.take(before - lower.charge);
                // Also where its window is gone: it is settled anew.
                settled.counted = Some(lower);
                if self.users[user].is_kept(claim.window) {
                    applied = back.total() - self.give_back(user, claim.window, &back);
                }
            }
            refunds.push((Claim { charge: requested, ..claim.clone() }, requested - applied));
        }
        self.cover_refund(&reservation, &refunds);
        self.cover(match state {
            State::Committed if reservation.is_partly_committed() => "a refund after partial commits",
            State::Committed => "a refund of a reservation",
            State::Expired if reservation.counts => "a refund of partial commits after a deadline that counts",
            State::Expired => "a refund of partial commits after the deadline",
            _ => "a refund of partial commits after a release",
        });
        if refunds.iter().any(|(_, unapplied)| *unapplied > 0) {
            self.cover("a refund of more than was committed");
        }
        Ok(refunds)
    }

    /// What a refund asks of a group, and what the reservation then has counted there: it is settled anew at the lower amount. And whether
    /// the group measures what the refund names; else an error inside, which counts if no group does.
    fn lowered(&mut self, claim: &Claim, refund: &Event) -> Result<Result<Ask, Answer>, Answer> {
        // What was committed is another event.
        if claim.measures.is_empty() {
            return Ok(Ok((0, None, false)));
        }
        let chosen = price::choose(&claim.measures, refund, claim.unit);
        // Never a group that is measured by events. If only the refund is, SPEC does not say what is asked of it.
        let Some(counted) = &claim.counted else {
            if chosen.is_err() || chosen.is_ok_and(|measure| *measure != Measure::Events) {
                self.silent();
            }
            return Ok(Ok((0, None, false)));
        };
        // Nor does SPEC say what a quantity costs of which an earlier partial commit has named more.
        if counted.is_more {
            self.silent();
        }
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
        let Counted { terms, event, charge, .. } = counted;
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

/// What the reservation has used in the group of this claim, if that matches.
fn used_in<'a>(priced: &'a [Priced], claim: &Claim) -> Option<&'a Priced> {
    priced.iter().find(|used| used.group.id == claim.group)
}

/// The charge of the same, 0 if it does not match.
fn charge_in(priced: &[Priced], claim: &Claim) -> Option<u128> {
    used_in(priced, claim).map_or(Some(0), |used| used.charge)
}

/// Whether an actual names no quantity that any group is measured by, though some group is measured by quantities.
fn measures_nothing(priced: &[Priced], actual: &Actual) -> bool {
    // Metadata alone prices anew.
    if actual.is_numberless() && !actual.metadata.is_empty() {
        return false;
    }
    let mut by_quantities = priced.iter().filter_map(|used| match &used.measure {
        Measure::Terms(terms) => Some(terms),
        Measure::Events => None,
    });
    priced.iter().any(|used| used.measure != Measure::Events)
        && !by_quantities.any(|terms| terms.iter().any(|term| actual.names(&term.name)))
}

/// What a commit has counted, to be refunded; nothing where events are counted.
fn counted(measure: &Measure, event: &Event, charge: u128) -> Option<Counted> {
    let Measure::Terms(terms) = measure else { return None };
    Some(Counted { terms: terms.clone(), event: event.clone(), charge, is_more: false })
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
