//! Calls as they travel, of one user or of several in one.

use std::sync::Arc;

use redis::Value;
use tollgate::domain::event::{Actual, Event};
use tollgate::domain::id::{Field, Owner, ReservationId};
use tollgate::ledger::packed::Reader;
use tollgate::ledger::{Basis, CompiledPlan, InForce, Once, Script, UserKeys, formats, priced, used, used_metadata};

use super::user::{MINUTE, redis};

/// What a script takes of one call.
#[derive(Debug, Clone)]
pub struct Call {
    pub keys: Vec<String>,
    pub args: Vec<Vec<u8>>,
}

/// The answer of a script to these calls in one, or its error.
pub async fn answer(script: &Script, calls: &[Call]) -> Result<Value, String> {
    let mut redis = redis().await;
    let mut command = redis::cmd("EVALSHA");
    command.arg(&script.sha1).arg(calls.iter().map(|call| call.keys.len()).sum::<usize>());
    for call in calls {
        command.arg(&call.keys);
    }
    for call in calls {
        command.arg(&call.args);
    }
    let answer = command.query_async(&mut redis).await;
    let is_new = answer.as_ref().is_err_and(|error: &redis::RedisError| error.code() == Some("NOSCRIPT"));
    if !is_new {
        return answer.map_err(|error| error.to_string());
    }
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(&script.body);
    let () = load.query_async(&mut redis).await.map_err(|error| error.to_string())?;
    command.query_async(&mut redis).await.map_err(|error| error.to_string())
}

/// The answers that are bytes; none after an error.
pub async fn run(script: &Script, calls: &[Call]) -> Vec<Vec<u8>> {
    let Ok(Value::Array(answers)) = answer(script, calls).await else { return Vec::new() };
    let bytes = |answer| if let Value::BulkString(bytes) = answer { Some(bytes) } else { None };
    answers.into_iter().filter_map(bytes).collect()
}

/// How many lapsed holds and corrected clocks a script has told besides.
pub async fn told(script: &Script, calls: &[Call]) -> Option<(i64, i64)> {
    let Ok(Value::Array(answers)) = answer(script, calls).await else { return None };
    match answers.get(calls.len()..)? {
        [] => Some((0, 0)),
        [Value::Int(lapsed), Value::Int(corrected)] => Some((*lapsed, *corrected)),
        _ => None,
    }
}

fn keys(owner: &Owner, hold: Option<&Field>) -> Vec<String> {
    let keys = UserKeys::new(owner);
    keys.all().into_iter().chain(hold.map(|field| keys.hold(field))).collect()
}

/// What every call begins with that a plan decides.
fn write_basis(bytes: &mut Vec<u8>, basis: &Basis) {
    let revision = basis.revision.unwrap_or_default();
    let none = formats::Basis { revision, ended: basis.ended.into(), ..formats::Basis::default() };
    let basis = match &basis.plan {
        InForce::None => none,
        InForce::Unknown(_) => formats::Basis { in_force: 2, ..none },
        InForce::Plan { plan, frames } => formats::Basis {
            in_force: 1,
            plan: plan.digest,
            arrangement: frames.arrangement,
            overrides: frames.overrides,
            frames: frames.bytes.to_vec(),
            ..none
        },
    };
    basis.write(bytes);
}

fn message(plan: Option<&Arc<CompiledPlan>>) -> Vec<u8> {
    plan.map(|plan| plan.message.to_vec()).unwrap_or_default()
}

fn write_once(bytes: &mut Vec<u8>, once: &Once) {
    let Once { field, digest, suffix } = *once;
    formats::Once { field, has_id: digest.is_some().into(), digest: digest.unwrap_or_default(), suffix }.write(bytes);
}

/// A call that a plan decides.
fn decided(owner: &Owner, basis: &Basis, hold: Option<&Field>, write: impl FnOnce(&mut Vec<u8>)) -> Call {
    let mut call = Vec::new();
    write_basis(&mut call, basis);
    write(&mut call);
    Call { keys: keys(owner, hold), args: vec![call, message(basis.plan.known())] }
}

fn write_event(bytes: &mut Vec<u8>, basis: &Basis, event: &Event) {
    priced(basis.plan.known().map(|plan| &**plan), event.name.as_str(), event).write(bytes);
}

pub fn reserve(owner: &Owner, basis: &Basis, once: &Once, event: &Event, ttl_ms: i64) -> Call {
    decided(owner, basis, Some(&once.field), |bytes| {
        write_once(bytes, once);
        write_event(bytes, basis, event);
        formats::ReserveCall { ttl_ms, settlement_ms: MINUTE, on_expiry: 0 }.write(bytes);
    })
}

pub fn can_use(owner: &Owner, basis: &Basis, event: &Event) -> Call {
    decided(owner, basis, None, |bytes| {
        write_event(bytes, basis, event);
        formats::CanUseCall { smallest: event.names_no_quantity().into() }.write(bytes);
    })
}

/// The call of `track`, and of `refund`.
pub fn track(owner: &Owner, basis: &Basis, once: &Once, event: &Event, enforce: bool) -> Call {
    decided(owner, basis, None, |bytes| {
        write_once(bytes, once);
        write_event(bytes, basis, event);
        formats::TrackCall { enforce: enforce.into(), replay_ms: MINUTE }.write(bytes);
    })
}

pub fn usage(owner: &Owner, basis: &Basis) -> Call {
    decided(owner, basis, None, |bytes| formats::UsageCall { at: -1 }.write(bytes))
}

fn settle(id: &ReservationId) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ReservationId { field, suffix, plan, owner: _ } = *id;
    formats::SettleCall { field, suffix, plan, replay_ms: MINUTE }.write(&mut bytes);
    bytes
}

pub fn release(id: &ReservationId) -> Call {
    Call { keys: keys(&id.owner, Some(&id.field)), args: vec![settle(id)] }
}

/// The first argument of a commit that says nothing of what was used.
pub fn as_reserved(id: &ReservationId) -> Vec<u8> {
    let mut bytes = settle(id);
    formats::CommitCall::default().write(&mut bytes);
    bytes
}

/// A commit of what was used; without the plan, as it would be of one that is in no archive.
pub fn commit(id: &ReservationId, actual: &Actual, plan: Option<&Arc<CompiledPlan>>) -> Call {
    let mut bytes = settle(id);
    let quantities = used(plan.map(|plan| &**plan), actual);
    formats::CommitCall { actual: 1, quantities, ..formats::CommitCall::default() }.write(&mut bytes);
    Call { keys: keys(&id.owner, Some(&id.field)), args: vec![bytes, message(plan)] }
}

/// A commit of what was used by another event.
pub fn commit_changed(id: &ReservationId, basis: &Basis, actual: &Actual) -> Call {
    let plan = basis.plan.known().map(|plan| &**plan);
    let ReservationId { field, suffix, .. } = *id;
    decided(&id.owner, basis, Some(&id.field), |bytes| {
        let (metadata, quantities) = (used_metadata(plan, actual), used(plan, actual));
        let call =
            formats::CommitChangedCall { field, suffix, replay_ms: MINUTE, metadata, names_quantity: 1, quantities };
        call.write(bytes);
    })
}

/// An Extend without an id; without the plan, as it would be of one that is in no archive.
pub fn extend(id: &ReservationId, add: &Actual, plan: Option<&Arc<CompiledPlan>>) -> Call {
    let mut bytes = settle(id);
    write_once(&mut bytes, &Once::extend(None, id, MINUTE, Some(add)));
    let quantities = used(plan.map(|plan| &**plan), add);
    formats::ExtendCall { ttl_ms: MINUTE, adds: 1, quantities }.write(&mut bytes);
    Call { keys: keys(&id.owner, Some(&id.field)), args: vec![bytes, message(plan)] }
}

pub fn refund_reservation(id: &ReservationId, once: &Once, event: &Event, plan: Option<&Arc<CompiledPlan>>) -> Call {
    let mut bytes = settle(id);
    write_once(&mut bytes, once);
    priced(plan.map(|plan| &**plan), event.name.as_str(), event).write(&mut bytes);
    Call { keys: keys(&id.owner, None), args: vec![bytes, message(plan)] }
}

/// The state with another part about its memory.
pub fn with_memory(state: &[u8], memory: Option<&formats::Memory>) -> Vec<u8> {
    let mut reader = Reader(state);
    let (Ok(head), Ok(_)) = (formats::Head::read(&mut reader), formats::Memory::read(&mut reader)) else {
        return state.to_vec();
    };
    let mut changed = Vec::new();
    head.write(&mut changed);
    if let Some(memory) = memory {
        memory.write(&mut changed);
    }
    changed.extend_from_slice(reader.0);
    changed
}
