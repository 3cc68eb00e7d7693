//! The figures: their committed form, and the comparison of the present ones with them. Pure; tested by
//! `tests/it/counts.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use comfy_table::{Cell, CellAlignment, Table};
use serde::Deserialize;

/// The growth of the server that is tolerated, in percent, where the same compiler built both.
pub const SERVER_TOLERANCE: f64 = 4.0;

/// The growth of Redis that is tolerated, in percent of its ratio to the empty script, where both are the same Redis.
/// The cost of a lookup depends on a seed that Redis draws when it starts.
pub const REDIS_TOLERANCE: f64 = 5.0;

/// The growth of either that is tolerated, in percent, where the tools differ.
pub const OTHER_TOOLS_TOLERANCE: f64 = 25.0;

/// The number of times that each Redis command is sent or run in a call, by the command's name.
pub type Commands = BTreeMap<String, f64>;

/// The tools that figures were taken with. Figures taken with other tools are hardly comparable.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct TakenWith {
    pub rustc: String,
    pub redis: String,
    pub libc: String,
    pub valgrind: String,
    pub processor: String,
}

/// The cost of one kind of call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// Instructions of the server.
    pub server: u64,
    /// Instructions of Redis.
    pub redis: u64,
    /// The same, in those of an EVALSHA whose script does nothing.
    pub ratio: f64,
    /// Commands that Redis runs, those of scripts included.
    pub commands: Commands,
}

/// Everything that is committed.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// The tools that the figures were taken with.
    pub taken_with: TakenWith,
    /// Instructions of Redis for an EVALSHA whose script does nothing.
    pub empty_script: u64,
    /// The cases, in the order of the table.
    pub cases: Vec<(String, Figure)>,
}

impl Figures {
    /// Reads what [`Figures::to_toml`] has written.
    ///
    /// # Errors
    /// For any other text.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        struct File {
            empty_script: u64,
            taken_with: TakenWith,
            case: BTreeMap<String, Figure>,
        }
        let File { empty_script, taken_with, case } = toml::from_str(text)?;
        Ok(Self { taken_with, empty_script, cases: case.into_iter().collect() })
    }

    /// Writes the figures as the committed file holds them.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let TakenWith { rustc, redis, libc, valgrind, processor } = &self.taken_with;
        let mut text = format!(
            "# What a call costs, as `./dev counts --accept` counted it: see docs/development/testing.md. Instructions of the server and of Redis,
# the latter also in those of an EVALSHA whose script does nothing, and how often each Redis command runs.

empty-script = {}

[taken-with]
rustc = {rustc:?}
redis = {redis:?}
libc = {libc:?}
valgrind = {valgrind:?}
processor = {processor:?}
",
            self.empty_script
        );
        for (name, Figure { server, redis, ratio, commands }) in &self.cases {
            let commands: Vec<_> = commands.iter().map(|(name, count)| format!("{} = {count}", key(name))).collect();
            text += &format!(
                "\n[case.{}]\nserver = {server}\nredis = {redis}\nratio = {ratio:.2}\ncommands = {{ {} }}\n",
                key(name),
                commands.join(", ")
            );
        }
        text
    }

    /// Formats the figures as a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = new_table(["call", "server", "redis", "x empty script", "commands"]);
        for (name, figure) in &self.cases {
            let numbers = [figure.server.to_string(), figure.redis.to_string(), format!("{:.2}", figure.ratio)];
            let mut row = vec![Cell::new(name)];
            row.extend(numbers.into_iter().map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
            row.push(Cell::new(told(&figure.commands)));
            table.add_row(row);
        }
        format!("{table}\nInstructions for a call; {} for the empty script.", self.empty_script)
    }

    fn case(&self, name: &str) -> Option<&Figure> {
        self.cases.iter().find(|(other, _)| other == name).map(|(_, figure)| figure)
    }
}

/// The change of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Within the tolerance.
    Little,
    /// Less than before, by more than the tolerance.
    Better,
    /// More than before, by more than the tolerance.
    Worse,
}

impl Change {
    fn of(before: f64, now: f64, tolerance: f64) -> Self {
        match percent(before, now) {
            change if change > tolerance => Self::Worse,
            change if change < -tolerance => Self::Better,
            _ => Self::Little,
        }
    }
}

/// The figures counted now beside the committed ones. Displays as the table, followed by what to do.
#[derive(Debug)]
pub struct Comparison {
    rows: Vec<Row>,
    /// The tools that differ, and how the comparison allows for that.
    notes: Vec<String>,
    /// The problems found with cases.
    problems: Vec<String>,
    improved: bool,
}

#[derive(Debug)]
struct Row {
    name: String,
    server: (u64, u64, Change),
    ratio: (f64, f64, Change),
    commands: String,
}

/// Holds figures against the committed ones.
#[must_use]
pub fn compare(committed: &Figures, now: &Figures) -> Comparison {
    let (was, is) = (&committed.taken_with, &now.taken_with);
    let mut notes = Vec::new();
    let mut others = |differ: &[(&str, &str, &str)], whose: &str, tolerance: f64| {
        let differ: Vec<_> = differ.iter().filter(|(_, was, is)| was != is).collect();
        for (name, was, is) in &differ {
            notes.push(format!("{name}: the figures of {whose} were taken with {was}, this is {is}"));
        }
        if differ.is_empty() { tolerance } else { OTHER_TOOLS_TOLERANCE }
    };
    let both = [("valgrind", &*was.valgrind, &*is.valgrind), ("processor", &*was.processor, &*is.processor)];
    let libc = ("libc", &*was.libc, &*is.libc);
    let server_tolerance =
        others(&[("rustc", &was.rustc, &is.rustc), libc, both[0], both[1]], "the server", SERVER_TOLERANCE);
    let redis_tolerance = others(&[("redis", &was.redis, &is.redis), libc, both[0], both[1]], "Redis", REDIS_TOLERANCE);
    if server_tolerance > SERVER_TOLERANCE || redis_tolerance > REDIS_TOLERANCE {
        notes.push(format!(
            "up to {OTHER_TOOLS_TOLERANCE} % are tolerated where the tools are others; commands must be equal"
        ));
    }

    let mut comparison = Comparison { rows: Vec::new(), notes, problems: Vec::new(), improved: false };
    for (name, figure) in &now.cases {
        match committed.case(name) {
            Some(before) => comparison.add(name, before, figure, server_tolerance, redis_tolerance),
            None => comparison.problems.push(format!("{name}: no figures are committed")),
        }
    }
    for (name, _) in &committed.cases {
        if now.case(name).is_none() {
            comparison.problems.push(format!("{name}: there are figures, but no such case"));
        }
    }
    comparison
}

impl Comparison {
    fn add(&mut self, name: &str, before: &Figure, now: &Figure, server_tolerance: f64, redis_tolerance: f64) {
        let server = Change::of(before.server as f64, now.server as f64, server_tolerance);
        let ratio = Change::of(before.ratio, now.ratio, redis_tolerance);
        let numbers = [
            ("the server's instructions", server, percent(before.server as f64, now.server as f64), server_tolerance),
            ("Redis's instructions", ratio, percent(before.ratio, now.ratio), redis_tolerance),
        ];
        for (what, change, percent, tolerance) in numbers {
            if change == Change::Worse {
                self.problems.push(format!("{name}: {what} grew by {percent:.1} %, more than {tolerance} %"));
            }
            self.improved |= change == Change::Better;
        }
        let commands = difference(&before.commands, &now.commands);
        if !commands.is_empty() {
            self.problems.push(format!("{name}: other Redis commands: {commands}"));
        }
        self.rows.push(Row {
            name: name.to_owned(),
            server: (before.server, now.server, server),
            ratio: (before.ratio, now.ratio, ratio),
            commands: if commands.is_empty() { "same".to_owned() } else { commands },
        });
    }

    /// Returns whether something is worse, so that somebody must act.
    #[must_use]
    pub fn is_worse(&self) -> bool {
        !self.problems.is_empty()
    }

    /// Returns whether something is better by more than the tolerance.
    #[must_use]
    pub fn is_better(&self) -> bool {
        self.improved
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = new_table(["call", "server was", "is", "%", "redis was", "is", "%", "commands"]);
        for Row { name, server, ratio, commands } in &self.rows {
            let mut row = vec![name.clone(), server.0.to_string(), server.1.to_string()];
            row.push(signed(percent(server.0 as f64, server.1 as f64), server.2));
            row.extend([format!("{:.2}", ratio.0), format!("{:.2}", ratio.1)]);
            row.push(signed(percent(ratio.0, ratio.1), ratio.2));
            let numbers = row.into_iter().enumerate().map(|(column, text)| {
                let side = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
                Cell::new(text).set_alignment(side)
            });
            table.add_row(numbers.chain([Cell::new(commands)]));
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "For a call: instructions of the server; those of Redis in those of an EVALSHA that does nothing."
        )?;
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "WORSE: {problem}"))?;
        match (self.is_worse(), self.is_better()) {
            (true, _) => write!(
                f,
                "FAILED. If it is meant to be so: accept with ./dev counts --accept, and say why in the commit"
            ),
            (false, true) => write!(
                f,
                "OK, and better than committed: accept with ./dev counts --accept, or the gain may be lost again unseen"
            ),
            (false, false) => write!(f, "OK"),
        }
    }
}

fn percent(before: f64, now: f64) -> f64 {
    if before == now { 0.0 } else { (now / before - 1.0) * 100.0 }
}

fn signed(percent: f64, change: Change) -> String {
    let mark = match change {
        Change::Little => "",
        Change::Better => " better",
        Change::Worse => " WORSE",
    };
    format!("{percent:+.1}{mark}")
}

/// Each command whose count differs: "get 1 -> 2".
fn difference(before: &Commands, now: &Commands) -> String {
    let names: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let count = |commands: &Commands, name: &str| commands.get(name).copied().unwrap_or(0.0);
    let pairs = names.into_iter().map(|name| (name, count(before, name), count(now, name)));
    let differ = pairs.filter(|(_, before, now)| before != now);
    differ.map(|(name, before, now)| format!("{name} {before} -> {now}")).collect::<Vec<_>>().join(", ")
}

/// A key of TOML: quoted where it has to be.
fn key(name: &str) -> String {
    let bare = name.chars().all(|character| character.is_ascii_alphanumeric() || character == '-');
    if bare { name.to_owned() } else { format!("{name:?}") }
}

fn told(commands: &Commands) -> String {
    commands.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header);
    table
}

/// The middle one; of an even number the upper of the two.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
