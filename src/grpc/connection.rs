//! The connection to a caller.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch::Receiver;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::server::TlsStream;
use tonic::codegen::http::Extensions;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::config::Limits;
use crate::tls::PeerIdentity;

use super::connection_slots::{ConnectionSlot, Standing};

/// The number of bytes in the preface, with which every connection over HTTP/2 begins.
const PREFACE: usize = 24;

/// The time a caller has to close a connection after it was told of the end, and the number of bytes it may still send
/// meanwhile.
const FAREWELL: (Duration, usize) = (Duration::from_secs(1), 256 << 10);

/// The time a new connection has to send its preface once Tollgate has to stop. An honest caller sends it in the first
/// packet. Other connections would delay the shutdown.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The longest time that a caller's socket may accept nothing of the data to write.
const STALLED: Duration = Duration::from_secs(10);

/// A connection that says of itself that it cannot write several pieces at once, which is the default of [`AsyncWrite`].
///
/// Otherwise h2 sends every message of 256 bytes or more by a system call of its own, as a piece beside its buffer. Now it copies
/// those below 1 KiB into the buffer, and answers that are ready together leave together; with TLS as one record.
///
/// A client that does not send the preface of HTTP/2 in time is closed. From then on, pings tell whether the client is
/// there.
pub struct Connection {
    stream: Stream,
    preface: Option<Preface>,
    farewell: Option<Farewell>,
    /// The time at which it is cut. Tollgate asked it to end long before. A caller whose call never ends, or who never
    /// reads, does not react to that.
    end: Pin<Box<Sleep>>,
    /// The time at which it is cut because its caller reads nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    slot: ConnectionSlot,
}

/// The time limits of a connection: for its first bytes and handshake, and for its whole life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) patience: Duration,
    pub(super) life: Duration,
}

impl Times {
    pub(super) fn new(limits: &Limits) -> Self {
        // Once it was asked to end, all that was begun is done after as long as calls may take, and a farewell.
        let life = limits.max_connection_age + limits.call_timeout + Duration::from_secs(10);
        Self { patience: limits.handshake_timeout, life }
    }
}

enum Stream {
    Plain(TcpStream),
    /// A connection after the TLS handshake, with the identity in the client's certificate.
    Tls(Box<TlsStream<TcpStream>>, Option<Arc<PeerIdentity>>),
}

struct Preface {
    /// The number of its bytes that have not arrived yet.
    left: usize,
    deadline: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// The state after the last write. Tollgate reads and drops what the caller still sends: a connection that is closed
/// with unread data is reset, and a reset discards the last answers that are on their way.
struct Farewell {
    /// The number of bytes it may still send.
    left: usize,
    until: Pin<Box<Sleep>>,
}

/// The facts about a connection. Every request carries them among its extensions.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Its addresses.
    pub tcp: TcpConnectInfo,
    /// The identity that the client's certificate names. An authority of `tls-client-ca` has verified it. `None` where
    /// no certificates are asked for.
    pub identity: Option<Arc<PeerIdentity>>,
    /// The credentials it has shown so far, and its calls in flight.
    pub(super) standing: Arc<Standing>,
}

impl ConnectionInfo {
    /// The standing of the connection that a request came by.
    pub(super) fn standing(extensions: &Extensions) -> Arc<Standing> {
        let info = extensions.get::<Self>();
        // Every connection of a listener has one. A request from elsewhere is alone on its connection.
        info.map_or_else(|| Arc::new(Standing::new(0, Weak::new())), |info| Arc::clone(&info.standing))
    }
}

/// The address of this server that a request came to, by its extensions.
#[must_use]
pub fn server_address(extensions: &http::Extensions) -> Option<SocketAddr> {
    extensions.get::<ConnectionInfo>()?.tcp.local_addr()
}

impl Connection {
    /// Without TLS.
    pub(super) fn plain(stream: TcpStream, slot: ConnectionSlot, times: Times, stopping: Receiver<()>) -> Self {
        Self::new(Stream::Plain(stream), slot, times, stopping)
    }

    /// A connection after its TLS handshake.
    pub(super) fn tls(
        stream: TlsStream<TcpStream>,
        slot: ConnectionSlot,
        times: Times,
        stopping: Receiver<()>,
    ) -> Self {
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = certificate.map(|certificate| Arc::new(PeerIdentity::of(certificate)));
        Self::new(Stream::Tls(Box::new(stream), identity), slot, times, stopping)
    }

    fn new(stream: Stream, slot: ConnectionSlot, times: Times, mut stopping: Receiver<()>) -> Self {
        let stopped = async move {
            let _: Result<(), _> = stopping.changed().await;
            sleep(LAST_WORDS).await;
        };
        let deadline = Box::pin(async move {
            let _: Result<(), _> = timeout(times.patience, stopped).await;
        });
        let preface = Preface { left: PREFACE, deadline };
        Self { stream, preface: Some(preface), farewell: None, end: Box::pin(sleep(times.life)), stalled: None, slot }
    }
}

impl Connection {
    /// Returns the outcome of a write, or an error if the socket has accepted nothing for too long.
    fn unless_stalled<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALLED)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Stream {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream, _) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = self.stream.poll_read(context, buffer);
        if read.is_pending() && self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let Some(preface) = &mut self.preface else { return read };
        preface.left = preface.left.saturating_sub(buffer.filled().len() - before);
        if preface.left == 0 {
            self.preface = None;
        } else if preface.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream, _) => Pin::new(stream).poll_write(context, bytes),
        };
        if let Poll::Ready(Ok(bytes)) = &written {
            self.slot.standing().unsent.written(*bytes);
        }
        self.unless_stalled(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream, _) => Pin::new(stream).poll_flush(context),
        };
        if let Poll::Ready(Ok(())) = &flushed {
            self.slot.standing().unsent.flushed();
        }
        self.unless_stalled(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.farewell.is_none() {
            ready!(match &mut self.stream {
                Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
                Stream::Tls(stream, _) => Pin::new(stream).poll_shutdown(context),
            })?;
        }
        let Self { stream, farewell, .. } = &mut *self;
        let (patience, left) = FAREWELL;
        let farewell = farewell.get_or_insert_with(|| Farewell { left, until: Box::pin(sleep(patience)) });
        let mut bytes = [0; 4096];
        while farewell.left > 0 {
            let mut buffer = ReadBuf::new(&mut bytes);
            match stream.poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    farewell.left = farewell.left.saturating_sub(buffer.filled().len());
                }
                // The caller has closed it too, in order or not.
                Poll::Ready(_) => break,
                Poll::Pending => return farewell.until.as_mut().poll(context).map(Ok),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        let (tcp, identity) = match &self.stream {
            Stream::Plain(stream) => (stream.connect_info(), None),
            Stream::Tls(stream, identity) => (stream.get_ref().0.connect_info(), identity.clone()),
        };
        ConnectionInfo { tcp, identity, standing: Arc::clone(self.slot.standing()) }
    }
}
