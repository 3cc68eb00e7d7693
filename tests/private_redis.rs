//! The private Redis: it ends with its parent however that ends, comes back when it dies, and never runs twice.
//!
//! The clock is the real one here, since processes end when they end.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tollgate::private_redis::{self, Options, PrivateRedis, StartError};

/// Set for a copy of this program that has to be the parent of a Redis: its data directory.
const DATA_DIR: &str = "TOLLGATE_TEST_DATA_DIR";
/// How that parent ends, unless it is killed.
const ENDS_BY: &str = "TOLLGATE_TEST_ENDS_BY";

fn options(data_dir: &Path) -> Options {
    Options { data_dir: data_dir.to_owned(), ..Options::default() }
}

async fn start(data_dir: &Path) -> PrivateRedis {
    private_redis::start(options(data_dir)).await.unwrap()
}

/// Adds one to a counter, as soon as Redis answers.
async fn count(url: &str) -> u64 {
    let client = redis::Client::open(url).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(mut connection) = client.get_multiplexed_async_connection().await
            && let Ok(counted) = redis::cmd("INCR").arg("counter").query_async(&mut connection).await
        {
            return counted;
        }
        assert!(Instant::now() < deadline, "no answer from {url}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Of a `ps` line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: String,
    parent: String,
    command: String,
}

/// Those whose command line names this directory, or the socket that stands for it.
fn processes(named: &Path) -> Vec<Process> {
    let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid=,stat=,command="]).output().unwrap();
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let name = named.to_str().unwrap();
    let parsed = text.lines().filter(|line| line.contains(name)).map(|line| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut next = || words.next().unwrap();
        let (pid, parent, _state) = (next(), next(), next());
        Process { pid, parent, command: words.collect::<Vec<_>>().join(" ") }
    });
    // A copy of this program names the directory nowhere: it has it from its environment.
    parsed.collect()
}

/// The Redis servers among them.
fn servers(named: &Path) -> Vec<Process> {
    let mut servers = processes(named);
    servers.retain(|process| process.command.contains("redis-server unixsocket:"));
    servers
}

async fn wait_until_gone(named: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !processes(named).is_empty() {
        assert!(Instant::now() < deadline, "still running: {:?}", processes(named));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn signal(name: &str, pid: &str) {
    assert!(Command::new("kill").args([name, pid]).status().unwrap().success());
}

/// A program that stands in for `redis-server`.
fn script(directory: &Path, lines: &str) -> PathBuf {
    let path = directory.join("stand-in");
    std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The file of a socket's URL, where nothing in it is encoded.
fn socket(url: &str) -> PathBuf {
    PathBuf::from(url.split_once("://").unwrap().1)
}

/// Not a test of its own: what a copy of this program does, as the parent of a Redis.
#[test]
fn parent() {
    let Some(data_dir) = std::env::var_os(DATA_DIR).map(PathBuf::from) else { return };
    let work = async {
        let redis = start(&data_dir).await;
        count(&redis.url()).await;
        std::fs::write(data_dir.join("url.new"), redis.url()).unwrap();
        std::fs::rename(data_dir.join("url.new"), data_dir.join("url")).unwrap();
        match std::env::var(ENDS_BY).unwrap().as_str() {
            "exit" => std::process::exit(0),
            "panic" => panic!("as it was told"),
            "abort" => std::process::abort(),
            "dropping" => drop(redis),
            _ => tokio::time::sleep(Duration::from_secs(60)).await,
        }
    };
    tokio::runtime::Runtime::new().unwrap().block_on(work);
}

/// Starts such a parent, and waits until its Redis has counted.
async fn spawn_parent(data_dir: &Path, ends_by: &str) -> (Child, String) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent", "--test-threads", "1"])
        .env(DATA_DIR, data_dir)
        .env(ENDS_BY, ends_by)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = data_dir.join("url");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !told.exists() {
        assert!(Instant::now() < deadline, "the parent does not come up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let url = std::fs::read_to_string(&told).unwrap();
    std::fs::remove_file(told).unwrap();
    (child, url)
}

#[tokio::test]
async fn counters_survive_a_stop_and_nothing_is_left_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let data_dir = scratch.path().join("data");
    for round in 1..=3 {
        let redis = start(&data_dir).await;
        assert_eq!(count(&redis.url()).await, round);
        redis.stop().await;
        assert_eq!(processes(&data_dir), []);
        assert!(!data_dir.join("redis.sock").exists());
    }
}

#[tokio::test]
async fn redis_ends_with_its_parent_however_that_ends_and_the_next_start_finds_the_data() {
    let scratch = tempfile::tempdir().unwrap();
    // Of the two kinds: the socket in the data directory, and in a directory of its own.
    for name in ["short".to_owned(), "long".repeat(50)] {
        let data_dir = scratch.path().join(name);
        let mut expected = 0;
        for ends_by in ["-KILL", "-TERM", "-HUP", "exit", "panic", "abort", "dropping"] {
            let (mut child, url) = spawn_parent(&data_dir, ends_by).await;
            if ends_by.starts_with('-') {
                signal(ends_by, &child.id().to_string());
                // Under nohup, HUP ends nothing.
                let deadline = Instant::now() + Duration::from_secs(5);
                while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let _: Result<(), _> = child.kill();
            }
            child.wait().unwrap();
            // At once: the old Redis may still be ending.
            let redis = start(&data_dir).await;
            expected += 2;
            assert_eq!(count(&redis.url()).await, expected, "{ends_by}");
            assert_eq!(servers(&socket(&redis.url())).len(), 1, "{ends_by}");
            redis.stop().await;
            wait_until_gone(&data_dir).await;
            if !socket(&url).starts_with(scratch.path()) {
                assert!(!socket(&url).parent().unwrap().exists(), "{ends_by} leaves {url}");
            }
        }
    }
}

#[tokio::test]
async fn a_redis_that_dies_comes_back_on_the_same_socket() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["short".to_owned(), "long".repeat(50)] {
        let data_dir = scratch.path().join(name);
        let redis = start(&data_dir).await;
        for round in 1..=3 {
            assert_eq!(count(&redis.url()).await, round);
            // What was counted is in the file as soon as it is answered, as far as a process can lose it.
            signal("-KILL", &servers(&socket(&redis.url()))[0].pid);
        }
        assert_eq!(count(&redis.url()).await, 4);
        redis.stop().await;
        assert_eq!(processes(&data_dir), []);
    }
}

#[tokio::test]
async fn a_killed_shell_never_makes_two_redis_write_one_file() {
    let scratch = tempfile::tempdir().unwrap();
    let data_dir = scratch.path().join("data");
    let options = Options { grace: Duration::from_secs(2), ..options(&data_dir) };
    let redis = private_redis::start(options).await.unwrap();
    assert_eq!(count(&redis.url()).await, 1);
    let first = servers(&data_dir)[0].clone();
    signal("-KILL", &first.parent);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = servers(&data_dir);
        assert!(now.len() <= 1, "two at once: {now:?}");
        if now.first().is_some_and(|server| server.pid != first.pid) {
            break;
        }
        assert!(Instant::now() < deadline, "no other comes: {now:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(count(&redis.url()).await, 2);
    redis.stop().await;
    assert_eq!(servers(&data_dir), []);
    // The reader of the killed shell waits for the grace, and holds nothing.
    start(&data_dir).await.stop().await;
    wait_until_gone(&data_dir).await;
}

#[tokio::test]
async fn a_redis_without_its_shell_and_reader_is_replaced_too() {
    let scratch = tempfile::tempdir().unwrap();
    let data_dir = scratch.path().join("data");
    let redis = start(&data_dir).await;
    assert_eq!(count(&redis.url()).await, 1);
    let first = servers(&data_dir)[0].clone();
    // The reader first: it is the shell's child and looks like it.
    for process in
        processes(&data_dir).iter().filter(|process| process.parent == first.parent && process.pid != first.pid)
    {
        signal("-KILL", &process.pid);
    }
    signal("-KILL", &first.parent);
    let deadline = Instant::now() + Duration::from_secs(20);
    while servers(&data_dir).first().is_none_or(|server| server.pid == first.pid) {
        assert!(Instant::now() < deadline, "no other comes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(count(&redis.url()).await, 2);
    redis.stop().await;
    assert_eq!(processes(&data_dir), []);
}

#[tokio::test]
async fn stopping_while_redis_is_started_again_does_not_wait_for_it() {
    let scratch = tempfile::tempdir().unwrap();
    let data_dir = scratch.path().join("data");
    // The first time it is Redis, after that something that never answers.
    let flag = scratch.path().join("started");
    let program = script(
        scratch.path(),
        &format!("[ -e '{0}' ] && exec sleep 1000\n: >'{0}'\nexec redis-server \"$@\"", flag.display()),
    );
    let redis = private_redis::start(Options { redis_server: Some(program), ..options(&data_dir) }).await.unwrap();
    signal("-KILL", &servers(&data_dir)[0].pid);
    tokio::time::sleep(Duration::from_millis(500)).await;
    tokio::time::timeout(Duration::from_secs(5), redis.stop()).await.expect("it stops at once");
    assert_eq!(processes(&data_dir), []);
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_told_with_what_it_said() {
    let scratch = tempfile::tempdir().unwrap();
    let data_dir = scratch.path().join("data");
    std::fs::create_dir(&data_dir).unwrap();
    std::fs::write(data_dir.join("redis.log"), "of an earlier run\n").unwrap();
    let program = script(scratch.path(), "echo 'no memory for this'; exit 3");
    let begun = Instant::now();
    let error = private_redis::start(Options { redis_server: Some(program), ..options(&data_dir) }).await.unwrap_err();
    let told = error.to_string();
    assert!(told.contains("no memory for this") && told.contains("redis.log"), "{told}");
    assert!(!told.contains("of an earlier run"), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // The directory is free again.
    start(&data_dir).await.stop().await;
}

#[tokio::test]
async fn a_directory_in_use_is_refused_by_its_name() {
    let scratch = tempfile::tempdir().unwrap();
    let redis = start(scratch.path()).await;
    let hasty = Options { patience: Duration::from_millis(200), ..options(scratch.path()) };
    let error = private_redis::start(hasty).await.unwrap_err();
    assert!(matches!(&error, StartError::InUse(_)), "{error}");
    assert!(error.to_string().contains(scratch.path().canonicalize().unwrap().to_str().unwrap()), "{error}");
    assert_eq!(count(&redis.url()).await, 1);
    redis.stop().await;
}

#[tokio::test]
async fn odd_directories_work() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["with space", "ünï – 漢字", "quotes ' \" \\ $HOME `x` 100%25 #?", "new\nline"] {
        let data_dir = scratch.path().join(name);
        let redis = start(&data_dir).await;
        assert_eq!(count(&redis.url()).await, 1, "{name}");
        redis.stop().await;
        assert!(data_dir.join("appendonlydir").is_dir(), "{name}");
        assert_eq!(data_dir.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{name}");
    }
}

/// Who may do what with a file.
fn mode(path: &Path) -> u32 {
    path.metadata().unwrap_or_else(|error| panic!("{path:?}: {error}")).permissions().mode() & 0o777
}

/// Everything in a directory, and it itself.
fn all_in(directory: &Path) -> Vec<PathBuf> {
    let entries = directory.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let below = entries.flat_map(|path| if path.is_dir() { all_in(&path) } else { vec![path] });
    below.chain([directory.to_owned()]).collect()
}

#[tokio::test]
async fn nobody_else_can_read_the_data_in_a_directory_that_was_there_before() {
    let scratch = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    let data_dir = scratch.path().join("there");
    std::fs::create_dir(&data_dir).unwrap();
    std::fs::set_permissions(&data_dir, open.clone()).unwrap();
    let redis = start(&data_dir).await;
    assert_eq!(count(&redis.url()).await, 1);
    let readable: Vec<_> = all_in(&data_dir).into_iter().filter(|path| mode(path) & 0o077 != 0).collect();
    assert_eq!(readable, Vec::<PathBuf>::new());
    redis.stop().await;
    // As an earlier version has left it.
    for path in all_in(&data_dir) {
        std::fs::set_permissions(path, open.clone()).unwrap();
    }
    let redis = start(&data_dir).await;
    assert_eq!(count(&redis.url()).await, 2);
    for name in [".", "redis.log", "appendonlydir"] {
        assert_eq!(mode(&data_dir.join(name)) & 0o077, 0, "{name}");
    }
    redis.stop().await;
    // Where somebody else keeps something, only what is Redis's is closed.
    let shared = scratch.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("theirs"), "").unwrap();
    for path in [&shared, &shared.join("theirs")] {
        std::fs::set_permissions(path, open.clone()).unwrap();
    }
    let redis = start(&shared).await;
    assert_eq!(count(&redis.url()).await, 1);
    assert_eq!((mode(&shared), mode(&shared.join("theirs"))), (0o755, 0o755));
    let readable: Vec<_> = all_in(&shared).into_iter().filter(|path| mode(path) & 0o077 != 0).collect();
    assert_eq!(readable, [shared.join("theirs"), shared.clone()]);
    redis.stop().await;
}

#[tokio::test]
async fn a_large_user_is_freed_beside_the_calls_and_not_in_front_of_them() {
    let scratch = tempfile::tempdir().unwrap();
    let redis = start(scratch.path()).await;
    count(&redis.url()).await;
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for name in ["lazyfree-lazy-expire", "lazyfree-lazy-user-del"] {
        let command = redis::cmd("CONFIG").arg("GET").arg(name).to_owned();
        let told: Vec<String> = command.query_async(&mut connection).await.unwrap();
        assert_eq!(told, [name, "yes"]);
    }
    redis.stop().await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("redis.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let redis = start(scratch.path()).await;
    assert_eq!(count(&redis.url()).await, 1);
    redis.stop().await;
}

#[tokio::test]
async fn a_redis_that_hangs_is_killed_after_its_grace() {
    let scratch = tempfile::tempdir().unwrap();
    let data_dir = scratch.path().join("data");
    let options = Options { grace: Duration::from_secs(1), ..options(&data_dir) };
    let redis = private_redis::start(options).await.unwrap();
    assert_eq!(count(&redis.url()).await, 1);
    signal("-STOP", &servers(&data_dir)[0].pid);
    let begun = Instant::now();
    redis.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    wait_until_gone(&data_dir).await;
    let redis = start(&data_dir).await;
    assert_eq!(count(&redis.url()).await, 2);
    redis.stop().await;
}
