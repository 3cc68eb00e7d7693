//! Users of the ledger itself, who may say for which time their calls are compiled.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tokio::sync::OnceCell;
use tollgate::catalog;
use tollgate::domain::amount::Quantity;
use tollgate::domain::answer::{Committed, Decision, Extended, Released, Reset, Standing, Tracked};
use tollgate::domain::event::{Actual, Event, EventName};
use tollgate::domain::fault::Fault;
use tollgate::domain::id::{Owner, RequestId, ReservationId};
use tollgate::domain::reservation::OnExpiry;
use tollgate::domain::subscription::Subscription;
use tollgate::ledger::{
    Apply, Basis, CanUseCall, CommitCall, CompiledPlan, ExtendCall, Frames, InForce, Ledger, NoAnswer, Once, Partial,
    PutCall, RefundCall, RefundReservationCall, ReleaseCall, ReserveAnswer, ReserveCall, ResetCall, Step as PutStep,
    TrackAtCall, TrackCall, UsageCall, UserKeys,
};

use crate::support::{self, fresh_user, owner};

/// 2033-05-18T03:33:20Z, where a page of deadlines begins.
pub const START: i64 = 2_000_000_000_000;
pub const MINUTE: i64 = 60_000;
pub const DAY: i64 = 86_400_000;
/// Of a reservation here; it is remembered for a minute more.
pub const TTL: i64 = 5000;

/// A connection to the shared Redis: one for all checks.
pub async fn redis() -> MultiplexedConnection {
    static SHARED: OnceCell<MultiplexedConnection> = OnceCell::const_new();
    SHARED.get_or_init(support::redis).await.clone()
}

/// What the scripts take for Redis's clock when this user calls.
pub async fn set_clock(name: &str, ms: i64) {
    let mut command = redis::cmd("SET");
    command.arg(format!("test-clock:{}", support::keys(name).state())).arg(ms).arg("EX").arg(3600);
    let () = command.query_async(&mut redis().await).await.expect("the clock can be set");
}

pub struct User<'a> {
    pub ledger: &'a Ledger,
    pub name: String,
    pub owner: Owner,
    pub keys: UserKeys,
    pub basis: Basis,
}

/// A plan `p` of these groups, with its windows at a time.
pub fn plan_at(ledger: &Ledger, groups: &str, cycle_anchor_ms: Option<i64>, at_ms: i64) -> InForce {
    let text = format!("plans: {{ p: {{ limit_groups: [{groups}] }} }}");
    let catalog = catalog::parse(&text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
    let plan = ledger.compile(&catalog).swap_remove(0);
    let frames = Frames::of(&catalog.plans()[0], cycle_anchor_ms, &BTreeMap::new(), at_ms);
    InForce::Plan { plan, frames: frames.expect("the time has a calendar") }
}

/// A group `g` with a limit of 9 events `e`.
pub fn group(period: &str) -> String {
    format!("{{ period: {period}, id: g, unit: count, quota: 9, match: [{{ event: e }}] }}")
}

/// An event with these quantities; `quantity` is its own, and what starts with `@` is in its metadata.
pub fn event(name: &str, parts: &[(&str, &str)]) -> Event {
    let mut event = Event::new(EventName::parse(name).expect("a name"), None, BTreeMap::new(), BTreeMap::new());
    for (name, amount) in parts {
        let number = || Quantity::from_decimal(amount).expect("a number");
        match name.strip_prefix('@') {
            Some(name) => drop(event.metadata.insert(name.to_owned(), (*amount).to_owned())),
            None if *name == "quantity" => event.quantity = Some(number()),
            None => drop(event.quantities.insert((*name).to_owned(), number())),
        }
    }
    event
}

pub fn used(parts: &[(&str, &str)]) -> Actual {
    let Event { quantity, quantities, .. } = event("used", parts);
    Actual { quantity, quantities, ..Actual::default() }
}

pub fn request(id: &str) -> Option<RequestId> {
    RequestId::parse(id).expect("a request id")
}

/// The reservation that was made, and how much is held.
pub fn made(answer: Result<ReserveAnswer, NoAnswer>) -> Option<(ReservationId, u64)> {
    let ReserveAnswer { decision, hold } = answer.ok()?;
    let hold = hold.filter(|hold| !hold.replayed)?;
    Some((hold.id, decision.standings[0].held))
}

/// How much is held after a reserve that was allowed.
pub fn held(answer: Result<ReserveAnswer, NoAnswer>) -> Option<u64> {
    made(answer).map(|(_, held)| held)
}

pub fn is_stale<T>(answer: &Result<T, NoAnswer>) -> bool {
    matches!(answer, Err(NoAnswer::Stale(_)))
}

impl<'a> User<'a> {
    /// Whose time is `START`, on a plan with a limit of 9 a minute.
    pub async fn new(ledger: &'a Ledger) -> Self {
        Self::on(ledger, &group("minute")).await
    }

    /// The same with other groups.
    pub async fn on(ledger: &'a Ledger, groups: &str) -> Self {
        let name = fresh_user("direct");
        let owner = owner(&name);
        set_clock(&name, START).await;
        let plan = plan_at(ledger, groups, None, START);
        let basis = Basis { revision: None, ended: false, plan };
        Self { ledger, name, keys: UserKeys::new(&owner), owner, basis }
    }

    /// From now on, calls are compiled for these groups, and this time after the start.
    pub fn compile(&mut self, groups: &str, cycle_anchor_ms: Option<i64>, ms: i64) {
        self.basis.plan = plan_at(self.ledger, groups, cycle_anchor_ms, START + ms);
    }

    pub fn plan(&self) -> &Arc<CompiledPlan> {
        self.basis.plan.known().expect("there is a plan")
    }

    pub fn frames(&self) -> &Frames {
        match &self.basis.plan {
            InForce::Plan { frames, .. } => frames,
            InForce::None | InForce::Unknown(_) => panic!("there is a plan"),
        }
    }

    pub async fn step(&self, ms: i64) {
        set_clock(&self.name, START + ms).await;
    }

    pub async fn reserve(&self, request_id: &str) -> Result<ReserveAnswer, NoAnswer> {
        self.reserve_for(request_id, TTL, &event("e", &[])).await
    }

    pub async fn reserve_for(&self, request_id: &str, ttl_ms: i64, event: &Event) -> Result<ReserveAnswer, NoAnswer> {
        self.reserve_until(request_id, ttl_ms, OnExpiry::Release, event).await
    }

    pub async fn reserve_until(
        &self,
        request_id: &str,
        ttl_ms: i64,
        on_expiry: OnExpiry,
        event: &Event,
    ) -> Result<ReserveAnswer, NoAnswer> {
        let once = Once::reserve(request(request_id).as_ref(), event, ttl_ms, on_expiry);
        let plan_kept = std::time::Duration::from_secs(3600);
        let call =
            ReserveCall { basis: &self.basis, once: &once, event, ttl_ms, on_expiry, settlement_ms: MINUTE, plan_kept };
        self.ledger.reserve(&self.owner, &call).await
    }

    pub async fn can_use(&self, event: &Event) -> Result<Decision, NoAnswer> {
        self.ledger.can_use(&self.owner, &CanUseCall { basis: &self.basis, event }).await
    }

    pub async fn commit(&self, reservation: &ReservationId, actual: Option<&Actual>) -> Result<Committed, Fault> {
        self.ledger.commit(&CommitCall { reservation, actual, partial: None, replay_ms: MINUTE }).await
    }

    pub async fn commit_part(
        &self,
        reservation: &ReservationId,
        actual: &Actual,
        ttl_ms: Option<i64>,
    ) -> Result<Committed, Fault> {
        let partial = Some(Partial { ttl_ms });
        self.ledger.commit(&CommitCall { reservation, actual: Some(actual), partial, replay_ms: MINUTE }).await
    }

    pub async fn extend(
        &self,
        request_id: &str,
        reservation: &ReservationId,
        ttl_ms: i64,
        add: Option<&Actual>,
    ) -> Result<Extended, Fault> {
        let once = Once::extend(request(request_id).as_ref(), reservation, ttl_ms, add);
        self.ledger.extend(&ExtendCall { reservation, once: &once, ttl_ms, add }).await
    }

    pub async fn release(&self, reservation: &ReservationId) -> Result<Released, Fault> {
        self.ledger.release(&ReleaseCall { reservation, replay_ms: MINUTE }).await
    }

    pub async fn track(&self, request_id: &str) -> Result<Tracked, NoAnswer> {
        self.track_for(request_id, MINUTE, &event("e", &[]), false).await
    }

    pub async fn track_for(
        &self,
        request_id: &str,
        replay_ms: i64,
        event: &Event,
        enforce: bool,
    ) -> Result<Tracked, NoAnswer> {
        let once = Once::track(request(request_id).as_ref(), event, enforce, None, None);
        let call = TrackCall { basis: &self.basis, once: &once, event, enforce, replay_ms };
        self.ledger.track(&self.owner, &call).await
    }

    /// Tracks what has happened at a time.
    pub async fn track_at(&self, request_id: &str, event: &Event, at_ms: i64) -> Result<Tracked, NoAnswer> {
        let once = Once::track(request(request_id).as_ref(), event, false, None, Some(at_ms));
        let call = TrackAtCall { basis: &self.basis, once: &once, event, at_ms, frames_then: None, replay_ms: MINUTE };
        self.ledger.track_at(&self.owner, &call).await
    }

    /// Takes back what was counted in every group.
    pub async fn reset(&self) -> Result<Reset, NoAnswer> {
        let once = Once::reset(None, &[]);
        let call = ResetCall { basis: &self.basis, once: &once, groups: &[], replay_ms: MINUTE };
        self.ledger.reset(&self.owner, &call).await
    }

    /// Whether a track was done before.
    pub async fn replays(&self, request_id: &str, replay_ms: i64) -> Option<bool> {
        let answer = self.track_for(request_id, replay_ms, &event("e", &[]), false).await;
        answer.ok().map(|tracked| tracked.replayed)
    }

    pub async fn refund(&self, request_id: &str, event: &Event) -> Result<Tracked, NoAnswer> {
        let refunded = &event.name;
        let once = Once::track(request(request_id).as_ref(), event, false, None, None);
        let call = RefundCall { basis: &self.basis, once: &once, event, refunded, replay_ms: MINUTE };
        self.ledger.refund(&self.owner, &call).await
    }

    pub async fn refund_reservation(
        &self,
        request_id: &str,
        reservation: &ReservationId,
        event: &Event,
    ) -> Result<Tracked, Fault> {
        let refunded = &event.name;
        let once = Once::track(request(request_id).as_ref(), event, false, Some(reservation), None);
        let call = RefundReservationCall { reservation, once: &once, event, refunded, replay_ms: MINUTE };
        self.ledger.refund_reservation(&call).await
    }

    pub async fn usage(&self) -> Option<Vec<Standing>> {
        self.ledger.usage(&self.owner, &UsageCall { basis: &self.basis, at_ms: None }).await.ok()
    }

    pub async fn usage_at(&self, at_ms: i64) -> Option<Vec<Standing>> {
        self.ledger.usage(&self.owner, &UsageCall { basis: &self.basis, at_ms: Some(at_ms) }).await.ok()
    }

    /// Used and held in the first group.
    pub async fn standing(&self) -> Option<(u64, u64)> {
        self.usage().await.and_then(|standings| standings.first().map(|standing| (standing.used, standing.held)))
    }

    /// Puts a subscription, whose revision has this number, in the place of what is stored. Calls are compiled for it from then on.
    pub async fn subscribe(&mut self, revision: u8, steps: &[Apply]) -> bool {
        self.put(revision, steps).await.is_some()
    }

    /// The same without any steps. Returns how many clocks were corrected.
    pub async fn subscribe_and_tell(&mut self, revision: u8) -> Option<i64> {
        self.put(revision, &[]).await
    }

    async fn put(&mut self, revision: u8, steps: &[Apply]) -> Option<i64> {
        let before = self.ledger.subscription(&self.owner).await.ok()?;
        let wanted = subscription(revision);
        let InForce::Plan { plan, frames } = &self.basis.plan else { return None };
        let step = |apply: &Apply| PutStep { apply: *apply, plan: Arc::clone(plan), frames: frames.clone() };
        let steps: Vec<_> = steps.iter().map(step).collect();
        let call = PutCall { before: &before, wanted: &wanted, steps: &steps };
        let answer = self.ledger.put_subscription(&self.owner, &call).await;
        self.basis.revision = Some(wanted.revision);
        answer.ok().map(|answer| answer.corrected_clocks)
    }

    /// What one of Redis's commands says of one of the user's keys.
    pub async fn look<T: redis::FromRedisValue>(&self, command: &str, key: &str) -> T {
        redis::cmd(command).arg(key).query_async(&mut redis().await).await.expect("Redis answers")
    }

    pub async fn state(&self) -> Vec<u8> {
        self.look::<Option<Vec<u8>>>("GET", self.keys.state()).await.unwrap_or_default()
    }

    /// What the state is from now on, as if a script had failed before it wrote it.
    pub async fn put_state(&self, state: &[u8]) {
        let mut command = redis::cmd("SET");
        command.arg(self.keys.state()).arg(state).arg("KEEPTTL");
        let () = command.query_async(&mut redis().await).await.expect("the state can be written");
    }

    /// The values of the fields of a memory, 1 or 2.
    pub async fn memory(&self, number: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.look("HGETALL", &self.keys.memories()[number - 1]).await
    }

    pub async fn set_field(&self, number: usize, field: &[u8], value: &[u8]) {
        let mut command = redis::cmd("HSET");
        command.arg(&self.keys.memories()[number - 1]).arg(field).arg(value);
        let () = command.query_async(&mut redis().await).await.expect("the field can be written");
    }

    pub async fn forget_field(&self, number: usize, field: &[u8]) {
        let mut command = redis::cmd("HDEL");
        command.arg(&self.keys.memories()[number - 1]).arg(field);
        let () = command.query_async(&mut redis().await).await.expect("the field can be deleted");
    }

    pub async fn delete(self) {
        let _: Result<(), Fault> = self.ledger.delete_user(&self.owner).await;
    }
}

pub fn subscription(revision: u8) -> Subscription {
    Subscription {
        revision: [revision; 8],
        plan_id: "p".to_owned(),
        start_ms: START,
        end_ms: None,
        cycle_anchor_ms: START,
        fallen_to: None,
        overrides: BTreeMap::new(),
    }
}
