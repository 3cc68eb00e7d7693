//! The binary as its users start it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// `tollgate`, without what the environment of the tests may say of it.
pub fn tollgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TOLLGATE_")) {
        command.env_remove(name);
    }
    command
}

/// A running `tollgate serve`, which is killed if a test fails.
pub struct Served {
    child: Child,
    pub address: SocketAddr,
    /// The address of metrics and health, if it was asked to show them.
    pub admin: Option<SocketAddr>,
    /// The address for Envoy, if it was asked to answer Envoy.
    pub envoy: Option<SocketAddr>,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// The address of this machine in a line of its log.
fn told(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("127.0.0.1:")?;
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    format!("127.0.0.1:{port}").parse().ok()
}

impl Served {
    /// Starts it with these flags on a port of this machine, 0 for a free one, and returns when it listens.
    pub fn start(port: u16, flags: &[&str]) -> Self {
        Self::start_by(tollgate(), port, flags)
    }

    /// Starts it with these variables as well.
    pub fn start_with(port: u16, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = tollgate();
        command.envs(variables.iter().copied());
        Self::start_by(command, port, flags)
    }

    /// Starts one that may open `files` files. The limit is set by `ulimit` with this option: `-n`, or `-Sn` for a
    /// limit that it may raise.
    pub fn start_with_files(option: &str, files: usize, flags: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        let script = format!("ulimit {option} {files} && exec \"$0\" \"$@\"");
        shell.args(["-c", &script]).arg(tollgate().get_program());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TOLLGATE_")) {
            shell.env_remove(name);
        }
        Self::start_by(shell, 0, flags)
    }

    fn start_by(mut command: Command, port: u16, flags: &[&str]) -> Self {
        let mut child = command
            .args(["serve", "--listen", &format!("127.0.0.1:{port}")])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary can be run");
        let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
        let (mut seen, mut line) = (String::new(), String::new());
        let (mut admin, mut envoy) = (None, None);
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).expect("the log can be read") > 0, "it ended before it served: {seen}");
            seen.push_str(&line);
            // Its log tells the ports.
            if line.contains("admin port") {
                admin = told(&line);
            } else if line.contains("envoy port") {
                envoy = told(&line);
            } else if let Some(address) = told(&line).filter(|_| line.contains("serving")) {
                break address;
            }
        };
        // What else it logs must not fill the pipe.
        let seen = Arc::new(Mutex::new(seen));
        let rest = Arc::clone(&seen);
        let reader = std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let mut kept = rest.lock().unwrap();
                // A test that makes it talk without end looks at the start, if at all.
                if kept.len() < 1 << 20 {
                    kept.extend([&line, "\n"]);
                }
            }
        });
        Self { child, address, admin, envoy, log: seen, reader: Some(reader) }
    }

    /// Returns its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Returns its whole log, once it has ended.
    pub fn whole_log(&mut self) -> String {
        self.wait();
        self.reader.take().map(JoinHandle::join).transpose().expect("the log can be read");
        self.log()
    }

    /// Asks its admin port: the status, and the text.
    pub fn get(&self, path: &str) -> (u16, String) {
        let (head, body) = self.ask(path, "");
        (head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body)
    }

    /// Its metrics, in the format that `accept` asks for: the content type, and the text.
    pub fn metrics(&self, accept: &str) -> (String, String) {
        let (head, body) = self.ask("/metrics", &format!("Accept: {accept}\r\n"));
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).expect("a content type");
        (kind.to_owned(), body)
    }

    fn ask(&self, path: &str, headers: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.admin.expect("it has an admin port")).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: tollgate\r\nConnection: close\r\n{headers}\r\n")
            .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        (head.to_owned(), body.to_owned())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, by its process id: `-TERM`, `-KILL`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill can be run");
        assert!(status.success(), "tollgate can be sent {name}");
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("it was not waited for")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _: Result<(), _> = self.child.kill();
        let _: Result<_, _> = self.child.wait();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
    }
}
