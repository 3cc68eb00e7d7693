//! A `redis-server` of a test's own, to be broken: stopped, killed, restarted, paused. It ends with the test.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;

/// One server on a loopback port. It is killed when it is dropped.
pub struct RedisServer {
    child: Child,
    port: u16,
    directory: PathBuf,
    arguments: Vec<String>,
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // A stopped process does not notice a kill before it goes on.
        self.kill();
    }
}

/// A port that is free, as is that 10,000 above, which a node of a cluster takes as well. Both are below those that systems give to
/// outgoing connections: one of these could take the port of a server while it is down, be it that of a client that
/// tries to reach it.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..1000 {
        let port = 12_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
    panic!("no free pair of ports");
}

impl RedisServer {
    /// Starts one that writes only into `directory`, its log as well, with these arguments of `redis-server` (such as `--appendonly yes`).
    pub fn start(directory: PathBuf, arguments: &str) -> Self {
        std::fs::create_dir_all(&directory).unwrap();
        let arguments: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
        let port = free_port();
        let child = spawn(port, &directory, &arguments);
        Self { child, port, directory, arguments }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _: Result<(), _> = self.child.kill();
        let _: Result<_, _> = self.child.wait();
    }

    /// Starts it again after a kill: same port, same directory, same arguments.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.directory, &self.arguments);
    }

    /// Sends it a signal, by its process id: `-STOP`, `-CONT`, `-TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success(), "the server can be sent {name}");
    }

    /// Restarts the server as [`RedisServer::restart`] does, with further arguments.
    pub fn restart_with(&mut self, arguments: &str) {
        let more = arguments.split_whitespace().map(str::to_owned);
        self.arguments.extend(more);
        self.restart();
    }

    /// A connection of the test's own, as soon as the server listens.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        let patience = Some(Duration::from_secs(10));
        let config = AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match client.get_multiplexed_async_connection_with_config(&config).await {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < deadline, "the server does not start: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a command, whose words are separated by single spaces.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &str) -> redis::RedisResult<T> {
        let mut words = command.split(' ');
        let mut asked = redis::cmd(words.next().unwrap());
        asked.arg(words.collect::<Vec<_>>());
        asked.query_async(&mut self.connection().await).await
    }

    /// Waits until it has read its data and serves.
    pub async fn ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.ask::<String>("PING").await.is_err() {
            assert!(Instant::now() < deadline, "the server does not become ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn spawn(port: u16, directory: &PathBuf, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--logfile", "server.log", "--port", &port.to_string(), "--dir"])
        .arg(directory)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server can be run")
}
