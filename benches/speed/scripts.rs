//! Scripts: what a decision costs in Redis. Calls are made through the library, 64 at a time, so that whatever travels between
//! it and Redis may change, and several decisions may share a call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::task::JoinSet;
use tollgate::domain::amount::Quantity;
use tollgate::domain::answer::Reason;
use tollgate::domain::event::{Actual, Event};
use tollgate::domain::id::{Owner, RequestId, ReservationId};
use tollgate::meter::{Meter, TrackCall};
use tollgate::subscriptions::Upsert;

use super::Effort;
use super::cases::{Case, Work};
use super::lab::{EVENT, Lab, Place, World, event, event_of, tracked, user_ids};
use super::results::Results;
use super::store::Spent;

/// How many calls are under way at once.
pub const IN_FLIGHT: usize = 64;

/// What all cases have in common: the denominator, of which each has one of its own.
pub const RETURN_ONE: &str = "denominator/return-1";

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

/// Measures a case once.
pub async fn measure(lab: &mut Lab, case: &Case, effort: &Effort, results: &mut Results) -> Result<()> {
    let world = lab.world(case.place, case.users).await?;
    let one = world.store.return_one(effort.denominator).await?;
    let turns = effort.decisions / case.parts / case.work.decisions();
    let mut spent = Spent::default();
    let mut elapsed = Duration::ZERO;
    for _ in 0..case.parts {
        let scene = Scene::prepare(world, case, turns + warm_up(turns)).await?;
        let next = Arc::new(AtomicUsize::new(0));
        if case.work == Work::Lapsing {
            drive(&scene, &next, Until::Time(Instant::now() + 3 * SECOND / 2)).await?;
        } else {
            drive(&scene, &next, Until::Turn(warm_up(turns))).await?;
        }
        let begin = next.load(Ordering::Relaxed);
        let (before, started) = (world.store.spent().await?, Instant::now());
        drive(&scene, &next, Until::Turn(begin + turns)).await?;
        elapsed += started.elapsed();
        spent += world.store.spent().await? - before;
    }
    let decisions = (turns * case.parts * case.work.decisions()) as f64;
    let micros = spent.micros / decisions;
    let figures = [
        ("times_return_one", micros / one.micros),
        ("script_micros", micros),
        ("return_one_micros", one.micros),
        ("return_one_per_second", one.per_second),
        ("calls_per_decision", spent.calls / decisions),
        ("decisions_per_second", decisions / elapsed.as_secs_f64()),
        ("redis_cpu_micros", spent.cpu_seconds * 1e6 / decisions),
    ];
    for (metric, figure) in figures {
        results.add(&case.name, metric, figure);
    }
    results.add(RETURN_ONE, "script_micros", one.micros);
    results.add(RETURN_ONE, "per_second", one.per_second);
    Ok(())
}

fn warm_up(turns: usize) -> usize {
    turns / 10 + 1
}

/// Users and what they have, before a measurement.
struct Scene {
    meter: Arc<Meter>,
    work: Work,
    users: Vec<Owner>,
    event: Event,
    /// One per turn, where turns need them.
    reservations: OnceLock<Vec<ReservationId>>,
    /// Begins every request id, so that none comes twice.
    run: usize,
}

impl Scene {
    async fn prepare(world: &mut World, case: &Case, turns: usize) -> Result<Arc<Self>> {
        static RUN: AtomicUsize = AtomicUsize::new(0);
        let meter = match case.work {
            // Its users have subscriptions, which the other cases must not remember.
            Work::ReserveSubscribed => world.fresh_meter(case.allowance)?,
            _ => world.meter(case.allowance)?,
        };
        let event = match case.work {
            Work::Unmatched => event_of("llm.tokns", 1.0),
            Work::Refund | Work::RefundReservation => event_of("llm.tokens.refund", 0.01),
            _ => event(),
        };
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        let users = user_ids(case.users);
        let scene = Arc::new(Self { meter, work: case.work, users, event, reservations: OnceLock::new(), run });
        if case.place != Place::Crowd {
            world.store.flush().await?;
            scene.hold_first(case.held).await?;
            world.populate(&scene.meter, &scene.users).await?;
        }
        if case.work == Work::ReserveSubscribed {
            scene.subscribe().await?;
        }
        if case.work.needs_reservations() {
            scene.reserve(turns).await?;
        }
        Ok(scene)
    }

    /// The first user reserves so often; the others will get a copy.
    async fn hold_first(self: &Arc<Self>, held: usize) -> Result<()> {
        let this = Arc::clone(self);
        let call = move |index| {
            let this = Arc::clone(&this);
            async move {
                let id = request_id("held", this.run, index);
                reserved(this.meter.reserve(&this.users[0], &this.event, HOUR, Some(&id)).await?)
            }
        };
        for_each(held, call).await.map(drop)
    }

    async fn subscribe(self: &Arc<Self>) -> Result<()> {
        let this = Arc::clone(self);
        let call = move |index: usize| {
            let this = Arc::clone(&this);
            let upsert = Upsert {
                plan_id: Some("p".to_owned()),
                overrides: None,
                end_ms: None,
                cycle_anchor_ms: None,
                etag: None,
            };
            async move { Ok(this.meter.upsert_subscription(&this.users[index], &upsert).await?) }
        };
        for_each(self.users.len(), call).await.map(drop)
    }

    /// A reservation for each turn; committed, where that is what the turn is about.
    async fn reserve(self: &Arc<Self>, turns: usize) -> Result<()> {
        let this = Arc::clone(self);
        let call = move |turn| {
            let this = Arc::clone(&this);
            async move {
                let id = request_id("r", this.run, turn);
                let id = reserved(this.meter.reserve(this.user(turn), &event(), MINUTE, Some(&id)).await?)?;
                if this.work == Work::RefundReservation {
                    this.meter.commit(&id, None).await?;
                }
                Ok(id)
            }
        };
        let made = for_each(turns, call).await?;
        self.reservations.set(made).ok().context("they are made once")
    }

    /// Spreads the turns over all users, not in their order.
    fn user(&self, turn: usize) -> &Owner {
        &self.users[turn.wrapping_mul(7919) % self.users.len()]
    }

    /// Makes the calls of a turn, and fails if one is not answered as the case expects.
    async fn turn(&self, turn: usize) -> Result<()> {
        let (meter, user, event) = (&self.meter, self.user(turn), &self.event);
        let id = || request_id("r", self.run, turn);
        match self.work {
            Work::Reserve => drop(reserved(meter.reserve(user, event, MINUTE, Some(&id())).await?)?),
            Work::ReserveSubscribed => drop(reserved(meter.reserve(user, event, MINUTE, Some(&id())).await?)?),
            Work::ReserveWithoutId => drop(reserved(meter.reserve(user, event, MINUTE, None).await?)?),
            Work::Lapsing => drop(reserved(meter.reserve(user, event, SECOND, Some(&id())).await?)?),
            Work::Commit => {
                let committed = meter.commit(self.reservation(turn)?, Some(&actual())).await?;
                ensure!(!committed.replayed && !committed.late, "a commit that comes in time is not late");
            }
            Work::CommitAsReserved => {
                let committed = meter.commit(self.reservation(turn)?, None).await?;
                ensure!(!committed.replayed && !committed.late, "a commit that comes in time is not late");
            }
            Work::Release => ensure!(!meter.release(self.reservation(turn)?).await?.replayed, "it was held"),
            Work::Track => self.track(user, None, false, None).await?,
            Work::TrackWithId => self.track(user, Some(id()), false, None).await?,
            Work::TrackEnforced => self.track(user, Some(id()), true, None).await?,
            Work::Refund => self.track(user, Some(id()), false, None).await?,
            Work::RefundReservation => {
                let id = request_id("refund", self.run, turn);
                self.track(user, Some(id), false, Some(self.reservation(turn)?.clone())).await?;
            }
            Work::CanUse => ensure!(meter.can_use(user, event).await?.denied.is_none(), "there is room"),
            Work::GetUsage => ensure!(!meter.usage(user, None, None).await?.standings.is_empty(), "there are groups"),
            Work::Denial => {
                let denied = meter.reserve(user, event, MINUTE, Some(&id())).await?.decision.denied;
                ensure!(denied == Some(Reason::LimitReached), "the limit is reached");
            }
            Work::Unmatched => {
                let denied = meter.reserve(user, event, MINUTE, Some(&id())).await?.decision.denied;
                ensure!(denied == Some(Reason::UnmatchedEvent), "no group matches");
            }
            Work::Replay => {
                let hold = meter.reserve(user, event, MINUTE, Some(&id())).await?.hold;
                ensure!(hold.is_some_and(|hold| hold.replayed), "it was asked before");
            }
            Work::ReserveRelease => {
                let id = reserved(meter.reserve(user, event, MINUTE, Some(&id())).await?)?;
                ensure!(!meter.release(&id).await?.replayed, "it was held");
            }
            Work::ReserveCommit => {
                let id = reserved(meter.reserve(user, event, MINUTE, Some(&id())).await?)?;
                ensure!(!meter.commit(&id, Some(&actual())).await?.replayed, "it was held");
            }
            Work::RetryStorm => {
                let first = turn / 8;
                let id = request_id("r", self.run, first);
                drop(reserved(meter.reserve(self.user(first), event, MINUTE, Some(&id)).await?)?);
            }
        }
        Ok(())
    }

    fn reservation(&self, turn: usize) -> Result<&ReservationId> {
        self.reservations.get().and_then(|made| made.get(turn)).context("each turn has a reservation")
    }

    async fn track(
        &self,
        user: &Owner,
        request_id: Option<RequestId>,
        enforce: bool,
        reservation: Option<ReservationId>,
    ) -> Result<()> {
        let call = TrackCall { request_id, enforce, reservation, ..tracked(self.event.clone()) };
        let tracked = self.meter.track(user, &call).await?;
        ensure!(tracked.uncounted.is_none() && !tracked.replayed, "it is counted");
        Ok(())
    }
}

fn request_id(kind: &str, run: usize, index: usize) -> RequestId {
    // As long as a UUID, which is what callers send.
    let text = format!("{kind:0<8}-{run:08}-{index:018}");
    RequestId::parse(&text).ok().flatten().expect("a request id")
}

/// The reservation of a Reserve that was allowed.
fn reserved(answer: tollgate::meter::Reserved) -> Result<ReservationId> {
    let denied = answer.decision.denied;
    Ok(answer.hold.with_context(|| format!("a Reserve of {EVENT} was denied: {denied:?}"))?.id)
}

fn actual() -> Actual {
    let quantity = Quantity::from_f64(350.0).expect("a number");
    Actual { quantities: BTreeMap::from([("completion_tokens".to_owned(), quantity)]), ..Actual::default() }
}

#[derive(Clone, Copy)]
enum Until {
    /// Up to this turn.
    Turn(usize),
    /// The turns that begin before.
    Time(Instant),
}

/// Makes turns, some at a time.
async fn drive(scene: &Arc<Scene>, next: &Arc<AtomicUsize>, until: Until) -> Result<()> {
    let mut workers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (scene, next) = (Arc::clone(scene), Arc::clone(next));
        workers.spawn(async move {
            loop {
                if matches!(until, Until::Time(end) if Instant::now() >= end) {
                    break;
                }
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if matches!(until, Until::Turn(end) if turn >= end) {
                    break;
                }
                scene.turn(turn).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(outcome) = workers.join_next().await {
        outcome??;
    }
    if let Until::Turn(end) = until {
        // Each worker has counted one turn that it did not make.
        next.store(end, Ordering::Relaxed);
    }
    Ok(())
}

/// Calls with each index below `count`, some at a time. The answers are in this order.
pub async fn for_each<T, F>(count: usize, call: impl Fn(usize) -> F + Clone + Send + 'static) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut workers = JoinSet::new();
    for worker in 0..IN_FLIGHT {
        let call = call.clone();
        workers.spawn(async move {
            let mut answers = Vec::new();
            for index in (worker..count).step_by(IN_FLIGHT) {
                answers.push((index, call(index).await?));
            }
            anyhow::Ok(answers)
        });
    }
    let mut answers = Vec::new();
    while let Some(some) = workers.join_next().await {
        answers.extend(some??);
    }
    answers.sort_unstable_by_key(|(index, _)| *index);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}
