//! The records of API keys: one hash for all apps, as there are few, and each replica holds them all.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::domain::fault::Fault;
use crate::domain::id::{AppId, Nonce, Owner, UserId};

use super::Ledger;
use super::keys::API_KEYS;

/// What is kept of a key. The key itself is kept nowhere. It has no `Debug`: the digest signs tokens.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Whose key it is.
    pub app: String,
    /// What it may do.
    pub role: Role,
    /// SHA-256 of its whole text, in hexadecimal digits.
    pub sha256: String,
    /// When it was made, in milliseconds of the Unix epoch.
    pub created_ms: i64,
    /// What people call it; may be empty.
    pub name: String,
}

/// All records, at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRecords {
    /// Redis's time.
    pub now_ms: i64,
    /// Changes with every change.
    pub revision: String,
    /// By the ids of the keys; `None` if the revision is the one that was known. A record that is not understood is left out, and logged.
    pub records: Option<Vec<(String, KeyRecord)>>,
}

/// Only chooses a connection.
static NOBODY: LazyLock<Owner> =
    LazyLock::new(|| Owner::new(&AppId::default(), &UserId::parse("api-keys").expect("a user id")));

impl Ledger {
    /// The records of all API keys, if their revision is another than `known`.
    ///
    /// # Errors
    /// [`Fault::Unavailable`]; [`Fault::Internal`] for an answer that is not understood.
    pub async fn api_keys(&self, known: &str) -> Result<KeyRecords, Fault> {
        let keys = [API_KEYS.to_owned()];
        let script = &self.scripts.api_keys;
        let answer = self.connections.evaluate(script, &keys, &NOBODY, &[known.as_bytes()]).await?;
        let (now_ms, revision, fields): (i64, String, Fields) = decoded(&answer)?;
        let records = match fields {
            Fields::Known(_) => None,
            Fields::All(fields) => Some(records(&fields)),
        };
        Ok(KeyRecords { now_ms, revision, records })
    }

    /// Adds a key. `false`: its id is taken.
    ///
    /// # Errors
    /// As [`Self::api_keys`].
    pub async fn add_api_key(&self, id: &str, record: &KeyRecord) -> Result<bool, Fault> {
        let record = serde_json::to_string(record).map_err(|error| Fault::Internal(error.into()))?;
        self.put_api_key(id, &record).await
    }

    /// Takes a key away. `false`: there is none of this id.
    ///
    /// # Errors
    /// As [`Self::api_keys`].
    pub async fn remove_api_key(&self, id: &str) -> Result<bool, Fault> {
        self.put_api_key(id, "").await
    }

    async fn put_api_key(&self, id: &str, record: &str) -> Result<bool, Fault> {
        let keys = [API_KEYS.to_owned()];
        let revision = Nonce::random();
        let args = [id.as_bytes(), record.as_bytes(), revision.as_str().as_bytes()];
        let script = &self.scripts.api_key_put;
        decoded(&self.connections.evaluate(script, &keys, &NOBODY, &args).await?)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Fields {
    #[expect(dead_code, reason = "it is always false")]
    Known(bool),
    All(Vec<String>),
}

fn records(fields: &[String]) -> Vec<(String, KeyRecord)> {
    let record = |pair: &[String]| {
        let [id, text] = pair else { return None };
        match serde_json::from_str(text) {
            Ok(record) => Some((id.clone(), record)),
            Err(_) if id == "revision" => None,
            Err(error) => {
                tracing::error!(key = id, %error, "the record of an API key is not understood: nobody can use the key");
                None
            }
        }
    };
    fields.chunks(2).filter_map(record).collect()
}

fn decoded<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Fault> {
    rmp_serde::from_slice(answer).map_err(|error| Fault::Internal(error.into()))
}
