//! The binary as its users start it.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

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
    log: Arc<Mutex<String>>,
}

impl Served {
    /// Starts it with these flags on a port of this machine, 0 for a free one, and returns when it listens.
    pub fn start(port: u16, flags: &[&str]) -> Self {
        let mut child = tollgate()
            .args(["serve", "--listen", &format!("127.0.0.1:{port}")])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary can be run");
        let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut line = String::new();
        let kept = Arc::new(Mutex::new(String::new()));
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).expect("the log can be read") > 0, "it ended before it served");
            kept.lock().unwrap().push_str(&line);
            // Its log tells the port.
            if let Some((_, rest)) = line.split_once("127.0.0.1:").filter(|_| line.contains("serving")) {
                let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break format!("127.0.0.1:{port}").parse().expect("an address");
            }
        };
        // What else it logs must not fill the pipe.
        let keep = Arc::clone(&kept);
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let mut kept = keep.lock().unwrap();
                // A test that makes it talk without end looks at the start, if at all.
                if kept.len() < 1 << 20 {
                    kept.push_str(&line);
                    kept.push('\n');
                }
            }
        });
        Self { child, address, log: kept }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
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
