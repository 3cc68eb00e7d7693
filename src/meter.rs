//! The use cases of metering: one short function per RPC.
//!
//! Each compiles the user's plan and asks the ledger. Where that says that the call was compiled for another time or subscription, it is
//! compiled again, at most three times.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::amount::{InvalidQuantity, Quantity};
use crate::domain::answer::{Committed, Decision, Extended, Hold, Released, Reset, Standing, Tracked};
use crate::domain::event::{Actual, Event, EventName};
use crate::domain::fault::Fault;
use crate::domain::id::{Owner, RequestId, ReservationId};
use crate::domain::pattern::EventPattern;
use crate::domain::plan::Catalog;
use crate::domain::reservation::OnExpiry;
use crate::domain::subscription::Subscription;
use crate::ledger::{self, InForce, Ledger, NoAnswer, Once, Partial};
use crate::planner::{Clock, Planned, Planner};
use crate::telemetry::{metrics, outcomes};

/// The time for which a Track with a time is remembered at least.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The number of times a call is compiled again before it fails.
const RETRIES: usize = 3;

/// The operator's choices about metering.
#[derive(Clone)]
pub struct MeterOptions {
    /// The time for which a reservation is remembered after its deadline.
    pub settlement_window: Duration,
    /// The time for which a settlement, or a tracked event with a request id, is remembered.
    pub replay_window: Duration,
    /// Allow what cannot be decided, because Redis does not answer.
    pub fail_open: bool,
    /// The machine's clock: only a first guess at Redis's.
    pub clock: Clock,
}

impl Default for MeterOptions {
    fn default() -> Self {
        Self {
            settlement_window: Duration::from_secs(15 * 60),
            replay_window: Duration::from_secs(15 * 60),
            fail_open: false,
            clock: Arc::new(|| jiff::Timestamp::now().as_millisecond()),
        }
    }
}

/// Meters events against plans.
pub struct Meter {
    pub(crate) planner: Planner,
    pub(crate) ledger: Ledger,
    options: MeterOptions,
}

/// How long a reservation holds, and what happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldTerms {
    /// The time for which to hold.
    pub ttl: Duration,
    /// What happens at the deadline to what is still held.
    pub on_expiry: OnExpiry,
}

impl From<Duration> for HoldTerms {
    /// Holds for so long, and then gives back.
    fn from(ttl: Duration) -> Self {
        Self { ttl, on_expiry: OnExpiry::Release }
    }
}

/// The arguments of Extend.
#[derive(Debug)]
pub struct ExtendCall {
    /// The reservation.
    pub reservation: ReservationId,
    /// The time for which to hold from now on.
    pub ttl: Duration,
    /// The quantities to hold in addition.
    pub add: Option<Actual>,
    /// Makes retries safe.
    pub request_id: Option<RequestId>,
}

/// The answer to Reserve.
#[derive(Debug)]
pub struct Reserved {
    /// The decision: whether the caller may go ahead, and the standings of the groups.
    pub decision: Decision,
    /// The hold, if there is one.
    pub hold: Option<Hold>,
    /// True if nothing was decided: Redis did not answer, and this deployment fails open.
    pub degraded: bool,
}

/// The arguments of Track.
#[derive(Debug)]
pub struct TrackCall {
    /// The event that has happened.
    pub event: Event,
    /// Makes retries safe.
    pub request_id: Option<RequestId>,
    /// Count only if it fits.
    pub enforce: bool,
    /// The reservation whose committed usage a refund gives back.
    pub reservation: Option<ReservationId>,
    /// The time at which it happened; none for now.
    pub at_ms: Option<i64>,
}

/// The answer to GetUsage.
#[derive(Debug)]
pub struct Usage {
    /// The stored subscription.
    pub subscription: Option<Arc<Subscription>>,
    /// The plan in force.
    pub plan_id: Option<String>,
    /// Every group of the plan.
    pub standings: Vec<Standing>,
}

impl Meter {
    /// A meter over `ledger`.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, ledger: Ledger, options: MeterOptions) -> Self {
        let planner = Planner::new(catalog, &ledger, Arc::clone(&options.clock));
        Self { planner, ledger, options }
    }

    /// The same meter with another catalog, whose plans are put into the archive. The known subscriptions and the
    /// offset of Redis's clock are kept.
    #[must_use]
    pub fn with_catalog(&self, catalog: Arc<Catalog>) -> Self {
        let planner = self.planner.with_catalog(catalog, &self.ledger);
        self.ledger.archive_soon(planner.plans().cloned(), self.plan_kept());
        Self { planner, ledger: self.ledger.clone(), options: self.options.clone() }
    }

    /// The plans that it meters by.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        self.planner.catalog()
    }

    /// Returns Redis's time, as far as it is known, in milliseconds of the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.planner.now_ms()
    }

    /// Holds what an event may cost.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn reserve(
        &self,
        owner: &Owner,
        event: &Event,
        terms: impl Into<HoldTerms>,
        request_id: Option<&RequestId>,
    ) -> Result<Reserved, Fault> {
        let terms = terms.into();
        let once = Once::reserve(request_id, event, millis(terms.ttl), terms.on_expiry);
        match self.hold(owner, event, terms, &once).await {
            Ok((plan, answer)) => {
                outcomes::reserved(plan.id(), &answer.decision, answer.hold.as_ref());
                Ok(Reserved { decision: answer.decision, hold: answer.hold, degraded: false })
            }
            Err(Fault::Unavailable(source)) if self.options.fail_open => {
                tracing::warn!(
                    error = &*source as &dyn std::error::Error,
                    "allowed without a decision: redis did not answer"
                );
                outcomes::degraded();
                let decision = Decision { denied: None, standings: Vec::new(), retry_after_ms: None };
                Ok(Reserved { decision, hold: None, degraded: true })
            }
            Err(fault) => Err(unreadable(fault, "event", &event.metadata)),
        }
    }

    async fn hold(
        &self,
        owner: &Owner,
        event: &Event,
        terms: HoldTerms,
        once: &Once,
    ) -> Result<(InForce, ledger::ReserveAnswer), Fault> {
        let settlement_ms = millis(self.options.settlement_window);
        let plan_kept = self.plan_kept();
        let mut attempts = self.attempts(owner);
        loop {
            let basis = &attempts.planned()?.basis;
            let HoldTerms { ttl, on_expiry } = terms;
            let ttl_ms = millis(ttl);
            let call = ledger::ReserveCall { basis, once, event, ttl_ms, on_expiry, settlement_ms, plan_kept };
            match self.ledger.reserve(owner, &call).await {
                Ok(answer) => return Ok((basis.plan.clone(), answer)),
                Err(no_answer) => attempts.again(no_answer)?,
            }
        }
    }

    /// Decides like Reserve, but holds nothing.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn can_use(&self, owner: &Owner, event: &Event) -> Result<Decision, Fault> {
        let mut attempts = self.attempts(owner);
        loop {
            let basis = &attempts.planned()?.basis;
            match self.ledger.can_use(owner, &ledger::CanUseCall { basis, event }).await {
                Ok(decision) => {
                    outcomes::asked(&decision);
                    return Ok(decision);
                }
                Err(no_answer) => {
                    attempts.again(no_answer).map_err(|fault| unreadable(fault, "event", &event.metadata))?
                }
            }
        }
    }

    /// Settles a reservation with its actual usage.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn commit(&self, reservation: &ReservationId, actual: Option<&Actual>) -> Result<Committed, Fault> {
        if let Some(actual) = actual.filter(|actual| !actual.metadata.is_empty()) {
            return self.commit_changed(reservation, actual).await;
        }
        let replay_ms = millis(self.options.replay_window);
        let call = ledger::CommitCall { reservation, actual, partial: None, replay_ms };
        self.ledger.commit(&call).await.inspect(outcomes::committed)
    }

    /// Settles a reservation of an event that turned out to be another one.
    async fn commit_changed(&self, reservation: &ReservationId, actual: &Actual) -> Result<Committed, Fault> {
        let replay_ms = millis(self.options.replay_window);
        let mut attempts = self.attempts(&reservation.owner);
        loop {
            let (subscription, at_ms) = attempts.subscription();
            let subscription = subscription.as_deref();
            let call = ledger::CommitChangedCall { reservation, actual, subscription, at_ms, replay_ms };
            match self.ledger.commit_changed(&call).await {
                Ok(committed) => {
                    outcomes::committed(&committed);
                    return Ok(committed);
                }
                Err(no_answer) => {
                    attempts.again(no_answer).map_err(|fault| unreadable(fault, "actual", &actual.metadata))?;
                }
            }
        }
    }

    /// Counts the usage so far of a reservation that goes on, and moves its deadline if there is a `ttl`.
    ///
    /// # Errors
    /// See the RPC Commit.
    pub async fn commit_part(
        &self,
        reservation: &ReservationId,
        actual: &Actual,
        ttl: Option<Duration>,
    ) -> Result<Committed, Fault> {
        let replay_ms = millis(self.options.replay_window);
        let partial = Some(Partial { ttl_ms: ttl.map(millis) });
        let call = ledger::CommitCall { reservation, actual: Some(actual), partial, replay_ms };
        self.ledger.commit(&call).await.inspect(outcomes::committed)
    }

    /// Moves the deadline of a reservation, and holds more for it if that fits.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn extend(&self, call: &ExtendCall) -> Result<Extended, Fault> {
        let ExtendCall { reservation, ttl, add, request_id } = call;
        let (ttl_ms, add) = (millis(*ttl), add.as_ref());
        let once = Once::extend(request_id.as_ref(), reservation, ttl_ms, add);
        let call = ledger::ExtendCall { reservation, once: &once, ttl_ms, add };
        self.ledger.extend(&call).await.inspect(outcomes::extended)
    }

    /// Gives a reservation back.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn release(&self, reservation: &ReservationId) -> Result<Released, Fault> {
        let replay_ms = millis(self.options.replay_window);
        self.ledger.release(&ledger::ReleaseCall { reservation, replay_ms }).await.inspect(outcomes::released)
    }

    /// Counts an event that has happened, or gives back its cost.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn track(&self, owner: &Owner, call: &TrackCall) -> Result<Tracked, Fault> {
        let TrackCall { event, request_id, enforce, reservation, at_ms } = call;
        let once = Once::track(request_id.as_ref(), event, *enforce, reservation.as_ref(), *at_ms);
        let tracked = match (event.name.refunded(), reservation) {
            (None, _) => match at_ms {
                Some(at_ms) => self.count_at(owner, event, *at_ms, &once).await,
                None => self.count(owner, event, *enforce, &once).await,
            },
            (Some(refunded), None) => self.refund(owner, event, &refunded, &once).await,
            // Another user's reservation is as good as unknown.
            (Some(_), Some(reservation)) if reservation.owner != *owner => Err(Fault::ReservationNotFound),
            (Some(refunded), Some(reservation)) => {
                let replay_ms = millis(self.options.replay_window);
                let (once, refunded) = (&once, &refunded);
                let call = ledger::RefundReservationCall { reservation, once, event, refunded, replay_ms };
                self.ledger.refund_reservation(&call).await.inspect(outcomes::refunded)
            }
        };
        tracked.map_err(|fault| unreadable(fault, "event", &event.metadata))
    }

    async fn count(&self, owner: &Owner, event: &Event, enforce: bool, once: &Once) -> Result<Tracked, Fault> {
        let replay_ms = millis(self.options.replay_window);
        let mut attempts = self.attempts(owner);
        loop {
            let basis = &attempts.planned()?.basis;
            match self.ledger.track(owner, &ledger::TrackCall { basis, once, event, enforce, replay_ms }).await {
                Ok(tracked) => {
                    outcomes::tracked(basis.plan.id(), &tracked);
                    // A replay may be answered by a replica that has another catalog.
                    self.ledger.archive_soon(basis.plan.known().cloned(), self.plan_kept());
                    return Ok(tracked);
                }
                Err(no_answer) => attempts.again(no_answer)?,
            }
        }
    }

    async fn count_at(&self, owner: &Owner, event: &Event, at_ms: i64, once: &Once) -> Result<Tracked, Fault> {
        // Whoever tracks what happened earlier may have been away for long.
        let replay_ms = millis(self.options.replay_window.max(DAY));
        let mut attempts = self.attempts(owner);
        loop {
            let planned = attempts.planned()?;
            let (basis, frames_then) = (&planned.basis, self.planner.first_use_frames(planned, at_ms));
            let frames_then = frames_then.as_ref();
            let call = ledger::TrackAtCall { basis, once, event, at_ms, frames_then, replay_ms };
            match self.ledger.track_at(owner, &call).await {
                Ok(tracked) => {
                    outcomes::tracked(basis.plan.id(), &tracked);
                    self.ledger.archive_soon(basis.plan.known().cloned(), self.plan_kept());
                    return Ok(tracked);
                }
                Err(no_answer) => attempts.again(no_answer)?,
            }
        }
    }

    /// Takes back what was counted in the current windows of these groups, or of all groups of the plan. Holds stay.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn reset(
        &self,
        owner: &Owner,
        groups: &[String],
        request_id: Option<&RequestId>,
    ) -> Result<Reset, Fault> {
        let replay_ms = millis(self.options.replay_window);
        let once = Once::reset(request_id, groups);
        let mut attempts = self.attempts(owner);
        loop {
            let basis = &attempts.planned()?.basis;
            let call = ledger::ResetCall { basis, once: &once, groups, replay_ms };
            match self.ledger.reset(owner, &call).await {
                Ok(reset) => {
                    outcomes::reset(&reset);
                    return Ok(reset);
                }
                Err(no_answer) => attempts.again(no_answer)?,
            }
        }
    }

    async fn refund(&self, owner: &Owner, event: &Event, refunded: &EventName, once: &Once) -> Result<Tracked, Fault> {
        let replay_ms = millis(self.options.replay_window);
        let mut attempts = self.attempts(owner);
        loop {
            let basis = &attempts.planned()?.basis;
            match self.ledger.refund(owner, &ledger::RefundCall { basis, once, event, refunded, replay_ms }).await {
                Ok(tracked) => {
                    outcomes::refunded(&tracked);
                    return Ok(tracked);
                }
                Err(no_answer) => attempts.again(no_answer)?,
            }
        }
    }

    /// A user's standing in every group of the plan, or in those with a rule for `event`.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn usage(&self, owner: &Owner, event: Option<&EventPattern>, at_ms: Option<i64>) -> Result<Usage, Fault> {
        let mut attempts = self.attempts(owner);
        loop {
            let planned = attempts.planned()?;
            let basis = &planned.basis;
            let mut standings = match self.ledger.usage(owner, &ledger::UsageCall { basis, at_ms }).await {
                Ok(standings) => standings,
                Err(no_answer) => {
                    attempts.again(no_answer)?;
                    continue;
                }
            };
            let plan_id = basis.plan.known().map(|plan| plan.id.clone());
            let plan = plan_id.as_ref().and_then(|id| self.planner.catalog().plan(id));
            if let (Some(event), Some(plan)) = (event, plan) {
                let wanted = |id: &str| {
                    let group = plan.groups.iter().find(|group| group.id == id);
                    group.is_some_and(|group| group.rules.iter().any(|rule| rule.event.overlaps(event)))
                };
                standings.retain(|standing| wanted(&standing.group_id));
            }
            return Ok(Usage { subscription: planned.subscription.clone(), plan_id, standings });
        }
    }

    fn attempts<'a>(&'a self, owner: &'a Owner) -> Attempts<'a> {
        let (planner, at_ms) = (&self.planner, self.planner.now_ms());
        Attempts { planner, owner, at_ms, left: RETRIES, planned: None }
    }

    /// Returns the time for which calls may need a plan that decides now.
    fn plan_kept(&self) -> Duration {
        // The longest reservation, and as long as a Track with a time is remembered.
        const HOLD: Duration = DAY;
        // Until it is archived again, and as long again.
        const USE: Duration = Duration::from_secs(2 * 3600);
        let MeterOptions { settlement_window, replay_window, .. } = self.options;
        HOLD.saturating_add(settlement_window).saturating_add(replay_window).saturating_add(USE)
    }
}

/// A call that is compiled again where it was compiled for another time or subscription.
struct Attempts<'a> {
    planner: &'a Planner,
    owner: &'a Owner,
    at_ms: i64,
    left: usize,
    planned: Option<Planned>,
}

impl Attempts<'_> {
    /// Returns the plan to compile the call for.
    fn planned(&mut self) -> Result<&Planned, Fault> {
        let planned = self.planner.plan_for(self.owner, self.at_ms)?;
        Ok(self.planned.insert(planned))
    }

    /// Returns the subscription, as last seen, and the time to compile the call for.
    fn subscription(&self) -> (Option<Arc<Subscription>>, i64) {
        (self.planner.subscription(self.owner), self.at_ms)
    }

    /// Takes in why there was no answer, if the call is to be compiled again.
    fn again(&mut self, no_answer: NoAnswer) -> Result<(), Fault> {
        let stored = match no_answer {
            NoAnswer::Stale(stored) => stored,
            NoAnswer::Fault(fault) => return Err(fault),
        };
        outcomes::stale();
        self.at_ms = stored.now_ms;
        self.planner.learn(self.owner, *stored);
        if self.left == 0 {
            metrics().contended.inc();
            return Err(Fault::Contended);
        }
        self.left -= 1;
        Ok(())
    }
}

/// Says of a quantity that a script has missed if the metadata of the event, or of the actual usage, has it, but not as a number.
fn unreadable(fault: Fault, part: &str, metadata: &BTreeMap<String, String>) -> Fault {
    let Fault::QuantityMissing { group, quantity } = &fault else { return fault };
    let Some(Err(problem)) = metadata.get(quantity).map(|value| Quantity::from_decimal(value)) else {
        return fault;
    };
    let field = format!("{part}.metadata[{quantity:?}]");
    match problem {
        InvalidQuantity::TooLarge => Fault::OutOfRange { field, problem: problem.to_string() },
        InvalidQuantity::RoundsToZero => {
            Fault::Invalid { field, problem: problem.to_string(), reason: "INVALID_FIELD" }
        }
        InvalidQuantity::NotANumber | InvalidQuantity::Negative => {
            let problem = format!(
                "is measured by limit group {group:?}, and is no decimal number: send plain digits such as 1000 or 0.5, without \
                 sign, separator, exponent or space"
            );
            Fault::Invalid { field, problem, reason: "INVALID_FIELD" }
        }
    }
}

/// A duration in milliseconds.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
