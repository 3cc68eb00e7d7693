//! What to try: catalogs and sequences of operations, from a seed. Small worlds, so that things meet: few users, few ids, few names,
//! times at and around every boundary.

#[path = "endings.rs"]
mod endings;
#[path = "fallbacks.rs"]
mod fallbacks;
#[path = "runs.rs"]
mod runs;
#[path = "stories.rs"]
mod stories;
#[path = "worlds.rs"]
mod worlds;

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;

use crate::operations::{Actual, Call, Operation, Quota, Refund, When, WrongEnd};
use crate::price::{self, Unmeasured};
use crate::reference::{Model, Settings};
use crate::sketch::{
    Anchor, Catalog, Event, Group, LARGEST, MICRO, Measure, PICO, Period, Plan, Rule, Term, Threshold, Unit,
};
use crate::user::Id;

use endings::ending;
use fallbacks::Fallback;
use runs::{Run, as_sent};
use worlds::{ask_for_models, mark, nest, season, settings};

pub const USERS: usize = 2;

const NAMES: [&str; 5] = ["llm.tokens", "llm.images", "llm.chat.tokens", "image.render", "agent.run"];
const PATTERNS: [&str; 9] =
    ["llm.tokens", "llm.chat.tokens", "image.render", "agent.run", "llm.*", "llm.*", "llm.chat.*", "*", "*"];
const QUANTITIES: [&str; 4] = ["prompt_tokens", "completion_tokens", "cached_tokens", "quantity"];
const KEYS: [&str; 3] = ["provider", "model", "tier"];
const VALUES: [&str; 5] = ["openai", "gpt-4o", "gpt-4o-mini", "claude", ""];
const WANTED: [&str; 6] = ["openai", "gpt-4o", "gpt-4o*", "gpt*", "claude", "*"];
const IDS: [&str; 16] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];
const GROUPS: [&str; 4] = ["g0", "g1", "g2", "g3"];
const PLANS: [&str; 3] = ["free", "pro", "max"];
const ZONES: [&str; 3] = ["UTC", "Europe/Berlin", "America/New_York"];
const UNITS: [Unit; 4] = [Unit::Count, Unit::Tokens, Unit::Seconds, Unit::Cents];
const PERIODS: [Period; 7] =
    [Period::Minute, Period::Hourly, Period::Daily, Period::Weekly, Period::Monthly, Period::Yearly, Period::Lifetime];

const DAY: i64 = 86_400_000;

/// A world, and what happens in it.
#[derive(Debug, Clone)]
pub struct Case {
    pub settings: Settings,
    pub start: i64,
    pub operations: Vec<Operation>,
}

struct Generator {
    random: Rng,
    /// What was added later draws from this one, so that it changes nothing else.
    spice: Rng,
    /// The same for long reservations.
    long: Rng,
    /// A long reservation in the making.
    run: Option<Run>,
    /// The same as `spice` for commits of another event than was reserved.
    other: Rng,
    /// One of these in the making.
    fallback: Option<Fallback>,
    /// What comes next in it.
    planned_on_top: VecDeque<(usize, Option<usize>, Call)>,
    /// The models of events, in a world in which groups ask for them.
    models: Option<Rng>,
    /// Quantities of this world may have parts.
    has_parts: bool,
    /// Knows what is there to be settled. What is generated is plain data all the same, and runs without it.
    model: Model,
    /// What was asked before, to be asked again.
    asked: Vec<Operation>,
    /// What comes next.
    planned: VecDeque<(usize, Option<usize>, Call)>,
}

/// The case of this seed: so many operations, and on top of them those of commits of another event than was reserved.
pub fn case(seed: u64, length: u32) -> Case {
    let mut random = Rng::with_seed(seed);
    let mut settings = settings(&mut random);
    let mut spice = Rng::with_seed(!seed);
    let has_parts = season(&mut spice, &mut settings.catalogs);
    mark(&mut Rng::with_seed(seed.rotate_left(16)), &mut settings.catalogs);
    let (mut other, fallback, planned_on_top) = (Rng::with_seed(!seed.rotate_left(16)), None, VecDeque::new());
    let models = once_in(&mut other, 3).then(|| other.fork());
    if models.is_some() {
        ask_for_models(&mut other, &mut settings.catalogs);
    }
    // Month ends, leap days and changes of the clocks are near some of these: 2031-01-29 to 2033-03-31.
    let start = 1_927_411_200_000 + random.i64(0..792) * DAY + random.i64(0..DAY);
    let model = Model::new(settings.clone(), USERS, start);
    let (asked, planned) = (Vec::new(), VecDeque::new());
    let (long, run) = (Rng::with_seed(seed.rotate_left(32)), None);
    let mut generator = Generator {
        random,
        spice,
        long,
        run,
        other,
        fallback,
        planned_on_top,
        models,
        has_parts,
        model,
        asked,
        planned,
    };
    let mut operations = Vec::new();
    let mut ordinary = 0;
    for number in 0.. {
        let on_top = generator.on_top(number);
        ordinary += u32::from(on_top.is_none());
        if ordinary > length {
            break;
        }
        let operation = on_top.unwrap_or_else(|| generator.operation(number));
        generator.model.apply(&operation);
        operations.push(operation);
    }
    let next = u32::try_from(operations.len()).expect("a case is short");
    operations.extend(ending(&mut Rng::with_seed(seed.rotate_left(8)), next));
    Case { settings, start, operations }
}

fn pick<T: Copy>(random: &mut Rng, from: &[T]) -> T {
    from[random.usize(..from.len())]
}

/// True once in so many times.
fn once_in(random: &mut Rng, times: u32) -> bool {
    random.u32(..times) == 0
}

/// Mostly small, sometimes fractional, sometimes as large as it goes.
fn number(random: &mut Rng) -> u128 {
    match random.u32(..60) {
        0 => 0,
        1 => 1,
        2 => LARGEST * MICRO,
        3 => random.u128(1..8_000_000_000 * MICRO),
        // Two of it are more cents than a counter holds, but not more tokens.
        5 => 4_200_000_000 * MICRO,
        4 => random.u128(1..=LARGEST) * MICRO,
        6..20 => random.u128(1..50 * MICRO),
        _ => random.u128(1..30) * MICRO,
    }
}

fn numbers(random: &mut Rng, times: u32) -> BTreeMap<String, u128> {
    let mut numbers = BTreeMap::new();
    for name in QUANTITIES {
        if once_in(random, times) {
            numbers.insert(name.to_owned(), number(random));
        }
    }
    numbers
}

impl Generator {
    fn event(&mut self, user: usize) -> Event {
        let random = &mut self.random;
        let mut metadata = BTreeMap::new();
        for key in KEYS {
            if once_in(random, 3) {
                metadata.insert(key.to_owned(), pick(random, &VALUES).to_owned());
            }
        }
        // A measure may be named in metadata.
        if once_in(random, 4) {
            let numbers = ["12", "0.5", "3.000001", "12", "9007199254740991"];
            let texts = ["many", "-5", "1e3", "1,000", " 12", ""];
            let value = if once_in(random, 2) { pick(random, &texts) } else { pick(random, &numbers) };
            metadata.insert(pick(random, &QUANTITIES).to_owned(), value.to_owned());
        }
        // Mostly with everything that a measure may name.
        let complete = !once_in(random, 3);
        let quantities = numbers(random, if complete { 1 } else { 3 });
        let quantity = (complete || once_in(random, 3)).then(|| number(random));
        let (quantity, quantities) = match random.u32(..12) {
            0 => (Some(0), quantities.into_keys().map(|name| (name, 0)).collect()),
            1 => (self.exact_rest(user).or(quantity), BTreeMap::new()),
            2 => (None, BTreeMap::new()),
            _ => (quantity, quantities),
        };
        let quantities = self.nested(quantities);
        let random = &mut self.random;
        let name = match random.u32(..20) {
            0 => "unknown",
            1..6 => pick(random, &NAMES),
            _ => "llm.tokens",
        };
        self.with_model(Event { name: name.to_owned(), quantity, quantities, metadata })
    }

    /// In a world in which groups ask for models, mostly with one.
    fn with_model(&mut self, mut event: Event) -> Event {
        if let Some(models) = &mut self.models {
            event.metadata.entry("model".to_owned()).or_insert(pick(models, &VALUES).to_owned());
        }
        event
    }

    fn nested(&mut self, mut quantities: BTreeMap<String, u128>) -> BTreeMap<String, u128> {
        if self.has_parts {
            nest(&mut self.spice, &mut quantities);
        }
        quantities
    }

    /// The quantity that a group's quota has left, or would have left without what is held: the edge of every limit.
    fn exact_rest(&mut self, user: usize) -> Option<u128> {
        let replica = self.random.usize(..self.model.settings.catalogs.len());
        let (plan, _) = self.model.in_force_plan(replica, user)?;
        let group = &plan.groups[self.random.usize(..plan.groups.len())];
        let user = &self.model.users[user];
        let window = user.windows.last(group)?;
        let taken = if self.random.bool() { user.windows[window].used } else { user.counted(window) };
        let rest = group.quota?.checked_sub(taken)?;
        Some(rest * MICRO / group.unit.scale()).filter(|rest| *rest > 0 && *rest <= 8_000_000_000 * MICRO)
    }

    fn request_id(&mut self) -> String {
        if once_in(&mut self.random, 3) { String::new() } else { pick(&mut self.random, &IDS).to_owned() }
    }

    /// A reservation, by the operation that made it: mostly one of the latest, rarely one of the other user, or none at all.
    fn reservation(&mut self, user: usize) -> u32 {
        let user = if once_in(&mut self.random, 20) { USERS - 1 - user } else { user };
        let forgotten_too = once_in(&mut self.random, 12);
        let user = &self.model.users[user];
        let known = user.reservations.iter().filter(|(_, known)| forgotten_too || user.now < known.forgotten);
        let known: Vec<u32> = known.map(|(number, _)| *number).collect();
        if known.is_empty() || once_in(&mut self.random, 40) {
            return u32::MAX;
        }
        let recent = if once_in(&mut self.random, 4) { known.len() } else { known.len().min(3) };
        known[known.len() - 1 - self.random.usize(..recent)]
    }

    /// A tracked event that is remembered.
    fn tracked(&mut self, user: usize) -> u32 {
        let tracked = |id: &Id| match id {
            Id::Track { number, .. } => Some(*number),
            Id::Reserve { .. } | Id::Extend { .. } | Id::Reset { .. } => None,
        };
        let known: Vec<u32> = self.model.users[user].ids.values().filter_map(tracked).collect();
        if known.is_empty() { u32::MAX } else { pick(&mut self.random, &known) }
    }

    fn when(&mut self, user: usize) -> When {
        let around = pick(&mut self.random, &[-1, 0, 1, 500]);
        match self.random.u32(..10) {
            0..4 => When::Deadline(self.reservation(user), around),
            4..6 => When::WindowEnd(self.random.usize(..8), around),
            6 if once_in(&mut self.random, 3) => When::Forgotten(self.reservation(user), around),
            6 if once_in(&mut self.random, 2) => When::Forgotten(self.tracked(user), around),
            7 => When::SubscriptionEnd(around),
            _ => {
                let spans = [1, 1000, 1000, 60_000, 60_000, 3_600_000, DAY, 7 * DAY, 31 * DAY, 400 * DAY];
                When::After(pick(&mut self.random, &spans))
            }
        }
    }

    fn operation(&mut self, number: u32) -> Operation {
        let replica = self.random.usize(..self.model.settings.catalogs.len());
        if let Some((user, at, call)) = self.planned.pop_front() {
            let replica = at.unwrap_or(replica);
            let operation = Operation { number, replica, user, call };
            self.asked.push(operation.clone());
            return operation;
        }
        if let Some((user, at, call)) = self.run(number) {
            let replica = at.unwrap_or(replica);
            let operation = Operation { number, replica, user, call };
            self.asked.push(operation.clone());
            return operation;
        }
        let user = usize::from(once_in(&mut self.random, 4));
        let dice = self.random.u32(..100);
        let call = match dice {
            0..6 => self.story(dice, user, number),
            6..26 if self.has_parts && once_in(&mut self.spice, 4) => self.parts(user, number),
            6..26 => self.reserve(user),
            26..41 => self.commit(user),
            41..47 => Call::Release { of: self.reservation(user) },
            47..53 => self.track(user),
            53..55 => self.track_at(user),
            55..65 => self.refund(user),
            65..67 => self.can_use(user),
            67..74 => self.usage(),
            74 if once_in(&mut self.spice, 2) => Call::Reservations { page_size: 0 },
            74..79 => self.upsert(user),
            79 => match self.spice.u32(..8) {
                0 => Call::Subscription,
                1 => Call::Reservation { of: self.reservation(user) },
                2 => self.reset(),
                _ => Call::Reservations { page_size: pick(&mut self.random, &[0, 1, 2, 3, 1000]) },
            },
            80..82 => Call::Cancel { end: (!once_in(&mut self.random, 2)).then(|| self.when(user)) },
            82 if once_in(&mut self.random, 3) => Call::Delete,
            82..88 => Call::Step(self.when(user)),
            88..90 if self.has_parts && once_in(&mut self.spice, 4) => self.parts(user, number),
            88..90 => self.reserve(user),
            _ => return self.again(number, replica),
        };
        let operation = Operation { number, replica, user, call };
        self.asked.push(operation.clone());
        operation
    }

    /// What was asked before, word for word or spelled otherwise, or changed a little.
    fn again(&mut self, number: u32, replica: usize) -> Operation {
        let again = |asked: &&Operation| !matches!(asked.call, Call::Step(_) | Call::Jump(_) | Call::Delete);
        let remembered = |asked: &&Operation| match &asked.call {
            Call::Reserve { request_id, .. }
            | Call::Extend { request_id, .. }
            | Call::Track { request_id, .. }
            | Call::Reset { request_id, .. } => self.model.users[asked.user].recall(request_id).is_some(),
            _ => false,
        };
        let candidates: Vec<_> = if once_in(&mut self.random, 2) {
            self.asked.iter().filter(remembered).cloned().collect()
        } else {
            self.asked.iter().rev().filter(again).take(8).cloned().collect()
        };
        if candidates.is_empty() {
            return Operation { number, replica, user: 0, call: Call::Subscription };
        }
        let mut operation = candidates[self.random.usize(..candidates.len())].clone();
        (operation.number, operation.replica) = (number, replica);
        match &mut operation.call {
            Call::Reserve { event, ttl_ms, .. } => match self.random.u32(..8) {
                1 => *ttl_ms = Some(60_000),
                2 => event.quantity = Some(5 * MICRO),
                _ => {}
            },
            Call::Commit { actual, .. } if once_in(&mut self.random, 3) => *actual = self.actual(),
            Call::Extend { add, .. } if once_in(&mut self.long, 6) => *add = None,
            Call::Extend { ttl_ms, .. } if once_in(&mut self.long, 6) => *ttl_ms = Some(60_000),
            Call::Track { enforce, .. } if self.random.u32(..8) == 1 => *enforce = !*enforce,
            _ => {}
        }
        self.asked.push(operation.clone());
        operation
    }

    fn can_use(&mut self, user: usize) -> Call {
        let event = self.event(user);
        let names_nothing = once_in(&mut self.spice, 2);
        Call::CanUse {
            event: if names_nothing { Event { quantity: None, quantities: BTreeMap::new(), ..event } } else { event },
        }
    }

    fn reserve(&mut self, user: usize) -> Call {
        let mut event = self.event(user);
        if once_in(&mut self.random, 60) {
            event.name.push_str(".refund");
        }
        let ttl_ms = match self.random.u32(..4) {
            0 => None,
            1 => Some(pick(&mut self.random, &[1000, 1001, 60_000, 3_600_000])),
            _ => Some(self.random.i64(1000..=3_600_000)),
        };
        Call::Reserve { event, ttl_ms, request_id: self.request_id(), on_expiry: self.on_expiry() }
    }

    fn commit(&mut self, user: usize) -> Call {
        let (of, actual) = (self.reservation(user), self.actual());
        match self.long.u32(..60) {
            // What does not go together.
            0 => Call::Commit { of, actual: None, partial: true, ttl_ms: None },
            1 => Call::Commit { of, actual, partial: false, ttl_ms: Some(60_000) },
            2..12 => self.part(user, of),
            12..15 => Call::Commit { of, actual, partial: true, ttl_ms: None },
            15..20 => self.extend(user, of),
            _ => Call::commit(of, self.sprinkled(actual)),
        }
    }

    fn actual(&mut self) -> Option<Actual> {
        let random = &mut self.random;
        if once_in(random, 3) {
            return None;
        }
        let quantity = once_in(random, 3).then(|| number(random));
        if once_in(random, 6) {
            // A total, or a name that no catalog has.
            let name = pick(random, &["total_tokens", "completion_token"]);
            return Some(Actual {
                quantity,
                quantities: [(name.to_owned(), number(random))].into(),
                ..Actual::default()
            });
        }
        let quantities = numbers(random, 3);
        Some(Actual { quantity, quantities: self.nested(quantities), ..Actual::default() })
    }

    fn track(&mut self, user: usize) -> Call {
        // The field is for refunds only.
        let refund = once_in(&mut self.random, 40).then(|| Refund { of: self.reservation(user), in_metadata: false });
        let (event, request_id) = (self.event(user), self.request_id());
        Call::Track { event, request_id, enforce: once_in(&mut self.random, 2), refund, at: None }
    }

    /// What happened a while ago, or by a clock that is a little ahead.
    fn track_at(&mut self, user: usize) -> Call {
        let back = [0, -1, -1000, -60_000, -3_600_000, -DAY, -31 * DAY, -366 * DAY, 1, 60_000, 60_001];
        let back = pick(&mut self.random, &back);
        let at = match self.random.u32(..3) {
            0 => When::After(back),
            1 => When::WindowEnd(self.random.usize(..8), back),
            _ => When::AnyWindowStart(self.random.usize(..16), pick(&mut self.random, &[-1, 0, 1, 500])),
        };
        // Rarely with what does not go with it.
        let enforce = once_in(&mut self.random, 30);
        let mut event = self.event(user);
        if once_in(&mut self.random, 30) {
            event.name.push_str(".refund");
        }
        Call::Track { event, request_id: self.request_id(), enforce, refund: None, at: Some(at) }
    }

    fn reset(&mut self) -> Call {
        let mut groups = Vec::new();
        if !once_in(&mut self.random, 3) {
            groups = GROUPS.iter().filter(|_| once_in(&mut self.random, 2)).map(|id| (*id).to_owned()).collect();
        }
        Call::Reset { groups, request_id: self.request_id() }
    }

    fn refund(&mut self, user: usize) -> Call {
        let mut event = self.event(user);
        let mut refund = None;
        if !once_in(&mut self.random, 4) {
            let of = self.reservation(user);
            refund = Some(Refund { of, in_metadata: once_in(&mut self.random, 3) });
            // Mostly of the event that was reserved, with what it had.
            let reserved = self.model.users[user].reservations.get(&of).map(|reservation| reservation.event.clone());
            if let Some(reserved) = reserved.filter(|_| !once_in(&mut self.random, 5)) {
                event = reserved;
                let left = self.left(user, of).filter(|_| !once_in(&mut self.random, 3));
                if let Some(left) = left {
                    // All that was committed, or what is left of it.
                    event = left;
                } else if once_in(&mut self.random, 2) {
                    event.quantity = Some(number(&mut self.random));
                    event.quantities.extend(numbers(&mut self.random, 2));
                    event.quantities = self.nested(std::mem::take(&mut event.quantities));
                }
            }
        }
        event.name.push_str(".refund");
        Call::Track { event, request_id: self.request_id(), enforce: once_in(&mut self.random, 8), refund, at: None }
    }

    /// What a reservation has counted and not yet given back, as an event.
    fn left(&self, user: usize, of: u32) -> Option<Event> {
        let claims = &self.model.users[user].reservations.get(&of)?.claims;
        let mut event = claims.iter().find_map(|claim| claim.counted.as_ref())?.event.clone();
        event.quantity = event.quantity.map(as_sent);
        event.quantities.values_mut().for_each(|quantity| *quantity = as_sent(*quantity));
        Some(event)
    }

    fn usage(&mut self) -> Call {
        let pattern = if once_in(&mut self.random, 4) { pick(&mut self.random, &PATTERNS) } else { "" };
        let back = [-1, -1000, -60_000, -3_600_000, -DAY, -31 * DAY, -366 * DAY, 0, 1];
        let at = match self.random.u32(..6) {
            0 => Some(When::After(pick(&mut self.random, &back))),
            1 => Some(When::WindowEnd(self.random.usize(..8), pick(&mut self.random, &back))),
            _ => None,
        };
        Call::Usage { pattern: pattern.to_owned(), at }
    }

    fn upsert(&mut self, user: usize) -> Call {
        let plan = match self.random.u32(..8) {
            0 => "",
            1 if once_in(&mut self.random, 3) => "nonesuch",
            _ => pick(&mut self.random, &PLANS),
        };
        let overrides = once_in(&mut self.random, 3).then(|| {
            let mut overrides = BTreeMap::new();
            for id in GROUPS {
                if once_in(&mut self.random, 3) {
                    let quota = match self.random.u32(..5) {
                        0 => Quota::Unlimited,
                        1 => Quota::Amount(number(&mut self.random)),
                        2 => Quota::Amount(self.random.u128(1..5 * MICRO)),
                        _ => Quota::Amount(self.random.u128(0..300) * MICRO),
                    };
                    overrides.insert(id.to_owned(), quota);
                }
            }
            overrides
        });
        let end = match self.random.u32(..5) {
            0 => Some(None),
            1 => Some(Some(self.when(user))),
            _ => None,
        };
        let anchor = once_in(&mut self.random, 4).then(|| {
            if once_in(&mut self.random, 2) {
                // Along the grid of some group, as a payment provider moves it.
                return When::WindowStart(self.random.usize(..8), pick(&mut self.random, &[0, 0, 0, 0, 1, -DAY]));
            }
            let spans = [0, -1, -1000, -3_600_000, -DAY, -20 * DAY, -45 * DAY, 1000, DAY, 40 * DAY];
            When::After(pick(&mut self.random, &spans))
        });
        // A version that is current, that was current once, or that never was.
        let etag = once_in(&mut self.random, 3).then(|| match self.random.u32(..6) {
            0 => u32::MAX,
            1 => {
                let made = |asked: &&Operation| matches!(asked.call, Call::Upsert { .. } | Call::Cancel { .. });
                let made: Vec<u32> = self.asked.iter().filter(made).map(|asked| asked.number).collect();
                if made.is_empty() { u32::MAX } else { pick(&mut self.random, &made) }
            }
            _ => self.model.users[user].subscription.as_ref().map_or(u32::MAX, |stored| stored.version),
        });
        let wrong_end =
            once_in(&mut self.random, 40).then(|| pick(&mut self.random, &[WrongEnd::Epoch, WrongEnd::Both]));
        Call::Upsert { plan: plan.to_owned(), overrides, end, anchor, etag, wrong_end }
    }
}
