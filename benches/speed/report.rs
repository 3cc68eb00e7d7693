//! The report: tables for the terminal and for docs/operating/benchmarks.md, which are the same.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

use super::capacity::{calls_per_core, instructions, per_gigabyte};
use super::cases::{CROWDS, HOLDS};
use super::memory::{HOLD, IDLE, SERVED_USERS, SERVER, SETTLED};
use super::process::cores;
use super::results::Results;
use super::scripts::RETURN_ONE;
use super::service::{CASES, ECHO, ECHO_HALF};
use super::targets::{both_cpu, group_line, ratio, targets};

/// How the figures were made.
pub struct About {
    pub rounds: u32,
    pub quick: bool,
}

const OPENING: &str = "\
# Benchmarks

`./dev bench` measures all of this, and `./dev bench --write` writes this page. `./dev bench --list`
names the cases. `./dev bench reserve` measures the cases whose names contain a word. `--quick`
takes one short round. `./dev bench soak SECONDS` shows the memory of a server under load for as
long as you like. `./dev bench beside PROGRAM` [compares it with Limitador](#beside-limitador).
`target/speed.json` has every figure of every round.

**Read ratios first.** A figure in microseconds belongs to one machine on one day. So each comes
with a denominator that was measured on the same machine in the same round:

- For scripts it is the script `return 1`. `redis-benchmark` calls it with 16 calls in flight on
  each of 50 connections, right before the case and on the same Redis. It is what Redis takes to run
  any script at all. Script time is what Redis counts for EVAL, EVALSHA and FCALL in `INFO
  commandstats`, divided by *decisions*: calls that share a script call share its time, and a script
  call that has to be repeated counts twice. It is time on the clock. If another process takes the
  core meanwhile, that is in it.
- For the service it is an *echo*: a gRPC server of the same library, runtime and allocator that
  gives every Reserve one answer, of the size of a real one, under the same load. It is what gRPC
  costs. CPU is user and system time of the whole process, from `/proc`, while the load is measured.

Each figure is the median of the rounds. Memory is measured once. Rounds are interleaved: the first
of every case, then the second. Cases begin on a Redis that has nothing but their users, 10,000
unless they say otherwise, each with open windows and one counted event, and are warmed up. Quotas
are far away, except where a denial is measured. A call is a chat with prompt and completion tokens,
and a request id as long as a UUID, for a plan of three groups (tokens, calls, cents).

Server, Redis and load generator share the cores of one machine and talk over loopback. What one of
them takes the others lack. Latency would be lower with a core for each.
";

/// What was counted instead of measured, and what it says about the targets.
const PROFILE: &str = include_str!("profile.md");

/// Breaks paragraphs and list items at 100 columns. Headings and tables stay as they are.
fn wrapped(text: &str) -> String {
    let mut page = String::new();
    for line in text.lines() {
        let indent = if line.starts_with("- ") || line.starts_with("  ") { "  " } else { "" };
        if line.starts_with(['|', '#']) {
            page.push_str(line);
        } else {
            let mut column = line.len() - line.trim_start().len();
            page.push_str(&line[..column]);
            for (index, word) in line.split_whitespace().enumerate() {
                let width = word.chars().count();
                if index > 0 && column + 1 + width > 100 {
                    page.push('\n');
                    page.push_str(indent);
                    column = indent.len();
                } else if index > 0 {
                    page.push(' ');
                    column += 1;
                }
                page.push_str(word);
                column += width;
            }
        }
        page.push('\n');
    }
    page
}

/// The comparison with Limitador: what was compared and what it says, with the tables of `./dev bench beside` in the place of a mark.
const BESIDE: &str = "benches/speed/beside.md";
const BESIDE_RESULTS: &str = "benches/speed/beside-results.md";
const BESIDE_MARK: &str = "<!-- the tables -->";

/// Writes docs/operating/benchmarks.md. Its comparison with Limitador is the last that was written.
pub fn write_page(tables: &str) -> Result<()> {
    let beside = beside_section(&read(&root(BESIDE_RESULTS))?)?;
    write(&root(PAGE), &wrapped(&format!("{OPENING}\n{tables}\n{beside}\n{PROFILE}")))
}

/// Writes the results of the comparison with Limitador, and its section of docs/operating/benchmarks.md, in place of the one that is there.
pub fn write_beside(tables: &str) -> Result<()> {
    write(&root(BESIDE_RESULTS), tables)?;
    let (section, page) = (beside_section(tables)?, read(&root(PAGE))?);
    let (before, rest) =
        page.split_once(heading(&section)).context("docs/operating/benchmarks.md has no such section")?;
    let after = rest.find("\n## ").map_or("", |next| &rest[next..]);
    write(&root(PAGE), &wrapped(&format!("{before}{section}{after}")))
}

fn beside_section(tables: &str) -> Result<String> {
    Ok(read(&root(BESIDE))?.replace(BESIDE_MARK, tables.trim_end()))
}

/// The first line.
fn heading(section: &str) -> &str {
    section.lines().next().unwrap_or_default()
}

const PAGE: &str = "docs/operating/benchmarks.md";

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Machine, versions, and a table per section that has figures.
pub fn tables(results: &Results, about: &About) -> String {
    let mut text = environment(about);
    let sections = [
        (
            "What a call costs",
            "Instructions, as `./dev counts` counts them: 3 limit groups and a request id, calls one after the other. CI fails if \
             they grow. An empty script is an EVALSHA that does nothing.",
            Some(instructions()),
        ),
        (
            "What that means for capacity",
            "CPU time for one call at full load, and how many calls a core takes then. Servers share the work: add as many as you \
             like. A user's calls all go to one Redis primary, which runs scripts on one core: a cluster of N primaries takes N \
             times as many. `reserve-commit` is one of each, counted as two calls.",
            calls_per_core(results),
        ),
        ("Targets", "Where a target has a denominator of its own, that is the one measured.", target_table(results)),
        (
            "Scripts, per RPC",
            "64 calls in flight. `reserve-replayed` is answered from memory, `reserve-denied` has no room in one of three groups.",
            script_table(results, "script/rpc/"),
        ),
        (
            "Scripts, by limit groups",
            "Reserve. Every group of the plan matches.",
            script_table(results, "script/groups/"),
        ),
        (
            "Scripts, by users",
            "Reserve, spread evenly. Users hold at most 20 reservations, except for what the rounds with the most users leave.",
            script_table(results, "script/users/"),
        ),
        (
            "Scripts, by live holds",
            "Reserve and Release by users who hold so many reservations meanwhile (the last: 9,900 to 9,964 of the 10,000 that a user may).",
            script_table(results, "script/holds/"),
        ),
        (
            "Scripts, under patterns of load",
            "One hot user who reserves and commits, one who is denied; 2,000 users of whose reservations as many lapse, after a \
             second, as are made; eight attempts with each request id; Reserve and Commit of all users.",
            script_table(results, "script/patterns/"),
        ),
        (
            "Scripts, by Redis",
            "In memory only; with an append-only file, `appendfsync everysec`; a cluster of three masters on the same cores, whose \
             times are summed.",
            script_table(results, "script/redis/"),
        ),
        (
            "Service",
            "`saturated`: 64 calls in flight on 4 connections. `half`: calls begin at fixed times at half of that rate, and latency counts \
             from then. CPU is in seconds for 100,000 calls. The denominator is the echo under the same kind of load.",
            service_table(results),
        ),
        ("Memory in Redis", "Bytes. By key: `MEMORY USAGE` of what such a user has.", memory_table(results)),
        (
            "Memory of the server",
            "Resident, before and after stretches of Reserve at full speed.",
            server_table(results),
        ),
    ];
    for (title, opening, table) in sections {
        if let Some(table) = table {
            let _: std::fmt::Result = write!(text, "\n## {title}\n\n{opening}\n\n{}\n", markdown(&table));
            if title == "What that means for capacity" {
                text.push_str(&per_gigabyte(results).unwrap_or_default());
            }
            if title == "Targets" {
                text.push_str(&disturbed(results));
            }
            if title == "Scripts, per RPC" {
                text.push_str(&return_one(results));
            }
            if title == "Scripts, by limit groups" {
                text.push_str(&line_of_groups(results));
            }
            if let Some(flat) = flatness(results, title) {
                text.push_str(&flat);
            }
        }
    }
    text
}

/// The machine and the versions.
pub fn facts() -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after_colon = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let said_by = |program: &str, flag: &str| {
        let output = Command::new(program).arg(flag).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let unknown = || "unknown".to_owned();
    let cpu = after_colon(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown);
    let kilobytes = after_colon(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split(' ').next().and_then(|number| number.parse::<f64>().ok()));
    let memory = kilobytes.map_or_else(unknown, |kilobytes| format!("{:.0} GB", kilobytes / 1e6));
    let redis = said_by("redis-server", "--version")
        .and_then(|text| text.split_whitespace().find_map(|word| word.strip_prefix("v=")).map(str::to_owned));
    let rustc = said_by("rustc", "--version").and_then(|text| text.split(' ').nth(1).map(str::to_owned));
    vec![
        ("CPU", cpu),
        ("cores", cores().to_string()),
        ("memory", memory),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("Redis", redis.unwrap_or_else(unknown)),
        ("Rust", rustc.unwrap_or_else(unknown)),
    ]
}

/// A table of facts about a run.
pub fn fact_table(facts: &[(&str, String)]) -> String {
    let mut table = new_table(&["what", "here"]);
    for (what, here) in facts {
        table.add_row([what, here.as_str()]);
    }
    markdown(&table)
}

fn environment(about: &About) -> String {
    let rounds =
        if about.quick { "1, quick: 1,000,000 users are 100,000".to_owned() } else { about.rounds.to_string() };
    let mut facts = facts();
    facts.push(("rounds", rounds));
    format!("## Machine\n\n{}\n", fact_table(&facts))
}

/// The table, with the colons by which Markdown aligns every column but the first to the right.
pub fn markdown(table: &Table) -> String {
    let text = table.to_string();
    let align = |(index, line): (usize, &str)| {
        if index != 1 {
            return line.to_owned();
        }
        let (first, rest) = line[1..].split_once('|').unwrap_or((line, ""));
        format!("|{first}|{}", rest.replace("-|", ":|"))
    };
    text.lines().enumerate().map(align).collect::<Vec<_>>().join("\n")
}

/// An empty table. Every column but the first is aligned to the right.
pub fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The figure with so many decimals; nothing if there is none.
pub fn number(figure: Option<f64>, decimals: usize) -> String {
    figure.map_or_else(String::new, |figure| format!("{figure:.decimals$}"))
}

fn target_table(results: &Results) -> Option<Table> {
    let mut table = new_table(&["target", "bound", "figure", "met"]);
    let targets = targets(results);
    if targets.iter().all(|target| target.figure.is_none()) {
        return None;
    }
    for target in &targets {
        let met = match target.is_met() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        table.add_row([target.what, &target.bound(), &target.shown(), met]);
    }
    Some(table)
}

fn script_table(results: &Results, prefix: &str) -> Option<Table> {
    let mut names: Vec<&str> = results.cases(prefix).collect();
    // Numbers as numbers.
    names.sort_by_key(|name| (name[prefix.len()..].parse::<u64>().unwrap_or(0), *name));
    let mut table = new_table(&[
        "case",
        "in `return 1`",
        "least to most",
        "script us",
        "`return 1` us",
        "calls per decision",
        "decisions/s",
        "Redis CPU us",
    ]);
    for name in &names {
        let median = |metric: &str, decimals| number(results.median(name, metric), decimals);
        let range = results
            .range(name, "times_return_one")
            .map_or_else(String::new, |(least, most)| format!("{least:.1} to {most:.1}"));
        table.add_row([
            name[prefix.len()..].to_owned(),
            format!("{}x", median("times_return_one", 1)),
            range,
            median("script_micros", 2),
            median("return_one_micros", 2),
            median("calls_per_decision", 2),
            median("decisions_per_second", 0),
            median("redis_cpu_micros", 1),
        ]);
    }
    Some(table).filter(|_| !names.is_empty())
}

/// A script that takes longer on the clock than Redis takes of a core was kept waiting for one.
fn disturbed(results: &Results) -> String {
    let names: Vec<&str> = results.cases("script/").collect();
    let median = |name: &str, metric| results.median(name, metric).unwrap_or_default();
    let waited = |name: &&&str| median(name, "script_micros") > 1.1 * median(name, "redis_cpu_micros");
    match names.iter().filter(waited).count() {
        0 => String::new(),
        count => format!(
            "\nIn {count} of {} cases scripts took longer on the clock than Redis was given a core for: other work disturbed this run, \
             and the figures of scripts are too high.\n",
            names.len()
        ),
    }
}

fn return_one(results: &Results) -> String {
    let median = |metric| results.median(RETURN_ONE, metric);
    let range = results.range(RETURN_ONE, "script_micros");
    let (Some(micros), Some(per_second), Some((least, most))) = (median("script_micros"), median("per_second"), range)
    else {
        return String::new();
    };
    let thousands = per_second / 1e3;
    format!("\n`return 1`, beside all cases: {micros:.2} us ({least:.2} to {most:.2}), {thousands:.0},000 calls/s.\n")
}

fn line_of_groups(results: &Results) -> String {
    group_line(results).map_or_else(String::new, |line| {
        format!(
            "\nThrough 3 and 10 groups: {:.1} us + {:.2} us per group. 50 groups cost {:.2}x what that line says.\n",
            line.base, line.per_group, line.largest
        )
    })
}

/// How the largest number of users, and of holds, compares with the least.
fn flatness(results: &Results, title: &str) -> Option<String> {
    let (section, numbers, what) = match title {
        "Scripts, by users" => ("users", &CROWDS[..], "users"),
        "Scripts, by live holds" => ("holds", &HOLDS[..], "live holds"),
        _ => return None,
    };
    let cost = |count: usize| results.median(&format!("script/{section}/{count}"), "times_return_one");
    let told: Vec<String> = numbers
        .iter()
        .skip(1)
        .filter_map(|count| Some(format!("{:.2}x with {count}", ratio(cost(*count), cost(numbers[0]))?)))
        .collect();
    if told.is_empty() {
        return None;
    }
    Some(format!("\nIn the cost with {} {what}: {}.\n", numbers[0], told.join(", ")))
}

fn service_table(results: &Results) -> Option<Table> {
    let mut table = new_table(&[
        "case",
        "server CPU in the echo's",
        "calls/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "server CPU s",
        "Redis CPU s",
        "both",
        "generator CPU s",
    ]);
    let mut any = false;
    for case in &CASES {
        let median = |metric: &str, decimals| number(results.median(case.name, metric), decimals);
        let Some(server) = results.median(case.name, "server_cpu_per_100k") else { continue };
        any = true;
        // Calls that come one by one cost more than those that come together, also of the echo.
        let echo = results.median(if case.is_saturated() { ECHO } else { ECHO_HALF }, "server_cpu_per_100k");
        table.add_row([
            case.name.trim_start_matches("service/").to_owned(),
            ratio(Some(server), echo).map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
            median("calls_per_second", 0),
            median("p50_ms", 2),
            median("p99_ms", 2),
            median("p999_ms", 2),
            median("server_cpu_per_100k", 2),
            median("redis_cpu_per_100k", 2),
            number(both_cpu(results, case.name), 2),
            median("generator_cpu_per_100k", 2),
        ]);
    }
    Some(table).filter(|_| any)
}

fn memory_table(results: &Results) -> Option<Table> {
    let mut table = new_table(&["what", "bytes", "by key"]);
    let rows = [
        ("an idle user, 3 groups", IDLE, "bytes"),
        ("a user's first live hold", HOLD, "first_bytes"),
        ("a live hold beside 100 others", HOLD, "marginal_bytes"),
        ("a user's first settled reservation", SETTLED, "first_bytes"),
        ("a settled reservation beside 100 others", SETTLED, "marginal_bytes"),
    ];
    let mut any = false;
    for (what, case, metric) in rows {
        let Some(bytes) = results.median(case, metric) else { continue };
        any = true;
        let keys = results.metrics(case).filter_map(|metric| {
            let kind = metric.strip_prefix("key_")?;
            Some(format!("{kind} {:.0}", results.median(case, metric)?))
        });
        let keys = if metric == "marginal_bytes" { String::new() } else { keys.collect::<Vec<_>>().join(", ") };
        table.add_row([what.to_owned(), format!("{bytes:.0}"), keys]);
    }
    Some(table).filter(|_| any)
}

fn server_table(results: &Results) -> Option<Table> {
    let resident = results.all(SERVER, "resident_bytes")?;
    let calls = results.all(SERVER, "calls")?;
    let mut table = new_table(&["when", "MB"]);
    let mut sum = 0.0;
    for (index, bytes) in resident.iter().enumerate() {
        let when = match index.checked_sub(1).and_then(|index| calls.get(index)) {
            Some(some) => {
                sum += some;
                format!("after {sum:.0} calls by {SERVED_USERS} users")
            }
            None => "at its start".to_owned(),
        };
        table.add_row([when, format!("{:.1}", bytes / 1e6)]);
    }
    Some(table)
}
