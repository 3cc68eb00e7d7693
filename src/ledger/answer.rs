//! What scripts answer: read, and put into the words of the plan that the answer is about.

use std::sync::Arc;

use super::packed::{Misfit, Reader};
use super::plan::{CompiledPlan, Words};
use super::subscription::Stored;
use super::{Ledger, formats};
use crate::domain::amount::{MAX_UNITS, Unit, Units};
use crate::domain::answer::{Reason, ReservationState, Standing};
use crate::domain::fault::Fault;
use crate::domain::id::{PlanDigest, Suffix};
use crate::domain::plan::Quota;
use crate::ledger::frames::NEVER_MS;

/// Why an operation has no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// It was compiled for another time or subscription, and nothing was done.
    Stale(Box<Stored>),
    /// Something is wrong.
    Fault(Fault),
}

impl From<Fault> for NoAnswer {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// An answer that does not fit its script: a bug, or somebody else's writing.
#[derive(Debug, thiserror::Error)]
#[error("a script answered {0}, which does not fit the question")]
struct Unfitting(String);

/// A script failed for one of several calls that travelled together.
#[derive(Debug, thiserror::Error)]
#[error("a script failed: {0}")]
struct ScriptError(String);

/// An answer that does not fit.
pub(super) fn unfitting(what: impl std::fmt::Debug) -> Fault {
    Fault::Internal(Box::new(Unfitting(format!("{what:?}"))))
}

fn misfit(misfit: Misfit) -> Fault {
    Fault::Internal(Box::new(misfit))
}

/// The answer of a script, by its first byte.
#[derive(Debug)]
pub(super) enum Reply<'a> {
    /// With its rows.
    Answer(formats::Answer, Reader<'a>),
    Stale(Box<Stored>),
    Fault(formats::Fault),
    CommittedOtherwise(PlanDigest, Vec<formats::CommittedClaim>),
}

impl<'a> Reply<'a> {
    /// Reads an answer.
    pub(super) fn read(packed: &'a [u8]) -> Result<Self, Fault> {
        let mut reader = Reader(packed);
        let read = match packed.first() {
            Some(1) => formats::Answer::read(&mut reader).map(|answer| Self::Answer(answer, reader.clone())),
            Some(2) => return Stored::read(&mut reader).map(|stored| Self::Stale(Box::new(stored))),
            Some(3) => formats::Fault::read(&mut reader).map(Self::Fault),
            Some(4) => formats::CommittedOtherwise::read(&mut reader).and_then(|otherwise| {
                let claims = (0..otherwise.claims).map(|_| formats::CommittedClaim::read(&mut reader));
                Ok(Self::CommittedOtherwise(otherwise.plan, claims.collect::<Result<_, _>>()?))
            }),
            other => return Err(unfitting(("an answer of kind", other))),
        };
        read.map_err(misfit)
    }
}

/// What a call was about, for the words of its answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct About<'a> {
    /// The plan that decides, if it is known.
    pub plan: Option<&'a Arc<CompiledPlan>>,
    /// The plan's id, also if the catalog does not have it.
    pub plan_id: &'a str,
}

/// The answer of most operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Why the event was denied or counted nowhere.
    pub reason: Option<Reason>,
    /// Of the reservation, if there is one.
    pub state: Option<ReservationState>,
    pub replayed: bool,
    pub overage: bool,
    pub late: bool,
    pub suffix: Suffix,
    pub plan: PlanDigest,
    pub deadline_ms: i64,
    pub retry_after_ms: Option<u64>,
    pub standings: Vec<Standing>,
}

impl Ledger {
    /// Reads the answer of a script, in the words of the plan that it is about. Where nobody knows that plan, it says nothing of groups.
    pub(super) async fn answer(&self, packed: &[u8], about: About<'_>) -> Result<Answer, NoAnswer> {
        match Reply::read(packed)? {
            Reply::Answer(answer, rows) => {
                let standings = match self.plan_of(&answer.plan, answer.rows > 0, about).await {
                    Some(plan) => standings(&answer, rows, &plan.groups)?,
                    None => Vec::new(),
                };
                Ok(answered(&answer, standings)?)
            }
            Reply::Stale(stored) => Err(NoAnswer::Stale(stored)),
            Reply::Fault(fault) => {
                let digest =
                    if fault.plan == [0; 8] { about.plan.map_or([0; 8], |plan| plan.digest) } else { fault.plan };
                let plan = self.plan_of(&digest, fault.group > 0, about).await;
                Err(told(&fault, plan.as_deref(), about.plan_id).into())
            }
            Reply::CommittedOtherwise(digest, claims) => {
                let committed = match self.plan_of(&digest, !claims.is_empty(), about).await {
                    Some(plan) => {
                        claims.iter().map(|claim| committed(claim, &plan.groups)).collect::<Result<_, _>>()?
                    }
                    None => Vec::new(),
                };
                Err(Fault::AlreadyCommitted { committed }.into())
            }
        }
    }

    /// The plan of this digest, where it is `needed`. Nearly always it is the one that the call is about.
    async fn plan_of(&self, digest: &PlanDigest, needed: bool, about: About<'_>) -> Option<Arc<CompiledPlan>> {
        match about.plan {
            _ if !needed => None,
            Some(plan) if plan.digest == *digest => Some(Arc::clone(plan)),
            _ => self.plan_by(digest).await,
        }
    }
}

fn answered(answer: &formats::Answer, standings: Vec<Standing>) -> Result<Answer, Fault> {
    Ok(Answer {
        reason: match answer.outcome {
            1 => None,
            2 => Some(Reason::LimitReached),
            3 => Some(Reason::UnmatchedEvent),
            4 => Some(Reason::NoSubscription),
            other => return Err(unfitting(("outcome", other))),
        },
        state: match answer.state {
            0 => None,
            1 => Some(ReservationState::Held),
            2 => Some(ReservationState::Committed),
            3 => Some(ReservationState::Released),
            4 => Some(ReservationState::Expired),
            other => return Err(unfitting(("state", other))),
        },
        replayed: answer.replayed != 0,
        overage: answer.overage != 0,
        late: answer.late != 0,
        suffix: answer.suffix,
        plan: answer.plan,
        deadline_ms: answer.deadline,
        retry_after_ms: u64::try_from(answer.retry_after_ms).ok(),
        standings,
    })
}

/// What a plan says of the group at this place.
fn words(groups: &[Words], place: i64) -> Result<&Words, Fault> {
    let index = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
    index.and_then(|index| groups.get(index)).ok_or_else(|| unfitting(("group", place)))
}

/// EXACT: no counter can have more, and sums of a few of these do not overflow.
fn units(amount: i64) -> Result<Units, Fault> {
    u64::try_from(amount).ok().filter(|units| *units <= MAX_UNITS).ok_or_else(|| unfitting(("an amount", amount)))
}

fn standings(answer: &formats::Answer, mut rows: Reader<'_>, groups: &[Words]) -> Result<Vec<Standing>, Fault> {
    // There are never more rows than groups.
    let mut standings = Vec::with_capacity(groups.len().min(usize::try_from(answer.rows).unwrap_or_default()));
    for _ in 0..answer.rows {
        let row = formats::Row::read(&mut rows).map_err(misfit)?;
        standings.push(standing(&row, words(groups, row.group)?)?);
    }
    Ok(standings)
}

fn standing(row: &formats::Row, words: &Words) -> Result<Standing, Fault> {
    Ok(Standing {
        group_id: words.id.clone(),
        label: words.label.clone(),
        unit: words.unit,
        quota: match row.quota {
            -2 => words.quota,
            -1 => Quota::Unlimited,
            quota => Quota::Limited(units(quota)?),
        },
        hard: words.hard,
        // A lifetime window starts at the beginning of time.
        window_ms: ((row.start, row.ends) != (0, NEVER_MS)).then_some((row.start, row.ends)),
        used: units(row.used)?,
        held: units(row.held)?,
        requested: units(row.requested)?,
        shortfall: units(row.shortfall)?,
        window_closed: row.closed != 0,
        unapplied: units(row.unapplied)?,
    })
}

fn committed(claim: &formats::CommittedClaim, groups: &[Words]) -> Result<(String, Unit, Units), Fault> {
    let words = words(groups, claim.group)?;
    Ok((words.id.clone(), words.unit, units(claim.units)?))
}

/// What a script calls a fault.
fn told(fault: &formats::Fault, plan: Option<&CompiledPlan>, plan_id: &str) -> Fault {
    let name = String::from_utf8_lossy(&fault.name).into_owned();
    let group = || match plan.and_then(|plan| words(&plan.groups, fault.group).ok()) {
        Some(words) => words.id.clone(),
        None => format!("number {}", fault.group),
    };
    match &fault.reason[..] {
        b"QUANTITY_MISSING" => Fault::QuantityMissing { group: group(), quantity: name },
        b"NOTHING_MEASURED" => Fault::Invalid {
            field: "actual".to_owned(),
            problem: format!(
                "names no quantity that a limit group of the reservation measures; {:?} measures {name}: name what \
                 was used by these names, or leave `actual` out to commit as reserved",
                group()
            ),
            reason: "NOTHING_MEASURED",
        },
        b"OUT_OF_RANGE" => Fault::OutOfRange {
            field: format!("the counter of limit group {:?}", group()),
            problem: "would become larger than a counter can be (2^53 - 1, or 8000000000 cents)".to_owned(),
        },
        b"REQUEST_ID_REUSED" => Fault::RequestIdReused,
        b"RESERVATION_NOT_FOUND" => Fault::ReservationNotFound,
        b"NOT_COMMITTED" => match name.as_str() {
            "held" => Fault::NotCommitted { state: ReservationState::Held },
            "committed" => Fault::NotCommitted { state: ReservationState::Committed },
            "released" => Fault::NotCommitted { state: ReservationState::Released },
            "expired" => Fault::NotCommitted { state: ReservationState::Expired },
            _ => unfitting(("state", name)),
        },
        b"REFUND_OF_ANOTHER_EVENT" => Fault::Invalid {
            field: "event.name".to_owned(),
            problem: format!("does not refund the reservation's event: name it {name}.refund"),
            reason: "REFUND_OF_ANOTHER_EVENT",
        },
        b"PLAN_UNKNOWN" => Fault::PlanUnknown(plan_id.to_owned()),
        b"PLAN_NOT_ARCHIVED" => Fault::PlanNotArchived,
        b"FORMAT_UNKNOWN" => Fault::FormatUnknown,
        b"TOO_MANY_HOLDS" => Fault::TooManyHolds,
        b"SCRIPT_ERROR" => Fault::Internal(Box::new(ScriptError(name))),
        reason => unfitting(("reason", String::from_utf8_lossy(reason))),
    }
}
