//! Tokens that name one user, for public callers: JSON Web Tokens (RFC 7519), signed with HS256 by the holder of a secret key.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::domain::id::UserId;

use super::ApiKey;

/// The latest end of a token, in seconds from now. A token that somebody finds must not be usable for long.
pub const LONGEST_SECONDS: i64 = 3600;

/// The leeway for a token's `nbf`, in seconds, because the clock of the token's issuer may be ahead of Redis's. The
/// `exp` gets no such leeway, so that [`LONGEST_SECONDS`] is exact.
const LEEWAY_SECONDS: i64 = 60;

/// The length of the longest token, in bytes.
const LONGEST: usize = 2048;

/// The reason why a token names no user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// The text is not a JSON Web Token, or it is another kind of one.
    #[error(
        "it is not a JSON Web Token with the header {{\"alg\":\"HS256\",\"kid\":\"ID of a secret key\"}} and the claims sub and exp"
    )]
    Malformed,
    /// The signature is missing, or somebody else's.
    #[error("it is not signed by a secret key of this app")]
    Signature,
    /// The token has expired.
    #[error("it has expired")]
    Expired,
    /// The token is not valid yet.
    #[error("it is not valid yet")]
    Early,
    /// The token lasts too long.
    #[error("its exp is more than an hour ahead of Redis's clock: mint it for less")]
    TooLong,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: String,
    /// Extensions that must be understood, which no token needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crit: Option<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<i64>,
}

/// Makes a token for `user` with a secret key, until `exp` in seconds of the Unix epoch.
#[must_use]
pub fn mint(key: &ApiKey, user: &UserId, exp: i64) -> String {
    let header = Header { alg: "HS256".to_owned(), kid: key.id().to_owned(), crit: None };
    let claims = Claims { sub: user.as_str().to_owned(), exp, nbf: None };
    let part = |json: serde_json::Result<Vec<u8>>| URL_SAFE_NO_PAD.encode(json.unwrap_or_default());
    let signed = format!("{}.{}", part(serde_json::to_vec(&header)), part(serde_json::to_vec(&claims)));
    let signature = signer(&key.sha256(), &signed).finalize().into_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The user that a token names at `now_ms`, in milliseconds of the Unix epoch. `sha256_of` finds the digest of the secret key with an id.
///
/// # Errors
/// See [`InvalidToken`].
pub fn user<'a>(
    token: &str,
    now_ms: i64,
    sha256_of: impl FnOnce(&str) -> Option<&'a str>,
) -> Result<UserId, InvalidToken> {
    let malformed = InvalidToken::Malformed;
    let (signed, signature) = token.rsplit_once('.').filter(|_| token.len() <= LONGEST).ok_or(malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(malformed)?;
    let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed);
    let header: Header = serde_json::from_slice(&bytes(header)?).map_err(|_| malformed)?;
    // Never what the token asks for.
    if header.alg != "HS256" || header.crit.is_some() {
        return Err(malformed);
    }
    let sha256 = sha256_of(&header.kid).ok_or(InvalidToken::Signature)?;
    // Compares in constant time.
    signer(sha256, signed).verify_slice(&bytes(signature)?).map_err(|_| InvalidToken::Signature)?;
    let claims: Claims = serde_json::from_slice(&bytes(claims)?).map_err(|_| malformed)?;
    let now = now_ms / 1000;
    if claims.exp <= now {
        return Err(InvalidToken::Expired);
    }
    if claims.exp > now + LONGEST_SECONDS {
        return Err(InvalidToken::TooLong);
    }
    if claims.nbf.is_some_and(|nbf| nbf > now + LEEWAY_SECONDS) {
        return Err(InvalidToken::Early);
    }
    UserId::parse(&claims.sub).map_err(|_| malformed)
}

fn signer(sha256: &str, signed: &str) -> Hmac<Sha256> {
    let mut signer = Hmac::<Sha256>::new_from_slice(sha256.as_bytes()).expect("a key of any length will do");
    signer.update(signed.as_bytes());
    signer
}

#[cfg(test)]
mod tests {
    use super::super::Role;
    use super::*;

    const NOW_MS: i64 = 1_800_000_000_000;

    fn token(header: &str, claims: &str, sha256: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = signer(sha256, &signed).finalize().into_bytes();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn a_token_names_its_user_until_it_ends() {
        let key = ApiKey::random(Role::Secret).unwrap();
        let sha256 = key.sha256();
        let minted = mint(&key, &UserId::parse("a \u{e9}").unwrap(), NOW_MS / 1000 + 60);
        let read = |now_ms| user(&minted, now_ms, |kid| (kid == key.id()).then_some(&*sha256));
        assert_eq!(read(NOW_MS).unwrap().as_str(), "a \u{e9}");
        assert!(read(NOW_MS + 59_999).is_ok());
        assert_eq!(read(NOW_MS + 60_000), Err(InvalidToken::Expired));
        let longest = NOW_MS + 60_000 - LONGEST_SECONDS * 1000;
        assert!(read(longest).is_ok());
        assert_eq!(read(longest - 1), Err(InvalidToken::TooLong));
        assert_eq!(user(&minted, NOW_MS, |_| None), Err(InvalidToken::Signature));
        assert_eq!(user(&minted, NOW_MS, |_| Some("other")), Err(InvalidToken::Signature));
    }

    #[test]
    fn what_the_token_says_of_itself_is_not_believed() {
        let claims = r#"{"sub":"a","exp":1800000060}"#;
        let read = |token: &str| user(token, NOW_MS, |_| Some("key"));
        let header = r#"{"alg":"HS256","kid":"0123456789ab","typ":"JWT"}"#;
        assert!(read(&token(header, claims, "key")).is_ok());
        for odd in [
            r#"{"alg":"none","kid":"k"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"HS256","kid":"k","crit":["b64"]}"#,
            "[]",
            "",
        ] {
            assert_eq!(read(&token(odd, claims, "key")), Err(InvalidToken::Malformed), "{odd}");
        }
        let unsigned = token(header, claims, "key");
        let unsigned = &unsigned[..=unsigned.rfind('.').unwrap()];
        assert_eq!(read(unsigned), Err(InvalidToken::Signature));
        for odd in [
            r#"{"sub":"","exp":1800000060}"#,
            r#"{"exp":1800000060}"#,
            r#"{"sub":"a"}"#,
            r#"{"sub":"a","exp":"1800000060"}"#,
        ] {
            assert_eq!(read(&token(header, odd, "key")), Err(InvalidToken::Malformed), "{odd}");
        }
        let early = r#"{"sub":"a","exp":1800000060,"nbf":1800000061}"#;
        assert_eq!(read(&token(header, early, "key")), Err(InvalidToken::Early));
        for odd in ["", ".", "..", "a.b", "\u{e9}.\u{e9}.\u{e9}", &format!("{}.a.a", "a".repeat(3000))] {
            assert_eq!(read(odd), Err(InvalidToken::Malformed), "{odd}");
        }
    }
}
