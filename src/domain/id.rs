//! Identifiers, parsed once: users, apps, requests, reservations.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Why text cannot be an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// It is empty.
    #[error("is empty")]
    Empty,
    /// It is longer than this many bytes.
    #[error("is longer than {0} bytes")]
    TooLong(usize),
}

fn checked(text: &str, longest: usize) -> Result<&str, InvalidId> {
    match text.len() {
        0 => Err(InvalidId::Empty),
        length if length > longest => Err(InvalidId::TooLong(longest)),
        _ => Ok(text),
    }
}

/// The caller's end-user: 1 to 256 bytes, otherwise any text. Tollgate does not authenticate end-users.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserId(String);

impl UserId {
    /// Reads a user id.
    ///
    /// # Errors
    /// See [`InvalidId`].
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        checked(text, 256).map(|text| Self(text.to_owned()))
    }

    /// The id as the caller wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A namespace that owns users, plans and reservations: 1 to 64 of `[a-z0-9_-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppId(String);

/// Text that cannot name an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not the name of an app: write 1 to 64 of a to z, 0 to 9, - and _")]
pub struct InvalidAppId;

impl AppId {
    /// Reads the name of an app.
    ///
    /// # Errors
    /// [`InvalidAppId`].
    pub fn parse(text: &str) -> Result<Self, InvalidAppId> {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        let valid = (1..=64).contains(&text.len()) && text.bytes().all(known);
        valid.then(|| Self(text.to_owned())).ok_or(InvalidAppId)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for AppId {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// A user of an app, and the hash tag that all of the user's keys carry: `app:user`, with every byte outside
/// `[A-Za-z0-9._@-]` percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    tag: String,
}

impl Owner {
    /// The owner of `user`'s keys in `app`.
    #[must_use]
    pub fn new(app: &AppId, user: &UserId) -> Self {
        let mut tag = String::with_capacity(app.0.len() + 1 + user.0.len());
        push_encoded(&mut tag, &app.0);
        tag.push(':');
        push_encoded(&mut tag, &user.0);
        Self { tag }
    }

    /// The owner whose keys carry this hash tag; `None` for text that no owner's tag is written as.
    #[must_use]
    pub fn from_tag(tag: &str) -> Option<Self> {
        let (app, user) = tag.split_once(':')?;
        let (app, user) = (decoded(app)?, decoded(user)?);
        let owner = Self::new(&AppId(app), &UserId::parse(&user).ok()?);
        Some(owner).filter(|owner| owner.tag == tag && !tag.starts_with(':'))
    }

    /// Whether the user is one of this app's.
    #[must_use]
    pub fn is_of(&self, app: &AppId) -> bool {
        self.tag.strip_prefix(app.as_str()).is_some_and(|rest| rest.starts_with(':'))
    }

    /// What stands between the braces of the user's keys.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

fn push_encoded(out: &mut String, text: &str) {
    if text.bytes().all(is_plain) {
        return out.push_str(text);
    }
    for byte in text.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
}

/// What was encoded; text that could not be written so may come out as well.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._@-".contains(&byte)
}

/// Makes a retry recognisable: at most 255 bytes, as many as one byte can count where reservations are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// The longest one, in bytes.
    pub const LONGEST: usize = 255;

    /// Reads a request id; `None` for the empty text, which means there is none.
    ///
    /// # Errors
    /// [`InvalidId::TooLong`].
    pub fn parse(text: &str) -> Result<Option<Self>, InvalidId> {
        if text.is_empty() {
            return Ok(None);
        }
        checked(text, Self::LONGEST).map(|text| Some(Self(text.to_owned())))
    }

    /// The id as the caller wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// 128 random bits as text, 22 characters of base64url.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Nonce(String);

impl Nonce {
    const LENGTH: usize = 22;

    /// A nonce that has not been seen before.
    ///
    /// # Panics
    /// If the operating system gives no random bytes: nothing could be identified then.
    #[must_use]
    pub fn random() -> Self {
        Self(URL_SAFE_NO_PAD.encode(RANDOM.with_borrow_mut(Random::take)))
    }

    /// A nonce that the ledger remembers.
    #[must_use]
    pub fn from_ledger(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The nonce as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

thread_local! {
    static RANDOM: RefCell<Random> = const { RefCell::new(Random { bytes: [0; _], left: 0 }) };
}

/// Random bytes of the operating system, asked for many nonces at a time. Each is given out once, and not kept.
struct Random {
    bytes: [u8; 64 * 16],
    /// How many of them, from the front, have not been given out.
    left: usize,
}

impl Random {
    fn take(&mut self) -> [u8; 16] {
        if self.left == 0 {
            getrandom::fill(&mut self.bytes).expect("the operating system gives random bytes");
            self.left = self.bytes.len();
        }
        self.left -= 16;
        let mut taken = [0; 16];
        taken.swap_with_slice(&mut self.bytes[self.left..][..16]);
        taken
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a reservation and says where it belongs, so that settling it needs one round trip: `nonce.app:user`, with the owner
/// encoded as in the keys. Callers treat it as opaque.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReservationId {
    /// Its name among the owner's reservations.
    pub nonce: Nonce,
    /// Whose it is.
    pub owner: Owner,
}

/// Text that no reservation was ever named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a reservation id that Reserve has returned")]
pub struct UnknownReservationId;

impl ReservationId {
    /// No id is longer: the nonce, and an app and a user of which every byte is encoded.
    pub const LONGEST: usize = 1200;
}

impl FromStr for ReservationId {
    type Err = UnknownReservationId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (nonce, tag) = text.split_once('.').ok_or(UnknownReservationId)?;
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if nonce.len() != Nonce::LENGTH || !nonce.bytes().all(known) {
            return Err(UnknownReservationId);
        }
        if text.len() > Self::LONGEST {
            return Err(UnknownReservationId);
        }
        let owner = Owner::from_tag(tag).ok_or(UnknownReservationId)?;
        Ok(Self { nonce: Nonce(nonce.to_owned()), owner })
    }
}

impl fmt::Display for ReservationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.nonce, self.owner.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(user: &str) -> Owner {
        Owner::new(&AppId::default(), &UserId::parse(user).unwrap())
    }

    #[test]
    fn odd_characters_of_a_user_are_encoded_and_never_collide() {
        assert_eq!(owner("alice@example.com").tag(), "default:alice@example.com");
        assert_eq!(owner("a{b}:c%d é").tag(), "default:a%7Bb%7D%3Ac%25d%20%C3%A9");
    }

    #[test]
    fn an_app_has_a_short_plain_name_and_its_own_users() {
        for text in ["default", "a", "chat-2_eu", &"x".repeat(64)] {
            assert_eq!(AppId::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "A", "a b", "a:b", "a.b", "\u{e9}", &"x".repeat(65)] {
            assert_eq!(AppId::parse(text), Err(InvalidAppId), "{text}");
        }
        let (app, longer) = (AppId::parse("chat").unwrap(), AppId::parse("chat2").unwrap());
        let owner = Owner::new(&longer, &UserId::parse("chat:a").unwrap());
        assert!(owner.is_of(&longer) && !owner.is_of(&app) && !owner.is_of(&AppId::default()));
    }

    #[test]
    fn a_reservation_id_survives_the_wire() {
        for user in ["alice", "a.b:c{d}", "\u{0}\n", &"é".repeat(128)] {
            let id = ReservationId { nonce: Nonce::random(), owner: owner(user) };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn an_id_is_kept_as_it_was_written_and_has_its_bounds() {
        for text in ["a", "alice@example.com", &"é".repeat(128)] {
            assert_eq!(UserId::parse(text).unwrap().as_str(), text);
        }
        assert_eq!(UserId::parse(""), Err(InvalidId::Empty));
        assert_eq!(UserId::parse(&"x".repeat(257)), Err(InvalidId::TooLong(256)));
        assert_eq!(UserId::parse(&"x".repeat(300)), Err(InvalidId::TooLong(256)));
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        for text in ["a", &digest, &"x".repeat(255), &"\u{fc}".repeat(127)] {
            assert_eq!(RequestId::parse(text).unwrap().unwrap().as_str(), text);
        }
        assert_eq!(RequestId::parse(""), Ok(None));
        assert_eq!(RequestId::parse(&"x".repeat(256)), Err(InvalidId::TooLong(255)));
    }

    #[test]
    fn a_nonce_is_new_and_the_ledger_gives_it_back() {
        let nonce = Nonce::random();
        assert_ne!(nonce, Nonce::random());
        assert_eq!(nonce.as_str().len(), Nonce::LENGTH);
        assert_eq!(Nonce::from_ledger(nonce.as_str()), nonce);
        assert_eq!(nonce.to_string(), nonce.as_str());
    }

    #[test]
    fn a_reservation_id_is_a_nonce_an_app_and_a_user() {
        let nonce = "0123456789abcdef_-ABCD";
        let id: ReservationId = format!("{nonce}.default:a%20b").parse().unwrap();
        assert_eq!((id.nonce.as_str(), id.owner), (nonce, owner("a b")));
        let app = "a".repeat(ReservationId::LONGEST - format!("{nonce}.:b").len());
        assert!(format!("{nonce}.{app}:b").parse::<ReservationId>().is_ok());
        let cases = [
            format!("{nonce}.{app}a:b"),
            format!("{nonce}.{app}aaa:b"),
            format!("{nonce}x.a:b"),
            format!("{}.a:b", &nonce[1..]),
            format!("{}+.a:b", &nonce[1..]),
            format!("{nonce}:a:b"),
            format!("{nonce}.a.b"),
            format!("{nonce}.:b"),
            format!("{nonce}.a:"),
            format!("{nonce}.a b:c"),
            format!("{nonce}.a:b:c"),
        ];
        for text in cases {
            assert_eq!(text.parse::<ReservationId>(), Err(UnknownReservationId), "{text}");
        }
    }

    #[test]
    fn other_text_is_no_reservation_id() {
        let nonce = Nonce::random();
        for text in ["", "x", ".", "a.b:c"] {
            assert_eq!(text.parse::<ReservationId>(), Err(UnknownReservationId), "{text}");
        }
        // Not encoded, needlessly encoded, badly encoded, no text, too long.
        let long = format!("a:{}", "u".repeat(257));
        for tag in ["x", "a:", ":a", "a:b}c", "a:b:c", "a:%61", "a:%7b", "a:%7", "a:%+7", "a:%é", "a:%FF", &long] {
            let text = format!("{nonce}.{tag}");
            assert_eq!(text.parse::<ReservationId>(), Err(UnknownReservationId), "{text}");
        }
    }
}
