//! Connections as they come in. With TLS they shake hands first: at the same time, in bounded time, and in bounded number.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tonic::transport::server::TcpIncoming;

use crate::config::Limits;
use crate::domain::counted::counted;

use super::connection::{Connection, Times};
use super::connection_slots::{ConnectionSlot, ConnectionSlots};

/// The number of handshakes that may be in progress. The next one ends the oldest: a real client is done in a few round
/// trips, and a client that only holds slots is the first to lose them.
const MOST: usize = 512;

/// The pause after a failed accept. Where there are no file handles left, the next one would fail again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections of a listener.
pub struct Incoming {
    tcp: TcpIncoming,
    pause: Option<Pin<Box<Sleep>>>,
    tls: Option<Handshakes>,
    slots: Arc<ConnectionSlots>,
    /// A connection that waits for a slot.
    waiting: Option<TcpStream>,
    /// True if the last connection found no slot. It keeps the log from saying so twice.
    full: bool,
    times: Times,
    stopping: watch::Receiver<()>,
}

struct Handshakes {
    config: watch::Receiver<Arc<ServerConfig>>,
    under_way: JoinSet<(u64, Option<Connection>)>,
    /// The handshakes, by the order in which they began.
    handles: BTreeMap<u64, AbortHandle>,
    next: u64,
}

impl Incoming {
    /// Accepts connections on a listener, with TLS if there are certificates. Once the sender of `stopping` is gone,
    /// connections that have sent nothing yet are closed.
    #[must_use]
    pub fn new(
        listener: TcpListener,
        tls: Option<watch::Receiver<Arc<ServerConfig>>>,
        limits: &Limits,
        stopping: watch::Receiver<()>,
    ) -> Self {
        // The server's own settings of sockets do not reach a listener that it is given.
        let keepalive = Some(Duration::from_secs(30));
        Self {
            tcp: TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(keepalive),
            pause: None,
            tls: tls.map(|config| Handshakes { config, under_way: JoinSet::new(), handles: BTreeMap::new(), next: 0 }),
            slots: ConnectionSlots::new(limits.max_connections),
            waiting: None,
            full: false,
            times: Times::new(limits),
            stopping,
        }
    }

    /// Takes the slots of its connections from these, which other listeners share.
    #[must_use]
    pub fn sharing(self, slots: Arc<ConnectionSlots>) -> Self {
        Self { slots, ..self }
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Option<(TcpStream, ConnectionSlot)>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            if self.waiting.is_some() {
                let slot = std::task::ready!(self.slots.poll_take(context));
                let was_full = std::mem::replace(&mut self.full, slot.is_none());
                match (slot, self.waiting.take()) {
                    (Some(slot), Some(stream)) => return Poll::Ready(Some((stream, slot))),
                    _ if was_full => {}
                    _ => tracing::warn!(
                        "there are {}, and all have authenticated: Tollgate closes further ones at once",
                        counted(self.slots.most(), "connection")
                    ),
                }
            }
            match std::task::ready!(Pin::new(&mut self.tcp).poll_next(context)) {
                Some(Ok(stream)) => self.waiting = Some(stream),
                Some(Err(error)) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Handshakes {
    fn begin(&mut self, stream: TcpStream, slot: ConnectionSlot, times: Times, stopping: watch::Receiver<()>) {
        while self.handles.len() >= MOST {
            let Some((_, oldest)) = self.handles.pop_first() else { break };
            oldest.abort();
        }
        let acceptor = TlsAcceptor::from(Arc::clone(&self.config.borrow()));
        let number = self.next;
        self.next += 1;
        let handle = self.under_way.spawn(async move {
            let peer = stream.peer_addr().ok();
            let standing = Arc::clone(slot.standing());
            let shaken = tokio::select! {
                shaken = timeout(times.patience, acceptor.accept(stream)) => shaken,
                // It makes room for another connection.
                () = standing.ended() => return (number, None),
            };
            match shaken {
                Ok(Ok(stream)) => (number, Some(Connection::tls(stream, slot, times, stopping))),
                Ok(Err(error)) => {
                    tracing::debug!(?peer, %error, "a TLS handshake failed");
                    (number, None)
                }
                Err(_) => {
                    tracing::debug!(?peer, "a TLS handshake took longer than {:?}", times.patience);
                    (number, None)
                }
            }
        });
        self.handles.insert(number, handle);
    }

    fn poll_done(&mut self, context: &mut Context<'_>) -> Poll<Connection> {
        loop {
            match self.under_way.poll_join_next(context) {
                Poll::Ready(Some(Ok((number, connection)))) => {
                    self.handles.remove(&number);
                    if let Some(connection) = connection {
                        return Poll::Ready(connection);
                    }
                }
                // Given up for a newer one.
                Poll::Ready(Some(Err(_))) => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Stream for Incoming {
    type Item = Result<Connection, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            // Finished handshakes go first, or a flood of new connections would keep them waiting.
            if let Some(Poll::Ready(connection)) = self.tls.as_mut().map(|tls| tls.poll_done(context)) {
                return Poll::Ready(Some(Ok(connection)));
            }
            let Some((stream, slot)) = std::task::ready!(self.poll_accept(context)) else { return Poll::Ready(None) };
            let (times, stopping) = (self.times, self.stopping.clone());
            match &mut self.tls {
                None => return Poll::Ready(Some(Ok(Connection::plain(stream, slot, times, stopping)))),
                Some(tls) => tls.begin(stream, slot, times, stopping),
            }
        }
    }
}
