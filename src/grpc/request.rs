//! Parsing requests: every bound of SPEC section 4, each with the field it is about. Messages are destructured exhaustively, so
//! that a new field does not compile until somebody decides about it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prost_types::Timestamp;

use crate::domain::amount::{InvalidQuantity, Quantity};
use crate::domain::event::{Actual, Event, EventName};
use crate::domain::fault::Fault;
use crate::domain::id::{Owner, RequestId, ReservationId, UserId};
use crate::domain::pattern::EventPattern;
use crate::domain::reservation::OnExpiry;
use crate::domain::subscription::QuotaOverride;
use crate::ledger::Position;
use crate::meter::{ExtendCall, HoldTerms, TrackCall};
use crate::reservations::Listing;
use crate::subscriptions::Upsert;

use super::v1;

const MAX_QUANTITIES: usize = 16;
const MAX_METADATA: usize = 32;
const MAX_KEY_BYTES: usize = 64;
const MAX_VALUE_BYTES: usize = 256;
const MAX_REASON_BYTES: usize = 256;
const MAX_PLAN_ID_BYTES: usize = 64;
const MAX_GROUP_ID_BYTES: usize = 64;
const MAX_GROUPS: usize = 1000;
const MAX_ETAG_BYTES: usize = 64;
const MAX_BATCH: usize = 1000;
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

const DEFAULT_TTL: Duration = Duration::from_secs(60);
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(3600);

/// The last second of year 9999, which is the last that a `Timestamp` may name.
const LAST_SECOND: i64 = 253_402_300_799;

/// Cycle anchors come before this: it is the beginning of year 9999.
const ANCHORS_END_MS: i64 = 253_370_764_800_000;

/// The metadata key by which a refund may name its reservation.
const RESERVATION_KEY: &str = "reservationId";

/// The parsed request of Reserve.
#[derive(Debug)]
pub struct ReserveCall {
    /// The user.
    pub user: UserId,
    /// The event that is to happen.
    pub event: Event,
    /// The time for which to hold, and what happens then.
    pub terms: HoldTerms,
    /// Makes a retry recognisable.
    pub request_id: Option<RequestId>,
}

/// The parsed request of Commit.
#[derive(Debug)]
pub enum CommitCall {
    /// Settle the reservation, with its actual usage if that is given.
    Final(ReservationId, Option<Actual>),
    /// Count the usage so far, and hold for so long from now on if that is given.
    Partial(ReservationId, Actual, Option<Duration>),
}

impl CommitCall {
    /// The reservation.
    #[must_use]
    pub fn reservation(&self) -> &ReservationId {
        match self {
            Self::Final(id, _) | Self::Partial(id, ..) => id,
        }
    }
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Fault {
    Fault::Invalid { field: field.into(), problem: problem.into(), reason: "INVALID_FIELD" }
}

/// Parses a request of Reserve.
///
/// # Errors
/// [`Fault::Invalid`] or [`Fault::OutOfRange`], which name the field.
pub fn reserve(request: v1::ReserveRequest) -> Result<ReserveCall, Fault> {
    let v1::ReserveRequest { user_id, event, ttl, request_id, on_expiry } = request;
    let event = self::event(event)?;
    refuse_refund(&event)?;
    let terms = HoldTerms { ttl: self::ttl(ttl)?.unwrap_or(DEFAULT_TTL), on_expiry: self::on_expiry(on_expiry)? };
    Ok(ReserveCall { user: user(&user_id)?, event, terms, request_id: self::request_id(&request_id)? })
}

/// Parses a request of CanUse into the user and the event that would happen.
///
/// # Errors
/// [`Fault::Invalid`] or [`Fault::OutOfRange`], which name the field.
pub fn can_use(request: v1::CanUseRequest) -> Result<(UserId, Event), Fault> {
    let v1::CanUseRequest { user_id, event } = request;
    let event = self::event(event)?;
    refuse_refund(&event)?;
    Ok((user(&user_id)?, event))
}

/// Parses a request of Commit.
///
/// # Errors
/// [`Fault::Invalid`] or [`Fault::OutOfRange`], which name the field; [`Fault::ReservationNotFound`].
pub fn commit(request: v1::CommitRequest) -> Result<CommitCall, Fault> {
    let v1::CommitRequest { reservation_id, actual, partial, ttl } = request;
    let actual = actual.map(|actual| self::actual("actual", actual)).transpose()?;
    let ttl = self::ttl(ttl)?;
    if ttl.is_some() && !partial {
        return Err(invalid("ttl", "is for partial commits only: send `partial`, or leave this out"));
    }
    let id = self::reservation_id(&reservation_id)?;
    if partial && actual.as_ref().is_some_and(|actual| !actual.metadata.is_empty()) {
        let problem =
            "is for final commits only: leave out `partial`, or commit in part by the event as it was reserved";
        return Err(invalid("actual.metadata", problem));
    }
    match (partial, actual) {
        (false, actual) => Ok(CommitCall::Final(id, actual)),
        (true, Some(actual)) => Ok(CommitCall::Partial(id, actual, ttl)),
        (true, None) => Err(invalid("actual", "is missing: a partial commit says what was used so far")),
    }
}

/// Parses a request of Extend.
///
/// # Errors
/// [`Fault::Invalid`] or [`Fault::OutOfRange`], which name the field; [`Fault::ReservationNotFound`].
pub fn extend(request: v1::ExtendRequest) -> Result<ExtendCall, Fault> {
    let v1::ExtendRequest { reservation_id, ttl, add, request_id } = request;
    let add = add.map(|add| actual("add", add)).transpose()?;
    if add.as_ref().is_some_and(|add| !add.metadata.is_empty()) {
        let problem =
            "cannot be added: an Extend holds more of the event as it was reserved; send it with the final Commit";
        return Err(invalid("add.metadata", problem));
    }
    let is_nothing = |Actual { quantity, quantities, metadata: _ }: &Actual| {
        quantity.iter().chain(quantities.values()).all(|quantity| quantity.is_zero())
    };
    if add.as_ref().is_some_and(is_nothing) {
        return Err(invalid("add", "adds nothing: name a quantity above 0, or leave it out to move only the deadline"));
    }
    Ok(ExtendCall {
        reservation: self::reservation_id(&reservation_id)?,
        ttl: self::ttl(ttl)?.unwrap_or(DEFAULT_TTL),
        add,
        request_id: self::request_id(&request_id)?,
    })
}

/// The quantities and the metadata of `actual` and `add`.
fn actual(field: &str, actual: v1::Actual) -> Result<Actual, Fault> {
    let v1::Actual { quantity, quantities, metadata } = actual;
    let own = format!("{field}.quantity");
    Ok(Actual {
        quantity: quantity.map(|number| self::quantity(FieldPath::Field(&own), number)).transpose()?,
        quantities: self::quantities(&format!("{field}.quantities"), quantities)?,
        metadata: self::metadata(&format!("{field}.metadata"), metadata)?,
    })
}

fn on_expiry(on_expiry: i32) -> Result<OnExpiry, Fault> {
    match v1::OnExpiry::try_from(on_expiry) {
        Ok(v1::OnExpiry::Unspecified | v1::OnExpiry::Release) => Ok(OnExpiry::Release),
        Ok(v1::OnExpiry::Count) => Ok(OnExpiry::Count),
        Err(_) => Err(invalid("on_expiry", "is unknown: send ON_EXPIRY_RELEASE or ON_EXPIRY_COUNT, or leave it out")),
    }
}

/// Parses a request of Release into the reservation and the reason.
///
/// # Errors
/// [`Fault::Invalid`], which names the field; [`Fault::ReservationNotFound`].
pub fn release(request: v1::ReleaseRequest) -> Result<(ReservationId, String), Fault> {
    let v1::ReleaseRequest { reservation_id, reason } = request;
    let reason = self::reason(reason)?;
    Ok((self::reservation_id(&reservation_id)?, reason))
}

/// Parses a request of Track.
///
/// # Errors
/// [`Fault::Invalid`] or [`Fault::OutOfRange`], which name the field; [`Fault::ReservationNotFound`].
pub fn track(request: v1::TrackRequest) -> Result<(UserId, TrackCall), Fault> {
    let v1::TrackRequest { user_id, event, request_id, enforce, reservation_id, time } = request;
    let event = self::event(event)?;
    let is_refund = event.name.refunded().is_some();
    if !is_refund && !reservation_id.is_empty() {
        let problem = "is for refunds only: name the event `X.refund`, or leave this out";
        return Err(invalid("reservation_id", problem));
    }
    let named = event.metadata.get(RESERVATION_KEY).filter(|_| is_refund);
    let reservation_id = match named {
        Some(named) if reservation_id.is_empty() => named,
        Some(named) if *named != reservation_id => {
            let problem = "names another reservation than metadata `reservationId`: leave one of them out";
            return Err(invalid("reservation_id", problem));
        }
        _ => &reservation_id,
    };
    let reservation = if reservation_id.is_empty() { None } else { Some(self::reservation_id(reservation_id)?) };
    if time.is_some() && enforce {
        return Err(invalid(
            "time",
            "cannot be combined with `enforce`: an event of an earlier time is always counted; leave one of them out",
        ));
    }
    if time.is_some() && is_refund {
        let problem = "is not for refunds: name the reservation to refund it in its windows, or leave this out";
        return Err(invalid("time", problem));
    }
    let at_ms = time.map(|time| self::time("time", time)).transpose()?;
    let user = user(&user_id)?;
    Ok((user, TrackCall { event, request_id: self::request_id(&request_id)?, enforce, reservation, at_ms }))
}

/// The parsed request of ResetUsage.
#[derive(Debug)]
pub struct ResetCall {
    /// The user.
    pub user: UserId,
    /// The ids of the limit groups; empty for all.
    pub groups: Vec<String>,
    /// Why, for the log.
    pub reason: String,
    /// Makes a retry recognisable.
    pub request_id: Option<RequestId>,
}

/// Parses a request of ResetUsage.
///
/// # Errors
/// [`Fault::Invalid`], which names the field.
pub fn reset_usage(request: v1::ResetUsageRequest) -> Result<ResetCall, Fault> {
    let v1::ResetUsageRequest { user_id, limit_group_ids, reason, request_id } = request;
    at_most("limit_group_ids", limit_group_ids.len(), MAX_GROUPS)?;
    for (index, id) in limit_group_ids.iter().enumerate() {
        if id.is_empty() || id.len() > MAX_GROUP_ID_BYTES {
            let problem =
                format!("has {} bytes: send the id of a limit group, of 1 to {MAX_GROUP_ID_BYTES} bytes", id.len());
            return Err(invalid(format!("limit_group_ids[{index}]"), problem));
        }
    }
    Ok(ResetCall {
        user: user(&user_id)?,
        groups: limit_group_ids,
        reason: self::reason(reason)?,
        request_id: self::request_id(&request_id)?,
    })
}

/// The reason of a call, which is for the log.
fn reason(reason: String) -> Result<String, Fault> {
    if reason.len() > MAX_REASON_BYTES {
        return Err(invalid("reason", format!("is longer than {MAX_REASON_BYTES} bytes")));
    }
    Ok(reason)
}

/// Checks the number of requests of a BatchTrack. Each of them is parsed by itself.
///
/// # Errors
/// [`Fault::Invalid`], which names the field.
pub fn batch(request: v1::BatchTrackRequest) -> Result<Vec<v1::TrackRequest>, Fault> {
    let v1::BatchTrackRequest { requests } = request;
    match requests.len() {
        0 => Err(invalid("requests", format!("is empty: send 1 to {MAX_BATCH} requests"))),
        1..=MAX_BATCH => Ok(requests),
        more => Err(invalid("requests", format!("has {more} entries: send at most {MAX_BATCH} in one call"))),
    }
}

/// Parses a request of GetReservation.
///
/// # Errors
/// [`Fault::Invalid`], which names the field; [`Fault::ReservationNotFound`].
pub fn get_reservation(request: v1::GetReservationRequest) -> Result<ReservationId, Fault> {
    let v1::GetReservationRequest { reservation_id } = request;
    self::reservation_id(&reservation_id)
}

/// Parses a request of ListReservations. The token is for the user's owner, whom the app decides as well.
///
/// # Errors
/// [`Fault::Invalid`], which names the field.
pub fn list_reservations(
    request: v1::ListReservationsRequest,
    owner: impl Fn(&UserId) -> Owner,
) -> Result<(Owner, Listing), Fault> {
    let v1::ListReservationsRequest { user_id, page_size, page_token } = request;
    let owner = owner(&user(&user_id)?);
    let page_size = match usize::try_from(page_size) {
        Ok(0) => DEFAULT_PAGE,
        Ok(size @ 1..=MAX_PAGE) => size,
        _ => {
            return Err(invalid(
                "page_size",
                format!("is out of bounds: send 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}"),
            ));
        }
    };
    let from = if page_token.is_empty() { Some(Position::default()) } else { Position::parse(&page_token, &owner) };
    let from = from.ok_or_else(|| Fault::Invalid {
        field: "page_token".to_owned(),
        problem:
            "is not a token of a page of this user: send the next_page_token of the page before, or begin without one"
                .to_owned(),
        reason: "PAGE_TOKEN_INVALID",
    })?;
    Ok((owner, Listing { page_size, from }))
}

/// Parses a request of GetUsage into the user, the events and the time.
///
/// # Errors
/// [`Fault::Invalid`], which names the field.
pub fn get_usage(request: v1::GetUsageRequest) -> Result<(UserId, Option<EventPattern>, Option<i64>), Fault> {
    let v1::GetUsageRequest { user_id, event, at } = request;
    let pattern = if event.is_empty() {
        None
    } else {
        Some(EventPattern::parse(&event).map_err(|problem| invalid("event", format!("is not valid: {problem}")))?)
    };
    let at_ms = at.map(|at| time("at", at)).transpose()?;
    Ok((user(&user_id)?, pattern, at_ms))
}

/// Parses a request of UpsertSubscription.
///
/// # Errors
/// [`Fault::Invalid`] or [`Fault::OutOfRange`], which name the field.
pub fn upsert(request: v1::UpsertSubscriptionRequest) -> Result<(UserId, Upsert), Fault> {
    let v1::UpsertSubscriptionRequest { user_id, plan_id, overrides, end_time, cycle_anchor, clear_end_time, etag } =
        request;
    let plan_id = self::plan_id(plan_id)?;
    let end_ms = match (end_time, clear_end_time) {
        (None, false) => None,
        (None, true) => Some(None),
        (Some(_), true) => {
            return Err(invalid("clear_end_time", "comes with an end_time: leave one of them out"));
        }
        (Some(end), false) => Some(Some(self::end_time(end, "to remove a stored end, send clear_end_time")?)),
    };
    if etag.len() > MAX_ETAG_BYTES {
        let problem =
            format!("is longer than {MAX_ETAG_BYTES} bytes: send the etag of a Subscription, or leave it out");
        return Err(invalid("etag", problem));
    }
    let upsert = Upsert {
        plan_id: Some(plan_id).filter(|id| !id.is_empty()),
        overrides: overrides.map(self::overrides).transpose()?,
        end_ms,
        cycle_anchor_ms: cycle_anchor.map(self::cycle_anchor).transpose()?,
        etag: Some(etag).filter(|etag| !etag.is_empty()),
    };
    Ok((user(&user_id)?, upsert))
}

/// Parses a request of CancelSubscription into the user and the time at which the subscription ends; none for now.
///
/// # Errors
/// [`Fault::Invalid`], which names the field.
pub fn cancel(request: v1::CancelSubscriptionRequest) -> Result<(UserId, Option<i64>), Fault> {
    let v1::CancelSubscriptionRequest { user_id, end_time } = request;
    let end_ms = end_time.map(|end| self::end_time(end, "send a later time, or leave it out to end it now"));
    Ok((user(&user_id)?, end_ms.transpose()?))
}

/// A user id, where it is all that a request says.
///
/// # Errors
/// [`Fault::Invalid`], which names the field.
pub fn user(text: &str) -> Result<UserId, Fault> {
    UserId::parse(text).map_err(|problem| invalid("user_id", format!("{problem}: send 1 to 256 bytes")))
}

/// Parses a request of GetPlan.
///
/// # Errors
/// [`Fault::Invalid`], which names the field.
pub fn get_plan(request: v1::GetPlanRequest) -> Result<String, Fault> {
    let v1::GetPlanRequest { plan_id } = request;
    self::plan_id(plan_id)
}

/// Checks the length of a plan id. Ids in a catalog are not longer, and the answer repeats an id that is not found.
fn plan_id(id: String) -> Result<String, Fault> {
    if id.len() > MAX_PLAN_ID_BYTES {
        return Err(invalid("plan_id", format!("is longer than {MAX_PLAN_ID_BYTES} bytes")));
    }
    Ok(id)
}

fn request_id(text: &str) -> Result<Option<RequestId>, Fault> {
    RequestId::parse(text).map_err(|problem| invalid("request_id", problem.to_string()))
}

/// Text that no reservation was ever named is as unknown as one that was forgotten.
fn reservation_id(text: &str) -> Result<ReservationId, Fault> {
    if text.is_empty() {
        return Err(invalid("reservation_id", "is empty: send what Reserve returned"));
    }
    if text.len() > ReservationId::LONGEST {
        return Err(invalid("reservation_id", format!("is longer than {} bytes", ReservationId::LONGEST)));
    }
    text.parse().map_err(|_| Fault::ReservationNotFound)
}

pub(super) fn event(event: Option<v1::Event>) -> Result<Event, Fault> {
    let v1::Event { name, quantity, quantities, metadata } =
        event.ok_or_else(|| invalid("event", "is missing: say what happens"))?;
    let name = EventName::parse(&name).map_err(|problem| invalid("event.name", format!("is not valid: {problem}")))?;
    let quantity = quantity.map(|number| self::quantity(FieldPath::Field("event.quantity"), number)).transpose()?;
    let quantities = self::quantities("event.quantities", quantities)?;
    Ok(Event::new(name, quantity, quantities, self::metadata("event.metadata", metadata)?))
}

fn refuse_refund(event: &Event) -> Result<(), Fault> {
    match event.name.refunded() {
        None => Ok(()),
        Some(_) => Err(Fault::Invalid {
            field: "event.name".to_owned(),
            problem: "ends in `.refund`: refunds are for Track only".to_owned(),
            reason: "REFUND_NOT_TRACKED",
        }),
    }
}

fn quantity(path: FieldPath<'_>, number: f64) -> Result<Quantity, Fault> {
    Quantity::from_f64(number).map_err(|problem| match problem {
        InvalidQuantity::TooLarge => Fault::OutOfRange { field: path.to_string(), problem: problem.to_string() },
        _ => invalid(path.to_string(), problem.to_string()),
    })
}

fn quantities(field: &str, numbers: BTreeMap<String, f64>) -> Result<BTreeMap<String, Quantity>, Fault> {
    at_most(field, numbers.len(), MAX_QUANTITIES)?;
    let parse = |(name, number): (String, f64)| {
        let quantity = quantity(entry(field, &name)?, number)?;
        Ok((name, quantity))
    };
    numbers.into_iter().map(parse).collect()
}

fn metadata(field: &str, entries: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Fault> {
    at_most(field, entries.len(), MAX_METADATA)?;
    for (key, value) in &entries {
        let path = entry(field, key)?;
        let longest = longest_value(key);
        if value.len() > longest {
            return Err(invalid(path.to_string(), format!("is longer than {longest} bytes")));
        }
    }
    Ok(entries)
}

/// Returns the longest value of this metadata key, in bytes. A reservation id is as long as its user's id makes it.
pub(super) fn longest_value(key: &str) -> usize {
    if key == RESERVATION_KEY { ReservationId::LONGEST } else { MAX_VALUE_BYTES }
}

fn at_most(field: &str, found: usize, most: usize) -> Result<(), Fault> {
    if found > most { Err(invalid(field, format!("has {found} entries; at most {most} are allowed"))) } else { Ok(()) }
}

/// The field that an error is about. Only an error formats it as text.
#[derive(Clone, Copy)]
enum FieldPath<'a> {
    Field(&'a str),
    /// An entry of a map, by its key.
    Entry(&'a str, &'a str),
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(field) => f.write_str(field),
            Self::Entry(field, key) => write!(f, "{field}[{key:?}]"),
        }
    }
}

/// An entry of a map, whose key is checked here.
fn entry<'a>(field: &'a str, key: &'a str) -> Result<FieldPath<'a>, Fault> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(invalid(field, format!("has a key of {} bytes; send 1 to {MAX_KEY_BYTES}", key.len())));
    }
    Ok(FieldPath::Entry(field, key))
}

fn ttl(ttl: Option<prost_types::Duration>) -> Result<Option<Duration>, Fault> {
    let Some(ttl) = ttl else { return Ok(None) };
    let ttl = Duration::try_from(ttl).ok().filter(|ttl| (MIN_TTL..=MAX_TTL).contains(ttl));
    ttl.map(Some).ok_or_else(|| invalid("ttl", "is out of bounds: send 1 s to 1 h, or leave it out"))
}

/// Milliseconds of the epoch, rounded down.
fn time(field: &str, time: Timestamp) -> Result<i64, Fault> {
    let Timestamp { seconds, nanos } = time;
    if !(0..=LAST_SECOND).contains(&seconds) || !(0..1_000_000_000).contains(&nanos) {
        return Err(invalid(field, "is out of bounds: send a time from 1970 to 9999"));
    }
    Ok(seconds * 1000 + i64::from(nanos) / 1_000_000)
}

/// A time after the epoch, which is what an empty message means. A caller that sends it has forgotten something.
fn end_time(end: Timestamp, instead: &str) -> Result<i64, Fault> {
    match time("end_time", end)? {
        0 => Err(invalid("end_time", format!("is the Unix epoch: {instead}"))),
        end_ms => Ok(end_ms),
    }
}

/// A time from which windows can be counted: those of the last day of 9999 reach beyond the calendar.
fn cycle_anchor(anchor: Timestamp) -> Result<i64, Fault> {
    match time("cycle_anchor", anchor)? {
        ANCHORS_END_MS.. => Err(invalid("cycle_anchor", "is out of bounds: send a time from 1970 to 9998")),
        anchor_ms => Ok(anchor_ms),
    }
}

fn overrides(overrides: v1::QuotaOverrides) -> Result<BTreeMap<String, QuotaOverride>, Fault> {
    let v1::QuotaOverrides { quotas } = overrides;
    at_most("overrides.quotas", quotas.len(), MAX_GROUPS)?;
    let parse = |(id, quota): (String, v1::Quota)| {
        let path = entry("overrides.quotas", &id)?;
        let v1::Quota { limit } = quota;
        let quota = match limit {
            Some(v1::quota::Limit::Amount(amount)) => QuotaOverride::Amount(quantity(path, amount)?),
            Some(v1::quota::Limit::Unlimited(true)) => QuotaOverride::Unlimited,
            Some(v1::quota::Limit::Unlimited(false)) | None => {
                return Err(invalid(path.to_string(), "says nothing: send an amount, or unlimited: true"));
            }
        };
        Ok((id, quota))
    };
    quotas.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that the text of a fault has room in any client's limit for headers.
    fn assert_short(fault: &Fault) {
        let told = fault.to_string();
        assert!(told.len() < 512, "{told}");
    }

    #[test]
    fn a_fault_does_not_repeat_what_is_too_long() {
        let long = "\u{1}".repeat(1 << 20);
        let usage = v1::GetUsageRequest { user_id: "u".to_owned(), event: long.clone(), at: None };
        assert_short(&get_usage(usage).unwrap_err());
        assert_short(&get_plan(v1::GetPlanRequest { plan_id: long.clone() }).unwrap_err());
        for amount in [1.0, -1.0] {
            let quota = v1::Quota { limit: Some(v1::quota::Limit::Amount(amount)) };
            let overrides = v1::QuotaOverrides { quotas: BTreeMap::from([(long.clone(), quota)]) };
            let request = v1::UpsertSubscriptionRequest {
                user_id: "u".to_owned(),
                overrides: Some(overrides),
                ..v1::UpsertSubscriptionRequest::default()
            };
            assert_short(&upsert(request).unwrap_err());
        }
    }

    #[test]
    fn every_cycle_anchor_has_windows() {
        use crate::domain::plan::Period;
        use crate::domain::window::anchored;
        let upserted = |seconds| {
            let cycle_anchor = Some(Timestamp { seconds, nanos: 999_999_999 });
            let user_id = "u".to_owned();
            upsert(v1::UpsertSubscriptionRequest { user_id, cycle_anchor, ..v1::UpsertSubscriptionRequest::default() })
        };
        assert!(upserted(ANCHORS_END_MS / 1000).is_err());
        let last_ms = upserted(ANCHORS_END_MS / 1000 - 1).unwrap().1.cycle_anchor_ms.unwrap();
        for zone in ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"] {
            let zone = jiff::tz::TimeZone::get(zone).unwrap();
            for period in
                [Period::Minute, Period::Hourly, Period::Daily, Period::Weekly, Period::Monthly, Period::Yearly]
            {
                for at_ms in [0, 1_795_516_231_123] {
                    assert!(anchored(period, &zone, last_ms, at_ms).is_some(), "{period:?} {zone:?} {at_ms}");
                }
            }
        }
    }
}
