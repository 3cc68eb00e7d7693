//! The reference model: what SPEC says, in memory, for one caller after another. Small and obvious rather than fast; written from the
//! contract and from docs/development/adr/0004, not from the scripts. Where the contract is silent the model says so ([`Model::silent`]), and
//! the operation is left out, rather than to repeat what the scripts happen to do.
//!
//! What is held is never counted: it is the sum over the reservations that are live at the time (NO-LEAK by definition).

#[path = "crossed.rs"]
mod crossed;

use std::collections::BTreeMap;

use tonic::Code;

use crate::answers::{Answer, fault_with, invalid};
use crate::operations::{Call, OnExpiry, Operation, Quota, When};
use crate::sketch::{Catalog, Plan};
use crate::standing::{Upsert, quota};
use crate::user::{FARTHEST_AHEAD, Reservation, User};
use crate::windows::{NEVER, Wanted, Window};

/// What the operator has configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// By replica.
    pub catalogs: Vec<Catalog>,
    pub settlement_ms: i64,
    pub replay_ms: i64,
}

#[derive(Clone)]
pub struct Model {
    pub settings: Settings,
    pub users: Vec<User>,
    /// Redis's.
    pub clock: i64,
    /// The answer to the last operation depends on what SPEC does not say.
    pub silent: bool,
    /// How often each case of the contract has occurred.
    pub covered: BTreeMap<&'static str, u64>,
}

/// Refused, or only looked at: `Err` changes nothing.
pub type Outcome = Result<Answer, Answer>;

/// The plan in force.
enum InForce<'a> {
    Plan(&'a Plan, Option<i64>, BTreeMap<String, Quota>),
    Unknown(String),
    None,
}

impl Model {
    pub fn new(settings: Settings, users: usize, now: i64) -> Self {
        let users = (0..users).map(|number| User::new(format!("user{number}"), now)).collect();
        Self { settings, users, clock: now, silent: false, covered: BTreeMap::new() }
    }

    pub fn cover(&mut self, case: &'static str) {
        *self.covered.entry(case).or_default() += 1;
    }

    /// What follows depends on what SPEC does not say.
    pub fn silent(&self) {
        self.users[0].windows.silent.set(true);
    }

    /// The user is as before a call that is denied; what was found out on the way stays known.
    pub fn restore(&mut self, user: usize, before: User) {
        let windows = std::mem::take(&mut self.users[user].windows);
        self.users[user] = before;
        let kept = &self.users[user].windows;
        kept.silent.set(windows.silent.get());
        kept.notes.replace(windows.notes.take());
    }

    /// The time that an operation means.
    pub fn resolve(&self, user: usize, when: &When) -> i64 {
        let user = &self.users[user];
        let deadline = |of: &u32| user.reservations.get(of).map_or(user.now, |reservation| reservation.deadline);
        match when {
            When::After(ms) => user.now + ms,
            When::Deadline(of, ms) => deadline(of) + ms,
            When::LastDeadline(of, ms) => user.reservations.get(of).map_or(user.now, Reservation::last_deadline) + ms,
            When::Forgotten(of, ms) => user.forgotten(*of).unwrap_or(user.now) + ms,
            When::SubscriptionEnd(ms) => {
                user.subscription.as_ref().and_then(|subscription| subscription.end).unwrap_or(user.now) + ms
            }
            When::WindowStart(group, ms) => {
                let open = |window: &&Window| window.is_anchored() && (window.start..window.end).contains(&user.now);
                let starts: Vec<i64> = user.windows.iter().filter(open).map(|window| window.start).collect();
                if starts.is_empty() { user.now } else { starts[group % starts.len()] + ms }
            }
            When::AnyWindowStart(group, ms) => {
                let starts: Vec<i64> = user.windows.iter().map(|window| window.start).collect();
                if starts.is_empty() { user.now } else { starts[group % starts.len()] + ms }
            }
            When::WindowEnd(group, ms) => {
                let ends = user.windows.iter().filter(|window| window.end > user.now && window.end < NEVER);
                let mut ends: Vec<i64> = ends.map(|window| window.end).collect();
                ends.sort_unstable();
                if ends.is_empty() { user.now } else { ends[group % ends.len()] + ms }
            }
        }
    }

    /// Does the operation, and answers.
    pub fn apply(&mut self, operation: &Operation) -> Answer {
        self.silent = false;
        match &operation.call {
            Call::Step(when) => self.set_clock(self.resolve(operation.user, when).max(self.clock)),
            Call::Jump(ms) => self.set_clock(self.clock + ms),
            _ => return self.ask(operation),
        }
        Answer::Stepped
    }

    fn ask(&mut self, operation: &Operation) -> Answer {
        self.tick();
        let asked = self.asked(operation);
        if let Some(user) = asked {
            self.users[user].count_lapses();
        }
        let before = self.users.clone();
        let mut outcome = self.call(operation);
        if let Some(user) = asked {
            let is_same = before[user].subscription == self.users[user].subscription;
            outcome = self.tell_crossed(user, operation, outcome, is_same);
        }
        for user in &mut self.users {
            self.silent |= user.windows.silent.take();
            for what in user.windows.notes.take() {
                *self.covered.entry(what).or_default() += 1;
            }
        }
        let answer = match outcome {
            Ok(answer) => {
                if let Some(user) = asked.filter(|_| wrote(&answer)) {
                    let user = &mut self.users[user];
                    user.stored = Some(user.now);
                }
                answer
            }
            // ALL-OR-NOTHING: what is refused changes nothing.
            Err(refused) => {
                self.users = before;
                refused
            }
        };
        if let Some(user) = asked {
            let user = &mut self.users[user];
            user.seen = Some(user.now);
            user.furthest = user.furthest.max(user.now);
        }
        answer
    }

    /// Whose state an operation is about.
    fn asked(&self, operation: &Operation) -> Option<usize> {
        match &operation.call {
            Call::Commit { of, .. } | Call::Extend { of, .. } | Call::Release { of } | Call::Reservation { of } => {
                self.users.iter().position(|user| user.reserved.contains(of))
            }
            Call::Delete => None,
            _ => Some(operation.user),
        }
    }

    /// Redis's clock says this from now on, unless SPEC is silent about what follows: which calls store their time is not said of those
    /// that change nothing, nor what a subscription is that a wrong time has seen end.
    fn set_clock(&mut self, to: i64) {
        let back = to < self.clock;
        let is_clear = |user: &User| {
            let Some(seen) = user.seen else { return true };
            let ended = user.subscription.as_ref().and_then(|subscription| subscription.end);
            let wrong = |clock: i64| user.stored.is_some_and(|stored| stored - clock > FARTHEST_AHEAD);
            let written = user.stored == Some(seen) || seen <= to;
            let unseen = ended.is_none_or(|end| end <= to || end > seen);
            // A wrong time that was perhaps not yet corrected in writing is not to become right again.
            if back { written && unseen } else { !wrong(self.clock) || wrong(to) }
        };
        if !self.users.iter().all(is_clear) {
            return;
        }
        if back {
            let wrong = |user: &User| user.stored.is_some_and(|stored| stored - to > FARTHEST_AHEAD);
            let is_wrong = self.users.iter().any(wrong);
            self.cover(if is_wrong { "a wrong clock" } else { "the clock goes back a little" });
        }
        self.clock = to;
        for user in &mut self.users {
            // Also the keys of who was not called may expire by it.
            user.furthest = user.furthest.max(to);
        }
        self.tick();
    }

    /// ONE-CLOCK: every user's time, by Redis's clock.
    fn tick(&mut self) {
        for user in &mut self.users {
            user.windows.asked(user.furthest);
            let lives = user.earliest_deadline().is_some();
            if user.tick(self.clock, self.settings.settlement_ms) && lives {
                *self.covered.entry("a hold lapses by a wrong clock").or_default() += 1;
            }
        }
    }

    fn call(&mut self, operation: &Operation) -> Outcome {
        let Operation { number, replica, user, call } = operation;
        let (number, replica, user) = (*number, *replica, *user);
        match call {
            Call::Reserve { event, ttl_ms, request_id, on_expiry } => {
                let counts = *on_expiry == OnExpiry::Count;
                self.reserve(number, replica, user, event, ttl_ms.unwrap_or(60_000), request_id, counts)
            }
            Call::Commit { actual: Some(actual), partial: true, .. } if !actual.metadata.is_empty() => {
                self.cover("a partial commit with metadata");
                Err(invalid("INVALID_FIELD"))
            }
            Call::Commit { of, actual, partial: false, ttl_ms: None } => self.commit(*of, actual.as_ref()),
            Call::Commit { of, actual: Some(actual), partial: true, ttl_ms } => self.commit_part(*of, actual, *ttl_ms),
            Call::Commit { .. } => {
                self.cover("a commit whose fields do not go together");
                Err(invalid("INVALID_FIELD"))
            }
            Call::Extend { of, ttl_ms, add, request_id } => {
                self.extend(*of, ttl_ms.unwrap_or(60_000), add.as_ref(), request_id)
            }
            Call::Release { of } => self.release(*of),
            Call::Track { event, request_id, enforce, refund, at } => {
                let at = at.as_ref().map(|at| self.resolve(user, at));
                self.track(number, replica, user, event, request_id, *enforce, *refund, at)
            }
            Call::Reset { groups, request_id } => self.reset(replica, user, groups, request_id),
            Call::CanUse { event } => self.can_use(replica, user, event),
            Call::Usage { pattern, at } => {
                let at = at.as_ref().map(|at| self.resolve(user, at));
                self.usage(replica, user, pattern, at)
            }
            Call::Reservation { of } => self.reservation(*of),
            Call::Reservations { .. } => self.reservations(user),
            Call::Upsert { wrong_end: Some(_), .. } => {
                self.cover("an end that no upsert takes");
                Err(invalid("INVALID_FIELD"))
            }
            Call::Upsert { plan, overrides, end, anchor, etag, wrong_end: None } => {
                let end = end.as_ref().map(|end| end.as_ref().map(|end| self.resolve(user, end)));
                let anchor = anchor.as_ref().map(|anchor| self.resolve(user, anchor));
                let upsert = Upsert { plan, overrides: overrides.as_ref(), end, anchor, etag: *etag };
                self.upsert(number, replica, user, &upsert)
            }
            Call::Subscription => self.subscription(user),
            Call::Cancel { end } => {
                let end = end.as_ref().map(|end| self.resolve(user, end));
                self.cancel(number, user, end)
            }
            Call::Delete => {
                self.users[user].delete();
                // Nothing is stored that is ahead of Redis's clock.
                self.users[user].now = self.clock;
                self.cover("delete user");
                Ok(Answer::Deleted)
            }
            Call::Step(_) | Call::Jump(_) => unreachable!("they are no calls"),
        }
    }

    fn in_force(&self, replica: usize, user: usize) -> InForce<'_> {
        let catalog = &self.settings.catalogs[replica];
        let user = &self.users[user];
        let default = |anchor| match catalog.default_plan() {
            Some(plan) => InForce::Plan(plan, anchor, BTreeMap::new()),
            None => InForce::None,
        };
        match &user.subscription {
            None => default(None),
            Some(subscription) if subscription.ended(user.now) => default(Some(subscription.anchor)),
            Some(subscription) => match catalog.plan(&subscription.plan) {
                Some(plan) => InForce::Plan(plan, Some(subscription.anchor), subscription.overrides.clone()),
                None => InForce::Unknown(subscription.plan.clone()),
            },
        }
    }

    /// The plan in force with the user's own quotas, and the anchor.
    pub fn in_force_plan(&self, replica: usize, user: usize) -> Option<(Plan, Option<i64>)> {
        let InForce::Plan(plan, anchor, overrides) = self.in_force(replica, user) else { return None };
        let mut plan = plan.clone();
        for group in &mut plan.groups {
            group.quota = quota(group, &overrides);
        }
        Some((plan, anchor))
    }

    /// What decides over an event of the user's: the plan, as a copy, so that the user can be changed by it. The first that sees that a
    /// subscription has ended makes the user enter the default plan.
    pub fn deciding(&mut self, replica: usize, user: usize) -> Result<Option<(Plan, Option<i64>)>, Answer> {
        match self.in_force(replica, user) {
            InForce::None => return Ok(None),
            InForce::Unknown(id) => {
                self.cover("a subscription whose plan is no longer in the catalog");
                return Err(fault_with(Code::FailedPrecondition, "PLAN_UNKNOWN", vec![("plan_id", id)]));
            }
            InForce::Plan(..) => {}
        }
        let (plan, anchor) = self.in_force_plan(replica, user).expect("there is one");
        self.fall(user, &plan, anchor);
        Ok(Some((plan, anchor)))
    }

    /// Something was counted or held, by the default plan if the user has no subscription.
    pub fn uses_default(&mut self, user: usize, plan: &Plan) {
        let user = &mut self.users[user];
        if user.subscription.is_none() {
            user.default_used = Some(plan.id.clone());
        }
    }

    /// The user enters the default plan, if an ended subscription has left another one and nobody has seen it yet.
    pub fn fall(&mut self, user: usize, default_plan: &Plan, anchor: Option<i64>) {
        let now = self.users[user].now;
        let Some(subscription) = &mut self.users[user].subscription else { return };
        if !subscription.ended(now) || subscription.fallen {
            return;
        }
        subscription.fallen = true;
        if subscription.plan != default_plan.id {
            self.cover("an ended subscription falls to default_plan");
            self.enter(user, default_plan, anchor, default_plan.change);
        }
    }

    /// Every group of the plan goes on in its own kept window, and `change` says with what. `change` is empty where the plan stays, and
    /// only the cycle anchor was moved.
    pub fn enter(&mut self, user: usize, plan: &Plan, anchor: Option<i64>, change: &'static str) {
        for group in &plan.groups {
            let wanted = Wanted { group, zone: plan.zone, cycle_anchor: anchor };
            let user = &mut self.users[user];
            let goes_on = user.windows.realign(wanted, user.now);
            match (change, group.quota, goes_on) {
                ("block", Some(quota), _) => {
                    let index = user.windows.current(wanted, user.now);
                    let window = &mut user.windows[index];
                    window.is_filled();
                    if window.used > quota {
                        *self.covered.entry("block where more is used").or_default() += 1;
                    }
                    window.used = window.used.max(quota);
                    user.begins_anew(index);
                }
                ("reset", _, Some(window)) => {
                    user.windows[window].used = 0;
                    user.windows[window].resets += 1;
                    user.begins_anew(window);
                }
                _ => {}
            }
        }
        match change {
            "block" => self.cover("plan change: block"),
            "reset" => self.cover("plan change: reset"),
            "carry" => self.cover("plan change: carry"),
            _ => {}
        }
    }
}

/// Whether an answer says that something was written, and with it the user's time.
fn wrote(answer: &Answer) -> bool {
    match answer {
        Answer::Reserve(answer) => answer.allowed && !answer.replayed,
        Answer::Commit(answer) => !answer.replayed,
        Answer::Extend(answer) => answer.extended && !answer.replayed,
        Answer::Track(answer) => !answer.event_id.is_empty() && !answer.replayed,
        Answer::Reset(answer) => !answer.replayed,
        _ => false,
    }
}
