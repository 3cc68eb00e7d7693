//! A process whose instructions are counted, by running it under callgrind.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// A process whose instructions are counted. It is killed when this is dropped.
pub struct Counted {
    child: Child,
    directory: PathBuf,
    name: &'static str,
    dumps: u32,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _: Result<(), _> = self.child.kill();
        let _: Result<_, _> = self.child.wait();
    }
}

impl Counted {
    /// Runs a program under callgrind, which writes into `directory`. What it prints is lost, unless `configure` says otherwise.
    pub fn start(
        directory: &Path,
        name: &'static str,
        program: &Path,
        configure: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--quiet", "--dump-line=no"]);
        command.arg(format!("--callgrind-out-file={}", directory.join(name).display()));
        command.arg(vgdb_prefix(directory)).arg(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        configure(&mut command);
        let child = command.spawn().context("cannot run valgrind")?;
        Ok(Self { child, directory: directory.to_owned(), name, dumps: 0 })
    }

    /// Its standard error, if that is piped; once.
    pub fn errors(&mut self) -> Result<ChildStderr> {
        self.child.stderr.take().context("its standard error is not piped")
    }

    /// Returns the number of instructions it has executed since the last reading.
    pub fn instructions(&mut self) -> Result<u64> {
        let asked = Command::new("vgdb")
            // It is mostly asleep in a system call: it is woken up sooner than after the usual 100 ms.
            .args([&format!("--pid={}", self.child.id()), "--max-invoke-ms=5", &vgdb_prefix(&self.directory), "dump"])
            .output()
            .context("cannot run vgdb, which comes with valgrind")?;
        let told = String::from_utf8_lossy(&asked.stderr);
        ensure!(asked.status.success(), "callgrind does not answer for {}: {told}", self.name);
        self.dumps += 1;
        let file = self.directory.join(format!("{}.{}", self.name, self.dumps));
        let text = std::fs::read_to_string(&file).with_context(|| format!("no dump of {}: {told}", self.name))?;
        let _: Result<(), _> = std::fs::remove_file(&file);
        let totals = text.lines().filter_map(|line| line.strip_prefix("totals: "));
        let totals: Vec<u64> = totals.map(|total| total.trim().parse()).collect::<Result<_, _>>()?;
        ensure!(!totals.is_empty(), "the dump of {} has no total", self.name);
        Ok(totals.iter().sum())
    }
}

fn vgdb_prefix(directory: &Path) -> String {
    format!("--vgdb-prefix={}", directory.join("vgdb").display())
}
