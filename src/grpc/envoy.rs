//! Envoy's rate limit service: docs/ENVOY.md has the mapping as a table.
//!
//! A descriptor is one event of one user. Those that ask before something happens are allowed all or none (ALL-OR-NOTHING), also where they
//! are of several users: then each is reserved first. Those that report what has happened are always counted (TRUTH).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::apps::Apps;
use crate::domain::answer::{Reason, Standing};
use crate::domain::event::Event;
use crate::domain::fault::Fault;
use crate::domain::id::{Owner, ReservationId, UserId};
use crate::domain::plan::Quota;
use crate::meter::{Meter, TrackCall};
use crate::telemetry::{self, labels};

use super::caller::Called;
use super::rls::rate_limit_response::{Code, DescriptorStatus, RateLimit, rate_limit::Unit};
use super::rls::rate_limit_service_server::RateLimitService;
use super::rls::{HeaderValue, RateLimitDescriptor, RateLimitRequest, RateLimitResponse, rate_limit_descriptor};
use super::status::status;
use super::{request, to_the_end, v1};

/// So many descriptors may be asked at once: each is a script.
const MAX_DESCRIPTORS: usize = 16;

/// The entry that names the user.
const USER: &str = "user_id";

/// The entry that names the event; the domain does where it is absent.
const EVENT: &str = "event";

/// How long a reservation lives that is settled at once.
const MOMENT: Duration = Duration::from_secs(60);

/// Serves the [`Meter`] of the caller's app as `envoy.service.ratelimit.v3.RateLimitService`.
pub struct RateLimits(pub Arc<Apps>);

/// What a descriptor asks.
struct Ask {
    user: UserId,
    event: Event,
    hits: Hits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hits {
    /// Would one more fit? Nothing is counted.
    Check,
    /// Count it if it fits.
    Enforce,
    /// It has happened, or is given back.
    Count,
}

/// What became of a descriptor.
struct Outcome {
    denied: bool,
    standings: Vec<Standing>,
}

#[tonic::async_trait]
impl RateLimitService for RateLimits {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let called = Called::new(&self.0, &request)?;
        let asks = asks(request.into_inner()).map_err(status)?;
        let work = async move {
            let asks: Vec<_> = asks.into_iter().map(|ask| (called.owner(&ask.user), ask)).collect();
            let outcomes = decide(&called, &asks).await?;
            let denied = outcomes.iter().any(|outcome| outcome.denied);
            telemetry::call::decides(if denied { labels::Outcome::Denied } else { labels::Outcome::Allowed });
            Ok((outcomes, called.now_ms()))
        };
        let (outcomes, now_ms) = to_the_end(work).await?;
        Ok(Response::new(response(&outcomes, now_ms)))
    }
}

fn asks(request: RateLimitRequest) -> Result<Vec<Ask>, Fault> {
    let RateLimitRequest { domain, descriptors, hits_addend } = request;
    if !(1..=MAX_DESCRIPTORS).contains(&descriptors.len()) {
        let problem = format!("has {} items: send 1 to {MAX_DESCRIPTORS}", descriptors.len());
        return Err(invalid("descriptors".to_owned(), problem));
    }
    let ask = |(index, descriptor)| ask(&format!("descriptors[{index}]"), descriptor, &domain, hits_addend);
    descriptors.into_iter().enumerate().map(ask).collect()
}

fn ask(place: &str, descriptor: RateLimitDescriptor, domain: &str, hits_addend: u32) -> Result<Ask, Fault> {
    let RateLimitDescriptor { entries, limit, hits_addend: own, is_negative_hits } = descriptor;
    if limit.is_some() {
        let problem = "cannot be set by a descriptor: leave it out, and let the user's plan set it";
        return Err(invalid(format!("{place}.limit"), problem.to_owned()));
    }
    let mut metadata = BTreeMap::new();
    for rate_limit_descriptor::Entry { key, value } in entries {
        if let Some(before) = metadata.insert(key.clone(), value) {
            let problem = format!("has {key:?} twice, once as {before:?}: give each entry a descriptor_key of its own");
            return Err(invalid(format!("{place}.entries"), problem));
        }
    }
    let user = metadata.remove(USER).ok_or_else(|| {
        invalid(format!("{place}.entries"), format!("has no {USER:?}: add an action with this descriptor_key"))
    })?;
    let user = request::user(&user).map_err(|fault| within(place, fault))?;
    let mut name = metadata.remove(EVENT).unwrap_or_else(|| domain.to_owned());
    let (hits, quantity) = match own {
        Some(0) => (Hits::Check, 1),
        Some(number) => (Hits::Count, number),
        None => (Hits::Enforce, u64::from(hits_addend.max(1))),
    };
    if is_negative_hits {
        if hits != Hits::Count {
            let problem = "needs hits_addend of the descriptor: how many hits to give back";
            return Err(invalid(format!("{place}.is_negative_hits"), problem.to_owned()));
        }
        name.push_str(".refund");
    }
    let event = v1::Event { name, quantity: Some(quantity as f64), metadata, ..v1::Event::default() };
    let event = request::event(Some(event)).map_err(|fault| within(place, fault))?;
    if event.name.refunded().is_some() != is_negative_hits {
        let problem = "ends in `.refund`: hits are given back by is_negative_hits";
        return Err(invalid(format!("{place}.entries[{EVENT:?}]"), problem.to_owned()));
    }
    Ok(Ask { user, event, hits })
}

/// Names the descriptor in a fault about its event.
fn within(place: &str, fault: Fault) -> Fault {
    match fault {
        Fault::Invalid { field, problem, reason } => {
            Fault::Invalid { field: format!("{place}: {field}"), problem, reason }
        }
        fault => fault,
    }
}

fn invalid(field: String, problem: String) -> Fault {
    Fault::Invalid { field, problem, reason: "INVALID_FIELD" }
}

/// Decides all of them. The outcomes are in the order of what was asked.
async fn decide(meter: &Meter, asks: &[(Owner, Ask)]) -> Result<Vec<Outcome>, Fault> {
    let mut outcomes: Vec<Option<Outcome>> = asks.iter().map(|_| None).collect();
    let decided = decide_before(meter, asks, &mut outcomes).await;
    let mut failed = decided.err();
    // TRUTH: whatever was denied or has failed above, and whatever fails here, this has happened.
    for (outcome, (owner, ask)) in outcomes.iter_mut().zip(asks).filter(|(_, (_, ask))| ask.hits == Hits::Count) {
        match count(meter, owner, &ask.event, false).await {
            Ok(counted) => *outcome = Some(counted),
            Err(fault) => failed = failed.or(Some(fault)),
        }
    }
    failed.map_or_else(|| Ok(outcomes.into_iter().flatten().collect()), Err)
}

/// Decides what is asked before it happens.
async fn decide_before(meter: &Meter, asks: &[(Owner, Ask)], outcomes: &mut [Option<Outcome>]) -> Result<(), Fault> {
    let of = |hits: Hits| asks.iter().enumerate().filter(move |(_, (_, ask))| ask.hits == hits);
    for (index, (owner, ask)) in of(Hits::Check) {
        outcomes[index] = Some(check(meter, owner, &ask.event).await?);
    }
    let denied = outcomes.iter().flatten().any(|outcome| outcome.denied);
    let enforced: Vec<_> = of(Hits::Enforce).collect();
    match enforced[..] {
        // What would be counted for nothing is only looked at.
        _ if denied => {
            for (index, (owner, ask)) in enforced {
                outcomes[index] = Some(check(meter, owner, &ask.event).await?);
            }
        }
        [(index, (owner, ask))] => outcomes[index] = Some(count(meter, owner, &ask.event, true).await?),
        _ => {
            for (index, outcome) in all_or_none(meter, &enforced).await? {
                outcomes[index] = Some(outcome);
            }
        }
    }
    Ok(())
}

async fn check(meter: &Meter, owner: &Owner, event: &Event) -> Result<Outcome, Fault> {
    let decision = meter.can_use(owner, event).await?;
    Ok(Outcome { denied: decision.denied.is_some(), standings: decision.standings })
}

async fn count(meter: &Meter, owner: &Owner, event: &Event, enforce: bool) -> Result<Outcome, Fault> {
    let call = TrackCall { event: event.clone(), request_id: None, enforce, reservation: None };
    let tracked = meter.track(owner, &call).await?;
    let over = tracked.standings.iter().any(|standing| standing.hard && standing.exceeded());
    let denied = match tracked.uncounted {
        Some(Reason::LimitReached | Reason::UnmatchedEvent | Reason::NoSubscription) => true,
        None => !enforce && over,
    };
    Ok(Outcome { denied, standings: tracked.standings })
}

/// Holds each, then commits all, or gives all back. Where this is cut short the holds lapse by themselves (NO-LEAK).
async fn all_or_none(meter: &Meter, asks: &[(usize, &(Owner, Ask))]) -> Result<Vec<(usize, Outcome)>, Fault> {
    let mut held: Vec<ReservationId> = Vec::new();
    let mut outcomes: Vec<(usize, Outcome)> = Vec::new();
    let (mut denied, mut failed) = (false, None);
    for (index, (owner, ask)) in asks {
        let outcome = if denied {
            // It will not be counted: nothing is held of it.
            check(meter, owner, &ask.event).await
        } else {
            hold(meter, owner, &ask.event, &mut held).await
        };
        match outcome {
            Ok(outcome) => {
                denied |= outcome.denied;
                outcomes.push((*index, outcome));
            }
            Err(fault) => {
                failed = Some(fault);
                break;
            }
        }
    }
    if denied || failed.is_some() {
        for id in &held {
            // What is not given back now lapses.
            let _: Result<_, _> = meter.release(id).await;
        }
    } else {
        for id in &held {
            // Once one is committed, the others have to be as well.
            if let Err(fault) = meter.commit(id, None).await {
                failed = failed.or(Some(fault));
            }
        }
    }
    failed.map_or(Ok(outcomes), Err)
}

async fn hold(meter: &Meter, owner: &Owner, event: &Event, held: &mut Vec<ReservationId>) -> Result<Outcome, Fault> {
    let reserved = meter.reserve(owner, event, MOMENT, None).await?;
    if reserved.degraded {
        // A deployment that fails open does so for Reserve. Here the proxy decides.
        return Err(Fault::Unavailable("redis did not answer".into()));
    }
    held.extend(reserved.hold.map(|(id, _)| id));
    let decision = reserved.decision;
    Ok(Outcome { denied: decision.denied.is_some(), standings: decision.standings })
}

fn response(outcomes: &[Outcome], now_ms: i64) -> RateLimitResponse {
    let code = |denied: bool| i32::from(if denied { Code::OverLimit } else { Code::Ok });
    let statuses: Vec<_> = outcomes
        .iter()
        .map(|outcome| {
            let tightest = tightest(outcome);
            DescriptorStatus {
                code: code(outcome.denied),
                current_limit: tightest.and_then(limit),
                limit_remaining: tightest.and_then(remaining).unwrap_or_default(),
                duration_until_reset: tightest.and_then(|standing| until_reset(standing, now_ms)),
            }
        })
        .collect();
    let denied = outcomes.iter().any(|outcome| outcome.denied);
    // All that deny have to let go; one without a reset never does, nor one that is asked for more than its quota.
    let never = |standing: &Standing| {
        standing.hard && matches!(standing.quota, Quota::Limited(quota) if standing.requested > quota)
    };
    let helps = !outcomes.iter().filter(|outcome| outcome.denied).any(|outcome| outcome.standings.iter().any(never));
    let waits = statuses.iter().filter(|status| status.code == i32::from(Code::OverLimit));
    let waits: Option<Vec<_>> = waits.map(|status| status.duration_until_reset).collect();
    let retry = waits.filter(|_| helps).and_then(|waits| waits.iter().map(|wait| wait.seconds + 1).max());
    let retry = retry.map(|seconds| HeaderValue { key: "retry-after".to_owned(), value: seconds.to_string() });
    RateLimitResponse { overall_code: code(denied), statuses, response_headers_to_add: retry.into_iter().collect() }
}

/// The group that denies, or else the one with the smallest share left. Groups without a limit, and soft ones, limit nothing.
fn tightest(outcome: &Outcome) -> Option<&Standing> {
    let share = |standing: &Standing| match (standing.remaining(), standing.quota) {
        (Some(left), Quota::Limited(quota)) if quota > 0 => left as f64 / quota as f64,
        _ => 0.0,
    };
    let limits = outcome.standings.iter().filter(|standing| standing.hard && standing.quota != Quota::Unlimited);
    // Of those that deny, the one that lets go last.
    let until = |standing: &Standing| standing.window_ms.map_or(i64::MAX, |(_, end)| end);
    let full = limits.clone().filter(|standing| standing.shortfall > 0 || standing.exceeded());
    full.max_by_key(|standing| until(standing)).or_else(|| limits.min_by(|one, two| share(one).total_cmp(&share(two))))
}

fn limit(standing: &Standing) -> Option<RateLimit> {
    let Quota::Limited(quota) = standing.quota else { return None };
    let unit = standing.window_ms.map_or(Unit::Unknown, |(start, end)| period(end.saturating_sub(start)));
    let requests_per_unit = whole(quota, standing.unit.scale());
    Some(RateLimit { requests_per_unit, unit: unit.into(), name: standing.group_id.clone() })
}

fn remaining(standing: &Standing) -> Option<u32> {
    Some(whole(standing.remaining()?, standing.unit.scale()))
}

/// In whole units, rounded down, as far as the message can say.
fn whole(units: u64, scale: u64) -> u32 {
    u32::try_from(units / scale).unwrap_or(u32::MAX)
}

/// The period of a window. Days are of 23 to 25 hours, months of 28 to 31 days.
fn period(length_ms: i64) -> Unit {
    const HOUR: i64 = 3_600_000;
    const DAY: i64 = 24 * HOUR;
    match length_ms {
        60_000 => Unit::Minute,
        HOUR => Unit::Hour,
        _ if (DAY - 2 * HOUR..=DAY + 2 * HOUR).contains(&length_ms) => Unit::Day,
        _ if (6 * DAY..=8 * DAY).contains(&length_ms) => Unit::Week,
        _ if (27 * DAY..=32 * DAY).contains(&length_ms) => Unit::Month,
        _ if (364 * DAY..=367 * DAY).contains(&length_ms) => Unit::Year,
        _ => Unit::Unknown,
    }
}

fn until_reset(standing: &Standing, now_ms: i64) -> Option<prost_types::Duration> {
    let (_, end_ms) = standing.window_ms?;
    let left_ms = end_ms.saturating_sub(now_ms).max(0);
    let nanos = i32::try_from(left_ms % 1000).unwrap_or_default() * 1_000_000;
    Some(prost_types::Duration { seconds: left_ms / 1000, nanos })
}
