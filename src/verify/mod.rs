//! `tollgate verify`: reads the whole state of a live Redis, and reports what contradicts itself.
//!
//! Users are found by `SCAN`. What of a user must agree is read by scripts (`ledger::inspection`), decoded (`stored`), and judged by pure
//! functions (`checks`). What several scripts have read belongs together only if nothing was written meanwhile; otherwise it is
//! read again. So calls that go on meanwhile are never mistaken for contradictions.

mod checks;
mod stored;
#[cfg(test)]
mod tests;
mod value;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::domain::id::{Field, Owner, PlanDigest};
use crate::ledger::inspection::{Cursors, Inspector, ScanPosition, Unreadable};
use crate::ledger::keys::{KeyKind, kind};
use crate::ledger::{ConnectError, RedisAccess, UserKeys};

use checks::{Findings, HoldMoment, Judged, Reading};
use stored::Plan;

/// The number of users that are read at the same time.
const AT_ONCE: usize = 16;

/// The number of `hold` keys that one script looks at.
const HOLDS_AT_ONCE: usize = 100;

/// About how many fields of each memory one script looks at. A user whose state changes while it is read is read again, by larger pieces.
const FIELDS_AT_ONCE: [usize; 4] = [250, 250, 1000, 4000];

/// The number of archived plans that are remembered. An installation has fewer.
const MOST_PLANS: usize = 1000;

/// The time after which a `hold` key with a problem is looked at again: `DeleteUser` deletes these keys a moment after
/// the others.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// The severity of a finding.
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
    /// The severity.
    pub kind: Kind,
    /// The key; odd characters are escaped.
    pub key: String,
    /// The problem, with the numbers found and expected. Times are milliseconds of the Unix epoch.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let note = if self.kind == Kind::Note { "note: " } else { "" };
        write!(f, "{}: {note}{}", self.key, self.what)
    }
}

/// The number of things that were looked at, and of findings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Users with any key.
    pub users: u64,
    /// Windows in their states.
    pub windows: u64,
    /// Live holds in their states.
    pub live_holds: u64,
    /// Reservations that are remembered.
    pub reservations: u64,
    /// Tracked events that are remembered.
    pub tracked: u64,
    /// Findings that no script leaves behind.
    pub contradictions: u64,
    /// Findings that are odd, but possible.
    pub notes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, windows, live_holds, reservations, tracked, contradictions, notes } = self;
        write!(
            f,
            "users {users}, windows {windows}, live holds {live_holds}, reservations {reservations}, tracked events {tracked}: \
             contradictions {contradictions}, notes {notes}"
        )
    }
}

/// The reason why a Redis could not be verified to its end.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Redis could not be read at all.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Redis could not be read to the end.
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

/// Verifies as [`run`] does, and reports each finding once, as soon as it is found.
///
/// # Errors
/// See [`VerifyError`].
pub async fn run_telling(
    urls: &[String],
    access: &RedisAccess,
    mut tell: impl FnMut(&Finding),
) -> Result<Report, VerifyError> {
    let inspector = Inspector::connect(urls, access).await?;
    let plans = Plans { inspector: inspector.clone(), known: Arc::default() };
    let (mut report, mut seen, mut told) = (Report::default(), HashSet::new(), HashSet::new());
    let mut position = Some(ScanPosition::default());
    while let Some(from) = position {
        let (keys, next) = inspector.scan(from).await?;
        position = next;
        let Sorted { users, plans: archived, unknown } = sort(&keys, &mut seen);
        report.users += users.values().filter(|(_, part)| part.is_new).count() as u64;
        let mut all = Findings { found: unknown, ..Findings::default() };
        for digest in archived {
            plans.check(digest, &mut all).await?;
        }
        let mut waiting = users.into_values();
        let mut working = JoinSet::new();
        loop {
            while working.len() < AT_ONCE
                && let Some((owner, part)) = waiting.next()
            {
                working.spawn(verify_user(inspector.clone(), plans.clone(), owner, part));
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
        report.tracked += all.tracked;
    }
    Ok(report)
}

/// The keys of a user that a page of the scan has named.
#[derive(Default)]
struct UserPart {
    /// The user was not met before.
    is_new: bool,
    /// The fields of `hold` keys.
    holds: Vec<Field>,
}

/// The keys of a page.
#[derive(Default)]
struct Sorted {
    users: BTreeMap<String, (Owner, UserPart)>,
    plans: Vec<PlanDigest>,
    unknown: Vec<Finding>,
}

/// Sorts keys by user. What belongs to nobody is found.
fn sort(keys: &[Vec<u8>], seen: &mut HashSet<Owner>) -> Sorted {
    let mut sorted = Sorted::default();
    for key in keys {
        let (owner, hold) = match kind(key) {
            KeyKind::State(owner) => (owner, None),
            KeyKind::Hold(owner, field) => (owner, Some(field)),
            KeyKind::Plan(digest) => {
                sorted.plans.push(digest);
                continue;
            }
            KeyKind::ApiKeys => continue,
            KeyKind::Unknown => {
                let key = key.escape_ascii().to_string();
                sorted.unknown.push(Finding { kind: Kind::Contradiction, key, what: "belongs to nothing".to_owned() });
                continue;
            }
        };
        let part = sorted.users.entry(owner.tag().to_owned());
        let (_, part) = part.or_insert_with(|| (owner.clone(), UserPart::default()));
        part.is_new |= seen.insert(owner);
        part.holds.extend(hold);
    }
    sorted
}

/// The plans of the archive, each read once.
#[derive(Clone)]
struct Plans {
    inspector: Inspector,
    known: Arc<Mutex<HashMap<PlanDigest, Option<Plan>>>>,
}

impl Plans {
    /// Reads a plan, and reports its problems.
    async fn check(&self, digest: PlanDigest, findings: &mut Findings) -> Result<Option<Plan>, Unreadable> {
        let archived = self.inspector.plan(&digest).await?;
        let plan = checks::archived_plan(&digest, &archived, findings);
        let mut known = self.known.lock().await;
        if known.len() < MOST_PLANS {
            known.insert(digest, plan.clone());
        }
        Ok(plan)
    }

    /// Returns the plans of these digests that are there. A plan's problems are reported where its key is met.
    async fn all(
        &self,
        digests: impl Iterator<Item = PlanDigest>,
    ) -> Result<BTreeMap<PlanDigest, Option<Plan>>, Unreadable> {
        let mut found = BTreeMap::new();
        for digest in digests {
            let known = self.known.lock().await.get(&digest).cloned();
            let plan = match known {
                Some(Some(plan)) => Some(plan),
                // It may be there by now.
                _ => self.check(digest, &mut Findings::default()).await?,
            };
            found.insert(digest, plan);
        }
        Ok(found)
    }
}

async fn verify_user(inspector: Inspector, plans: Plans, owner: Owner, part: UserPart) -> Result<Findings, Unreadable> {
    let keys = UserKeys::new(&owner);
    let mut findings = Findings::default();
    let mut holds = part.holds;
    if part.is_new {
        let mut judged = read_user(&inspector, &owner, &keys).await?;
        let digests: BTreeSet<_> =
            judged.charged.iter().map(|(digest, ..)| *digest).chain(judged.open.keys().copied()).collect();
        let plans = plans.all(digests.into_iter()).await?;
        checks::record_plans(&keys, &mut judged, &plans);
        holds.append(&mut judged.live);
        findings.add(judged.findings);
    }
    holds.sort_unstable();
    holds.dedup();
    verify_holds(&inspector, &owner, &keys, &holds, &mut findings).await?;
    Ok(findings)
}

/// Reads a user until nothing is written meanwhile, or as often as is worth while.
async fn read_user(inspector: &Inspector, owner: &Owner, keys: &UserKeys) -> Result<Judged, Unreadable> {
    let (last, first) = FIELDS_AT_ONCE.split_last().expect("there are several");
    for count in first {
        let (judged, at_once) = read_once(inspector, owner, keys, *count, false).await?;
        if at_once {
            return Ok(judged);
        }
    }
    let (mut judged, at_once) = read_once(inspector, owner, keys, *last, true).await?;
    if !at_once {
        checks::note_of_changes(keys, &mut judged.findings);
    }
    Ok(judged)
}

/// Reads a user, and returns whether nothing was written meanwhile. After a write, it goes on only if `read_fully`.
async fn read_once(
    inspector: &Inspector,
    owner: &Owner,
    keys: &UserKeys,
    count: usize,
    read_fully: bool,
) -> Result<(Judged, bool), Unreadable> {
    let (seen, mut next) = inspector.user(owner, &Cursors::default(), count).await?;
    let mut reading = Reading::of(keys, &seen);
    reading.add(&seen);
    let (stamp, mut at_once) = (seen.stamp, true);
    while let Some(cursors) = next
        && (at_once || read_fully)
    {
        let (seen, more) = inspector.user(owner, &cursors, count).await?;
        at_once &= seen.stamp == stamp;
        reading.add(&seen);
        next = more;
    }
    Ok((reading.finish(at_once), at_once))
}

async fn verify_holds(
    inspector: &Inspector,
    owner: &Owner,
    keys: &UserKeys,
    fields: &[Field],
    findings: &mut Findings,
) -> Result<(), Unreadable> {
    for some in fields.chunks(HOLDS_AT_ONCE) {
        let suspects = judge_holds(inspector, owner, keys, some, &mut Findings::default()).await?;
        if !suspects.is_empty() {
            tokio::time::sleep(SECOND_LOOK).await;
            judge_holds(inspector, owner, keys, &suspects, findings).await?;
        }
    }
    Ok(())
}

/// Checks holds, and returns the fields of those with findings.
async fn judge_holds(
    inspector: &Inspector,
    owner: &Owner,
    keys: &UserKeys,
    fields: &[Field],
    findings: &mut Findings,
) -> Result<Vec<Field>, Unreadable> {
    let holds = inspector.holds(owner, fields).await?;
    let moment = HoldMoment::of(&holds);
    let mut suspects = Vec::new();
    for (field, hold) in fields.iter().zip(&holds.holds) {
        let before = findings.found.len();
        checks::hold(keys, &moment, field, hold, findings);
        if findings.found.len() > before {
            suspects.push(*field);
        }
    }
    Ok(suspects)
}
