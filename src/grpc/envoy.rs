//! Envoy's rate limit service: docs/guides/envoy.md has the mapping as a table.
//!
//! A descriptor is one event of one user. Descriptors that ask before something happens are allowed all or none
//! (ALL-OR-NOTHING), even if they name several users: then each is reserved first. Descriptors that report what has
//! happened are always counted (TRUTH).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prost_types::value::Kind;
use tonic::{Request, Response, Status};

use crate::apps::Apps;
use crate::domain::answer::{Reason, Standing};
use crate::domain::descriptor::{Described, EVENT, EntryMeanings, USER};
use crate::domain::event::{Event, EventName};
use crate::domain::fault::Fault;
use crate::domain::id::{Owner, ReservationId, UserId};
use crate::domain::plan::Quota;
use crate::meter::{Meter, TrackCall};
use crate::telemetry::labels::DeniedValue;
use crate::telemetry::{self, labels};

use super::caller::Called;
use super::rls::rate_limit_response::{Code, DescriptorStatus, RateLimit, rate_limit::Unit};
use super::rls::rate_limit_service_server::RateLimitService;
use super::rls::{HeaderValue, RateLimitDescriptor, RateLimitRequest, RateLimitResponse, rate_limit_descriptor};
use super::status::status;
use super::{request, run_to_completion, v1};

/// The largest number of descriptors in a request. Each of them is a script.
const MAX_DESCRIPTORS: usize = 16;

/// The lifetime of a reservation that is settled at once.
const MOMENT: Duration = Duration::from_secs(60);

/// The field of Envoy's dynamic metadata with the charges.
const CHARGED: &str = "charged";

/// Serves the [`Meter`] of the caller's app as `envoy.service.ratelimit.v3.RateLimitService`.
pub struct RateLimits {
    /// The meters of all apps.
    pub apps: Arc<Apps>,
    /// The meanings of the entries of descriptors.
    pub meanings: Arc<EntryMeanings>,
}

/// The request of a descriptor, or the part of it that is not valid, so that it is denied. Its caller may have chosen
/// that value: were it a fault, Envoy would let the request through unless `failure_mode_deny` is set.
type Asked<T> = Result<T, DeniedValue>;

/// The request of a descriptor.
struct Ask<T> {
    who: T,
    event: Event,
    hits: Hits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hits {
    /// Would one more fit? Nothing is counted.
    Check,
    /// Count this many if they fit.
    Enforce(u64),
    /// Count hits that have happened, or that are given back.
    Count,
    /// Give back none.
    Nothing,
}

impl Hits {
    fn is_enforced(self) -> bool {
        matches!(self, Self::Enforce(_))
    }
}

/// The outcome of a descriptor.
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
        let called = Called::new(&self.apps, &request)?;
        let asks = asks(request.into_inner(), &self.meanings).map_err(status)?;
        let work = async move {
            let owned = |Ask { who, event, hits }| Ask { who: called.owner(&who), event, hits };
            let asks: Vec<_> = asks.into_iter().map(|asked| asked.map(owned)).collect();
            let outcomes = decide(&called, &asks).await?;
            let denied = outcomes.iter().any(|outcome| outcome.denied);
            telemetry::call::decides(if denied { labels::Outcome::Denied } else { labels::Outcome::Allowed });
            let charged = if denied { None } else { charged(&asks) };
            Ok((outcomes, charged, called.now_ms()))
        };
        let (outcomes, charged, now_ms) = run_to_completion(work).await?;
        Ok(Response::new(response(&outcomes, charged, now_ms)))
    }
}

fn asks(request: RateLimitRequest, meanings: &EntryMeanings) -> Result<Vec<Asked<Ask<UserId>>>, Fault> {
    let RateLimitRequest { domain, descriptors, hits_addend } = request;
    if !(1..=MAX_DESCRIPTORS).contains(&descriptors.len()) {
        let problem = format!("has {} items: send 1 to {MAX_DESCRIPTORS}", descriptors.len());
        return Err(invalid("descriptors".to_owned(), problem, "DESCRIPTOR_COUNT"));
    }
    let ask = |(index, descriptor)| {
        let place = format!("descriptors[{index}]");
        ask(&place, read(&place, descriptor, meanings, hits_addend)?, &domain)
    };
    descriptors.into_iter().enumerate().map(ask).collect()
}

/// A descriptor whose form is right, and whose values are not checked yet.
struct Understood {
    described: Described,
    /// Every value is UTF-8.
    is_text: bool,
    is_refund: bool,
    hits: Hits,
    number: u64,
}

/// Reads the parts that Envoy's configuration decides. A mistake in them affects every request.
fn read(
    place: &str,
    descriptor: RateLimitDescriptor,
    meanings: &EntryMeanings,
    hits_addend: u32,
) -> Result<Understood, Fault> {
    let RateLimitDescriptor { entries, limit, hits_addend: own, is_negative_hits: is_refund } = descriptor;
    if limit.is_some() {
        let problem = "cannot be set by a descriptor: leave it out, and let the user's plan set it";
        return Err(invalid(format!("{place}.limit"), problem.to_owned(), "LIMIT_OVERRIDE"));
    }
    let mut is_text = true;
    let entries = entries.into_iter().map(|rate_limit_descriptor::Entry { key, value }| {
        let text = String::from_utf8(value).unwrap_or_else(|_| {
            is_text = false;
            String::new()
        });
        (key, text)
    });
    let described = meanings
        .read(entries)
        .map_err(|twice| invalid(format!("{place}.entries"), twice.to_string(), "ENTRY_AMBIGUOUS"))?;
    let (hits, number) = match own {
        Some(0) if is_refund => (Hits::Nothing, 0),
        Some(0) => (Hits::Check, 1),
        Some(number) if described.enforce && !is_refund => (Hits::Enforce(number), number),
        Some(number) => (Hits::Count, number),
        None if is_refund => {
            let problem = "needs hits_addend of the descriptor: how many hits to give back";
            return Err(invalid(format!("{place}.is_negative_hits"), problem.to_owned(), "HITS_MISSING"));
        }
        None => {
            let number = u64::from(hits_addend.max(1));
            (Hits::Enforce(number), number)
        }
    };
    Ok(Understood { described, is_text, is_refund, hits, number })
}

/// Reads the values. An invalid value leads to a denial, where Envoy's caller may have chosen it.
fn ask(place: &str, understood: Understood, domain: &str) -> Result<Asked<Ask<UserId>>, Fault> {
    let Understood { described, is_text, is_refund, hits, number } = understood;
    let Described { user, event, metadata, enforce: _ } = described;
    let user = user.ok_or_else(|| {
        let problem = format!("has no {USER:?}: add an action with this descriptor_key, or map one by envoy-entries");
        invalid(format!("{place}.entries"), problem, "USER_ID_MISSING")
    })?;
    if !is_text {
        return Ok(Err(DeniedValue::Encoding));
    }
    let Ok(user) = request::user(&user) else { return Ok(Err(DeniedValue::UserId)) };
    let mut name = match event {
        Some(text) => match EventName::parse(&text) {
            Ok(name) if name.refunded().is_none() => text,
            _ => return Ok(Err(DeniedValue::Event)),
        },
        None => named_by_domain(place, domain)?,
    };
    if metadata.iter().any(|(key, value)| value.len() > request::longest_value(key)) {
        return Ok(Err(DeniedValue::Metadata));
    }
    if is_refund {
        name.push_str(".refund");
        if name.len() > EventName::LONGEST {
            return Ok(Err(DeniedValue::Event));
        }
    }
    let event = v1::Event { name, quantity: Some(number as f64), metadata, ..v1::Event::default() };
    let event = request::event(Some(event)).map_err(|fault| within(place, fault))?;
    Ok(Ok(Ask { who: user, event, hits }))
}

/// The name of the event where no entry says it.
fn named_by_domain(place: &str, domain: &str) -> Result<String, Fault> {
    match EventName::parse(domain) {
        Ok(name) if name.refunded().is_none() => Ok(domain.to_owned()),
        _ => {
            let problem = format!(
                "names the event, as {place} has no {EVENT:?}, but no event can have this name: add such an entry, or let the domain be \
                 1 to 128 of A-Z, a-z, 0-9 and . _ : / -, without .refund at its end"
            );
            Err(invalid("domain".to_owned(), problem, "DOMAIN_INVALID"))
        }
    }
}

/// Names the descriptor in a fault about its event.
fn within(place: &str, fault: Fault) -> Fault {
    match fault {
        Fault::Invalid { field, problem, reason } => {
            Fault::Invalid { field: format!("{place}: {field}"), problem, reason }
        }
        Fault::OutOfRange { field, problem } => Fault::OutOfRange { field: format!("{place}: {field}"), problem },
        fault => fault,
    }
}

fn invalid(field: String, problem: String, reason: &'static str) -> Fault {
    Fault::Invalid { field, problem, reason }
}

/// Decides all descriptors. The outcomes are in their order.
async fn decide(meter: &Meter, asks: &[Asked<Ask<Owner>>]) -> Result<Vec<Outcome>, Fault> {
    let settled = |asked: &Asked<Ask<Owner>>| match asked {
        Ok(Ask { hits: Hits::Nothing, .. }) => Some(Outcome { denied: false, standings: Vec::new() }),
        Ok(_) => None,
        Err(value) => Some(denied(*value)),
    };
    let mut outcomes: Vec<Option<Outcome>> = asks.iter().map(settled).collect();
    let decided = decide_before(meter, asks, &mut outcomes).await;
    let mut failed = decided.err();
    // TRUTH: whatever was denied or has failed above, and whatever fails here, this has happened.
    for (outcome, asked) in outcomes.iter_mut().zip(asks) {
        let Some(ask) = asked.as_ref().ok().filter(|ask| ask.hits == Hits::Count) else { continue };
        match count(meter, ask, false).await {
            Ok(counted) => *outcome = Some(counted),
            Err(fault) => failed = failed.or(Some(fault)),
        }
    }
    failed.map_or_else(|| Ok(outcomes.into_iter().flatten().collect()), Err)
}

/// Decides the descriptors that ask before the event happens.
async fn decide_before(
    meter: &Meter,
    asks: &[Asked<Ask<Owner>>],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), Fault> {
    let asked = || asks.iter().enumerate().filter_map(|(index, asked)| Some((index, asked.as_ref().ok()?)));
    for (index, ask) in asked().filter(|(_, ask)| ask.hits == Hits::Check) {
        outcomes[index] = Some(unless_a_value(ask, check(meter, ask).await)?);
    }
    let denied = outcomes.iter().flatten().any(|outcome| outcome.denied);
    let enforced: Vec<_> = asked().filter(|(_, ask)| ask.hits.is_enforced()).collect();
    match enforced[..] {
        // What would be counted for nothing is only looked at.
        _ if denied => {
            for (index, ask) in enforced {
                outcomes[index] = Some(unless_a_value(ask, check(meter, ask).await)?);
            }
        }
        [(index, ask)] => outcomes[index] = Some(unless_a_value(ask, count(meter, ask, true).await)?),
        _ => {
            for (index, outcome) in all_or_none(meter, &enforced).await? {
                outcomes[index] = Some(outcome);
            }
        }
    }
    Ok(())
}

/// Denies what the meter cannot take because of a value that Envoy's caller may have chosen, or of what the user holds.
fn unless_a_value(ask: &Ask<Owner>, decided: Result<Outcome, Fault>) -> Result<Outcome, Fault> {
    match decided {
        Err(Fault::TooManyHolds) => Ok(denied(DeniedValue::Holds)),
        Err(Fault::Invalid { .. } | Fault::OutOfRange { .. } | Fault::PartsExceedWhole { .. }) => {
            Ok(denied(DeniedValue::Number))
        }
        // It is there, and is no number.
        Err(Fault::QuantityMissing { quantity, .. }) if ask.event.metadata.contains_key(&quantity) => {
            Ok(denied(DeniedValue::Number))
        }
        decided => decided,
    }
}

fn denied(value: DeniedValue) -> Outcome {
    telemetry::envoy::denied(value);
    Outcome { denied: true, standings: Vec::new() }
}

async fn check(meter: &Meter, ask: &Ask<Owner>) -> Result<Outcome, Fault> {
    let decision = meter.can_use(&ask.who, &ask.event).await?;
    Ok(Outcome { denied: decision.denied.is_some(), standings: decision.standings })
}

async fn count(meter: &Meter, ask: &Ask<Owner>, enforce: bool) -> Result<Outcome, Fault> {
    let call = TrackCall { event: ask.event.clone(), request_id: None, enforce, reservation: None, at_ms: None };
    let tracked = meter.track(&ask.who, &call).await?;
    let over = tracked.standings.iter().any(|standing| standing.hard && standing.exceeded());
    let denied = match tracked.uncounted {
        Some(Reason::LimitReached | Reason::UnmatchedEvent | Reason::NoSubscription) => true,
        None => !enforce && over,
    };
    Ok(Outcome { denied, standings: tracked.standings })
}

/// Holds each, then commits all, or gives all back. Where this is cut short the holds lapse by themselves (NO-LEAK).
async fn all_or_none(meter: &Meter, asks: &[(usize, &Ask<Owner>)]) -> Result<Vec<(usize, Outcome)>, Fault> {
    let mut held: Vec<ReservationId> = Vec::new();
    let mut outcomes: Vec<(usize, Outcome)> = Vec::new();
    let (mut denied, mut failed) = (false, None);
    for (index, ask) in asks {
        let outcome = if denied {
            // It will not be counted: nothing is held of it.
            check(meter, ask).await
        } else {
            hold(meter, ask, &mut held).await
        };
        match unless_a_value(ask, outcome) {
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

async fn hold(meter: &Meter, ask: &Ask<Owner>, held: &mut Vec<ReservationId>) -> Result<Outcome, Fault> {
    let reserved = meter.reserve(&ask.who, &ask.event, MOMENT, None).await?;
    if reserved.degraded {
        // A deployment that fails open does so for Reserve. Here the proxy decides.
        return Err(Fault::Unavailable("redis did not answer".into()));
    }
    held.extend(reserved.hold.map(|hold| hold.id));
    let decision = reserved.decision;
    Ok(Outcome { denied: decision.denied.is_some(), standings: decision.standings })
}

/// Lists the charges for Envoy's dynamic metadata, with the hits of each descriptor.
fn charged(asks: &[Asked<Ask<Owner>>]) -> Option<prost_types::Struct> {
    let hits = |asked: &Asked<Ask<Owner>>| match asked {
        Ok(Ask { hits: Hits::Enforce(number), .. }) => *number,
        _ => 0,
    };
    let charged: Vec<_> = asks.iter().map(hits).collect();
    if charged.iter().all(|hits| *hits == 0) {
        return None;
    }
    let number = |hits: u64| prost_types::Value { kind: Some(Kind::NumberValue(hits as f64)) };
    let list = prost_types::ListValue { values: charged.into_iter().map(number).collect() };
    let value = prost_types::Value { kind: Some(Kind::ListValue(list)) };
    Some(prost_types::Struct { fields: BTreeMap::from([(CHARGED.to_owned(), value)]) })
}

fn response(outcomes: &[Outcome], charged: Option<prost_types::Struct>, now_ms: i64) -> RateLimitResponse {
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
    RateLimitResponse {
        overall_code: code(denied),
        statuses,
        response_headers_to_add: retry.into_iter().collect(),
        dynamic_metadata: charged,
    }
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

/// Converts to whole units, rounded down, up to the largest number of the message.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_named_by_its_length_however_long_its_days_and_months_are() {
        const HOUR: i64 = 3_600_000;
        const DAY: i64 = 24 * HOUR;
        for (length_ms, unit) in [
            (60_000, Unit::Minute),
            (HOUR, Unit::Hour),
            (DAY - HOUR, Unit::Day),
            (DAY + HOUR, Unit::Day),
            (7 * DAY - HOUR, Unit::Week),
            (28 * DAY, Unit::Month),
            (31 * DAY + HOUR, Unit::Month),
            (365 * DAY, Unit::Year),
            (366 * DAY, Unit::Year),
            (5 * HOUR, Unit::Unknown),
            (90 * DAY, Unit::Unknown),
        ] {
            assert_eq!(period(length_ms), unit, "{length_ms}");
        }
    }
}
