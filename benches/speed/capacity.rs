//! What calls cost, and what that means for somebody who plans a deployment.

use std::sync::LazyLock;

use comfy_table::Table;

use super::figures::{Figure, Figures};
use super::memory::{HOLD, IDLE, SETTLED};
use super::report::{new_table, number};
use super::results::Results;
use super::service::{CASES, ECHO};

/// Instructions per call, as they are committed.
static COUNTED: LazyLock<Figures> =
    LazyLock::new(|| Figures::parse(include_str!("../counts.toml")).expect("counts.toml is what ./dev counts wrote"));

/// The counted figure of a case of `benches/counts.toml`.
pub fn counted(case: &str) -> Option<&'static Figure> {
    COUNTED.cases.iter().find(|(name, _)| name == case).map(|(_, figure)| figure)
}

/// Instructions of the server and of Redis, for each kind of call.
pub fn instructions() -> Table {
    let mut table = new_table(&["call", "server", "Redis", "Redis, in empty scripts"]);
    let thousands = |count: u64| format!("{:.0} k", count as f64 / 1e3);
    for (name, Figure { server, redis, ratio, .. }) in COUNTED.cases.iter().filter(|(_, figure)| figure.redis > 0) {
        table.add_row([name.clone(), thousands(*server), thousands(*redis), format!("{ratio:.1}")]);
    }
    table
}

/// How many calls one core of the server and of Redis takes in a second.
pub fn calls_per_core(results: &Results) -> Option<Table> {
    let mut table =
        new_table(&["call", "server us", "Redis us", "calls/s by a server's core", "calls/s by a Redis primary"]);
    let mut any = false;
    for case in CASES.iter().filter(|case| case.is_saturated() && case.name != ECHO) {
        let micros = |metric| results.median(case.name, metric).map(|seconds| seconds * 10.0);
        let (Some(server), Some(redis)) = (micros("server_cpu_per_100k"), micros("redis_cpu_per_100k")) else {
            continue;
        };
        any = true;
        table.add_row([
            case.name.trim_start_matches("service/").trim_end_matches("/saturated").to_owned(),
            number(Some(server), 1),
            number(Some(redis), 1),
            number(Some(1e6 / server), 0),
            number(Some(1e6 / redis), 0),
        ]);
    }
    Some(table).filter(|_| any)
}

/// What a gigabyte of Redis has room for.
pub fn per_gigabyte(results: &Results) -> Option<String> {
    let millions = |case, metric| results.median(case, metric).map(|bytes| 1e3 / bytes);
    Some(format!(
        "\nOne gigabyte of Redis has room for {:.1} million idle users, or {:.1} million live holds, or {:.1} million settled \
         reservations that a retry may still ask for.\n",
        millions(IDLE, "bytes")?,
        millions(HOLD, "marginal_bytes")?,
        millions(SETTLED, "marginal_bytes")?
    ))
}
