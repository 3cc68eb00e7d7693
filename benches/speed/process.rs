//! Processes: what they cost, read from /proc, and a place of their own for what they write.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

/// In these units /proc tells CPU time: `USER_HZ`, the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The CPU seconds that a process has used, in user and in system mode, all threads together.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name in parentheses may hold anything, also spaces.
    let (_, rest) = text.rsplit_once(')').context("a stat file without a name")?;
    let ticks = |index: usize| -> Result<f64> {
        let field = rest.split_whitespace().nth(index).context("a stat file that is too short")?;
        Ok(field.parse::<u64>()? as f64)
    };
    // utime and stime are the fields 14 and 15; what follows the name begins with 3.
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

/// The bytes of memory that a process has in RAM.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process without memory")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// How many cores there are to use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// This program again, in another role. It ends when it is dropped, and when its standard input closes.
pub fn role(name: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg(name).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

/// Ends this process when its standard input closes: then its parent is gone.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let _: std::io::Result<u64> = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(0);
    });
}

/// Runs a program to its end and returns what it has printed.
pub async fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A directory of this run's own, which goes with it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Result<Self> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("speed-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _: std::io::Result<()> = std::fs::remove_dir_all(&self.0);
    }
}
