//! Identifiers: no two users share a key, and a reservation id says what it was made of.
//!
//! Two users in two lines; the whole input is taken for a reservation id and for a request id as well.

use tollgate::domain::id::{AppId, Owner, RequestId, ReservationId, UserId, field_of};
use tollgate::ledger::UserKeys;

pub(super) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (one, other) = text.split_once('\n').unwrap_or((&text, ""));
    let owner = |text| UserId::parse(text).ok().map(|user| (Owner::new(&AppId::default(), &user), user));
    let owners = [owner(one), owner(other)];
    for (text, owner) in [one, other].iter().zip(&owners) {
        assert_eq!(owner.is_some(), (1..=256).contains(&text.len()));
    }
    for (owner, _) in owners.iter().flatten() {
        check_owner(owner);
    }
    if let [Some((owner, user)), Some((other_owner, other))] = &owners {
        assert_eq!(owner == other_owner, user == other, "{user:?} {other:?}");
        let (keys, other_keys) = (UserKeys::new(owner), UserKeys::new(other_owner));
        assert!(user == other || keys.all().iter().all(|key| !other_keys.all().contains(key)), "{user:?} {other:?}");
    }
    if let Ok(id) = text.parse::<ReservationId>() {
        assert!(text.len() <= ReservationId::LONGEST);
        assert_eq!(id.to_string(), text);
        check_owner(&id.owner);
    }
    if let Ok(Some(id)) = RequestId::parse(&text) {
        assert_eq!(id.as_str(), text);
        assert_eq!(field_of(Some(&id)), field_of(Some(&id)));
    }
}

/// The keys of an owner share one hash tag, and a reservation id names the owner.
fn check_owner(owner: &Owner) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-%:".contains(&byte);
    assert!(owner.tag().bytes().all(plain), "{owner:?}");
    let keys = UserKeys::new(owner);
    let hold = keys.hold(&[0; 16]);
    for key in keys.all().iter().chain([&hold]) {
        // What Redis hashes: between the first brace and the first one that closes.
        let hashed = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
        assert_eq!(hashed, Some(owner.tag()), "{key}");
    }
    assert_eq!(Owner::from_tag(owner.tag()).as_ref(), Some(owner));
    let id = ReservationId { field: [1; 16], suffix: [2; 6], plan: [3; 8], owner: owner.clone() };
    assert!(id.to_string().len() <= ReservationId::LONGEST, "{id}");
    assert_eq!(id.to_string().parse(), Ok(id));
}
