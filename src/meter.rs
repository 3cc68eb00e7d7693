//! The use cases of metering: one short function per RPC.
//!
//! Each compiles the user's plan, runs one script, and translates the answer. Where the script says that it was compiled for
//! another time or subscription, it is compiled again, at most three times.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::domain::amount::{InvalidQuantity, Quantity};
use crate::domain::answer::{Committed, Decision, Hold, Released, Standing, Tracked};
use crate::domain::event::{Actual, Event, EventName};
use crate::domain::fault::Fault;
use crate::domain::id::{Nonce, Owner, RequestId, ReservationId};
use crate::domain::pattern::EventPattern;
use crate::domain::plan::Catalog;
use crate::domain::subscription::Subscription;
use crate::ledger::codec::{self, Reply};
use crate::ledger::{Ledger, Script, UserKeys, settling_keys};
use crate::planner::{Basis, Clock, Effective, Planner};
use crate::telemetry::{metrics, seen};

/// How often a call is compiled again before it is given up.
const RETRIES: usize = 3;

/// What an operator decides about metering.
#[derive(Clone)]
pub struct MeterOptions {
    /// How long a reservation is remembered after its deadline.
    pub settlement_window: Duration,
    /// How long a settlement, or a tracked event with a request id, is remembered.
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

/// The answer to Reserve.
#[derive(Debug)]
pub struct Reserved {
    /// Whether the caller may go ahead, and where the groups stand.
    pub decision: Decision,
    /// What is held.
    pub hold: Option<(ReservationId, Hold)>,
    /// Nothing was decided: Redis did not answer, and this deployment fails open.
    pub degraded: bool,
}

/// What Track is asked.
#[derive(Debug)]
pub struct TrackCall {
    /// What happened.
    pub event: Event,
    /// Makes retries safe.
    pub request_id: Option<RequestId>,
    /// Count only if it fits.
    pub enforce: bool,
    /// For a refund: of what this reservation committed.
    pub reservation: Option<ReservationId>,
}

/// The answer to GetUsage.
#[derive(Debug)]
pub struct Usage {
    /// As stored.
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
        let planner = Planner::new(catalog, Arc::clone(&options.clock));
        Self { planner, ledger, options }
    }

    /// The same meter with another catalog. What is known of subscriptions and of Redis's clock is kept.
    #[must_use]
    pub fn with_catalog(&self, catalog: Arc<Catalog>) -> Self {
        let planner = self.planner.with_catalog(catalog);
        Self { planner, ledger: self.ledger.clone(), options: self.options.clone() }
    }

    /// The plans that it meters by.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        self.planner.catalog()
    }

    /// The time as Redis has it, as far as is known, in milliseconds of the Unix epoch.
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
        ttl: Duration,
        request_id: Option<&RequestId>,
    ) -> Result<Reserved, Fault> {
        let nonce = Nonce::random();
        let ttl_ms = millis(ttl);
        let digest = request_id.map(|_| digest(&("reserve", codec::event_identity(event), ttl_ms)));
        let user_keys = UserKeys::new(owner);
        let mut keys = user_keys.all();
        keys.push(user_keys.hold(nonce.as_str()));
        let call = |basis: &Basis<'_>| {
            let (metadata, name, quantity, quantities, numeric) =
                codec::event_measured(event, |name| basis.measures(name));
            codec::encode(&(
                basis.revision(),
                basis.ended,
                text(request_id),
                digest.as_deref().unwrap_or_default(),
                nonce.as_str(),
                ttl_ms,
                millis(self.options.settlement_window),
                metadata,
                name,
                quantity,
                quantities,
                numeric,
            ))
        };
        let (reply, basis) = match self.run(&self.ledger.scripts().reserve, &keys, owner, call).await {
            Ok((reply, basis)) => (reply, basis),
            Err(Fault::Unavailable(source)) if self.options.fail_open => {
                tracing::warn!(
                    error = &*source as &dyn std::error::Error,
                    "allowed without a decision: redis did not answer"
                );
                seen::degraded();
                let decision = Decision { denied: None, standings: Vec::new(), retry_after_ms: None };
                return Ok(Reserved { decision, hold: None, degraded: true });
            }
            Err(fault) => return Err(unreadable(fault, event)),
        };
        let (decision, hold) = reply.decision()?;
        seen::reserved(basis.plan.id(), &decision, hold.as_ref());
        let hold = hold.map(|hold| {
            // ONCE: a replay names the reservation of the first call.
            (ReservationId { nonce: Nonce::from_ledger(&hold.nonce), owner: owner.clone() }, hold)
        });
        Ok(Reserved { decision, hold, degraded: false })
    }

    /// What Reserve would answer now.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn can_use(&self, owner: &Owner, event: &Event) -> Result<Decision, Fault> {
        let keys = UserKeys::new(owner).all();
        let call = |basis: &Basis<'_>| {
            let event = codec::event_measured(event, |name| basis.measures(name));
            codec::can_use_call_of(basis.revision(), basis.ended, event)
        };
        let reply = self.run(&self.ledger.scripts().can_use, &keys, owner, call).await;
        let (reply, _) = reply.map_err(|fault| unreadable(fault, event))?;
        let (decision, _) = reply.decision()?;
        seen::asked(&decision);
        Ok(decision)
    }

    /// Settles a reservation with what was really used.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn commit(&self, id: &ReservationId, actual: Option<&Actual>) -> Result<Committed, Fault> {
        let keys = settling_keys(&id.owner, &id.nonce);
        let (given, quantity, quantities) = codec::actual(actual);
        let replay_ms = millis(self.options.replay_window);
        let call = codec::encode(&(id.nonce.as_str(), given, quantity, quantities, replay_ms));
        let reply = self.ledger.run(&self.ledger.scripts().commit, &keys, &id.owner, &[&call]).await?;
        reply.committed().inspect(seen::committed)
    }

    /// Gives a reservation back.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn release(&self, id: &ReservationId) -> Result<Released, Fault> {
        let keys = settling_keys(&id.owner, &id.nonce);
        let call = codec::encode(&(id.nonce.as_str(), millis(self.options.replay_window)));
        let reply = self.ledger.run(&self.ledger.scripts().release, &keys, &id.owner, &[&call]).await?;
        reply.released().inspect(seen::released)
    }

    /// Counts what has happened, or gives back what it cost.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn track(&self, owner: &Owner, call: &TrackCall) -> Result<Tracked, Fault> {
        let event_id = Nonce::random();
        let TrackCall { event, request_id, enforce, reservation } = call;
        let digest = request_id.as_ref().map(|_| {
            digest(&("track", codec::event_identity(event), enforce, reservation.as_ref().map(ToString::to_string)))
        });
        let once = (text(request_id.as_ref()), digest.as_deref().unwrap_or_default(), event_id.as_str());
        let reply = match (event.name.refunded(), reservation) {
            (Some(refunded), Some(reservation)) => {
                self.refund_reservation(owner, reservation, event, &refunded, once).await?
            }
            (Some(refunded), None) => self.refund(owner, event, &refunded, once).await?,
            (None, _) => return self.count(owner, event, *enforce, once).await,
        };
        reply.tracked().inspect(seen::refunded)
    }

    async fn count(&self, owner: &Owner, event: &Event, enforce: bool, once: Once<'_>) -> Result<Tracked, Fault> {
        let (request_id, digest, event_id) = once;
        let replay_ms = millis(self.options.replay_window);
        let call = |basis: &Basis<'_>| {
            let (metadata, name, quantity, quantities, numeric) =
                codec::event_measured(event, |name| basis.measures(name));
            codec::encode(&(
                basis.revision(),
                basis.ended,
                request_id,
                digest,
                event_id,
                enforce,
                replay_ms,
                metadata,
                name,
                quantity,
                quantities,
                numeric,
            ))
        };
        let keys = UserKeys::new(owner).all();
        let reply = self.run(&self.ledger.scripts().track, &keys, owner, call).await;
        let (reply, basis) = reply.map_err(|fault| unreadable(fault, event))?;
        reply.tracked().inspect(|tracked| seen::tracked(basis.plan.id(), tracked))
    }

    async fn refund(&self, owner: &Owner, event: &Event, refunded: &EventName, once: Once<'_>) -> Result<Reply, Fault> {
        let (request_id, digest, event_id) = once;
        let replay_ms = millis(self.options.replay_window);
        let call = |basis: &Basis<'_>| {
            let (metadata, name, quantity, quantities, numeric) =
                codec::event_measured(event, |name| basis.measures(name));
            codec::encode(&(
                basis.revision(),
                basis.ended,
                request_id,
                digest,
                event_id,
                refunded.as_str(),
                replay_ms,
                metadata,
                name,
                quantity,
                quantities,
                numeric,
            ))
        };
        let keys = UserKeys::new(owner).all();
        let reply = self.run(&self.ledger.scripts().refund, &keys, owner, call).await;
        reply.map(|(reply, _)| reply).map_err(|fault| unreadable(fault, event))
    }

    async fn refund_reservation(
        &self,
        owner: &Owner,
        reservation: &ReservationId,
        event: &Event,
        refunded: &EventName,
        once: Once<'_>,
    ) -> Result<Reply, Fault> {
        if reservation.owner != *owner {
            // Another user's reservation is as good as unknown.
            return Err(Fault::ReservationNotFound);
        }
        let (request_id, digest, event_id) = once;
        let keys = UserKeys::new(owner);
        let keys = [keys.ledger(), keys.memory(), keys.agenda()];
        let replay_ms = millis(self.options.replay_window);
        let (nonce, name) = (reservation.nonce.as_str(), refunded.as_str());
        let (_, _, quantity, quantities, numeric) = codec::event(event);
        let call =
            codec::encode(&(nonce, request_id, digest, event_id, name, replay_ms, quantity, quantities, numeric));
        let reply = self.ledger.run(&self.ledger.scripts().refund_reservation, &keys, owner, &[&call]).await;
        reply.map_err(|fault| unreadable(fault, event))
    }

    /// A user's standing in every group of the plan, or in those with a rule for `event`.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn usage(&self, owner: &Owner, event: Option<&EventPattern>, at_ms: Option<i64>) -> Result<Usage, Fault> {
        let keys = UserKeys::new(owner).all();
        let call = |basis: &Basis<'_>| codec::encode(&(basis.revision(), basis.ended, at_ms.unwrap_or(-1)));
        let (reply, basis) = self.run(&self.ledger.scripts().usage, &keys, owner, call).await?;
        let mut standings = reply.usage()?;
        let plan_id = match basis.plan {
            Effective::Plan { id, .. } => Some(id.to_owned()),
            Effective::None | Effective::Unknown(_) => None,
        };
        if let (Some(event), Some(plan)) = (event, plan_id.as_ref().and_then(|id| self.planner.catalog().plan(id))) {
            let wanted = |id: &str| {
                let group = plan.groups.iter().find(|group| group.id == id);
                group.is_some_and(|group| group.rules.iter().any(|rule| rule.event.overlaps(event)))
            };
            standings.retain(|standing| wanted(&standing.group_id));
        }
        Ok(Usage { subscription: basis.subscription, plan_id, standings })
    }

    /// Runs a script that decides by the user's plan. Returns what the answer was compiled for.
    async fn run(
        &self,
        script: &'static Script,
        keys: &[String],
        owner: &Owner,
        call: impl Fn(&Basis<'_>) -> Vec<u8>,
    ) -> Result<(Reply, Basis<'_>), Fault> {
        let mut at_ms = self.planner.now_ms();
        for _ in 0..=RETRIES {
            let basis = self.planner.basis(owner, at_ms)?;
            let args = [&call(&basis), basis.plan_argument()];
            let reply = match self.ledger.run(script, keys, owner, &args).await {
                Err(Fault::PlanUnknown(_)) => return Err(unknown(basis.plan)),
                reply => reply?,
            };
            match reply.current() {
                Ok(reply) => return Ok((reply, basis)),
                Err(stale) => {
                    seen::stale();
                    at_ms = stale.now_ms;
                    self.planner.learn(owner, &stale)?;
                }
            }
        }
        metrics().contended.inc();
        Err(Fault::Contended)
    }
}

/// Request id, digest and event id of a Track.
type Once<'a> = (&'a str, &'a str, &'a str);

/// Says of a quantity that a script has missed if the event's metadata has it, but not as a number.
fn unreadable(fault: Fault, event: &Event) -> Fault {
    let Fault::QuantityMissing { group, quantity } = &fault else { return fault };
    let Some(Err(problem)) = event.metadata.get(quantity).map(|value| Quantity::from_decimal(value)) else {
        return fault;
    };
    let field = format!("event.metadata[{quantity:?}]");
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

fn unknown(plan: Effective<'_>) -> Fault {
    match plan {
        Effective::Unknown(id) => Fault::PlanUnknown(id),
        Effective::Plan { id, .. } => Fault::PlanUnknown(id.to_owned()),
        Effective::None => Fault::PlanUnknown(String::new()),
    }
}

fn text(request_id: Option<&RequestId>) -> &str {
    request_id.map_or("", RequestId::as_str)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// ONCE: tells whether a retry is the same request: half of a SHA-256 of it as it was parsed, defaults filled, maps sorted.
fn digest(request: &impl serde::Serialize) -> String {
    URL_SAFE_NO_PAD.encode(&Sha256::digest(codec::encode(request))[..16])
}
