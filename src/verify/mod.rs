//! `tollgate verify`: reads the whole state of a live Redis, and reports what contradicts itself.
//!
//! Users are found by `SCAN`. What of a user must agree is read by one script at one moment (`ledger::inspection`), decoded (`stored`),
//! and judged by pure functions (`checks`). So calls that go on meanwhile are never mistaken for contradictions.

mod checks;
mod stored;
#[cfg(test)]
mod tests;
mod value;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::domain::id::Owner;
use crate::ledger::inspection::{Inspector, ScanPosition, Unreadable};
use crate::ledger::keys::{KeyKind, kind};
use crate::ledger::{ConnectError, RedisAccess, UserKeys};

use checks::{Findings, Moment};

/// How many users are read at the same time.
const AT_ONCE: usize = 16;

/// How many `hold` keys one script looks at.
const HOLDS_AT_ONCE: usize = 100;

/// What is wrong with a `hold` key is looked at again after this: `DeleteUser` deletes these keys a moment after the others.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// Whether something cannot be, or is only worth knowing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No script leaves this behind.
    Contradiction,
    /// Odd, but possible.
    Note,
}

/// Something that was found, of one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Finding {
    /// How bad it is.
    pub kind: Kind,
    /// The key; odd characters are escaped.
    pub key: String,
    /// What is wrong, with the numbers found and expected. Times are milliseconds of the Unix epoch.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let note = if self.kind == Kind::Note { "note: " } else { "" };
        write!(f, "{}: {note}{}", self.key, self.what)
    }
}

/// How much was looked at, and what was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Users with any key.
    pub users: u64,
    /// Windows in their ledgers.
    pub windows: u64,
    /// Live holds in their agendas.
    pub live_holds: u64,
    /// Reservations that are remembered.
    pub reservations: u64,
    /// Request ids that are remembered.
    pub requests: u64,
    /// What cannot be.
    pub contradictions: u64,
    /// What is only worth knowing.
    pub notes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, windows, live_holds, reservations, requests, contradictions, notes } = self;
        write!(
            f,
            "users {users}, windows {windows}, live holds {live_holds}, reservations {reservations}, requests {requests}: \
             contradictions {contradictions}, notes {notes}"
        )
    }
}

/// Why a Redis could not be verified to its end.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Not at all.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Not to the end.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// Verifies the Redis with this URL, or the cluster with these, and returns every finding.
///
/// # Errors
/// See [`VerifyError`].
pub async fn run(urls: &[String]) -> Result<(Report, Vec<Finding>), VerifyError> {
    let mut findings = Vec::new();
    let report = run_telling(urls, &RedisAccess::default(), |finding| findings.push(finding.clone())).await?;
    Ok((report, findings))
}

/// As [`run`], and tells each finding as soon as it is found, once.
///
/// # Errors
/// See [`VerifyError`].
pub async fn run_telling(
    urls: &[String],
    access: &RedisAccess,
    mut tell: impl FnMut(&Finding),
) -> Result<Report, VerifyError> {
    let inspector = Inspector::connect(urls, access).await?;
    let (mut report, mut seen, mut told) = (Report::default(), HashSet::new(), HashSet::new());
    let mut position = Some(ScanPosition::default());
    while let Some(from) = position {
        let (keys, next) = inspector.scan(from).await?;
        position = next;
        let (users, unknown) = sort(&keys, &mut seen);
        report.users += users.values().filter(|(_, part)| part.is_new).count() as u64;
        let mut all = Findings { found: unknown, ..Findings::default() };
        let mut waiting = users.into_values();
        let mut working = JoinSet::new();
        loop {
            while working.len() < AT_ONCE
                && let Some((owner, part)) = waiting.next()
            {
                working.spawn(verify_user(inspector.clone(), owner, part));
            }
            let Some(done) = working.join_next().await else { break };
            all.add(done.expect("a check neither panics nor is cancelled")?);
        }
        for finding in &all.found {
            let mut hasher = DefaultHasher::new();
            finding.hash(&mut hasher);
            // A scan may name a key twice, and a hold is met with its user as well.
            if told.insert(hasher.finish()) {
                match finding.kind {
                    Kind::Contradiction => report.contradictions += 1,
                    Kind::Note => report.notes += 1,
                }
                tell(finding);
            }
        }
        report.windows += all.windows;
        report.live_holds += all.live_holds;
        report.reservations += all.reservations;
        report.requests += all.requests;
    }
    Ok(report)
}

/// What of a user a page of the scan has named.
#[derive(Default)]
struct UserPart {
    /// The user was not met before.
    is_new: bool,
    /// Of `hold` keys.
    nonces: Vec<String>,
}

/// Sorts keys by user. What belongs to nobody is found.
fn sort(keys: &[Vec<u8>], seen: &mut HashSet<Owner>) -> (BTreeMap<String, (Owner, UserPart)>, Vec<Finding>) {
    let mut users: BTreeMap<String, (Owner, UserPart)> = BTreeMap::new();
    let mut unknown = Vec::new();
    for key in keys {
        let (owner, nonce) = match kind(key) {
            KeyKind::State(owner) => (owner, None),
            KeyKind::Hold(owner, nonce) => (owner, Some(nonce)),
            KeyKind::ApiKeys => continue,
            KeyKind::Unknown => {
                let key = key.escape_ascii().to_string();
                unknown.push(Finding { kind: Kind::Contradiction, key, what: "belongs to nothing".to_owned() });
                continue;
            }
        };
        let (_, part) = users.entry(owner.tag().to_owned()).or_insert_with(|| (owner.clone(), UserPart::default()));
        part.is_new |= seen.insert(owner);
        part.nonces.extend(nonce);
    }
    (users, unknown)
}

async fn verify_user(inspector: Inspector, owner: Owner, part: UserPart) -> Result<Findings, Unreadable> {
    let keys = UserKeys::new(&owner);
    let mut findings = Findings::default();
    let mut nonces = part.nonces;
    if part.is_new {
        let state = inspector.user(&owner).await?;
        checks::user(&keys, &state, &mut findings);
        let live = state.holds.iter().filter_map(|(field, _, _)| std::str::from_utf8(field).ok()?.strip_prefix('r'));
        nonces.extend(live.map(str::to_owned));
        verify_memory(&inspector, &owner, &keys, &mut findings).await?;
        verify_agenda(&inspector, &owner, &keys, &mut findings).await?;
    }
    nonces.sort();
    nonces.dedup();
    verify_holds(&inspector, &owner, &keys, &nonces, &mut findings).await?;
    Ok(findings)
}

async fn verify_memory(
    inspector: &Inspector,
    owner: &Owner,
    keys: &UserKeys,
    findings: &mut Findings,
) -> Result<(), Unreadable> {
    let mut cursor = "0".to_owned();
    loop {
        let (part, next) = inspector.memory(owner, &cursor).await?;
        let moment = Moment::of(&part);
        for entry in &part.entries {
            checks::memory_entry(keys, &moment, entry, findings);
        }
        cursor = next;
        if cursor == "0" {
            return Ok(());
        }
    }
}

async fn verify_agenda(
    inspector: &Inspector,
    owner: &Owner,
    keys: &UserKeys,
    findings: &mut Findings,
) -> Result<(), Unreadable> {
    let mut cursor = "0".to_owned();
    loop {
        let (unknown, next) = inspector.agenda(owner, &cursor).await?;
        for (entry, score) in unknown {
            checks::unknown_entry(keys, &entry, &score, findings);
        }
        cursor = next;
        if cursor == "0" {
            return Ok(());
        }
    }
}

async fn verify_holds(
    inspector: &Inspector,
    owner: &Owner,
    keys: &UserKeys,
    nonces: &[String],
    findings: &mut Findings,
) -> Result<(), Unreadable> {
    for some in nonces.chunks(HOLDS_AT_ONCE) {
        let suspects = judge_holds(inspector, owner, keys, some, &mut Findings::default()).await?;
        if !suspects.is_empty() {
            tokio::time::sleep(SECOND_LOOK).await;
            judge_holds(inspector, owner, keys, &suspects, findings).await?;
        }
    }
    Ok(())
}

/// The nonces of which something was found.
async fn judge_holds(
    inspector: &Inspector,
    owner: &Owner,
    keys: &UserKeys,
    nonces: &[String],
    findings: &mut Findings,
) -> Result<Vec<String>, Unreadable> {
    let part = inspector.holds(owner, nonces).await?;
    let moment = Moment::of(&part);
    let mut suspects = Vec::new();
    for (nonce, hold) in nonces.iter().zip(&part.entries) {
        let before = findings.found.len();
        checks::hold(keys, &moment, nonce, hold, findings);
        if findings.found.len() > before {
            suspects.push(nonce.clone());
        }
    }
    Ok(suspects)
}
