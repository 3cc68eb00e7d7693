//! NO-LEAK: deadlines, in the state and in pages, against a list of the holds that are live.

use std::collections::BTreeMap;

use tollgate::domain::event::Event;
use tollgate::domain::id::ReservationId;
use tollgate::ledger::packed::Reader;
use tollgate::ledger::{Ledger, Once, formats};

use super::forms::record;
use super::raw;
use tollgate::ledger::formats::PAGE_MS;

use super::stored::{Entry, Stored, parts};
use super::user::{START, User, event, made};

/// What deadlines take in the state before pages begin, and for how long one of those is.
const EXACT_BYTES: i64 = 2048;
const PAGE: i64 = PAGE_MS;

/// Of these groups, an event `e` holds in all; `f` in every second one.
const GROUPS: i64 = 20;

#[derive(Clone)]
struct Hold {
    id: ReservationId,
    deadline: i64,
    is_paged: bool,
    parts: Vec<(i64, i64)>,
}

struct World<'a> {
    user: User<'a>,
    now: i64,
    used: i64,
    live: Vec<Hold>,
    seed: u64,
}

fn page_of(deadline: i64) -> i64 {
    (deadline + PAGE - 1) / PAGE * PAGE
}

/// Adds up what is held under these keys.
fn sums<K: Ord>(holds: impl Iterator<Item = (K, Vec<(i64, i64)>)>) -> BTreeMap<K, (i64, BTreeMap<i64, i64>)> {
    let mut sums = BTreeMap::<K, (i64, BTreeMap<i64, i64>)>::new();
    for (key, parts) in holds {
        let (count, amounts) = sums.entry(key).or_default();
        *count += 1;
        for (window, amount) in parts {
            *amounts.entry(window).or_default() += amount;
        }
    }
    sums
}

/// An amount of 0 is as good as none.
fn without_zeros(parts: &[(i64, i64)]) -> Vec<(i64, i64)> {
    parts.iter().copied().filter(|(_, amount)| *amount != 0).collect()
}

impl World<'_> {
    fn random(&mut self, below: u64) -> i64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from((self.seed >> 33) % below).expect("a small number")
    }

    async fn stored(&self) -> Option<Stored> {
        Stored::read(&self.user.state().await).ok()
    }

    async fn reserve(&mut self, event: &Event, amount: i64, ttl_ms: i64) -> bool {
        let before = self.stored().await.map(|stored| (stored.head.deadlines, stored.deadlines)).unwrap_or_default();
        let answer = self.user.reserve_for("", ttl_ms, event).await;
        self.lapse();
        let Some((id, _)) = made(answer) else { return false };
        let deadline = (START + self.now + ttl_ms + 99) / 100 * 100;
        let memory = self.user.memory(1).await;
        let Some(Ok(record)) = memory.get(&id.field[..]).map(|packed| record(packed)) else { return false };
        let step = if event.name.as_str() == "e" { 1 } else { 2 };
        let parts = (1..=GROUPS).step_by(step).map(|window| (window, amount)).collect();
        let is_paged = record.paged == 1;
        // Of what was there before, some may have lapsed.
        let due = |entry: &&Entry| entry.at > START + self.now;
        let bytes: i64 = before.1.iter().filter(due).map(bytes_of).sum();
        let is_known = before.1.iter().any(|entry| entry.at == deadline && entry.kind == 0);
        let partly = before.1.iter().any(|entry| entry.kind == 1 && entry.at - PAGE < START + self.now);
        let right = partly || is_paged == (bytes >= EXACT_BYTES && !is_known);
        self.live.push(Hold { id, deadline, is_paged, parts });
        right && record.deadline == deadline
    }

    fn lapse(&mut self) {
        let now = START + self.now;
        self.live.retain(|hold| hold.deadline > now);
    }

    async fn settle(&mut self, place: usize, commit: bool) -> bool {
        self.lapse();
        if self.live.is_empty() {
            return true;
        }
        let hold = self.live.remove(place % self.live.len());
        if commit {
            let parts = &hold.parts;
            // In the group that `e` and `f` have in common.
            self.used += parts[0].1;
            return self.user.commit(&hold.id, None).await.is_ok_and(|done| !done.late);
        }
        self.user.release(&hold.id).await.is_ok()
    }

    async fn step(&mut self, ms: i64) {
        self.now += ms;
        self.user.step(self.now).await;
        self.lapse();
    }

    /// Whether the answers, which read what is stored, say what is live now.
    async fn is_told(&self) -> bool {
        let Some(standings) = self.user.usage().await else { return false };
        let sums = sums(self.live.iter().map(|hold| ((), hold.parts.clone())));
        let held = |window| sums.get(&()).and_then(|(_, amounts)| amounts.get(&window)).copied().unwrap_or_default();
        let told = standings.iter().map(|standing| standing.held).eq((1..=GROUPS).map(|window| held(window) as u64));
        // When there may be room again for as much as fits.
        let rest = (1_000 - self.used).to_string();
        let Ok(decision) = self.user.can_use(&event("rest", &[("quantity", &rest)])).await else { return false };
        let earliest = self.live.iter().map(|hold| hold.deadline - START - self.now).min();
        let retry = decision.retry_after_ms.and_then(|ms| i64::try_from(ms).ok());
        told && decision.denied.is_some() == earliest.is_some() && (earliest.is_none() || retry == earliest)
    }

    /// Whether the state, which was just written, has what is live now, and nothing else.
    async fn is_stored(&self) -> bool {
        let Some(stored) = self.stored().await else { return false };
        let entries = self.live.iter().map(|hold| {
            let key = if hold.is_paged { (page_of(hold.deadline), 1) } else { (hold.deadline, 0) };
            (key, hold.parts.clone())
        });
        let entries = sums(entries).into_iter();
        let entries: Vec<_> = entries
            .map(|((at, kind), (holds, parts))| Entry { at, kind, holds, parts: parts.into_iter().collect() })
            .collect();
        let found = stored.deadlines.iter().map(|entry| Entry { parts: without_zeros(&entry.parts), ..entry.clone() });
        let pages = entries.iter().filter(|entry| entry.kind == 1).count();
        let head = &stored.head;
        let live = (i64::try_from(self.live.len()), i64::try_from(pages));
        found.eq(entries) && (Ok(head.live), Ok(head.pages)) == live && self.has_buckets().await
    }

    /// Whether the memory has the deadlines of pages that are still to come.
    async fn has_buckets(&self) -> bool {
        let paged = self.live.iter().filter(|hold| hold.is_paged);
        let expected = sums(paged.map(|hold| (hold.deadline, hold.parts.clone())));
        let mut found = BTreeMap::new();
        for (name, value) in self.user.memory(1).await {
            let Some((b"d", at)) = name.split_first_chunk() else { continue };
            if at.len() != 6 {
                continue;
            }
            let mut reader = Reader(&value);
            let (Ok(at), Ok(bucket)) = (Reader(at).integer(6), formats::Bucket::read(&mut reader)) else {
                return false;
            };
            let Ok(parts) = parts(&mut reader, bucket.parts) else { return false };
            if at > START + self.now && bucket.holds > 0 {
                found.insert(at, (bucket.holds, without_zeros(&parts).into_iter().collect()));
            }
        }
        found == expected
    }
}

fn bytes_of(entry: &Entry) -> i64 {
    13 + 11 * i64::try_from(entry.parts.len()).expect("a few parts")
}

/// The user's groups, each in a window of its own.
async fn world(ledger: &Ledger, seed: u64) -> World<'_> {
    let rules = |index| match index {
        1 => "{ event: e }, { event: f }, { event: rest }",
        odd if odd % 2 == 1 => "{ event: e }, { event: f }",
        _ => "{ event: e }",
    };
    let group =
        |index: i64| format!("{{ period: yearly, id: g{index}, unit: count, quota: 1000, match: [{}] }}", rules(index));
    let groups: Vec<_> = (1..=GROUPS).map(group).collect();
    let user = User::on(ledger, &groups.join(", ")).await;
    World { user, now: 0, used: 0, live: Vec::new(), seed }
}

/// Holds that come and go, at random.
pub async fn at_random(ledger: &Ledger) -> bool {
    let mut world = world(ledger, 7).await;
    let mut right = true;
    // All windows are opened in the order of the groups.
    right &= world.reserve(&event("e", &[]), 1, 60_000).await;
    for turn in 0..60 {
        let amount = 1 + world.random(3);
        let quantity = amount.to_string();
        let name = if world.random(3) == 0 { "f" } else { "e" };
        let what = event(name, &[("quantity", &quantity)]);
        let choice = if turn < 20 { 0 } else { world.random(10) };
        right &= match choice {
            0..=5 => {
                let ttl_ms = 100 + 100 * world.random(300) + world.random(2) * world.random(100);
                world.reserve(&what, amount, ttl_ms).await
            }
            6 => {
                let place = usize::try_from(world.random(1000)).unwrap_or_default();
                world.settle(place, true).await
            }
            7 => {
                let place = usize::try_from(world.random(1000)).unwrap_or_default();
                world.settle(place, false).await
            }
            _ => {
                let ms = if world.random(2) == 0 { 100 * world.random(60) } else { world.random(3000) };
                world.step(ms).await;
                right &= world.is_told().await;
                world.reserve(&what, amount, 20_000).await
            }
        };
        right = right && (turn % 3 > 0 || world.is_told().await) && world.is_stored().await;
        if !right {
            break;
        }
    }
    world.step(100_000).await;
    right = right && world.live.is_empty() && world.is_told().await;
    world.user.delete().await;
    right
}

/// The edges of pages: the last deadline of one, the first one of the next, and one that stands in the state at the end of a page.
pub async fn at_edges(ledger: &Ledger) -> bool {
    let mut world = world(ledger, 1).await;
    let e = event("e", &[]);
    let mut right = true;
    // Nine deadlines are more than the state takes.
    for place in 0..9 {
        right &= world.reserve(&e, 1, 100_000 + 100 * place).await;
    }
    right &= world.live.iter().all(|hold| !hold.is_paged);
    // Of the second page, twice; its last one; the first one of the next; one of a later page; of one that has an entry; and of the page
    // after all of these.
    for ttl_ms in [20_000, 20_000, 25_600, 25_700, 40_000, 100_100, 100_900, 102_400] {
        right &= world.reserve(&e, 1, ttl_ms).await && world.is_stored().await && world.is_told().await;
    }
    right &= world.live.iter().filter(|hold| hold.is_paged).count() == 7;
    // There is room again: at the end of a page there may be a deadline by itself, which stands before it.
    for place in [2, 2, 2, 2, 2] {
        right &= world.settle(place, true).await;
    }
    for _ in 0..2 {
        right &= world.reserve(&e, 1, 102_400).await && world.is_stored().await;
    }
    right &= world.live.iter().rev().take(2).all(|hold| !hold.is_paged);
    let last = world.live.len() - 1;
    right &= world.settle(last, false).await && world.is_stored().await;
    // Time goes on by less than a deadline, and to the millisecond.
    let mut steps = vec![19_999, 20_000, 20_001, 20_099, 20_100, 25_599, 25_600, 25_650, 25_699, 25_700, 38_401];
    steps.extend([99_950, 100_000, 100_850, 100_901, 102_399, 102_400]);
    for now in steps {
        world.step(now - world.now).await;
        right = right && world.is_told().await;
        // What is written now ends long after all of that.
        right = right && world.reserve(&e, 1, 200_000).await && world.is_stored().await && world.is_told().await;
    }
    world.user.delete().await;
    right
}

/// Two deadlines of a page are due at once, and a third one is not.
pub async fn two_due(ledger: &Ledger) -> bool {
    let mut world = world(ledger, 1).await;
    let e = event("e", &[]);
    let mut right = true;
    for place in 0..9 {
        right &= world.reserve(&e, 1, 100_000 + 100 * place).await;
    }
    for ttl_ms in [20_000, 20_100, 20_200] {
        right &= world.reserve(&e, 1, ttl_ms).await;
    }
    right &= world.live.iter().filter(|hold| hold.is_paged).count() == 3;
    world.step(20_100).await;
    right = right && world.is_told().await;
    right = right && world.reserve(&e, 1, 200_000).await && world.is_stored().await && world.is_told().await;
    world.user.delete().await;
    right
}

/// A page whose deadlines somebody has deleted comes back as a whole, at its end, and what is settled of it before.
pub async fn without_buckets(ledger: &Ledger) -> bool {
    let mut world = world(ledger, 1).await;
    let e = event("e", &[]);
    let mut right = true;
    for place in 0..9 {
        right &= world.reserve(&e, 1, 100_000 + 100 * place).await;
    }
    for ttl_ms in [20_000, 20_000, 21_000] {
        right &= world.reserve(&e, 1, ttl_ms).await;
    }
    for name in world.user.memory(1).await.into_keys().filter(|name| name.len() == 7) {
        world.user.forget_field(1, &name).await;
    }
    // The next time is the end of the page.
    let rest = event("rest", &[("quantity", "1000")]);
    right &= world.user.can_use(&rest).await.is_ok_and(|decision| decision.retry_after_ms == Some(25_600));
    right &= world.settle(9, false).await;
    let held = async |live| world.user.standing().await == Some((0, live));
    right &= held(11).await;
    let buckets = world.user.memory(1).await.into_iter().filter(|(name, _)| name.len() == 7);
    right &=
        buckets.map(|(_, value)| formats::Bucket::read(&mut Reader(&value)).map(|bucket| bucket.holds)).eq([Ok(0)]);
    for (now, live) in [(20_000, 11), (25_599, 11), (25_600, 9), (100_000, 8)] {
        world.user.step(now).await;
        right &= held(live).await;
    }
    world.user.delete().await;
    right
}

/// A page that is emptied before its end, before entries of other sizes.
pub async fn emptied(ledger: &Ledger) -> bool {
    let group = |index: i64| {
        let events = [("e", 20), ("a", 10), ("b", 4), ("c", 5), ("rest", 1)].into_iter();
        let rules = events.filter(|(_, groups)| index <= *groups).map(|(name, _)| format!("{{ event: {name} }}"));
        let rules = rules.collect::<Vec<_>>().join(", ");
        format!("{{ period: yearly, id: g{index}, unit: count, quota: 1000, match: [{rules}] }}")
    };
    let groups: Vec<_> = (1..=GROUPS).map(group).collect();
    let user = User::on(ledger, &groups.join(", ")).await;
    let reserve = async |name, ttl_ms| made(user.reserve_for("", ttl_ms, &event(name, &[])).await);
    let mut ids = Vec::new();
    for place in 0..9 {
        ids.extend(reserve("e", 100_000 + 100 * place).await);
    }
    let (Some((first, _)), Some(_)) = (reserve("a", 20_000).await, reserve("a", 21_000).await) else { return false };
    let mut right = ids.len() == 9;
    // A page goes with its only hold.
    let pages =
        async || Stored::read(&user.state().await).ok().map(|stored| (stored.head.pages, stored.deadlines.len()));
    let Some((alone, _)) = reserve("a", 30_000).await else { return false };
    right &= pages().await == Some((2, 11)) && user.release(&alone).await.is_ok() && pages().await == Some((1, 10));
    for (id, _) in ids {
        right &= user.release(&id).await.is_ok();
    }
    // The earliest deadline of the page is none any more.
    right &= user.release(&first).await.is_ok();
    let rest = event("rest", &[("quantity", "1000")]);
    right &= user.can_use(&rest).await.is_ok_and(|decision| decision.retry_after_ms == Some(21_000));
    right &= reserve("b", 50_000).await.is_some() && reserve("c", 60_000).await.is_some();
    user.step(21_000).await;
    right &= user.standing().await == Some((0, 2));
    let e = event("e", &[]);
    let call = raw::track(&user.owner, &user.basis, &Once::track(None, &e, false, None, None), &e, false);
    right &= raw::told(&ledger.scripts().track, &[call]).await == Some((1, 0));
    right &= Stored::read(&user.state().await).is_ok_and(|stored| {
        let at: Vec<_> = stored.deadlines.iter().map(|entry| entry.at - START).collect();
        (stored.head.live, stored.head.pages) == (2, 0) && at == [50_000, 60_000]
    });
    user.delete().await;
    right
}

/// A hold in a page that did not happen does not come back.
pub async fn undone(ledger: &Ledger) -> bool {
    let mut world = world(ledger, 1).await;
    let e = event("e", &[]);
    let mut right = true;
    for place in 0..9 {
        right &= world.reserve(&e, 1, 100_000 + 100 * place).await;
    }
    right &= world.reserve(&e, 1, 20_000).await && world.reserve(&e, 1, 21_000).await;
    for ttl_ms in [20_000, 21_000, 22_000] {
        let before = world.user.state().await;
        right &= world.user.reserve_for("", ttl_ms, &e).await.is_ok();
        world.user.put_state(&before).await;
        right &= world.is_told().await;
        world.user.step(ttl_ms).await;
        let held = match ttl_ms {
            20_000 => 10,
            _ => 9,
        };
        right &= world.user.standing().await == Some((0, held));
        world.user.step(0).await;
    }
    // The next one that is written puts it right.
    right &= world.reserve(&e, 1, 20_000).await && world.is_stored().await;
    world.user.delete().await;
    right
}
