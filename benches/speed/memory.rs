//! Memory: what users leave in Redis, and whether the server's own grows. All of it is made by calls like any caller's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tollgate::domain::id::{Owner, RequestId};
use tollgate::meter::Meter;

use super::Effort;
use super::lab::{Allowance, World, event, tracked, user_ids};
use super::load::{self, Calls, Job, Pace};
use super::process;
use super::results::Results;
use super::scripts::{IN_FLIGHT, for_each};
use super::service;
use super::store::Store;

pub const IDLE: &str = "memory/idle-user";
pub const HOLD: &str = "memory/live-hold";
pub const SETTLED: &str = "memory/settled";
pub const SERVER: &str = "memory/server";

/// Every case.
pub const CASES: [&str; 4] = [IDLE, HOLD, SETTLED, SERVER];

/// How many users the server's own memory is measured with.
pub const SERVED_USERS: usize = 100_000;

/// How many reservations a user has before the marginal one is measured, and how many that is measured with.
const BEFORE: usize = 100;
const MARGINAL: usize = 25;

/// Measures a case.
pub async fn measure(scratch: &Path, name: &str, effort: &Effort, results: &mut Results) -> Result<()> {
    let store = Store::single(scratch, &name.replace('/', "-"), "--appendonly no").await?;
    if name == SERVER {
        return server(scratch, &store, effort, results).await;
    }
    let mut world = World::new(store, 32).await?;
    let meter = world.meter(Allowance::Plenty(3))?;
    let users = Arc::new(user_ids(effort.memory_users));
    let empty = world.store.used_bytes().await?;
    visit(&meter, &users).await?;
    let idle = world.store.used_bytes().await?;
    if name == IDLE {
        results.add(name, "bytes", (idle - empty) / users.len() as f64);
        return by_kind(&world.store, name, users.len(), results).await;
    }
    let settle = name == SETTLED;
    reserve(&meter, &users, 0..1, settle).await?;
    results.add(name, "first_bytes", (world.store.used_bytes().await? - idle) / users.len() as f64);
    by_kind(&world.store, name, users.len(), results).await?;

    world.store.flush().await?;
    let users = Arc::new(user_ids(effort.memory_users / 50));
    visit(&meter, &users).await?;
    reserve(&meter, &users, 0..BEFORE, settle).await?;
    let before = world.store.used_bytes().await?;
    reserve(&meter, &users, BEFORE..BEFORE + MARGINAL, settle).await?;
    let grown = world.store.used_bytes().await? - before;
    results.add(name, "marginal_bytes", grown / (users.len() * MARGINAL) as f64);
    Ok(())
}

/// Counts an event of each user, without an id.
async fn visit(meter: &Arc<Meter>, users: &Arc<Vec<Owner>>) -> Result<()> {
    let (meter, count, users) = (Arc::clone(meter), users.len(), Arc::clone(users));
    let call = move |index: usize| {
        let (meter, users) = (Arc::clone(&meter), Arc::clone(&users));
        async move { Ok(meter.track(&users[index], &tracked(event())).await?) }
    };
    for_each(count, call).await.map(drop)
}

/// Reserves for each user with the request ids of these numbers, and commits where that is asked.
async fn reserve(
    meter: &Arc<Meter>,
    users: &Arc<Vec<Owner>>,
    numbers: std::ops::Range<usize>,
    settle: bool,
) -> Result<()> {
    let (meter, count, users) = (Arc::clone(meter), users.len(), Arc::clone(users));
    let begin = numbers.start;
    let call = move |index: usize| {
        let (meter, users) = (Arc::clone(&meter), Arc::clone(&users));
        async move {
            let (user, number) = (&users[index % count], begin + index / count);
            // As long as a UUID.
            let id = RequestId::parse(&format!("request-{number:028}"))?;
            let held = meter.reserve(user, &event(), Duration::from_secs(3600), id.as_ref()).await?;
            let id = held.hold.context("there is room")?.id;
            if settle {
                meter.commit(&id, None).await?;
            }
            Ok(())
        }
    };
    for_each(count * numbers.len(), call).await.map(drop)
}

/// What Redis says of each key, per user, by what the key is called behind the user's tag.
async fn by_kind(store: &Store, name: &str, users: usize, results: &mut Results) -> Result<()> {
    let mut connection = store.connection();
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    let mut cursor = 0_u64;
    loop {
        let (next, keys): (u64, Vec<String>) =
            redis::cmd("SCAN").arg(cursor).arg("COUNT").arg(1000).query_async(&mut connection).await?;
        if !keys.is_empty() {
            let mut pipeline = redis::pipe();
            for key in &keys {
                pipeline.cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0);
            }
            let sizes: Vec<Option<u64>> = pipeline.query_async(&mut connection).await?;
            for (key, size) in keys.iter().zip(sizes) {
                let kind = match key.split_once("}:u") {
                    Some((_, "")) => "state",
                    Some((_, what)) if what.starts_with(":h:") => "hold",
                    Some(_) => "memory",
                    None => "other",
                };
                *sums.entry(kind.to_owned()).or_default() += size.unwrap_or(0) as f64;
            }
        }
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    for (kind, bytes) in sums {
        results.add(name, &format!("key_{kind}"), bytes / users as f64);
    }
    Ok(())
}

/// The server's own memory: at its start, and after each of four stretches of load.
async fn server(scratch: &Path, store: &Store, effort: &Effort, results: &mut Results) -> Result<()> {
    let served = service::serve(scratch, store, &[])?;
    results.add(SERVER, "resident_bytes", process::resident_bytes(served.id())? as f64);
    for stretch in 0..4 {
        let job = Job {
            address: served.address,
            calls: Calls::Reserve,
            pace: Pace::Closed { in_flight: IN_FLIGHT },
            users: SERVED_USERS,
            run: format!("mem-{stretch:05}"),
            warm_up: Duration::ZERO,
            measured: effort.load * 3,
            watched: BTreeMap::new(),
        };
        let seen = load::run(&job).await?;
        results.add(SERVER, "calls", seen.calls as f64);
        results.add(SERVER, "resident_bytes", process::resident_bytes(served.id())? as f64);
    }
    Ok(())
}
