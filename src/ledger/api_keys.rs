//! The records of API keys: one hash for all apps, as there are few, and each replica holds them all.

use serde::{Deserialize, Serialize};

use crate::domain::caller::Role;
use crate::domain::fault::Fault;
use crate::domain::id::{base64url, random};

use super::keys::API_KEYS;
use super::message::Message;
use super::{Ledger, nobody};

/// The stored record of a key. The key itself is stored nowhere. The record has no `Debug`: the digest signs tokens.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The app that the key belongs to.
    pub app: String,
    /// The role of callers with this key.
    pub role: Role,
    /// SHA-256 of its whole text, in hexadecimal digits.
    pub sha256: String,
    /// The time at which it was made, in milliseconds of the Unix epoch.
    pub created_ms: i64,
    /// The key's name for people; may be empty.
    pub name: String,
}

/// All records, at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRecords {
    /// Redis's time.
    pub now_ms: i64,
    /// Changes with every change.
    pub revision: String,
    /// The records, by the ids of the keys; `None` if the known revision is current. A record that is not understood is
    /// left out, and logged.
    pub records: Option<Vec<(String, KeyRecord)>>,
}

impl Ledger {
    /// The records of all API keys, if their revision is another than `known`.
    ///
    /// # Errors
    /// [`Fault::Unavailable`]; [`Fault::Internal`] for an answer that is not understood.
    pub async fn api_keys(&self, known: &str) -> Result<KeyRecords, Fault> {
        let message = message(&[known]);
        let answer = self.connections.evaluate(&self.scripts.api_keys, &nobody(), message).await?;
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
        let revision = base64url(&random::<16>());
        let message = message(&[id, record, &revision]);
        decoded(&self.connections.evaluate(&self.scripts.api_key_put, &nobody(), message).await?)
    }
}

fn message(arguments: &[&str]) -> Message {
    let mut message = Message::default();
    message.key(|key| key.extend_from_slice(API_KEYS.as_bytes()));
    for argument in arguments {
        message.argument(|bytes| bytes.extend_from_slice(argument.as_bytes()));
    }
    message
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
