//! Where scripts are measured: Redis in several arrangements, each started when it is first needed, and the library on top.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tollgate::catalog;
use tollgate::domain::amount::Quantity;
use tollgate::domain::event::{Event, EventName};
use tollgate::domain::id::{AppId, Owner, UserId};
use tollgate::ledger::{Ledger, RedisOptions};
use tollgate::meter::{Meter, MeterOptions, TrackCall};

use super::store::Store;

/// In which arrangement of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// A single one that keeps everything in memory, and runs a script for each call. It is emptied before each measurement.
    Memory,
    /// The same, and calls travel together where Redis is busy.
    Together,
    /// A single one full of users, who stay.
    Crowd,
    /// A single one with an append-only file, `everysec`.
    AppendOnly,
    /// Three masters.
    Cluster,
}

/// What the users' plan allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Allowance {
    /// Far more than any run can use, in so many limit groups that all match.
    Plenty(usize),
    /// Three groups; one of them has no room for a second event.
    Scarce,
}

/// One arrangement.
pub struct World {
    pub store: Store,
    ledger: Ledger,
    meters: HashMap<Allowance, Arc<Meter>>,
}

/// All of them.
pub struct Lab {
    scratch: PathBuf,
    worlds: HashMap<Place, World>,
}

impl Lab {
    pub fn new(scratch: &Path) -> Self {
        Self { scratch: scratch.to_owned(), worlds: HashMap::new() }
    }

    /// The arrangement; `Crowd` with so many users.
    pub async fn world(&mut self, place: Place, users: usize) -> Result<&mut World> {
        if !self.worlds.contains_key(&place) {
            let scratch = &self.scratch;
            let store = match place {
                Place::Memory => Store::single(scratch, "memory", "--appendonly no").await?,
                Place::Together => Store::single(scratch, "together", "--appendonly no").await?,
                Place::Crowd => Store::single(scratch, "crowd", "--appendonly no").await?,
                Place::AppendOnly => {
                    Store::single(scratch, "append-only", "--appendonly yes --appendfsync everysec").await?
                }
                Place::Cluster => Store::cluster(scratch).await?,
            };
            let mut world = World::new(store, if place == Place::Together { 32 } else { 1 }).await?;
            if place == Place::Crowd {
                let meter = world.meter(Allowance::Plenty(3))?;
                world.populate(&meter, &user_ids(users)).await?;
            }
            self.worlds.insert(place, world);
        }
        self.worlds.get_mut(&place).context("it was just made")
    }
}

impl World {
    /// Up to `batch` calls travel together.
    pub async fn new(store: Store, batch: usize) -> Result<Self> {
        let ledger = connect(store.urls(), batch).await?;
        Ok(Self { store, ledger, meters: HashMap::new() })
    }

    /// The library, with a catalog whose default plan allows so much.
    pub fn meter(&mut self, allowance: Allowance) -> Result<Arc<Meter>> {
        if let Some(meter) = self.meters.get(&allowance) {
            return Ok(Arc::clone(meter));
        }
        let meter = self.fresh_meter(allowance)?;
        self.meters.insert(allowance, Arc::clone(&meter));
        Ok(meter)
    }

    /// One that remembers nothing of the users.
    pub fn fresh_meter(&self, allowance: Allowance) -> Result<Arc<Meter>> {
        let catalog = catalog::parse(&catalog_of(allowance), jiff::tz::db());
        let catalog = catalog.map_err(|problems| anyhow!("{problems}"))?;
        Ok(Arc::new(Meter::new(Arc::new(catalog), self.ledger.clone(), MeterOptions::default())))
    }

    /// Gives each of the users a ledger with every window open and one event counted.
    pub async fn populate(&self, meter: &Meter, users: &[Owner]) -> Result<()> {
        let Some((first, others)) = users.split_first() else { return Ok(()) };
        meter.track(first, &tracked(event())).await?;
        if self.store.is_cluster() {
            for user in others {
                meter.track(user, &tracked(event())).await?;
            }
            return Ok(());
        }
        self.store.copy_user(first, others).await
    }
}

/// The one place that names the options of the library's connection, so that a new one is decided on here.
pub async fn connect(urls: Vec<String>, batch: usize) -> Result<Ledger> {
    let options = RedisOptions {
        urls,
        sentinels: Vec::new(),
        connections: 2,
        batch,
        timeout: Duration::from_secs(10),
        allow_eviction: false,
        ..RedisOptions::default()
    };
    Ledger::connect(&options).await.context("cannot use the benchmark's Redis")
}

/// Their names, the same in every process and round.
pub fn user_ids(count: usize) -> Vec<Owner> {
    let user = |index| UserId::parse(&user_name(index)).expect("a short name");
    (0..count).map(|index| Owner::new(&AppId::default(), &user(index))).collect()
}

/// The name of one of them.
pub fn user_name(index: usize) -> String {
    format!("user-{index:07}")
}

/// What is sent everywhere: a chat, with prompt and completion.
pub const EVENT: &str = "llm.tokens";
pub const PROMPT: (&str, f64) = ("prompt_tokens", 1200.0);
pub const COMPLETION: (&str, f64) = ("completion_tokens", 800.0);

/// The event of the benchmark.
pub fn event() -> Event {
    event_of(EVENT, 1.0)
}

/// One of another name, or of another size.
pub fn event_of(name: &str, factor: f64) -> Event {
    let name = EventName::parse(name).expect("a name");
    let quantity =
        |(name, number): (&str, f64)| (name.to_owned(), Quantity::from_f64(number * factor).expect("a number"));
    let quantities = [PROMPT, COMPLETION].map(quantity).into();
    Event::new(name, None, quantities, [("model".to_owned(), "gpt-4o".to_owned())].into())
}

/// An event that has happened, to be counted without an id.
pub fn tracked(event: Event) -> TrackCall {
    TrackCall { event, request_id: None, enforce: false, reservation: None, at_ms: None }
}

/// The catalog of one plan. Its groups are of three kinds, in turn: tokens, calls and cents.
pub fn catalog_of(allowance: Allowance) -> String {
    let (groups, tokens) = match allowance {
        Allowance::Plenty(groups) => (groups, 1_000_000_000_000_u64),
        Allowance::Scarce => (3, 3000),
    };
    let mut text = "default_plan: p\nplans:\n  p:\n    name: P\n    period: monthly\n    limit_groups:\n".to_owned();
    for index in 0..groups {
        let (id, label, unit, quota, measure) = match index % 3 {
            0 => ("tokens_total", "Tokens", "tokens", tokens, "{ prompt_tokens: 1, completion_tokens: 1 }"),
            1 => ("calls", "Calls", "count", 1_000_000_000_000, "events"),
            _ => ("spend", "Spend", "cents", 1_000_000_000, "{ prompt_tokens: 0.00025, completion_tokens: 0.001 }"),
        };
        let id = if index < 3 { id.to_owned() } else { format!("{id}_{}", index / 3) };
        let _: std::fmt::Result = write!(
            text,
            "      - id: {id}\n        label: {label}\n        unit: {unit}\n        quota: {quota}\n        match:\n          \
             - {{ event: {EVENT}, measure: {measure} }}\n",
        );
    }
    text
}
