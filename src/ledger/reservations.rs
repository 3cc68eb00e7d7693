//! `reservation_get` and `reservations_list`: what is remembered of reservations, and which of them are live.

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::answer::{About, NoAnswer, state, unfitting, units};
use super::message::Message;
use super::packed::{Misfit, Reader};
use super::plan::CompiledPlan;
use super::settle::settle_call;
use super::{Ledger, formats, window_ms};
use crate::domain::amount::{MAX_UNITS, Quantity};
use crate::domain::answer::ReservationState;
use crate::domain::event::{Event, EventName, QUANTITY};
use crate::domain::fault::Fault;
use crate::domain::id::{Field, Owner, ReservationId, base64url, beginning, bytes_of_base64url};
use crate::domain::reservation::{Charge, OnExpiry, Reservation};

/// The flags of `columns` in a record.
const WITH_QUOTAS: i64 = 4;

/// A reservation as a script has found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name in the memory.
    pub field: Field,
    state: ReservationState,
    deadline_ms: i64,
    record: Vec<u8>,
}

impl Found {
    /// Returns about how many bytes it takes when it is written out.
    #[must_use]
    pub fn weight(&self) -> usize {
        // Each claim becomes a message with a name, numbers and times, of some five times its bytes.
        256 + 5 * self.record.len()
    }
}

/// The place in a listing from which to read on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// The holds that had no room on a page, by their fields. They come first.
    pub left: Vec<Field>,
    /// The part of the memories that was not read yet.
    pub scan: Scan,
}

/// The part of the memories that was not read yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scan {
    /// All of it.
    #[default]
    Everything,
    /// One of the two memories from a cursor on. Then the other one, unless this is the last one.
    From {
        /// The number of the memory, 1 or 2.
        memory: u8,
        /// True if the listing ends with it.
        is_last: bool,
        /// The cursor, as Redis says it.
        cursor: u64,
    },
    /// Nothing.
    Nothing,
}

/// The version of page tokens.
const TOKEN_VERSION: u8 = 1;

/// The bytes of a token before the fields: the version, a checksum, the memory, whether it is the last one, and the cursor.
const TOKEN_HEAD: usize = 1 + CHECKSUM + 1 + 1 + 8;
const CHECKSUM: usize = 8;

impl Position {
    /// Returns whether nothing is left.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.left.is_empty() && self.scan == Scan::Nothing
    }

    /// Returns the page token. It is for listings of this owner only.
    #[must_use]
    pub fn token(&self, owner: &Owner) -> String {
        let (memory, is_last, cursor) = match self.scan {
            Scan::Everything => (0, false, 0),
            Scan::From { memory, is_last, cursor } => (memory, is_last, cursor),
            Scan::Nothing => (0, true, 0),
        };
        let mut place = vec![memory, is_last.into()];
        place.extend_from_slice(&cursor.to_le_bytes());
        place.extend(self.left.iter().flatten());
        let mut token = vec![TOKEN_VERSION];
        token.extend_from_slice(&checksum(owner, &place));
        token.extend_from_slice(&place);
        base64url(&token)
    }

    /// Reads a page token; `None` for text that is no token of this owner.
    #[must_use]
    pub fn parse(token: &str, owner: &Owner) -> Option<Self> {
        let bytes = bytes_of_base64url(token)?;
        let (version, rest) = bytes.split_first()?;
        let (sum, place) = rest.split_first_chunk()?;
        let (head, left) = place.split_first_chunk::<{ TOKEN_HEAD - 1 - CHECKSUM }>()?;
        let (left, more) = left.as_chunks();
        if *version != TOKEN_VERSION || !more.is_empty() || checksum(owner, place) != *sum {
            return None;
        }
        let [memory, is_last, cursor @ ..] = *head;
        let scan = match (memory, is_last, u64::from_le_bytes(cursor)) {
            (0, 1, 0) => Scan::Nothing,
            (1 | 2, 0 | 1, cursor) => Scan::From { memory, is_last: is_last == 1, cursor },
            _ => return None,
        };
        Some(Self { left: left.to_vec(), scan }).filter(|position| !position.is_end())
    }
}

/// Tells a token from other text, and that of one owner from that of another. It keeps no secret: a listing finds nothing but holds of its
/// own user, whatever the token says.
fn checksum(owner: &Owner, place: &[u8]) -> [u8; CHECKSUM] {
    beginning(&Sha256::new().chain_update(owner.tag()).chain_update([0]).chain_update(place).finalize())
}

/// The arguments of one step of a listing.
#[derive(Debug)]
pub struct ListCall<'a> {
    /// Look at these holds, and read nothing else. If there are none: read on.
    pub fields: &'a [Field],
    /// Where to read on.
    pub scan: Scan,
    /// About how many fields and values to read.
    pub count: i64,
}

impl Ledger {
    /// What is remembered of a reservation.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn reservation(&self, id: &ReservationId) -> Result<Reservation, Fault> {
        let mut message = Message::about(&id.owner, 64);
        message.argument(|bytes| settle_call(id, 0).write(bytes));
        let packed = self.run(&self.scripts.reservation_get, &id.owner, message).await?;
        let (mut found, _) = self.found(&packed).await?;
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => self.described(&id.owner, &one).await,
            _ => Err(unfitting("not one reservation")),
        }
    }

    /// Some of an owner's live holds, one of them perhaps twice, and where to read on.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn live_holds(&self, owner: &Owner, call: &ListCall<'_>) -> Result<(Vec<Found>, Scan), Fault> {
        let ListCall { fields, scan, count } = call;
        let (memory, is_last, cursor) = match scan {
            Scan::Everything => (0, false, 0),
            Scan::From { memory, is_last, cursor } => (*memory, *is_last, *cursor),
            // Of given fields only.
            Scan::Nothing => (0, true, 0),
        };
        let mut message = Message::about(owner, 64 + size_of_val(*fields));
        message.argument(|bytes| {
            let call = formats::ListCall {
                memory: memory.into(),
                is_last: is_last.into(),
                cursor: cursor.to_string().into_bytes(),
                count: *count,
                fields: fields.concat(),
            };
            call.write(bytes);
        });
        let packed = self.run(&self.scripts.reservations_list, owner, message).await?;
        self.found(&packed).await
    }

    /// Reads the answer of a script.
    async fn found(&self, packed: &[u8]) -> Result<(Vec<Found>, Scan), Fault> {
        if packed.first() == Some(&5) {
            return read_found(packed);
        }
        match self.answer(packed, About::default()).await {
            Err(NoAnswer::Fault(fault)) => Err(fault),
            other => Err(unfitting(other)),
        }
    }

    /// A reservation as it was found, in the words of its plan.
    ///
    /// # Errors
    /// [`Fault::PlanNotArchived`]; [`Fault::Internal`] for a record that is not understood.
    pub async fn described(&self, owner: &Owner, found: &Found) -> Result<Reservation, Fault> {
        let mut reader = Reader(&found.record);
        let record = formats::Record::read(&mut reader).map_err(misfit)?;
        let plan = self.plan_by(&record.plan).await.ok_or(Fault::PlanNotArchived)?;
        described(owner, found, &record, reader, &plan)
    }
}

fn misfit(misfit: Misfit) -> Fault {
    Fault::Internal(Box::new(misfit))
}

fn read_found(packed: &[u8]) -> Result<(Vec<Found>, Scan), Fault> {
    let mut reader = Reader(packed);
    let head = formats::Reservations::read(&mut reader).map_err(misfit)?;
    let mut found = Vec::new();
    for _ in 0..head.count {
        let formats::Reservation { field, state, deadline, record } =
            formats::Reservation::read(&mut reader).map_err(misfit)?;
        let state = self::state(state)?.ok_or_else(|| unfitting("a reservation without a state"))?;
        found.push(Found { field, state, deadline_ms: deadline, record });
    }
    let scan = match head.memory {
        0 => Scan::Nothing,
        memory @ (1 | 2) => {
            let cursor = str::from_utf8(&head.cursor).ok().and_then(|text| text.parse().ok());
            let cursor = cursor.ok_or_else(|| unfitting(("cursor", &head.cursor)))?;
            Scan::From { memory: if memory == 1 { 1 } else { 2 }, is_last: head.is_last == 1, cursor }
        }
        other => return Err(unfitting(("memory", other))),
    };
    if !reader.is_at_end() {
        return Err(unfitting("more than the reservations"));
    }
    Ok((found, scan))
}

/// Reads the reservations of a script's answer, all of which were made by this plan.
///
/// # Errors
/// [`Fault::Internal`] for what no script answers.
pub fn read_reservations(packed: &[u8], owner: &Owner, plan: &CompiledPlan) -> Result<Vec<Reservation>, Fault> {
    let (found, _) = read_found(packed)?;
    let read = |found: &Found| {
        let mut reader = Reader(&found.record);
        let record = formats::Record::read(&mut reader).map_err(misfit)?;
        described(owner, found, &record, reader, plan)
    };
    found.iter().map(read).collect()
}

/// Reads the rest of a record: its spans, claims and columns, and what it says of the event.
fn described(
    owner: &Owner,
    found: &Found,
    record: &formats::Record,
    mut reader: Reader<'_>,
    plan: &CompiledPlan,
) -> Result<Reservation, Fault> {
    let mut several = |count| -> Result<Vec<formats::Span>, Fault> {
        (0..count).map(|_| formats::Span::read(&mut reader).map_err(misfit)).collect()
    };
    let spans = several(record.spans)?;
    let claims = (0..record.claims).map(|_| formats::Claim::read(&mut reader).map_err(misfit));
    let claims: Vec<_> = claims.collect::<Result<_, _>>()?;
    let mut column = |is_there: bool| -> Result<Option<Vec<i64>>, Fault> {
        let amounts = (0..record.claims).map(|_| formats::Amount::read(&mut reader).map(|amount| amount.units));
        if is_there { amounts.collect::<Result<_, _>>().map(Some).map_err(misfit) } else { Ok(None) }
    };
    let columns = record.columns % WITH_QUOTAS;
    let (committed, refunded) = (column(columns >= 1)?, column(columns >= 2)?);
    let life = life(record, &mut reader)?;
    // What a later version has added follows.
    let is_committed = life.is_some() || found.state == ReservationState::Committed;
    let on_expiry = match &life {
        Some(life) if life.on_expiry == 1 => OnExpiry::Count,
        _ => OnExpiry::Release,
    };
    let has_counted = on_expiry == OnExpiry::Count && found.state == ReservationState::Expired;
    let mut charges = Vec::with_capacity(claims.len());
    for (index, claim) in claims.iter().enumerate() {
        let place = |place: i64| usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
        let group = place(claim.group).and_then(|index| plan.groups.get(index));
        let group = group.ok_or_else(|| unfitting(("group", claim.group)))?;
        let span = place(claim.span).and_then(|index| spans.get(index));
        let span = span.ok_or_else(|| unfitting(("span", claim.span)))?;
        // Where no column says so, it was committed as it was reserved.
        let mut committed = committed.as_ref().map_or(claim.charge, |amounts| amounts[index]);
        if has_counted {
            // The deadline has counted what was still held.
            committed = committed.max(claim.charge);
        }
        let refunded = refunded.as_ref().map_or(0, |amounts| amounts[index]);
        charges.push(Charge {
            group_id: group.id.clone(),
            unit: group.unit,
            reserved: units(claim.charge)?,
            committed: if is_committed { units(committed)? } else { 0 },
            refunded: if is_committed { units(refunded)? } else { 0 },
            window_ms: window_ms(span),
        });
    }
    let Found { field, state, deadline_ms, record: _ } = found;
    Ok(Reservation {
        id: ReservationId { field: *field, suffix: record.suffix, plan: record.plan, owner: owner.clone() },
        event: event(record, life.as_ref(), plan)?,
        state: *state,
        deadline_ms: *deadline_ms,
        charges,
        // As scripts number the states of records.
        late: record.state == 3,
        on_expiry,
    })
}

/// Reads the quotas, if there are any, and what a record of format 2 says besides.
fn life(record: &formats::Record, reader: &mut Reader<'_>) -> Result<Option<formats::Life>, Fault> {
    if record.format != 2 {
        return Ok(None);
    }
    for _ in 0..if record.columns >= WITH_QUOTAS { record.claims } else { 0 } {
        formats::Quota::read(reader).map_err(misfit)?;
    }
    formats::Life::read(reader).map(Some).map_err(misfit)
}

/// A value of the list of quantities: a whole number, whole and millionths, or a flag where there is no number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Whole(u64),
    Parts(u64, u64),
    NoNumber(bool),
}

impl Value {
    fn quantity(&self) -> Result<Option<Quantity>, Fault> {
        let (whole, micro) = match self {
            Self::Whole(whole) => (*whole, 0),
            Self::Parts(whole, micro) => (*whole, *micro),
            Self::NoNumber(true | false) => return Ok(None),
        };
        match u32::try_from(micro) {
            Ok(micro @ 0..1_000_000) if whole <= MAX_UNITS => Ok(Some(Quantity::of_parts(whole, micro))),
            _ => Err(unfitting(("a quantity", whole, micro))),
        }
    }

    /// The list of quantities that stands in a record.
    fn list(packed: &[u8]) -> Result<Vec<Self>, Fault> {
        match packed {
            [] => Ok(Vec::new()),
            list => rmp_serde::from_slice(list).map_err(|error| Fault::Internal(Box::new(error))),
        }
    }
}

/// The event that was reserved: its name and metadata, and the quantities by their place among the plan's names, with what Extend has added.
fn event(record: &formats::Record, life: Option<&formats::Life>, plan: &CompiledPlan) -> Result<Event, Fault> {
    let undecodable = |error: rmp_serde::decode::Error| Fault::Internal(Box::new(error));
    let mut what = rmp_serde::Deserializer::new(&record.what[..]);
    let name = String::deserialize(&mut what).map_err(undecodable)?;
    let metadata = BTreeMap::deserialize(&mut what).map_err(undecodable)?;
    let name = EventName::parse(&name).map_err(|_| unfitting(("an event", name)))?;
    let reserved = Value::list(&record.quantities)?;
    let added = Value::list(life.map_or(&[], |life| &life.added))?;
    let (mut own, mut quantities) = (None, BTreeMap::new());
    for index in 0..reserved.len().max(added.len()) {
        let at = |values: &[Value]| values.get(index).map_or(Ok(None), Value::quantity);
        let quantity = match (at(&reserved)?, at(&added)?) {
            (None, None) => continue,
            (Some(one), None) | (None, Some(one)) => one,
            (Some(one), Some(other)) => one.saturating_add(other),
        };
        match plan.names.get(index) {
            Some(name) if name == QUANTITY => own = Some(quantity),
            Some(name) => drop(quantities.insert(name.clone(), quantity)),
            None => return Err(unfitting(("a quantity at place", index + 1))),
        }
    }
    Ok(Event::new(name, own, quantities, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{AppId, UserId};

    fn owner(user: &str) -> Owner {
        Owner::new(&AppId::default(), &UserId::parse(user).unwrap())
    }

    fn positions() -> Vec<Position> {
        let from = |memory, is_last, cursor| Scan::From { memory, is_last, cursor };
        vec![
            Position { left: vec![], scan: from(1, false, 0) },
            Position { left: vec![[7; 16]], scan: from(2, true, u64::MAX) },
            Position { left: vec![[7; 16], [8; 16]], scan: Scan::Nothing },
        ]
    }

    #[test]
    fn a_page_token_is_read_by_its_user_and_by_nobody_else() {
        let (alice, bob) = (owner("alice"), owner("bob"));
        for position in positions() {
            let token = position.token(&alice);
            assert!(!token.contains("alice"), "{token}");
            assert_eq!(Position::parse(&token, &alice), Some(position));
            assert_eq!(Position::parse(&token, &bob), None);
        }
    }

    #[test]
    fn other_text_is_no_page_token() {
        let alice = owner("alice");
        for position in positions() {
            let token = position.token(&alice);
            for length in 0..token.len() {
                assert_eq!(Position::parse(&token[..length], &alice), None, "{length}");
            }
            let bytes = bytes_of_base64url(&token).unwrap();
            for index in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[index] ^= 1;
                assert_eq!(Position::parse(&base64url(&changed), &alice), None, "byte {index}");
            }
        }
        // Well signed, but no place that a page ends at.
        for (memory, is_last, cursor) in [(0, 0, 0), (0, 1, 0), (0, 1, 5), (3, 0, 0), (1, 2, 0)] {
            let mut place = vec![memory, is_last];
            place.extend_from_slice(&u64::to_le_bytes(cursor));
            let token = [&[TOKEN_VERSION][..], &checksum(&alice, &place), &place].concat();
            assert_eq!(Position::parse(&base64url(&token), &alice), None, "{memory} {is_last} {cursor}");
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_is_refused() {
        let head = |memory, cursor: &[u8], count| {
            let mut bytes = Vec::new();
            formats::Reservations { kind: 5, memory, is_last: 0, cursor: cursor.to_vec(), count }.write(&mut bytes);
            bytes
        };
        assert_eq!(read_found(&head(0, b"0", 0)).unwrap(), (Vec::new(), Scan::Nothing));
        let from = Scan::From { memory: 2, is_last: false, cursor: 17 };
        assert_eq!(read_found(&head(2, b"17", 0)).unwrap(), (Vec::new(), from));
        let followed = [head(0, b"0", 0), vec![1]].concat();
        for wrong in [head(3, b"0", 0), head(1, b"x", 0), head(1, b"", 0), head(0, b"", 1), followed] {
            assert!(matches!(read_found(&wrong), Err(Fault::Internal(_))), "{wrong:?}");
        }
    }

    #[test]
    fn a_value_is_a_number_or_none() {
        let read = |packed: &[u8]| {
            let values: Vec<Value> = rmp_serde::from_slice(packed).unwrap();
            values
                .iter()
                .map(|value| value.quantity().unwrap().map(|quantity| quantity.to_string()))
                .collect::<Vec<_>>()
        };
        let expected = [None, Some("5".to_owned()), Some("1.5".to_owned()), None];
        assert_eq!(read(b"\x94\xc2\x05\x92\x01\xce\x00\x07\xa1\x20\xc3"), expected);
    }
}
