//! The reference model's decisions: which groups an event feeds, whether it fits, Reserve and CanUse.

use std::sync::Arc;

use tollgate::grpc::v1;
use tonic::Code;

use crate::answers::{Answer, claim_row, denied, duration, fault, invalid, row, timestamp, unmeasured};
use crate::operations::Actual;
use crate::price::{self, Unmeasured};
use crate::reference::{Model, Outcome};
use crate::sketch::{Anchor, Event, Group, LARGEST, Measure, Period, Plan, Term};
use crate::user::{Claim, Id, Reservation, State, Tally, rounded_up};
use crate::windows::{NEVER, Wanted};

/// One group that an event feeds.
pub struct Match<'a> {
    pub group: &'a Group,
    /// None: the window of that time is gone.
    pub window: Option<usize>,
    pub bounds: (i64, i64),
    pub charge: u128,
    pub measures: Vec<Measure>,
    /// By `measure: events`.
    pub by_events: bool,
}

impl Match<'_> {
    pub fn claim(&self) -> Claim {
        let Group { id, label, unit, quota, hard, .. } = self.group;
        Claim {
            group: id.clone(),
            label: label.clone(),
            unit: *unit,
            quota: *quota,
            hard: *hard,
            bounds: self.bounds,
            window: self.window,
            charge: self.charge,
            measures: self.measures.clone(),
            only_committed: false,
            committed: None,
            partial: 0,
            tally: Tally::default(),
            lapsed: Tally::default(),
            counted: None,
        }
    }
}

/// What is asked about an event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Asked {
    /// Its charge, rounded up.
    Charge,
    /// What a refund of it gives back, rounded down.
    Refund,
    /// Its charge; of an event without any quantity, the smallest that it can have.
    Smallest,
}

impl Model {
    /// The groups that the event feeds, in the catalog's order, with their windows opened.
    #[allow(clippy::too_many_arguments)]
    pub fn matches<'a>(
        &mut self,
        user: usize,
        plan: &'a Plan,
        anchor: Option<i64>,
        event: &Event,
        name: &str,
        asked: Asked,
        at: Option<i64>,
    ) -> Result<Vec<Match<'a>>, Answer> {
        let mut matches = Vec::new();
        for group in &plan.groups {
            let measures = price::measures(group, event, name);
            if measures.is_empty() {
                continue;
            }
            let wanted = Wanted { group, zone: plan.zone, cycle_anchor: anchor };
            let this = &mut self.users[user];
            let window = match at {
                None => Some(this.windows.current(wanted, this.now)),
                Some(at) => this.windows.of_time(wanted, this.now, at),
            };
            if group.anchor == Anchor::SubscriptionStart
                && group.period == Period::Monthly
                && anchor.is_some_and(|anchor| is_late_day(anchor, plan))
            {
                self.cover("an anchor on the 29th to 31st");
            }
            if event.quantity.is_none() && event.quantities.is_empty() {
                self.cover("an event that names no quantity");
            }
            let smallest = self.smallest(&measures, event, group, asked);
            let event = smallest.as_ref().unwrap_or(event);
            let measure = match price::choose(&measures, event, group.unit) {
                Ok(measure) => measure,
                Err(why) => {
                    self.cover(match why {
                        Unmeasured::Missing(_) => "a group matches but nothing is measurable",
                        Unmeasured::NotANumber(_) => "a measured name that is no number",
                        Unmeasured::Exceeded(..) => "parts that exceed their whole",
                    });
                    return Err(unmeasured(&group.id, why));
                }
            };
            if price::has_parts(measure) {
                self.cover("a charge with parts");
            }
            if price::has_star_inside(group, event, name) {
                self.cover("a star inside a value");
            }

            let Some(charge) = price::charge(measure, event, group.unit, asked == Asked::Refund) else {
                self.cover("an amount that no counter can hold");
                return Err(fault(Code::OutOfRange, "OUT_OF_RANGE"));
            };
            let by_events = *measure == Measure::Events;
            if measures.len() > 1 {
                self.cover("several rules of a group hold");
            }
            let bounds = window.map_or((0, NEVER), |window| self.users[user].bounds(window));
            matches.push(Match { group, window, bounds, charge, measures, by_events });
        }
        if matches.len() > 1 {
            self.cover("one event feeds several groups");
        }
        Ok(matches)
    }

    /// Used and held in the window.
    fn counted(&self, user: usize, found: &Match<'_>) -> u128 {
        found.window.map_or(0, |window| self.users[user].counted(window))
    }

    /// An event that names no quantity, with the smallest that the first measure takes, where no measure has anything to count.
    fn smallest(&mut self, measures: &[Measure], event: &Event, group: &Group, asked: Asked) -> Option<Event> {
        if asked != Asked::Smallest || event.quantity.is_some() || !event.quantities.is_empty() {
            return None;
        }
        let Err(Unmeasured::Missing(_)) = price::choose(measures, event, group.unit) else { return None };
        let terms = |measure: &Measure| match measure {
            Measure::Events => Vec::new(),
            Measure::Terms(terms) => terms.clone(),
        };
        if measures.iter().flat_map(terms).any(|term| event.metadata.contains_key(&term.name)) {
            return None;
        }
        self.cover("can use asks for the smallest charge");
        Some(price::smallest(&terms(&measures[0]), event, group.unit))
    }

    pub fn fits(&self, user: usize, found: &Match<'_>) -> bool {
        match found.group.quota {
            Some(0) => !found.group.hard,
            Some(quota) if found.group.hard => found.charge == 0 || self.counted(user, found) + found.charge <= quota,
            _ => true,
        }
    }

    pub fn overflows(&self, user: usize, found: &Match<'_>) -> bool {
        self.counted(user, found) + found.charge > found.group.unit.most()
    }

    /// The rows of a decision; where it is a denial, with what is missing.
    pub fn rows(&self, user: usize, matches: &[Match<'_>], denied: bool) -> Vec<v1::LimitStatus> {
        let row = |found: &Match<'_>| {
            let window = found.window.expect("the current one is there");
            let mut row = self.group_row(user, found.group, window);
            if denied && self.users[user].windows[window].is_fresh() {
                // What is denied opens none.
                self.users[user].windows.note("a denial shows no window before the first use");
                (row.window_start, row.reset_time) = (None, None);
            }
            row.requested = found.group.unit.shown(found.charge);
            if denied && !self.fits(user, found) {
                let wanted = self.counted(user, found) + found.charge;
                let shortfall = wanted.saturating_sub(found.group.quota.unwrap_or_default()).min(LARGEST);
                row.shortfall = found.group.unit.shown(shortfall);
            }
            row
        };
        matches.iter().map(row).collect()
    }

    pub fn group_row(&self, user: usize, group: &Group, window: usize) -> v1::LimitStatus {
        let user = &self.users[user];
        row(group, user.bounds(window), (user.windows[window].used, user.held(window)))
    }

    /// A hint, as SPEC section 5 has it.
    pub fn retry_after(&self, user: usize, matches: &[Match<'_>]) -> Option<i64> {
        let user_now = &self.users[user];
        let mut latest = user_now.now;
        for found in matches.iter().filter(|found| !self.fits(user, found)) {
            let quota = found.group.quota.expect("it is full");
            let window = &user_now.windows[found.window.expect("the current one is there")];
            let at = if found.charge > quota || quota == 0 {
                None
            } else if window.used + found.charge > quota {
                Some(window.end)
            } else {
                user_now.earliest_deadline().into_iter().chain([window.end]).min()
            };
            latest = latest.max(at.filter(|at| *at < NEVER)?);
        }
        Some(latest - user_now.now)
    }

    #[allow(clippy::too_many_arguments)]
    pub fn reserve(
        &mut self,
        number: u32,
        replica: usize,
        user: usize,
        event: &Event,
        ttl_ms: i64,
        request_id: &str,
        counts: bool,
    ) -> Outcome {
        if event.refunded().is_some() {
            return Err(invalid("REFUND_NOT_TRACKED"));
        }
        let body = format!("reserve {:?} {ttl_ms} {counts}", event.normal());
        if let Some(memory) = self.users[user].recall(request_id) {
            let Id::Reserve { body: first, of } = memory else { return Err(self.reused("other RPC")) };
            if first != body {
                return Err(self.reused("other body"));
            }
            self.cover("same request_id, same body");
            let reservation = &self.users[user].reservations[&of];
            let is_extended = reservation.is_extended;
            let state = reservation.state_at(self.users[user].now);
            if state == State::Expired {
                self.cover("a replayed reserve has lapsed since");
            }
            if is_extended {
                self.cover("a replayed reserve was extended since");
            }
            return Ok(Answer::Reserve(self.held_answer(user, of, true)));
        }
        let Some((plan, anchor)) = self.deciding(replica, user)? else {
            self.cover("no subscription and no default_plan");
            return Err(Answer::Reserve(denied(false, v1::Reason::NoSubscription)));
        };
        let before = self.users[user].clone();
        let matches = self.matches(user, &plan, anchor, event, &event.name, Asked::Charge, None)?;
        if matches.is_empty() {
            self.cover("no group matches");
            return Err(Answer::Reserve(denied(false, v1::Reason::UnmatchedEvent)));
        }
        if matches.iter().any(|found| !self.fits(user, found)) {
            self.cover_denial(user, &matches);
            let retry_after = self.retry_after(user, &matches);
            self.cover(if retry_after.is_some() { "retry_after says when" } else { "retry_after is never" });
            let answer = v1::ReserveResponse {
                limits: self.rows(user, &matches, true),
                retry_after: retry_after.map(duration),
                ..denied(true, v1::Reason::LimitReached)
            };
            if !request_id.is_empty() {
                self.cover("a denied call with an id");
            }
            // Nothing of it stays, not even a window.
            self.restore(user, before);
            return Ok(Answer::Reserve(answer));
        }
        if matches.iter().any(|found| self.overflows(user, found)) {
            self.cover("an amount that no counter can hold");
            return Err(fault(Code::OutOfRange, "OUT_OF_RANGE"));
        }
        self.cover("reserved");
        self.cover_free(user, &matches);
        let claims = matches.iter().map(Match::claim).collect();
        self.uses_default(user, &plan);
        let user_now = &mut self.users[user];
        let made = user_now.now;
        let deadline = rounded_up(made + ttl_ms);
        let reservation = Reservation {
            event: event.clone(),
            plan: Arc::new(plan.clone()),
            own_quotas: user_now.own_quotas(),
            kept: kept(&plan, event),
            measured: terms(&plan).map(|term| term.name.clone()).collect(),
            claims,
            plan_of_catalog: Arc::new(self.settings.catalogs[replica].plan(&plan.id).expect("it is in force").clone()),
            added: Vec::new(),
            added_before: 0,
            named: Actual::default(),
            counts,
            is_extended: false,
            made,
            deadline,
            forgotten: deadline + self.settings.settlement_ms,
            remembered: deadline + self.settings.settlement_ms,
            state: State::Held,
            late: false,
            by_clock: false,
            again: false,
        };
        user_now.reservations.insert(number, reservation);
        user_now.reserved.insert(number);
        if !request_id.is_empty() {
            user_now.ids.insert(request_id.to_owned(), Id::Reserve { body, of: number });
        }
        Ok(Answer::Reserve(self.held_answer(user, number, false)))
    }

    pub fn reused(&mut self, how: &'static str) -> Answer {
        self.cover(if how == "other body" { "same request_id, other body" } else { "same request_id, other RPC" });
        invalid("REQUEST_ID_REUSED")
    }

    pub fn cover_denial(&mut self, user: usize, matches: &[Match<'_>]) {
        let full = matches.iter().filter(|found| !self.fits(user, found)).count();
        self.cover(if full < matches.len() { "one of several groups is full" } else { "all groups are full" });
        if matches.iter().any(|found| found.group.quota == Some(0) && found.group.hard) {
            self.cover("quota 0 denies");
        }
        if matches.iter().any(|found| found.group.quota == Some(0) && found.group.hard && found.charge == 0) {
            self.cover("quota 0 denies a charge of 0");
        }
    }

    pub fn cover_free(&mut self, user: usize, matches: &[Match<'_>]) {
        let over = |found: &Match<'_>| {
            let counted = self.counted(user, found);
            found.charge == 0 && found.group.hard && found.group.quota.is_some_and(|quota| counted > quota)
        };
        if matches.iter().any(over) {
            self.cover("a charge of 0 fits a group that is over its quota");
        }
    }

    pub fn held_answer(&self, user: usize, of: u32, replayed: bool) -> v1::ReserveResponse {
        let user = &self.users[user];
        let reservation = &user.reservations[&of];
        // Nor does SPEC say whether groups that match only what was committed are among those of the reservation.
        if reservation.again || reservation.claims.iter().any(|claim| claim.only_committed) {
            user.windows.silent.set(true);
        }
        v1::ReserveResponse {
            allowed: true,
            matched: true,
            reservation_id: format!("r{of}"),
            state: reservation.state_at(user.now).shown().into(),
            expire_time: Some(timestamp(reservation.deadline)),
            limits: reservation.reserved_claims().map(|claim| claim_row(user, claim, claim.charge, 0)).collect(),
            replayed,
            ..Default::default()
        }
    }

    pub fn can_use(&mut self, replica: usize, user: usize, event: &Event) -> Outcome {
        if event.refunded().is_some() {
            return Err(invalid("REFUND_NOT_TRACKED"));
        }
        let answer = |decision: v1::ReserveResponse| {
            let v1::ReserveResponse { allowed, matched, reasons, limits, retry_after, .. } = decision;
            // It is advisory: nothing changes, whatever it has seen.
            Err(Answer::CanUse(v1::CanUseResponse { allowed, matched, reasons, limits, retry_after }))
        };
        let Some((plan, anchor)) = self.deciding(replica, user)? else {
            return answer(denied(false, v1::Reason::NoSubscription));
        };
        let matches = self.matches(user, &plan, anchor, event, &event.name, Asked::Smallest, None)?;
        if matches.is_empty() {
            return answer(denied(false, v1::Reason::UnmatchedEvent));
        }
        if matches.iter().any(|found| !self.fits(user, found)) {
            let limits = self.rows(user, &matches, true);
            let retry_after = self.retry_after(user, &matches).map(duration);
            return answer(v1::ReserveResponse { limits, retry_after, ..denied(true, v1::Reason::LimitReached) });
        }
        if matches.iter().any(|found| self.overflows(user, found)) {
            return Err(fault(Code::OutOfRange, "OUT_OF_RANGE"));
        }
        let mut limits = self.rows(user, &matches, false);
        for (row, found) in limits.iter_mut().zip(&matches) {
            let wanted = self.counted(user, found) + found.charge;
            row.exceeded = found.group.quota.is_some_and(|quota| wanted > quota);
        }
        self.cover("can use");
        answer(v1::ReserveResponse { allowed: true, matched: true, limits, ..Default::default() })
    }
}

/// What is kept of a reserved event: its name, the metadata that a condition of the plan asks for, and the quantities that the plan
/// measures, also those that stand in the metadata. The one named `quantity` is its own.
fn kept(plan: &Plan, event: &Event) -> Event {
    let rules = || plan.groups.iter().flat_map(|group| &group.rules);
    let asked = |key: &String| rules().any(|rule| rule.conditions.iter().any(|(condition, _)| condition == key));
    let metadata = event.metadata.iter().filter(|(key, _)| asked(key));
    let metadata = metadata.map(|(key, value)| (key.clone(), value.clone())).collect();
    let mut kept = Event { name: event.name.clone(), metadata, ..Event::default() };
    for term in terms(plan) {
        let Some(value) = price::value_of(&term.name, event) else { continue };
        if term.name == "quantity" {
            kept.quantity = Some(value);
        } else {
            kept.quantities.insert(term.name.clone(), value);
        }
    }
    kept
}

/// Everything that the plan measures.
fn terms(plan: &Plan) -> impl Iterator<Item = &Term> {
    plan.groups.iter().flat_map(|group| &group.rules).flat_map(|rule| match &rule.measure {
        Measure::Terms(terms) => terms.as_slice(),
        Measure::Events => &[],
    })
}

/// On the 29th to 31st of a month.
fn is_late_day(anchor: i64, plan: &Plan) -> bool {
    let zone = jiff::tz::TimeZone::get(plan.zone).unwrap();
    jiff::Timestamp::from_millisecond(anchor).unwrap().to_zoned_datetime(zone).day() >= 29
}
