//! Limitador, another server of Envoy's rate limit service: starts the program that the caller names, with the limits of the comparison.
//! Nothing of it is part of this repository.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::{Child, Command};

use super::common::redis_server::free_port;
use super::load::{RATE_LIMIT_DOMAIN, RATE_LIMIT_EVENT};
use super::process;
use super::store::Store;

/// The windows of the three limits that match every request, in seconds.
const WINDOWS: [(&str, u32); 3] = [("hour", 3_600), ("day", 86_400), ("month", 2_592_000)];

/// How long it may take to start, and to write its counters.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where it keeps counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// In its own memory.
    Memory,
    /// In Redis, which it asks at every request.
    Redis,
    /// In its own memory, and now and then in Redis.
    RedisCached,
}

/// A running one. It ends when this is dropped.
pub struct Limitador {
    child: Child,
    pub address: SocketAddr,
    http: SocketAddr,
}

/// What its program says of its version.
pub async fn version(program: &Path) -> Result<String> {
    let program = program.to_str().context("a path that is text")?;
    Ok(process::output(program, &["--version"]).await?.trim().to_owned())
}

impl Limitador {
    /// Starts it with three limits of this quota for each user, and returns when it answers. It keeps so many counters in memory. Its files
    /// have this name.
    pub async fn start(
        program: &Path,
        files: &Path,
        storage: (Storage, Option<&str>),
        quota: u64,
        counters: usize,
    ) -> Result<Self> {
        let limits: PathBuf = files.with_extension("yaml");
        std::fs::write(&limits, limits_of(quota)).with_context(|| format!("cannot write {}", limits.display()))?;
        let log = files.with_extension("log");
        let output = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let (rls, http) = (free_port(), free_port());
        let mut command = Command::new(program);
        command.args(["--rls-ip", "127.0.0.1", "--rls-port", &rls.to_string()]);
        command.args(["--http-ip", "127.0.0.1", "--http-port", &http.to_string()]);
        command.arg(&limits);
        let counters = counters.to_string();
        match storage {
            (Storage::Memory, _) => command.args(["memory", "--cache", &counters]),
            (Storage::Redis, Some(url)) => command.args(["redis", url]),
            (Storage::RedisCached, Some(url)) => command.args(["redis_cached", "--max-cached", &counters, url]),
            (_, None) => bail!("this storage needs a Redis"),
        };
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut started = Self { child, address: address(rls), http: address(http) };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(started.address).is_err() || TcpStream::connect(started.http).is_err() {
            let ended = started.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                bail!("Limitador does not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(started)
    }

    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("Limitador has ended")
    }

    /// Checks that the only request so far was counted under all three limits, in this Redis if it has one.
    pub async fn check_counted(&self, store: Option<&Store>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counters = match store {
                // Asked for these counters, its HTTP interface closes the connection.
                Some(store) => store.strings().await?,
                None => self.counters()?,
            };
            if counters == WINDOWS.len() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{counters} counters of Limitador, not {}", WINDOWS.len());
            // The cached storage writes after it has answered.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// How many counters it has in memory, by its HTTP interface.
    fn counters(&self) -> Result<usize> {
        let mut stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /counters/{RATE_LIMIT_DOMAIN} HTTP/1.0\r\nHost: limitador\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        ensure!(head.contains(" 200 "), "Limitador does not tell its counters: {head}");
        Ok(serde_json::from_str::<Vec<serde_json::Value>>(body)?.len())
    }
}

/// The file of limits: so many calls in an hour, in a day and in 30 days, for each user. A limit with an `id` has shorter keys in Redis.
fn limits_of(quota: u64) -> String {
    let mut text = String::new();
    for (id, seconds) in WINDOWS {
        let _: std::fmt::Result = write!(
            text,
            "- id: {id}\n  namespace: {RATE_LIMIT_DOMAIN}\n  max_value: {quota}\n  seconds: {seconds}\n  conditions:\n    - \
             \"descriptors[0].event == '{RATE_LIMIT_EVENT}'\"\n  variables:\n    - descriptors[0].user_id\n"
        );
    }
    text
}
