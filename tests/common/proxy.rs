//! A network that can be broken at will: a TCP proxy in this process, whose fault is switched while connections are open.
//!
//! What a real network cannot do, it does not do either: a connection that has lost bytes never carries later ones as if nothing
//! had been. It is reset, or stays silent for good, even once the fault is over.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::redis_server::free_port;
use super::spawn;

/// The faults of the network that connections meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No fault.
    None,
    /// Requests arrive and are executed. A third of what comes back is swallowed, and the connection reset.
    LoseReplies,
    /// Everything is held up for a random time up to this, and what follows waits behind it.
    Delay(Duration),
    /// An eighth of the data is cut at a random byte, and the connection reset.
    Reset,
    /// Data in these directions is read and vanishes. Nobody learns of it.
    Silence {
        /// Silence what comes from the client.
        requests: bool,
        /// Silence what comes from the server.
        replies: bool,
    },
    /// Everything travels in pieces of 1 to 7 bytes.
    Split,
    /// Redis's answer to TIME is this many seconds ahead, or behind.
    Clock(i64),
    /// Connections are reset, and nothing listens.
    Refuse,
}

/// Every fault, at a strength which calls survive or not by chance.
pub const FAULTS: [Fault; 9] = [
    Fault::LoseReplies,
    Fault::Delay(Duration::from_millis(30)),
    Fault::Delay(Duration::from_millis(1500)),
    Fault::Reset,
    Fault::Silence { requests: true, replies: true },
    Fault::Silence { requests: true, replies: false },
    Fault::Silence { requests: false, replies: true },
    Fault::Split,
    Fault::Refuse,
];

/// A proxy on a free loopback port. It ends when it is dropped, with every connection through it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    fault: watch::Sender<Fault>,
    struck: AtomicU64,
    random: Mutex<fastrand::Rng>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    /// Starts a proxy to `target`. The seed decides what is cut and how long things take.
    pub async fn start(target: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", free_port())).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            fault: watch::Sender::new(Fault::None),
            struck: AtomicU64::new(0),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        });
        let accepting = spawn(accept(listener, address, Arc::clone(&shared)));
        Self { address, shared, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the fault, from now on.
    pub fn set(&self, fault: Fault) {
        self.shared.fault.send_replace(fault);
    }

    /// Resets all connections. What was held up never arrives.
    pub async fn cut(&self) {
        self.set(Fault::Refuse);
        // Longer than it takes to finish what has arrived already.
        tokio::time::sleep(Duration::from_millis(200)).await;
        self.set(Fault::None);
    }

    /// Leads new connections to another server. Those that are open stay where they are, as behind a virtual address.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.shared.target.lock().expect("nobody panics with it") = target;
    }

    /// Returns the number of times a fault has struck: a connection was cut or fell silent, or something was held up or
    /// split.
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn strike(&self) {
        self.struck.fetch_add(1, Ordering::Relaxed);
    }

    fn fork(&self) -> fastrand::Rng {
        self.random.lock().expect("nobody panics with it").fork()
    }
}

async fn accept(listener: TcpListener, address: SocketAddr, shared: Arc<Shared>) {
    let mut fault = shared.fault.subscribe();
    // They end with this task.
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        if *fault.borrow_and_update() == Fault::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        let Some(listening) = &listener else {
            let _: Result<_, _> = tokio::time::timeout(Duration::from_millis(10), fault.changed()).await;
            continue;
        };
        tokio::select! {
            accepted = listening.accept() => {
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(carry(client, Arc::clone(&shared)));
                while connections.try_join_next().is_some() {}
            }
            changed = fault.changed() => if changed.is_err() { return },
        }
    }
}

/// The end of a connection.
enum Ending {
    /// It ends as one side ended it.
    Closed,
    /// It ends by a reset to both sides.
    Reset,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Reply,
}

impl Direction {
    fn is_silenced_by(self, fault: Fault) -> bool {
        match (fault, self) {
            (Fault::Silence { requests, .. }, Self::Request) => requests,
            (Fault::Silence { replies, .. }, Self::Reply) => replies,
            _ => false,
        }
    }
}

/// Carries one connection, until it ends.
async fn carry(client: TcpStream, shared: Arc<Shared>) {
    let mut fault = shared.fault.subscribe();
    let target = *shared.target.lock().expect("nobody panics with it");
    let Ok(server) = TcpStream::connect(target).await else { return reset(&client) };
    for stream in [&client, &server] {
        let _: Result<(), _> = stream.set_nodelay(true);
    }
    let (mut client, mut server) = (client, server);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let ending = tokio::select! {
        ending = pump(Direction::Request, from_client, to_server, &shared) => ending,
        ending = pump(Direction::Reply, from_server, to_client, &shared) => ending,
        _ = fault.wait_for(|fault| *fault == Fault::Refuse) => Ending::Reset,
    };
    if matches!(ending, Ending::Reset) {
        shared.strike();
        reset(&client);
        reset(&server);
    }
}

/// Makes the stream send a reset when it is dropped.
fn reset(stream: &TcpStream) {
    let _: Result<(), _> = stream.set_zero_linger();
}

async fn pump(
    direction: Direction,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
) -> Ending {
    let mut random = shared.fork();
    let mut buffer = vec![0; 16 * 1024];
    // Of the connection: what is lost stays lost.
    let mut silent = false;
    loop {
        let bytes = match from.read(&mut buffer).await {
            Ok(0) => return Ending::Closed,
            Ok(length) => &buffer[..length],
            Err(_) => return Ending::Reset,
        };
        let fault = *shared.fault.borrow();
        if direction.is_silenced_by(fault) {
            shared.strike();
            silent = true;
        }
        let written = match fault {
            _ if silent => Ok(()),
            Fault::None | Fault::Silence { .. } | Fault::Refuse => to.write_all(bytes).await,
            Fault::LoseReplies if direction == Direction::Reply && random.u32(..3) == 0 => {
                // The server's side has done its work; the client is left waiting for a moment.
                tokio::time::sleep(Duration::from_millis(random.u64(..20))).await;
                return Ending::Reset;
            }
            Fault::LoseReplies => to.write_all(bytes).await,
            Fault::Delay(most) => {
                shared.strike();
                tokio::time::sleep(most.mul_f64(random.f64())).await;
                to.write_all(bytes).await
            }
            Fault::Reset if random.u32(..8) == 0 => {
                let _: Result<(), _> = to.write_all(&bytes[..random.usize(..=bytes.len())]).await;
                return Ending::Reset;
            }
            Fault::Reset => to.write_all(bytes).await,
            Fault::Clock(ahead) if direction == Direction::Reply => {
                to.write_all(with_time_moved(bytes, ahead).as_deref().unwrap_or(bytes)).await
            }
            Fault::Clock(_) => to.write_all(bytes).await,
            Fault::Split => {
                shared.strike();
                write_in_pieces(bytes, &mut to, &mut random).await
            }
        };
        if written.is_err() {
            return Ending::Reset;
        }
    }
}

/// A reply to TIME, whose seconds have ten digits, with other seconds; `None` for any other reply.
fn with_time_moved(reply: &[u8], ahead: i64) -> Option<Vec<u8>> {
    const BEFORE: &[u8] = b"*2\r\n$10\r\n";
    let start = reply.windows(BEFORE.len()).position(|window| window == BEFORE)? + BEFORE.len();
    let seconds: i64 = std::str::from_utf8(reply.get(start..start + 10)?).ok()?.parse().ok()?;
    let mut moved = reply.to_vec();
    moved[start..start + 10].copy_from_slice(format!("{:010}", seconds + ahead).as_bytes());
    Some(moved)
}

async fn write_in_pieces(
    mut bytes: &[u8],
    to: &mut (impl AsyncWrite + Unpin),
    random: &mut fastrand::Rng,
) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(random.usize(1..=7).min(bytes.len()));
        to.write_all(piece).await?;
        bytes = rest;
        if random.u32(..16) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}
