//! Reads the answers of scripts, and adds the descriptions of groups from the plan that an answer is about.

use std::sync::Arc;

use super::crossed::{Counted, Rows, read_crossed};
use super::packed::{Misfit, Reader};
use super::plan::{CompiledPlan, GroupDescription};
use super::subscription::Stored;
use super::{Ledger, formats, window_ms};
use crate::domain::amount::{MAX_UNITS, Unit, Units};
use crate::domain::answer::{Crossed, Reason, ReservationState, Standing};
use crate::domain::fault::Fault;
use crate::domain::id::{PlanDigest, Suffix};
use crate::domain::plan::Quota;

/// The reason why an operation has no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The call was compiled for another time or subscription, and nothing was done.
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

pub(super) fn misfit(misfit: Misfit) -> Fault {
    Fault::Internal(Box::new(misfit))
}

/// The answer of a script, by its first byte.
#[derive(Debug)]
pub(super) enum Reply<'a> {
    /// An answer, with its rows.
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

    /// The plan that describes its groups, if it names any; zeros for that of the call.
    fn plan(&self) -> Option<&PlanDigest> {
        match self {
            Self::Answer(answer, _) => Some(&answer.plan).filter(|_| answer.rows > 0),
            Self::Stale(_) => None,
            Self::Fault(fault) => Some(&fault.plan).filter(|_| fault.group > 0),
            Self::CommittedOtherwise(plan, claims) => Some(plan).filter(|_| !claims.is_empty()),
        }
    }

    /// Converts the answer, with the descriptions of that plan. Where the plan is unknown, the answer has no groups.
    fn described(self, plan: Option<&CompiledPlan>, plan_id: &str, counted: Counted) -> Result<Answer, NoAnswer> {
        match self {
            Self::Answer(answer, rows) => {
                let standings = match plan {
                    Some(plan) => standings(&answer, rows, &plan.id, &plan.groups, counted)?,
                    None => (Vec::new(), Vec::new()),
                };
                Ok(answered(&answer, standings)?)
            }
            Self::Stale(stored) => Err(NoAnswer::Stale(stored)),
            Self::Fault(fault) => Err(told(&fault, plan.map_or(&[], |plan| &plan.groups), plan_id).into()),
            Self::CommittedOtherwise(_, claims) => {
                let groups = plan.map(|plan| &plan.groups).into_iter();
                let committed = groups.flat_map(|groups| claims.iter().map(|claim| committed(claim, groups)));
                Err(Fault::AlreadyCommitted { committed: committed.collect::<Result<_, _>>()? }.into())
            }
        }
    }
}

/// Reads the answer of a script that counts what it was asked, with the group descriptions of this plan.
///
/// # Errors
/// [`NoAnswer`]; of it [`Fault::Internal`] for what no script answers.
pub fn read_answer(packed: &[u8], plan: Option<&CompiledPlan>) -> Result<Answer, NoAnswer> {
    Reply::read(packed)?.described(plan, "", Counted::Requested)
}

/// The plan that a call was about, for the descriptions in its answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct About<'a> {
    /// The plan that decides, if it is known.
    pub plan: Option<&'a Arc<CompiledPlan>>,
    /// The plan's id, also if the catalog does not have it.
    pub plan_id: &'a str,
    /// What the script counts.
    pub counted: Counted,
}

/// The answer of most operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The reason why the event was denied or counted nowhere.
    pub reason: Option<Reason>,
    /// The state of the reservation, if there is one.
    pub state: Option<ReservationState>,
    /// True if it was decided before.
    pub replayed: bool,
    /// More than was reserved.
    pub overage: bool,
    /// True if it came after the deadline or a release.
    pub late: bool,
    /// True if a hard group has no room for more.
    pub exhausted: bool,
    /// The suffix of the reservation or event.
    pub suffix: Suffix,
    /// The plan whose groups the standings name.
    pub plan: PlanDigest,
    /// The deadline of the reservation; 0 for none.
    pub deadline_ms: i64,
    /// The time until another attempt may succeed, from now; none if waiting does not help.
    pub retry_after_ms: Option<u64>,
    /// The standings of the groups.
    pub standings: Vec<Standing>,
    /// The thresholds that consumption has crossed in this script.
    pub crossed: Vec<Crossed>,
}

impl Ledger {
    /// Reads the answer of a script, with the group descriptions of the plan that it is about.
    pub(super) async fn answer(&self, packed: &[u8], about: About<'_>) -> Result<Answer, NoAnswer> {
        let reply = Reply::read(packed)?;
        let found;
        let plan = match (reply.plan(), about.plan) {
            (None, _) => None,
            // Nearly always it is the one that the call is about.
            (Some(digest), Some(plan)) if plan.digest == *digest || *digest == [0; 8] => Some(&**plan),
            (Some(digest), _) => {
                found = self.plan_by(digest).await;
                found.as_deref()
            }
        };
        reply.described(plan, about.plan_id, about.counted)
    }
}

fn answered(answer: &formats::Answer, (standings, crossed): (Vec<Standing>, Vec<Crossed>)) -> Result<Answer, Fault> {
    Ok(Answer {
        reason: match answer.outcome {
            DONE => None,
            2 => Some(Reason::LimitReached),
            3 => Some(Reason::UnmatchedEvent),
            4 => Some(Reason::NoSubscription),
            other => return Err(unfitting(("outcome", other))),
        },
        state: state(answer.state)?,
        replayed: answer.replayed != 0,
        overage: answer.overage != 0,
        late: answer.late != 0,
        exhausted: answer.exhausted != 0,
        suffix: answer.suffix,
        plan: answer.plan,
        deadline_ms: answer.deadline,
        retry_after_ms: u64::try_from(answer.retry_after_ms).ok(),
        standings,
        crossed,
    })
}

/// Reads the state of a reservation, if there is one.
pub(super) fn state(code: i64) -> Result<Option<ReservationState>, Fault> {
    Ok(match code {
        0 => None,
        1 => Some(ReservationState::Held),
        2 => Some(ReservationState::Committed),
        3 => Some(ReservationState::Released),
        4 => Some(ReservationState::Expired),
        other => return Err(unfitting(("state", other))),
    })
}

/// Returns a plan's description of the group at this place.
pub(super) fn description(groups: &[GroupDescription], place: i64) -> Result<&GroupDescription, Fault> {
    let index = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
    index.and_then(|index| groups.get(index)).ok_or_else(|| unfitting(("group", place)))
}

/// EXACT: no counter can have more, and sums of a few of these do not overflow.
pub(super) fn units(amount: i64) -> Result<Units, Fault> {
    u64::try_from(amount).ok().filter(|units| *units <= MAX_UNITS).ok_or_else(|| unfitting(("an amount", amount)))
}

/// The outcome of a call that was allowed, or that has done what it was asked.
const DONE: i64 = 1;

/// Flags for the columns that follow the rows of an answer. `columns` is a sum of these.
const WITH_SHORTFALLS: i64 = 1;
const WITH_CLOSINGS: i64 = 2;
const WITH_QUOTAS: i64 = 4;
const WITH_BEFORES: i64 = 8;

/// Reads the rows and columns of an answer, and finds the thresholds that were crossed.
fn standings(
    answer: &formats::Answer,
    mut rows: Reader<'_>,
    plan_id: &str,
    groups: &[GroupDescription],
    counted: Counted,
) -> Result<(Vec<Standing>, Vec<Crossed>), Fault> {
    // There are never more rows than groups.
    let mut standings = Vec::with_capacity(groups.len().min(usize::try_from(answer.rows).unwrap_or_default()));
    let mut watched = Vec::new();
    for _ in 0..answer.rows {
        let row = formats::Row::read(&mut rows).map_err(misfit)?;
        let group = description(groups, row.group)?;
        if !group.thresholds.is_empty() {
            watched.push((standings.len(), row.group));
        }
        standings.push(standing(&row, group)?);
    }
    let has = |column| answer.columns & column != 0;
    if has(WITH_SHORTFALLS) {
        for standing in &mut standings {
            standing.shortfall = units(formats::Amount::read(&mut rows).map_err(misfit)?.units)?;
        }
    }
    if has(WITH_CLOSINGS) {
        for standing in &mut standings {
            let closing = formats::Closing::read(&mut rows).map_err(misfit)?;
            (standing.unapplied, standing.window_closed) = (units(closing.unapplied)?, closing.closed != 0);
        }
    }
    if has(WITH_QUOTAS) {
        for standing in &mut standings {
            standing.quota = match formats::Quota::read(&mut rows).map_err(misfit)?.units {
                -1 => Quota::Unlimited,
                quota => Quota::Limited(units(quota)?),
            };
        }
    }
    let are_counted = counted == Counted::Requested && answer.outcome == DONE && answer.replayed == 0;
    let befores = has(WITH_BEFORES).then_some(&mut rows);
    let crossed = read_crossed(&Rows { standings: &standings, watched, are_counted }, befores, plan_id, groups)?;
    if !rows.is_at_end() || answer.columns > WITH_SHORTFALLS + WITH_CLOSINGS + WITH_QUOTAS + WITH_BEFORES {
        return Err(unfitting(("columns", answer.columns)));
    }
    Ok((standings, crossed))
}

fn standing(row: &formats::Row, group: &GroupDescription) -> Result<Standing, Fault> {
    let span = formats::Span::read(&mut Reader(&row.span)).map_err(misfit)?;
    Ok(Standing {
        group_id: group.id.clone(),
        label: group.label.clone(),
        unit: group.unit,
        quota: group.quota,
        hard: group.hard,
        window_ms: window_ms(&span),
        used: units(row.used)?,
        held: units(row.held)?,
        requested: units(row.requested)?,
        shortfall: 0,
        window_closed: false,
        unapplied: 0,
    })
}

fn committed(claim: &formats::CommittedClaim, groups: &[GroupDescription]) -> Result<(String, Unit, Units), Fault> {
    let group = description(groups, claim.group)?;
    Ok((group.id.clone(), group.unit, units(claim.units)?))
}

/// Converts a script's fault.
fn told(fault: &formats::Fault, groups: &[GroupDescription], plan_id: &str) -> Fault {
    let name = String::from_utf8_lossy(&fault.name).into_owned();
    // Of a plan that nobody knows, groups have no ids.
    let group = || {
        description(groups, fault.group).map_or_else(|_| format!("number {}", fault.group), |group| group.id.clone())
    };
    match &fault.reason[..] {
        b"QUANTITY_MISSING" => Fault::QuantityMissing { group: group(), quantity: name },
        b"PARTS_EXCEED_WHOLE" => match rmp_serde::from_slice::<Vec<String>>(&fault.name).as_deref() {
            Ok([whole, parts @ ..]) => {
                Fault::PartsExceedWhole { group: group(), whole: whole.clone(), parts: parts.to_vec() }
            }
            _ => unfitting(("the names of parts", name)),
        },
        b"NOTHING_MEASURED" => Fault::Invalid {
            field: "actual".to_owned(),
            problem: format!(
                "names no quantity that a limit group of the reservation measures; {:?} measures {name}: name what \
                 was used by these names, or leave `actual` out to commit as reserved",
                group()
            ),
            reason: "NOTHING_MEASURED",
        },
        b"UNMATCHED_EVENT" => Fault::Invalid {
            field: "actual.metadata".to_owned(),
            problem: "makes an event that no limit group of the reservation's plan matches: check the keys and values, or leave \
                      it out to commit the event as it was reserved"
                .to_owned(),
            reason: "UNMATCHED_EVENT",
        },
        b"NOTHING_ADDED" => Fault::Invalid {
            field: "add".to_owned(),
            problem: format!(
                "names no quantity that a limit group of the reservation measures; {:?} measures {name}: name what to \
                 hold by these names, or leave `add` out to move only the deadline",
                group()
            ),
            reason: "NOTHING_MEASURED",
        },
        b"ADDED_TOO_MUCH" => Fault::OutOfRange {
            field: "add".to_owned(),
            problem: "makes a quantity larger than a number can be (2^53 - 1)".to_owned(),
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
        b"TIME_IN_FUTURE" => Fault::Invalid {
            field: "time".to_owned(),
            problem: "is more than 60 s in the future: send the time at which it happened, or leave it out for now"
                .to_owned(),
            reason: "INVALID_FIELD",
        },
        b"RESERVATION_EXPIRED" => Fault::ReservationExpired,
        b"RESERVATION_RELEASED" => Fault::ReservationReleased,
        b"WINDOW_CLOSED" => Fault::WindowClosed,
        b"GROUP_UNKNOWN" => Fault::Invalid {
            field: "limit_group_ids".to_owned(),
            problem: format!("names no limit group of plan {plan_id:?}: {name:?}"),
            reason: "GROUP_UNKNOWN",
        },
        b"PLAN_UNKNOWN" => Fault::PlanUnknown(plan_id.to_owned()),
        b"PLAN_NOT_ARCHIVED" => Fault::PlanNotArchived,
        b"FORMAT_UNKNOWN" => Fault::FormatUnknown,
        b"TOO_MANY_HOLDS" => Fault::TooManyHolds,
        b"SCRIPT_ERROR" => Fault::Internal(Box::new(ScriptError(name))),
        reason => unfitting(("reason", String::from_utf8_lossy(reason))),
    }
}

#[cfg(test)]
mod tests;
