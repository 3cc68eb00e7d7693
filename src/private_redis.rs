//! The private Redis: what `tollgate serve` starts when no Redis is configured. Tests use it too.
//!
//! It must end with its parent, however that ends. So its own parent is a small shell that reads a pipe which we hold: when the
//! pipe closes, be it by `kill -9` of this process, the shell ends Redis. One Tollgate per data directory: the log file is locked,
//! and the lock is shared with the shell and Redis as their output, so that it is free only when all of them are gone.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::domain::id::{base64url, random};

/// Runs Redis (`$@`) until the pipe on standard input closes, or until Redis ends by itself.
///
/// Signals go to the process group (`kill 0`), never to a number kept from before: a group's number is not given away while a
/// member lives. Shell and reader ignore `TERM`, so that it means Redis; `USR1` ends the reader and the `sleep` it waits in. The
/// order matters: Redis starts before `TERM` is ignored, or it would inherit that and lose the signal while it starts.
const WATCHER: &str = r#"
# What is written is nobody else's to read, also in a directory that was there before.
umask 077
own_dir=$1 grace=$2
shift 2
exec 3<&0 </dev/null
"$@" 3<&- &
redis=$!
trap '' TERM
(
    while read -r _ <&3; do :; done
    # In a shell of its own, because the directory may be gone, and a redirection that fails ends the shell.
    [ -z "$own_dir" ] || (: >"$own_dir/ending") 2>/dev/null
    kill -TERM 0
    # From here on only shell and Redis hold the lock of the log.
    exec 3<&- >/dev/null 2>&1
    sleep "$grace"
    kill -KILL 0
) &
exec 3<&-
wait "$redis"
status=$?
if [ -n "$own_dir" ] && [ -e "$own_dir/ending" ]; then
    rm -f "$own_dir/redis.sock" "$own_dir/ending"
    rmdir "$own_dir"
fi
trap '' USR1
kill -USR1 0
wait
exit "$status"
"#;

/// A socket's path has at most this many bytes on every system (`sun_path`).
const LONGEST_SOCKET_PATH: usize = 103;

/// The time that Redis may take to read its append-only file.
const LOADING: Duration = Duration::from_secs(300);

/// The time beyond its grace for which Tollgate waits for a Redis that has to end. By then it was killed.
const KILLING: Duration = Duration::from_secs(5);

/// The first pause between the end of a Redis and the next start. It doubles each time, until a Redis has lived for
/// `STEADY`.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const STEADY: Duration = Duration::from_secs(60);

/// The location and the time limits of the private Redis.
#[derive(Debug, Clone)]
pub struct Options {
    /// Holds the append-only file, the log and, if its path is short enough, the socket.
    pub data_dir: PathBuf,
    /// The program; none: `redis-server` or `valkey-server` on the PATH.
    pub redis_server: Option<PathBuf>,
    /// The time to wait for an earlier Redis in the same directory to end.
    pub patience: Duration,
    /// The time that Redis may take to end before it is killed; counted in whole seconds, at least one.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("tollgate-data"),
            redis_server: None,
            patience: Duration::from_secs(10),
            grace: Duration::from_secs(20),
        }
    }
}

/// The reason why there is no private Redis.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No program was found.
    #[error(
        "found no redis-server: install one (Debian, Ubuntu: apt-get install -y redis-server; macOS: brew install redis), name \
         it with --redis-server, or use a running Redis with --redis-url"
    )]
    NotInstalled,
    /// The named program cannot be run.
    #[error("cannot run {}: check --redis-server", .program.display())]
    NotRunnable {
        /// The program, as the setting names it.
        program: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be used.
    #[error("cannot use the data directory {}: choose another with --data-dir", .directory.display())]
    DataDir {
        /// The directory, as the setting names it.
        directory: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another one lives there.
    #[error("another tollgate uses the data directory {}: stop it, or choose another with --data-dir", .0.display())]
    InUse(PathBuf),
    /// Redis ended, or did not answer in time.
    #[error("redis-server {how}; the end of its log in {}:\n{tail}", .log.display())]
    Failed {
        /// The failure: how it ended, or that it did not answer.
        how: String,
        /// The path of its log.
        log: PathBuf,
        /// Its last lines since this start.
        tail: String,
    },
}

/// A running private Redis. Dropping it ends it as well, without waiting.
#[derive(Debug)]
pub struct PrivateRedis {
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    keeper: JoinHandle<()>,
}

impl PrivateRedis {
    /// Returns its URL.
    #[must_use]
    pub fn url(&self) -> String {
        let mut url = "unix://".to_owned();
        for byte in self.socket.as_os_str().as_encoded_bytes() {
            if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
                url.push(char::from(*byte));
            } else {
                url.push_str(&format!("%{byte:02X}"));
            }
        }
        url
    }

    /// Ends it, and waits until everything is written.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        if let Err(error) = (&mut self.keeper).await {
            tracing::error!(%error, "the keeper of the private Redis failed");
        }
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        // With the keeper goes the pipe, and with the pipe Redis. After `stop` there is nothing left to end.
        self.keeper.abort();
    }
}

/// Starts a private Redis, or one again over the data of an earlier one, and waits until it answers.
///
/// # Errors
/// See [`StartError`].
pub async fn start(options: Options) -> Result<PrivateRedis, StartError> {
    let Options { data_dir, redis_server, patience, grace } = options;
    let program = find_program(redis_server)?;
    let unusable = |source| StartError::DataDir { directory: data_dir.clone(), source };
    make_private_dir(&data_dir).map_err(unusable)?;
    let data_dir = data_dir.canonicalize().map_err(unusable)?;
    let log_path = data_dir.join("redis.log");
    let log = lock_log(&log_path, patience).await.map_err(|error| match error {
        TryLockError::WouldBlock => StartError::InUse(data_dir.clone()),
        TryLockError::Error(source) => StartError::DataDir { directory: data_dir.clone(), source },
    })?;
    let (socket, socket_dir) = place_socket(&data_dir).map_err(unusable)?;
    let supervisor = Supervisor { program, data_dir, log, log_path, socket: socket.clone(), socket_dir, grace };
    let mut running = supervisor.launch().await?;
    if let Err(error) = supervisor.ready(&mut running).await {
        supervisor.end(running).await;
        return Err(error);
    }
    let (stop, stopped) = oneshot::channel();
    let keeper = tokio::spawn(supervisor.keep(running, stopped));
    Ok(PrivateRedis { socket, stop: Some(stop), keeper })
}

/// Starts Redis, and starts it again when it ends. Holds the parts that stay the same.
struct Supervisor {
    program: PathBuf,
    data_dir: PathBuf,
    log: File,
    log_path: PathBuf,
    socket: PathBuf,
    socket_dir: Option<SocketDir>,
    grace: Duration,
}

/// The shell, and the pipe that it reads.
struct Running {
    shell: Child,
    /// Closing it ends Redis.
    pipe: Option<ChildStdin>,
    since: Instant,
    /// The offset at which its part of the log begins.
    log_from: u64,
}

impl Supervisor {
    /// Starts the shell, which starts Redis. Two must never write one append-only file: what still listens is an error.
    async fn launch(&self) -> Result<Running, StartError> {
        let unusable = |source| StartError::DataDir { directory: self.data_dir.clone(), source };
        if listener(&self.socket).await.is_some() {
            return Err(StartError::InUse(self.data_dir.clone()));
        }
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unusable(error)),
            _ => {}
        }
        let log_from = self.log.metadata().map_err(unusable)?.len();
        let mut shell = Command::new("sh")
            .args(["-c", WATCHER, "tollgate-redis"])
            .arg(self.socket_dir.as_ref().map_or(Path::new(""), |directory| &directory.0))
            .arg(self.grace.as_secs().max(1).to_string())
            .arg(&self.program)
            .args(["--port", "0", "--daemonize", "no", "--logfile", "", "--loglevel", "notice"])
            .arg("--unixsocket")
            .arg(&self.socket)
            .args(["--unixsocketperm", "600", "--dir"])
            .arg(&self.data_dir)
            .args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""])
            .args(["--maxmemory", "0", "--maxmemory-policy", "noeviction"])
            // A user with a million remembered ids would stop Redis for half a second when that expires or is deleted.
            .args(["--lazyfree-lazy-expire", "yes", "--lazyfree-lazy-user-del", "yes"])
            .stdin(Stdio::piped())
            .stdout(self.log.try_clone().map_err(unusable)?)
            .stderr(self.log.try_clone().map_err(unusable)?)
            // Ctrl-C at a terminal must not reach Redis before Tollgate has finished its calls. The shell relies on it too.
            .process_group(0)
            .spawn()
            .map_err(|source| StartError::NotRunnable { program: PathBuf::from("sh"), source })?;
        let pipe = shell.stdin.take();
        Ok(Running { shell, pipe, since: Instant::now(), log_from })
    }

    /// Waits until Redis answers.
    async fn ready(&self, running: &mut Running) -> Result<(), StartError> {
        let answering = async {
            while !ping(&self.socket).await.is_ok_and(|answer| answer.starts_with(b"+PONG")) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let how = tokio::select! {
            () = answering => return Ok(()),
            status = running.shell.wait() => format!("ended at once with {}", told(status)),
            () = tokio::time::sleep(LOADING) => format!("has not answered after {LOADING:?}"),
        };
        let tail = tail(&self.log_path, running.log_from);
        Err(StartError::Failed { how, log: self.log_path.clone(), tail })
    }

    /// Starts Redis again whenever it ends, until told to stop.
    async fn keep(self, mut running: Running, mut stopped: oneshot::Receiver<()>) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                _ = &mut stopped => return self.end(running).await,
                status = running.shell.wait() => {
                    let (status, log) = (told(status), self.log_path.display());
                    tracing::error!(%status, %log, "the private Redis ended: Tollgate starts it again");
                }
            }
            if running.since.elapsed() >= STEADY {
                pause = FIRST_PAUSE;
            }
            // The shell may have been killed, and Redis not.
            self.end(running).await;
            running = loop {
                tokio::select! {
                    _ = &mut stopped => return,
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                }
                let error = match self.launch().await {
                    Ok(mut again) => tokio::select! {
                        _ = &mut stopped => return self.end(again).await,
                        ready = self.ready(&mut again) => match ready {
                            Ok(()) => break again,
                            Err(error) => {
                                self.end(again).await;
                                error
                            }
                        }
                    },
                    Err(error) => error,
                };
                tracing::error!(%error, "the private Redis could not be started again");
            };
            tracing::warn!("the private Redis answers again");
        }
    }

    /// Closes the pipe, and waits until Redis has written everything and is gone, and its shell too.
    async fn end(&self, mut running: Running) {
        drop(running.pipe.take());
        let ended = async {
            // What it says no longer matters.
            let _: io::Result<_> = running.shell.wait().await;
            // Only a Redis that has lost its shell and its reader still listens now. It is ours: we hold the lock.
            while let Some(mut stream) = listener(&self.socket).await {
                let _: io::Result<()> = stream.write_all(b"SHUTDOWN\r\n").await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let patience = self.grace.max(Duration::from_secs(1)) + KILLING;
        if tokio::time::timeout(patience, ended).await.is_err() {
            tracing::error!("the private Redis has not ended after {patience:?}");
        }
    }
}

/// Describes how a process ended.
fn told(status: io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

fn find_program(named: Option<PathBuf>) -> Result<PathBuf, StartError> {
    let runnable = |path: &Path| {
        let found = path.metadata()?;
        let may_run = found.is_file() && found.permissions().mode() & 0o111 != 0;
        if may_run { Ok(()) } else { Err(io::Error::new(io::ErrorKind::PermissionDenied, "is not an executable file")) }
    };
    if let Some(program) = named {
        return match runnable(&program).and_then(|()| program.canonicalize()) {
            Ok(program) => Ok(program),
            Err(source) => Err(StartError::NotRunnable { program, source }),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in ["redis-server", "valkey-server"] {
        for directory in std::env::split_paths(&path) {
            let program = directory.join(name);
            if runnable(&program).is_ok() {
                return Ok(program);
            }
        }
    }
    Err(StartError::NotInstalled)
}

/// Makes the directory, or takes an existing one, and keeps others from reading its files.
fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let mut shared = false;
    for entry in path.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // What Tollgate and its Redis write.
        let is_ours = ["redis.log", "redis.sock", "appendonlydir", "dump.rdb"].contains(&&*name);
        if is_ours && !entry.file_type()?.is_symlink() {
            close(&entry.path());
        }
        // A Redis that was killed leaves `temp-*`, and the root of a volume may have a `lost+found`.
        shared |= !is_ours && !name.starts_with("temp-") && name != "lost+found";
    }
    // A directory in which somebody else keeps something, such as /tmp, stays as it is.
    if !shared {
        close(path);
    }
    Ok(())
}

/// Takes the permissions of others from a file or a directory. What belongs to somebody else stays as it is.
fn close(path: &Path) {
    let closed = || {
        let mode = path.metadata()?.permissions().mode();
        if mode & 0o077 == 0 { Ok(()) } else { std::fs::set_permissions(path, Permissions::from_mode(mode & 0o700)) }
    };
    if let Err(error) = closed() {
        let error: io::Error = error;
        tracing::warn!(%error, path = %path.display(), "other users may read the data of the private Redis: run chmod go= on it");
    }
}

async fn lock_log(path: &Path, patience: Duration) -> Result<File, TryLockError> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(TryLockError::Error)?;
    let deadline = Instant::now() + patience;
    loop {
        match log.try_lock() {
            Ok(()) => return Ok(log),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A directory that is removed with its socket. After a `kill -9` of this process, the shell does it.
struct SocketDir(PathBuf);

impl Drop for SocketDir {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, directory = %self.0.display(), "cannot remove the socket's directory");
            }
            _ => {}
        }
    }
}

/// Chooses the path of the socket: in the data directory, or in a directory of its own where that path is too long for
/// a socket.
fn place_socket(data_dir: &Path) -> io::Result<(PathBuf, Option<SocketDir>)> {
    let fits = |socket: &Path| socket.as_os_str().len() <= LONGEST_SOCKET_PATH;
    let socket = data_dir.join("redis.sock");
    if fits(&socket) {
        return Ok((socket, None));
    }
    let name = format!("tollgate-{}", base64url(&random::<16>()));
    for parent in [std::env::temp_dir(), PathBuf::from("/tmp")] {
        let Ok(parent) = parent.canonicalize() else { continue };
        let directory = parent.join(&name);
        let socket = directory.join("redis.sock");
        if fits(&socket) {
            DirBuilder::new().mode(0o700).create(&directory)?;
            return Ok((socket, Some(SocketDir(directory))));
        }
    }
    Err(io::Error::other("its path is too long for a socket, and so is that of the temporary directory"))
}

/// A connection to what listens on the socket; none if that is nothing, be the file there or not.
async fn listener(socket: &Path) -> Option<UnixStream> {
    UnixStream::connect(socket).await.ok()
}

/// Asks Redis for `PONG`. While it reads its file it answers `-LOADING`.
async fn ping(socket: &Path) -> io::Result<Vec<u8>> {
    let work = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).await?;
        Ok(answer[..length].to_vec())
    };
    tokio::time::timeout(Duration::from_secs(2), work).await.unwrap_or_else(|elapsed| Err(elapsed.into()))
}

/// The last lines of the log, of those from this byte on.
fn tail(path: &Path, from: u64) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(1500).max(from)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_else(|error: io::Error| error.to_string())
}
