//! Identifiers, parsed once: users, apps, requests, reservations.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// The reason why text cannot be an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// The text is longer than this many bytes.
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
        tag.push_str(&app.0);
        tag.push(':');
        push_encoded(&mut tag, &user.0);
        Self { tag }
    }

    /// The owner whose keys carry this hash tag; `None` for text that no owner's tag is written as.
    #[must_use]
    pub fn from_tag(tag: &str) -> Option<Self> {
        let (app, user) = tag.split_once(':')?;
        let owner = Self::new(&AppId::parse(app).ok()?, &UserId::parse(&decoded(user)?).ok()?);
        Some(owner).filter(|owner| owner.tag == tag)
    }

    /// Returns whether the user belongs to this app.
    #[must_use]
    pub fn is_of(&self, app: &AppId) -> bool {
        self.app() == app.as_str()
    }

    /// The text between the braces of the user's keys.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The name of the app, which needs no encoding.
    #[must_use]
    pub fn app(&self) -> &str {
        self.parts().0
    }

    /// The user's id, as the caller wrote it.
    #[must_use]
    pub fn user(&self) -> Cow<'_, str> {
        let user = self.parts().1;
        let encoded = if user.contains('%') { decoded(user) } else { None };
        encoded.map_or(Cow::Borrowed(user), Cow::Owned)
    }

    fn parts(&self) -> (&str, &str) {
        self.tag.split_once(':').unwrap_or((&self.tag, ""))
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

/// Decodes an encoded id. Text that cannot come from the encoder may decode as well.
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

/// Makes a retry recognisable: at most 255 bytes.
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

/// Returns `N` random bytes.
///
/// # Panics
/// If the operating system gives no random bytes: nothing could be identified then.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    RANDOM.with_borrow_mut(Random::take)
}

/// Bytes as text: base64url without padding.
#[must_use]
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes text of [`base64url`].
#[must_use]
pub fn bytes_of_base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Decodes text of [`base64url`], if it holds exactly `N` bytes.
#[must_use]
pub fn from_base64url<const N: usize>(text: &str) -> Option<[u8; N]> {
    bytes_of_base64url(text)?.try_into().ok()
}

thread_local! {
    static RANDOM: RefCell<Random> = const { RefCell::new(Random { bytes: [0; _], left: 0 }) };
}

/// Random bytes of the operating system, asked for many at a time. Each is given out once, and not kept.
struct Random {
    bytes: [u8; 1024],
    /// The number of bytes, from the front, that have not been given out.
    left: usize,
}

impl Random {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        if self.left < N {
            getrandom::fill(&mut self.bytes).expect("the operating system gives random bytes");
            self.left = self.bytes.len();
        }
        self.left -= N;
        taken.swap_with_slice(&mut self.bytes[self.left..][..N]);
        taken
    }
}

/// The name of a reservation or a tracked event within its owner's memory: the beginning of the SHA-256 of its request
/// id, or random bytes.
pub type Field = [u8; 16];

/// Tells a reservation or an event from others that had the same request id.
pub type Suffix = [u8; 6];

/// Names what a plan says, by the beginning of the SHA-256 of its message.
pub type PlanDigest = [u8; 8];

/// The field that belongs to a request id, or one of its own where there is none.
#[must_use]
pub fn field_of(request_id: Option<&RequestId>) -> Field {
    request_id.map_or_else(random, |id| beginning(&Sha256::digest(id.as_str())))
}

/// The beginning of a digest.
///
/// # Panics
/// If the digest is not as long.
#[must_use]
pub fn beginning<const N: usize>(digest: &[u8]) -> [u8; N] {
    *digest.first_chunk().expect("a SHA-256 has 32 bytes")
}

/// The id of a reservation. It says where the reservation belongs and by which plan it is settled, so that its
/// settlement needs one round trip. Callers treat it as opaque. It is not secret.
///
/// On the wire it is base64url of a version, the field, the suffix, the plan, and of the app and the user after their lengths.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReservationId {
    /// Its name within the owner's memory.
    pub field: Field,
    /// Tells it from others with the same request id.
    pub suffix: Suffix,
    /// The plan by which it was made.
    pub plan: PlanDigest,
    /// The owner of the reservation.
    pub owner: Owner,
}

/// Text that no reservation was ever named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a reservation id that Reserve has returned")]
pub struct UnknownReservationId;

impl ReservationId {
    /// The length of the longest id.
    pub const LONGEST: usize = 1024;

    /// The first byte of every id.
    const VERSION: u8 = 1;

    fn read(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (field, rest) = rest.split_first_chunk()?;
        let (suffix, rest) = rest.split_first_chunk()?;
        let (plan, rest) = rest.split_first_chunk()?;
        let (app_length, rest) = rest.split_first()?;
        let (app, rest) = rest.split_at_checked((*app_length).into())?;
        let (user_length, user) = rest.split_first_chunk()?;
        if *version != Self::VERSION || user.len() != usize::from(u16::from_le_bytes(*user_length)) {
            return None;
        }
        let app = AppId::parse(str::from_utf8(app).ok()?).ok()?;
        let user = UserId::parse(str::from_utf8(user).ok()?).ok()?;
        Some(Self { field: *field, suffix: *suffix, plan: *plan, owner: Owner::new(&app, &user) })
    }

    fn bytes(&self) -> Vec<u8> {
        let (app, user) = (self.owner.app(), self.owner.user());
        let mut bytes = Vec::with_capacity(34 + app.len() + user.len());
        bytes.push(Self::VERSION);
        bytes.extend_from_slice(&self.field);
        bytes.extend_from_slice(&self.suffix);
        bytes.extend_from_slice(&self.plan);
        bytes.push(u8::try_from(app.len()).expect("an app has at most 64 bytes"));
        bytes.extend_from_slice(app.as_bytes());
        bytes.extend_from_slice(&u16::try_from(user.len()).expect("a user has at most 256 bytes").to_le_bytes());
        bytes.extend_from_slice(user.as_bytes());
        bytes
    }
}

impl FromStr for ReservationId {
    type Err = UnknownReservationId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > Self::LONGEST {
            return Err(UnknownReservationId);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| UnknownReservationId)?;
        Self::read(&bytes).ok_or(UnknownReservationId)
    }
}

impl fmt::Display for ReservationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64url(&self.bytes()))
    }
}

/// Names a tracked event, for people: nothing is looked up by it.
#[must_use]
pub fn event_id(field: &Field, suffix: &Suffix) -> String {
    let mut bytes = [0; 22];
    bytes[..16].copy_from_slice(field);
    bytes[16..].copy_from_slice(suffix);
    base64url(&bytes)
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
    fn an_owner_says_its_app_and_user() {
        for user in ["alice", "a.b:c{d}", "\u{0}\n", "%41", &"é".repeat(128)] {
            let owner = owner(user);
            assert_eq!((owner.app(), &*owner.user()), ("default", user));
            assert_eq!(Owner::from_tag(owner.tag()).as_ref(), Some(&owner));
        }
        // Not encoded, needlessly encoded, badly encoded, no text, too long, no app.
        let long = format!("a:{}", "u".repeat(257));
        for tag in [
            "x", "a:", ":a", "a:b}c", "a:b:c", "a:%61", "a:%7b", "a:%7", "a:%+7", "a:%é", "a:%FF", "A:b", "a%2D:b",
            &long,
        ] {
            assert_eq!(Owner::from_tag(tag), None, "{tag}");
        }
    }

    #[test]
    fn random_bytes_are_new_however_many_are_taken() {
        let taken: std::collections::HashSet<[u8; 16]> = (0..1000).map(|_| random()).collect();
        assert_eq!(taken.len(), 1000);
        let _: [u8; 6] = random();
        let (one, two): ([u8; 16], [u8; 16]) = (random(), random());
        assert!(one != two && one != [0; 16] && two != [0; 16]);
        assert_ne!(random::<1024>()[..512], [0; 512]);
    }

    #[test]
    fn text_stands_for_bytes_and_no_other_text_for_the_same() {
        let bytes = *b"0123456789abcdef";
        assert_eq!(base64url(&bytes), "MDEyMzQ1Njc4OWFiY2RlZg");
        assert_eq!(from_base64url("MDEyMzQ1Njc4OWFiY2RlZg"), Some(bytes));
        for text in [
            "",
            "MDEyMzQ1Njc4OWFiY2RlZh",
            "MDEyMzQ1Njc4OWFiY2RlZg==",
            "MDEyMzQ1Njc4OWFiY2Rl",
            "MDEyMzQ1Njc4OWFiY2RlZmc",
        ] {
            assert_eq!(from_base64url::<16>(text), None, "{text}");
        }
    }

    #[test]
    fn a_request_id_has_one_field_and_calls_without_have_their_own() {
        let id = |text| RequestId::parse(text).unwrap();
        assert_eq!(field_of(id("r1").as_ref()), field_of(id("r1").as_ref()));
        assert_ne!(field_of(id("r1").as_ref()), field_of(id("r2").as_ref()));
        assert_ne!(field_of(None), field_of(None));
        // The beginning of its SHA-256.
        assert_eq!(base64url(&field_of(id("abc").as_ref())), "ungWv48Bz-pBQUDeXa4iIw");
    }

    fn reservation(owner: Owner) -> ReservationId {
        ReservationId { field: *b"0123456789abcdef", suffix: *b"suffix", plan: *b"the plan", owner }
    }

    #[test]
    fn a_reservation_id_survives_the_wire_and_shows_no_user() {
        for user in ["alice", "a.b:c{d}", "\u{0}\n", &"é".repeat(128)] {
            let id = reservation(owner(user));
            let text = id.to_string();
            assert!(text.len() <= ReservationId::LONGEST && !text.contains(user), "{text}");
            assert_eq!(text.parse(), Ok(id));
        }
        let bytes = b"\x010123456789abcdefsuffixthe plan\x07default\x05\x00alice";
        assert_eq!(reservation(owner("alice")).to_string(), base64url(bytes));
        let longest = Owner::new(&AppId(("a").repeat(64)), &UserId("u".repeat(256)));
        let text = reservation(longest.clone()).to_string();
        assert!(text.len() <= ReservationId::LONGEST);
        assert_eq!(text.parse::<ReservationId>().map(|id| id.owner), Ok(longest));
    }

    #[test]
    fn other_text_is_no_reservation_id() {
        let parsed = |bytes: &[u8]| base64url(bytes).parse::<ReservationId>();
        let id = |version: u8, app: &str, user: &[u8]| {
            let mut bytes = vec![version];
            bytes.extend_from_slice(b"0123456789abcdefsuffixthe plan");
            bytes.push(app.len() as u8);
            bytes.extend_from_slice(app.as_bytes());
            bytes.extend([user.len() as u8, (user.len() >> 8) as u8]);
            bytes.extend_from_slice(user);
            bytes
        };
        let whole = id(1, "default", b"alice");
        assert_eq!(parsed(&whole), Ok(reservation(owner("alice"))));
        for length in 0..whole.len() {
            assert_eq!(parsed(&whole[..length]), Err(UnknownReservationId), "{length} bytes");
        }
        let long = [b'u'; 257];
        let cases = [
            id(0, "default", b"alice"),
            id(2, "default", b"alice"),
            id(1, "", b"alice"),
            id(1, "Default", b"alice"),
            id(1, "a:b", b"alice"),
            id(1, &"a".repeat(65), b"alice"),
            id(1, "default", b""),
            id(1, "default", b"\xff"),
            id(1, "default", &long),
            [&whole[..], b"x"].concat(),
        ];
        for bytes in cases {
            assert_eq!(parsed(&bytes), Err(UnknownReservationId), "{bytes:?}");
        }
        // Padded, of another alphabet, of an earlier version, or with bits that say nothing.
        let text = base64url(&whole);
        let last = text.len() - 1;
        assert_eq!(&text[last..], "Q");
        for text in [
            String::new(),
            format!("{text}="),
            format!("{text}+"),
            format!(" {text}"),
            "0123456789abcdef_-ABCD.default:alice".to_owned(),
            format!("{}R", &text[..last]),
            "A".repeat(ReservationId::LONGEST + 1),
        ] {
            assert_eq!(text.parse::<ReservationId>(), Err(UnknownReservationId), "{text}");
        }
    }

    #[test]
    fn an_event_id_tells_events_of_one_request_id_apart() {
        assert_ne!(event_id(&[1; 16], &[2; 6]), event_id(&[1; 16], &[3; 6]));
        assert_eq!(event_id(&[0; 16], &[0; 6]), "A".repeat(30));
    }
}
