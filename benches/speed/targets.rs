//! What Tollgate wants to reach, and what was measured of it.

use super::capacity::counted;
use super::cases::{CROWDS, HOLDS};
use super::memory::{HOLD, IDLE, SERVER, SETTLED};
use super::process::cores;
use super::results::Results;
use super::service::{ECHO, RESERVE, RESERVE_HALF, UNBATCHED};

/// One of the aims.
pub struct Target {
    pub what: &'static str,
    /// None if the run did not measure it.
    pub figure: Option<f64>,
    bound: Bound,
    unit: Unit,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Clone, Copy)]
enum Unit {
    Times,
    CpuSeconds,
    Milliseconds,
    Bytes,
    Share,
    Instructions,
}

impl Unit {
    fn show(self, figure: f64) -> String {
        match self {
            Self::Times => format!("{figure:.2}x"),
            Self::CpuSeconds => format!("{figure:.2} s"),
            Self::Milliseconds => format!("{figure:.2} ms"),
            Self::Bytes => format!("{figure:.0} B"),
            Self::Share => format!("{figure:.2}"),
            Self::Instructions => format!("{:.0} k", figure / 1e3),
        }
    }
}

impl Target {
    pub fn bound(&self) -> String {
        match self.bound {
            Bound::AtMost(bound) => format!("at most {}", self.unit.show(bound)),
            Bound::AtLeast(bound) => format!("at least {}", self.unit.show(bound)),
        }
    }

    pub fn shown(&self) -> String {
        self.figure.map_or_else(|| "not measured".to_owned(), |figure| self.unit.show(figure))
    }

    pub fn is_met(&self) -> Option<bool> {
        self.figure.map(|figure| match self.bound {
            Bound::AtMost(bound) => figure <= bound,
            Bound::AtLeast(bound) => figure >= bound,
        })
    }
}

/// All of them.
pub fn targets(results: &Results) -> Vec<Target> {
    let at_most = |what, unit, bound, figure| Target { what, figure, bound: Bound::AtMost(bound), unit };
    let script = |case: &str| results.median(&format!("script/{case}"), "times_return_one");
    let of_redis = |case| counted(case).map(|figure| figure.redis as f64);
    let of_server = |case| counted(case).map(|figure| figure.server as f64);
    let (most, few) = (CROWDS[CROWDS.len() - 1], CROWDS[0]);
    let crowd = ratio(script(&format!("users/{most}")), script(&format!("users/{few}")));
    let holds = ratio(script("holds/1000"), script(&format!("holds/{}", HOLDS[0])));
    let server = |case| results.median(case, "server_cpu_per_100k");
    // Where calls cannot share a script call, none does.
    let unbatched = both_cpu(results, UNBATCHED).or_else(|| both_cpu(results, RESERVE));
    let batched = both_cpu(results, UNBATCHED).and_then(|_| both_cpu(results, RESERVE));
    let growth = group_line(results).map(|line| line.largest);
    vec![
        at_most("Instructions of Redis for a Reserve, 3 groups", Unit::Instructions, 210e3, of_redis("reserve")),
        at_most("The same with 1 group", Unit::Instructions, 150e3, of_redis("reserve, 1 group")),
        at_most("The same with 10 groups", Unit::Instructions, 400e3, of_redis("reserve, 10 groups")),
        at_most("The same with 50 groups", Unit::Instructions, 1500e3, of_redis("reserve, 50 groups")),
        at_most("Instructions of Redis for a Commit", Unit::Instructions, 175e3, of_redis("commit")),
        at_most("Instructions of Redis for a denial", Unit::Instructions, 130e3, of_redis("reserve, denied")),
        at_most("Instructions of the server for a Reserve", Unit::Instructions, 165e3, of_server("reserve")),
        at_most("Reserve with 1,000,000 users, in that with 10", Unit::Times, 1.3, crowd),
        at_most("Reserve and Release beside 1,000 live holds, in that beside 1", Unit::Times, 1.3, holds),
        at_most("Reserve with 50 groups, in the line through 3 and 10", Unit::Times, 1.3, growth),
        at_most("Server CPU of Reserve, in the echo's", Unit::Times, 1.35, ratio(server(RESERVE), server(ECHO))),
        at_most("CPU of server and Redis for 100,000 Reserves, unbatched", Unit::CpuSeconds, 3.9, unbatched),
        at_most("CPU of server and Redis for 100,000 Reserves, batched", Unit::CpuSeconds, 3.9, batched),
        Target {
            what: "Saturated throughput of Reserve, in what its CPU allows",
            figure: ratio(results.median(RESERVE, "calls_per_second"), allowed_per_second(results, RESERVE)),
            bound: Bound::AtLeast(0.85),
            unit: Unit::Share,
        },
        at_most(
            "Reserve at half load: 99th percentile",
            Unit::Milliseconds,
            2.0,
            results.median(RESERVE_HALF, "p99_ms"),
        ),
        at_most("Redis memory of an idle user, 3 groups", Unit::Bytes, 320.0, results.median(IDLE, "bytes")),
        at_most("Redis memory of a user's first live hold", Unit::Bytes, 900.0, results.median(HOLD, "first_bytes")),
        at_most(
            "Redis memory of a live hold beside 100 others",
            Unit::Bytes,
            450.0,
            results.median(HOLD, "marginal_bytes"),
        ),
        at_most(
            "Redis memory of a settled reservation beside 100 others",
            Unit::Bytes,
            260.0,
            results.median(SETTLED, "marginal_bytes"),
        ),
        at_most(
            "Server memory after the last stretch of load, in that after the first",
            Unit::Times,
            1.1,
            flat(results),
        ),
    ]
}

/// How the cost of Reserve grows with the number of groups.
pub struct GroupLine {
    /// Microseconds of a Reserve without groups, and of each group, by the line through 3 and 10 groups.
    pub base: f64,
    pub per_group: f64,
    /// The cost of 50 groups, in what the line says.
    pub largest: f64,
}

pub fn group_line(results: &Results) -> Option<GroupLine> {
    let micros = |groups: u32| results.median(&format!("script/groups/{groups}"), "script_micros");
    let (three, ten, fifty) = (micros(3)?, micros(10)?, micros(50)?);
    let per_group = (ten - three) / 7.0;
    let base = three - 3.0 * per_group;
    Some(GroupLine { base, per_group, largest: fifty / (base + 50.0 * per_group) })
}

pub fn ratio(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    Some(one? / other?).filter(|ratio| ratio.is_finite())
}

/// CPU seconds of server and Redis for 100,000 calls.
pub fn both_cpu(results: &Results, case: &str) -> Option<f64> {
    Some(results.median(case, "server_cpu_per_100k")? + results.median(case, "redis_cpu_per_100k")?)
}

/// The calls per second for which the cores suffice, by what a call costs everywhere; Redis runs scripts on one core only.
pub fn allowed_per_second(results: &Results, case: &str) -> Option<f64> {
    let redis = results.median(case, "redis_cpu_per_100k")?;
    let all = both_cpu(results, case)? + results.median(case, "generator_cpu_per_100k")?;
    Some((cores() as f64 * 1e5 / all).min(1e5 / redis))
}

/// How the server's memory has grown since it had seen some load.
fn flat(results: &Results) -> Option<f64> {
    let figures = results.all(SERVER, "resident_bytes")?;
    Some(figures.last()? / figures.get(1)?)
}
