//! The API keys that a replica knows, and the callers they stand for.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use crate::domain::fault::Fault;
use crate::domain::id::AppId;
use crate::ledger::{KeyRecord, Ledger};

use super::{ApiKey, Caller, Role, token};

/// The interval at which Tollgate asks Redis whether the keys have changed. While Redis answers, a revoked key stops
/// working within this time.
pub const REFRESH: Duration = Duration::from_secs(1);

/// The time for which known keys are still accepted while they cannot be read again.
pub const STALE: Duration = Duration::from_secs(5);

/// The number of callers that may wait for a lookup of unknown keys. Callers without a valid key must not hold up those
/// who have one.
const MOST_WAITING: usize = 1000;

/// Keys that are not known are asked for at most this often.
const UNKNOWN: Duration = Duration::from_millis(100);

/// The credentials that a call presents.
#[derive(Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The text of an API key.
    pub key: Option<&'a str>,
    /// The token that names a user.
    pub token: Option<&'a str>,
}

/// The caller, as far as it is known without asking Redis.
pub enum Verdict {
    /// This caller.
    Known(Arc<Caller>),
    /// The call is refused.
    Refused(Fault),
    /// A key that Redis may know: ask again after [`Guard::look_up`].
    Unknown,
}

/// Knows the API keys.
pub struct Guard {
    ledger: Ledger,
    known: RwLock<Known>,
    /// The time of the last lookup of unknown keys, and whether Redis answered. The lock is held during a lookup.
    asked: Mutex<Option<(Instant, bool)>>,
    /// Limits the number of callers that wait for a lookup.
    waiting: Semaphore,
    /// Take the keys that were known last while Redis does not answer.
    fail_open: bool,
}

struct Known {
    revision: String,
    keys: HashMap<String, Key>,
    /// The time by which Redis's clock is ahead of this machine's, in milliseconds.
    ahead_ms: i64,
    read: Instant,
}

struct Key {
    sha256: String,
    caller: Arc<Caller>,
}

impl Guard {
    /// Reads the keys.
    ///
    /// # Errors
    /// As [`Ledger::api_keys`].
    pub async fn open(ledger: Ledger, fail_open: bool) -> Result<Self, Fault> {
        let known = Known { revision: String::new(), keys: HashMap::new(), ahead_ms: 0, read: Instant::now() };
        let guard = Self {
            ledger,
            known: RwLock::new(known),
            asked: Mutex::default(),
            waiting: Semaphore::new(MOST_WAITING),
            fail_open,
        };
        guard.refresh().await?;
        Ok(guard)
    }

    /// Returns the caller with these credentials.
    #[must_use]
    pub fn caller(&self, shown: Credentials<'_>) -> Verdict {
        let Some(key) = shown.key.and_then(|text| ApiKey::parse(text).ok()) else {
            return Verdict::Refused(Fault::Unauthenticated);
        };
        let known = self.known();
        if known.read.elapsed() > STALE && !self.fail_open {
            return Verdict::Refused(Fault::Unavailable("the API keys could not be read for five seconds".into()));
        }
        let Some(found) = known.keys.get(key.id()) else { return Verdict::Unknown };
        if !key.has_sha256(&found.sha256) {
            return Verdict::Refused(Fault::Unauthenticated);
        }
        match (found.caller.role, shown.token) {
            (Role::Secret, _) | (Role::Public, None) => Verdict::Known(Arc::clone(&found.caller)),
            (Role::Public, Some(token)) => match known.user(&found.caller.app, token) {
                Ok(user) => Verdict::Known(Arc::new(Caller { user: Some(user), ..Caller::clone(&found.caller) })),
                Err(invalid) => Verdict::Refused(Fault::TokenInvalid(invalid.to_string())),
            },
        }
    }

    /// Reads the keys, if they have not been read since this was called, and not a moment ago. However many callers show keys that are not
    /// known, Redis hears of few, and few wait.
    ///
    /// # Errors
    /// [`Fault::Overloaded`], and [`Fault::Unavailable`] if Redis does not answer: nothing is known of the key then.
    pub async fn look_up(&self) -> Result<(), Fault> {
        let _waiting = self.waiting.try_acquire().map_err(|_| Fault::Overloaded)?;
        let called = Instant::now();
        let mut asked = self.asked.lock().await;
        let answered = match *asked {
            Some((last, answered)) if last >= called => answered,
            last => {
                if let Some((last, _)) = last {
                    tokio::time::sleep_until(last + UNKNOWN).await;
                }
                let began = Instant::now();
                let answered = self.refresh_or_say().await;
                *asked = Some((began, answered));
                answered
            }
        };
        answered.then_some(()).ok_or_else(|| Fault::Unavailable("the API keys could not be read".into()))
    }

    /// Reads the keys again every `REFRESH`, for ever.
    pub async fn refresh_periodically(&self) {
        loop {
            tokio::time::sleep(REFRESH).await;
            self.refresh_or_say().await;
        }
    }

    async fn refresh_or_say(&self) -> bool {
        let read = self.refresh().await;
        if let Err(fault) = &read {
            let error = std::error::Error::source(fault);
            tracing::warn!(error, "the API keys could not be read");
        }
        read.is_ok()
    }

    async fn refresh(&self) -> Result<(), Fault> {
        let revision = self.known().revision.clone();
        // As they were when it was asked, not when it answered.
        let read = Instant::now();
        let answer = self.ledger.api_keys(&revision).await?;
        let ahead_ms = answer.now_ms.saturating_sub(jiff::Timestamp::now().as_millisecond());
        let keys = answer.records.map(|records| records.into_iter().filter_map(key).collect());
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // An answer that was overtaken must not bring a revoked key back.
        if read >= known.read {
            known.read = read;
            known.ahead_ms = ahead_ms;
            if let Some(keys) = keys {
                known.keys = keys;
                known.revision = answer.revision;
                tracing::info!(keys = known.keys.len(), "read the API keys");
            }
        }
        Ok(())
    }

    fn known(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn user(&self, app: &AppId, token: &str) -> Result<crate::domain::id::UserId, token::InvalidToken> {
        // ONE-CLOCK: tokens end by Redis's clock as well.
        let now_ms = jiff::Timestamp::now().as_millisecond().saturating_add(self.ahead_ms);
        token::user(token, now_ms, |id| {
            let key = self.keys.get(id)?;
            (key.caller.role == Role::Secret && key.caller.app == *app).then_some(&*key.sha256)
        })
    }
}

fn key((id, record): (String, KeyRecord)) -> Option<(String, Key)> {
    let KeyRecord { app, role, sha256, created_ms: _, name: _ } = record;
    match AppId::parse(&app) {
        Ok(app) => Some((id, Key { sha256, caller: Arc::new(Caller { app, role, user: None }) })),
        Err(error) => {
            tracing::error!(key = id, "the app of an API key {error}: nobody can use the key");
            None
        }
    }
}
