//! API keys: `tollgate_ROLE_ID_SECRET`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Role;

/// The id of a key, in hexadecimal digits: 6 random bytes.
const ID_LENGTH: usize = 12;

/// The secret of a key, in base64url: 32 random bytes.
const SECRET_LENGTH: usize = 43;

/// An API key. It is shown to people once, and never logged: it has no `Debug`.
pub struct ApiKey {
    text: String,
    prefix: usize,
}

/// The text is not an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not an API key: write it as tollgate_secret_ID_SECRET")]
pub struct InvalidKey;

impl ApiKey {
    /// A new key.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn random(role: Role) -> Result<Self, getrandom::Error> {
        let (mut id, mut secret) = ([0; ID_LENGTH / 2], [0; 32]);
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut secret)?;
        let prefix = format!("tollgate_{}_{}", role.as_str(), hex(&id));
        let text = format!("{prefix}_{}", URL_SAFE_NO_PAD.encode(secret));
        Ok(Self { prefix: prefix.len(), text })
    }

    /// Reads a key as a caller sends it.
    ///
    /// # Errors
    /// [`InvalidKey`].
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let prefix = text.len().checked_sub(SECRET_LENGTH + 1).ok_or(InvalidKey)?;
        let (front, secret) = text.split_at_checked(prefix).ok_or(InvalidKey)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        id_of(front).ok_or(InvalidKey)?;
        (secret.starts_with('_') && secret.bytes().all(plain)).then_some(()).ok_or(InvalidKey)?;
        Ok(Self { text: text.to_owned(), prefix })
    }

    /// The whole key.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// The part of the key that lists and logs may show: all but the secret.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.text[..self.prefix]
    }

    /// The id under which the key's record is stored.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.text[self.prefix - ID_LENGTH..self.prefix]
    }

    /// SHA-256 of its text, in hexadecimal digits.
    #[must_use]
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.text))
    }

    /// Returns whether this is the digest of the key. The time it takes depends on neither.
    #[must_use]
    pub fn has_sha256(&self, digest: &str) -> bool {
        self.sha256().as_bytes().ct_eq(digest.as_bytes()).into()
    }
}

/// The id in `tollgate_ROLE_ID`.
#[must_use]
pub fn id_of(prefix: &str) -> Option<&str> {
    let rest = prefix.strip_prefix("tollgate_")?;
    let id = rest.strip_prefix("secret_").or_else(|| rest.strip_prefix("public_"))?;
    is_id(id).then_some(id)
}

/// Returns whether this is the id of a key.
#[must_use]
pub fn is_id(id: &str) -> bool {
    id.len() == ID_LENGTH && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The key that a person names: by its id, by its prefix, or whole.
#[must_use]
pub fn named(text: &str) -> Option<String> {
    let key = ApiKey::parse(text);
    let id = key.as_ref().map_or_else(|_| id_of(text).or_else(|| is_id(text).then_some(text)), |key| Some(key.id()));
    id.map(str::to_owned)
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a text does not fail.
        let _: fmt::Result = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_made_and_found_by_its_prefix() {
        for role in [Role::Secret, Role::Public] {
            let key = ApiKey::random(role).unwrap();
            let read = ApiKey::parse(key.reveal()).unwrap();
            assert_eq!((read.id(), read.prefix()), (key.id(), key.prefix()));
            assert!(
                read.has_sha256(&key.sha256()) && key.prefix().starts_with(&format!("tollgate_{}_", role.as_str()))
            );
            for name in [key.reveal(), key.prefix(), key.id()] {
                assert_eq!(named(name).as_deref(), Some(key.id()), "{name}");
            }
            assert!(!key.has_sha256(&ApiKey::random(role).unwrap().sha256()) && !key.has_sha256(""));
        }
    }

    #[test]
    fn other_text_is_no_key() {
        let secret = "A".repeat(SECRET_LENGTH);
        let valid = format!("tollgate_secret_0123456789ab_{secret}");
        assert!(ApiKey::parse(&valid).is_ok());
        let odd = [
            "",
            "tollgate_secret_0123456789ab",
            &valid[1..],
            &valid[..valid.len() - 1],
            &valid.replace("secret", "admin"),
            &valid.replace("ab_", "AB_"),
            &valid.replace("AAA", "AA\u{e9}"),
            &valid.replace("AAA", "AA "),
            &format!("\u{e9}{valid}"),
            &format!("{valid}A"),
            &"\u{e9}".repeat(60),
        ];
        for text in odd {
            assert!(ApiKey::parse(text).is_err(), "{text}");
        }
        assert_eq!((named("tollgate_secret_"), named("0123456789AB")), (None, None));
    }
}
