//! `./dev counts`: the cost of a call, in instructions of the server, in instructions of Redis, and in Redis commands,
//! compared with the committed figures. It counts instead of measuring times, so that a busy machine changes nothing;
//! docs/development/testing.md says what the counts do not show.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod calls;
mod counted;
mod figures;
mod measure;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;

use crate::figures::{Figures, TakenWith};

#[derive(Debug, Parser)]
#[command(about = "Counts what a call costs, and compares it with the committed figures")]
struct Options {
    /// Commit to the figures counted now, instead of comparing
    #[arg(long)]
    accept: bool,
    /// Count only the cases whose name contains this, and print them
    #[arg(long, conflicts_with = "accept")]
    only: Option<String>,
    /// The server, built with the profile `counts`
    #[arg(long)]
    server: Option<PathBuf>,
    /// `cargo bench` passes it
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether no figure is worse than the committed one.
fn run(options: &Options) -> Result<bool> {
    let server = options.server.clone().unwrap_or_else(built_server);
    ensure!(server.exists(), "{} is missing: run this with `./dev counts`", server.display());
    let redis = ["redis-server", "valkey-server"].into_iter().find(|program| said(program, "--version").is_ok());
    let redis = redis.context("neither redis-server nor valkey-server is on the PATH")?;
    let taken_with = TakenWith {
        rustc: said("rustc", "--version")?,
        redis: redis_version(&said(redis, "--version")?)?,
        libc: said("getconf", "GNU_LIBC_VERSION").unwrap_or_else(|_| "unknown".to_owned()),
        valgrind: said("valgrind", "--version")?,
        processor: std::env::consts::ARCH.to_owned(),
    };
    stay_on_one_cpu();
    let now = measure::all(&server, redis, taken_with, options.only.as_deref())?;

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/counts.toml");
    if options.accept {
        std::fs::write(&file, now.to_toml()).with_context(|| format!("cannot write {}", file.display()))?;
        println!("{}\nwritten to {}: commit it, and say why in its message", now.table(), file.display());
        return Ok(true);
    }
    if options.only.is_some() {
        println!("{}", now.table());
        return Ok(true);
    }
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let committed = Figures::parse(&text).with_context(|| format!("{} is not understood", file.display()))?;
    let comparison = figures::compare(&committed, &now);
    println!("{comparison}");
    Ok(!comparison.is_worse())
}

/// Beside the directory of the profile that this was built with.
fn built_server() -> PathBuf {
    let here = Path::new(env!("CARGO_BIN_EXE_tollgate"));
    let profiles = here.parent().and_then(Path::parent).unwrap_or(here);
    profiles.join("counts").join("tollgate")
}

/// Client, server and Redis take turns, on one CPU: beside each other, how far one comes before the next one looks is left to chance,
/// and with it how much there is to read at once. Without `taskset` the figures only vary a little more.
fn stay_on_one_cpu() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let Some(cpu) = allowed.and_then(|list| list.trim().rsplit([',', '-']).next()) else { return };
    let pid = std::process::id().to_string();
    let _: Result<_, _> = Command::new("taskset").args(["-cp", cpu, &pid]).output();
}

/// The first line that a program prints.
fn said(program: &str, argument: &str) -> Result<String> {
    let output = Command::new(program).arg(argument).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} {argument} fails");
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Shortens "Redis server v=7.0.15 sha=00000000:0 ..." to name and version, without how it was built.
fn redis_version(line: &str) -> Result<String> {
    let Some((product, rest)) = line.split_once(" v=") else { bail!("no version is in {line:?}") };
    Ok(format!("{product} {}", rest.split_whitespace().next().unwrap_or_default()))
}
