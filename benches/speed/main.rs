//! `./dev bench`: how fast Tollgate is, what it costs, and how much memory it needs, beside what the machine can do at all.
//!
//! Absolute figures belong to one machine. So each figure is also given as a ratio to a denominator that is measured in the same
//! round: the script `return 1` for scripts, and a gRPC server that only answers (`echo`) for the service. Rounds are
//! interleaved: the first of every case, then the second, so that whatever else the machine does hits all of them alike.
//!
//! `scripts` measures the Lua scripts through the library, `service` the real binary under a `load` generator of its own process,
//! `memory` what users leave in Redis, `soak` one server for as long as you like, `beside` another server of the same kind. `report` writes
//! what `results` has collected.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its tables go to the terminal")]

#[path = "../../tests/common/mod.rs"]
mod common;

mod beside;
mod capacity;
mod cases;
mod echo;
#[path = "../counts/figures.rs"]
#[allow(dead_code, reason = "the page only reads them")]
mod figures;
mod lab;
mod limitador;
mod load;
mod memory;
mod process;
mod report;
mod results;
mod scripts;
mod service;
mod soak;
mod store;
mod targets;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use results::Results;

/// That of Tollgate's binary, for the echo.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What `./dev bench` can be told.
#[derive(Debug, Parser)]
#[command(name = "./dev bench", about = "Measures Tollgate", args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only the cases whose names contain one of these, such as `reserve`, `script/users` or `memory`
    filters: Vec<String>,
    /// How often each case is measured; the figures are medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// One short round, to see that everything works: its figures mean little
    #[arg(long)]
    quick: bool,
    /// Write docs/operating/benchmarks.md (takes a run of everything)
    #[arg(long, conflicts_with = "filters")]
    write: bool,
    /// Only name the cases
    #[arg(long)]
    list: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reserve for 100,000 users at a fixed rate, and tell the memory of server and Redis as it goes
    Soak(soak::Options),
    /// Measure Tollgate beside Limitador, both asked as Envoy asks
    Beside(beside::Options),
    /// The load generator's process: a job on standard input, what it saw on standard output
    #[command(hide = true)]
    Load,
    /// The process of the server that only answers
    #[command(hide = true)]
    Echo,
}

/// How much is measured at a time.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: u32,
    /// Decisions of a script per round.
    decisions: usize,
    /// Calls of `return 1` per round.
    denominator: usize,
    /// How long the service is under load per round, after its warm-up.
    load: Duration,
    warm_up: Duration,
    /// Users by whom memory is measured.
    memory_users: usize,
    /// The largest number of users of a script.
    most_users: usize,
}

impl Effort {
    fn of(options: &Options) -> Self {
        if options.quick {
            let (load, warm_up) = (Duration::from_millis(700), Duration::from_millis(200));
            let (decisions, denominator) = (3_000, 30_000);
            return Self { rounds: 1, decisions, denominator, load, warm_up, memory_users: 2_000, most_users: 100_000 };
        }
        Self {
            rounds: options.rounds,
            decisions: 20_000,
            denominator: 100_000,
            load: Duration::from_secs(2),
            warm_up: Duration::from_millis(600),
            memory_users: 20_000,
            most_users: 1_000_000,
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.bench && options.command.is_none() && !options.list {
        // `cargo test --all-targets` runs it too.
        println!("measures only when told to: ./dev bench");
        return ExitCode::SUCCESS;
    }
    let outcome = match &options.command {
        // It has a runtime of its own.
        Some(Command::Load) => load::process(),
        command => {
            // The echo is served as Tollgate is: by one thread.
            let mut runtime = match command {
                Some(Command::Echo) => tokio::runtime::Builder::new_current_thread(),
                _ => tokio::runtime::Builder::new_multi_thread(),
            };
            let runtime = runtime.enable_all().build().expect("a runtime");
            runtime.block_on(until_told_to_stop(run(options)))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Dropping the work ends the processes that it has started.
async fn until_told_to_stop(work: impl Future<Output = Result<()>>) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => anyhow::bail!("stopped"),
        _ = terminate.recv() => anyhow::bail!("stopped"),
    }
}

async fn run(options: Options) -> Result<()> {
    match &options.command {
        Some(Command::Echo) => return echo::process().await,
        Some(Command::Soak(soak)) => return soak::run(soak).await,
        Some(Command::Beside(beside)) => return beside::run(beside).await,
        Some(Command::Load) | None => {}
    }
    let effort = Effort::of(&options);
    let wanted =
        |name: &str| options.filters.is_empty() || options.filters.iter().any(|filter| name.contains(filter.as_str()));
    let scripts: Vec<_> = cases::all(&effort).into_iter().filter(|case| wanted(&case.name)).collect();
    let services: Vec<_> = service::CASES.iter().filter(|case| wanted(case.name)).collect();
    let memory: Vec<_> = memory::CASES.iter().copied().filter(|name| wanted(name)).collect();
    if options.list {
        let names = scripts.iter().map(|case| case.name.as_str()).chain(services.iter().map(|case| case.name));
        names.chain(memory).for_each(|name| println!("{name}"));
        return Ok(());
    }
    ensure!(!(scripts.is_empty() && services.is_empty() && memory.is_empty()), "no case has such a name: see --list");

    let scratch = process::Scratch::new()?;
    let mut results = Results::default();
    let steps = (scripts.len() + services.len()) * effort.rounds as usize + memory.len();
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")?;
    let bar = ProgressBar::new(steps as u64).with_style(style);
    let mut lab = lab::Lab::new(scratch.path());
    let mut bench = if services.is_empty() { None } else { Some(service::Bench::start(scratch.path()).await?) };
    for round in 0..effort.rounds {
        if bar.is_hidden() {
            eprintln!("round {} of {}", round + 1, effort.rounds);
        }
        for case in &scripts {
            bar.set_message(format!("round {}: {}", round + 1, case.name));
            scripts::measure(&mut lab, case, &effort, &mut results).await.with_context(|| case.name.clone())?;
            bar.inc(1);
        }
        for case in &services {
            bar.set_message(format!("round {}: {}", round + 1, case.name));
            if let Some(bench) = &mut bench {
                bench.measure(case, &effort, &mut results).await.context(case.name)?;
            }
            bar.inc(1);
        }
    }
    drop((lab, bench));
    for name in memory {
        bar.set_message(name);
        memory::measure(scratch.path(), name, &effort, &mut results).await.context(name)?;
        bar.inc(1);
    }
    bar.finish_and_clear();

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let raw = root.join("target").join("speed.json");
    std::fs::create_dir_all(root.join("target"))?;
    std::fs::write(&raw, results.json()?).with_context(|| format!("cannot write {}", raw.display()))?;
    let about = report::About { rounds: effort.rounds, quick: options.quick };
    let tables = report::tables(&results, &about);
    println!("{tables}");
    if options.write {
        report::write_page(&tables)?;
    }
    Ok(())
}
