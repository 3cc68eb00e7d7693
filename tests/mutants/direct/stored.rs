//! A state as it is stored, taken apart.

use tollgate::ledger::formats;
use tollgate::ledger::packed::{Misfit, Reader};

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub head: formats::Head,
    pub memory: Option<formats::Memory>,
    pub schedules: Vec<formats::Schedule>,
    /// Number, schedule, used and held of each group.
    pub counters: Vec<formats::Counter>,
    pub deadlines: Vec<Entry>,
    pub windows: i64,
    /// From the first window on.
    pub rest: Vec<u8>,
}

/// A deadline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub at: i64,
    pub kind: i64,
    pub holds: i64,
    /// Window and amount, by windows.
    pub parts: Vec<(i64, i64)>,
}

pub fn parts(reader: &mut Reader<'_>, count: i64) -> Result<Vec<(i64, i64)>, Misfit> {
    let parts = (0..count).map(|_| formats::Part::read(reader).map(|part| (part.balance, part.amount)));
    let mut parts: Vec<_> = parts.collect::<Result<_, _>>()?;
    parts.sort_unstable();
    Ok(parts)
}

fn entries(mut reader: Reader<'_>) -> Result<Vec<Entry>, Misfit> {
    let mut entries = Vec::new();
    while !reader.is_at_end() {
        let before = reader.0.len();
        let formats::Deadline { at, kind, holds, parts: count } = formats::Deadline::read(&mut reader)?;
        let parts = parts(&mut reader, count)?;
        let end = formats::DeadlineEnd::read(&mut reader)?;
        if usize::try_from(end.size) != Ok(before - reader.0.len()) {
            return Err(Misfit::TooShort);
        }
        entries.push(Entry { at, kind, holds, parts });
    }
    Ok(entries)
}

impl Stored {
    pub fn read(state: &[u8]) -> Result<Self, Misfit> {
        let mut reader = Reader(state);
        let head = formats::Head::read(&mut reader)?;
        let memory = (head.young > 0).then(|| formats::Memory::read(&mut reader)).transpose()?;
        if head.subscribed > 0 {
            formats::Terms::read(&mut reader)?;
        }
        let schedules =
            (0..head.schedules).map(|_| formats::Schedule::read(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        let counter = |reader: &mut Reader<'_>| {
            if head.live > 0 {
                return formats::Counter::read(reader);
            }
            let formats::IdleCounter { number, schedule, used } = formats::IdleCounter::read(reader)?;
            Ok(formats::Counter { number, schedule, used, held: 0 })
        };
        let counters = (0..head.groups).map(|_| counter(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        let bytes = usize::try_from(head.deadlines).expect("a size");
        let deadlines = entries(Reader(reader.bytes(bytes)?))?;
        let windows = formats::Windows::read(&mut reader)?.count;
        Ok(Self { head, memory, schedules, counters, deadlines, windows, rest: reader.0.to_vec() })
    }
}
