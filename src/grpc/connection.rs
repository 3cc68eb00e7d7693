//! The connection to a caller.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch::Receiver;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::config::Limits;
use crate::tls::PeerIdentity;

/// What every connection over HTTP/2 begins with has so many bytes.
const PREFACE: usize = 24;

/// How long a caller may take to close a connection whose end it was told, and how much to say meanwhile.
const FAREWELL: (Duration, usize) = (Duration::from_secs(1), 256 << 10);

/// How long who has connected may take to say that, once Tollgate has to stop: an honest caller has it in the first packet. The others
/// would hold up its end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A connection that says of itself that it cannot write several pieces at once, which is the default of [`AsyncWrite`].
///
/// Otherwise h2 sends every message of 256 bytes or more by a system call of its own, as a piece beside its buffer. Now it copies
/// those below 1 KiB into the buffer, and answers that are ready together leave together; with TLS as one record.
///
/// Who does not say in time that it speaks HTTP/2 is closed: from then on pings tell whether somebody is there.
pub struct Connection {
    stream: Stream,
    preface: Option<Preface>,
    farewell: Option<Farewell>,
    /// When it is cut. It was asked to end long before, and whoever goes on with a call that never ends, or never reads, does not hear.
    end: Pin<Box<Sleep>>,
    _place: Place,
}

/// How long a connection may take to say what it speaks, and how long it may live.
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
    /// After the handshake, with whom the client's certificate names.
    Tls(Box<TlsStream<TcpStream>>, Option<Arc<PeerIdentity>>),
}

struct Preface {
    /// How many bytes of it are yet to come.
    left: usize,
    deadline: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// All was said, and what the caller says still is read and dropped: a connection that is closed with something unread is reset, and
/// a reset takes with it the last answers that are under way.
struct Farewell {
    /// How many bytes more.
    left: usize,
    until: Pin<Box<Sleep>>,
}

/// One of the connections that there may be.
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    /// A place, if fewer than `most` are taken.
    pub(super) fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        (taken.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known of a connection. Every request carries it among its extensions.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Its addresses.
    pub tcp: TcpConnectInfo,
    /// Whom the client's certificate names: it was verified by an authority of `tls-client-ca`. `None` where no certificates are asked for.
    pub identity: Option<Arc<PeerIdentity>>,
}

/// The address of this server that a request came to, by its extensions.
#[must_use]
pub fn server_address(extensions: &http::Extensions) -> Option<SocketAddr> {
    extensions.get::<ConnectionInfo>()?.tcp.local_addr()
}

impl Connection {
    /// Without TLS.
    pub(super) fn plain(stream: TcpStream, place: Place, times: Times, stopping: Receiver<()>) -> Self {
        Self::new(Stream::Plain(stream), place, times, stopping)
    }

    /// After the handshake.
    pub(super) fn tls(stream: TlsStream<TcpStream>, place: Place, times: Times, stopping: Receiver<()>) -> Self {
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = certificate.map(|certificate| Arc::new(PeerIdentity::of(certificate)));
        Self::new(Stream::Tls(Box::new(stream), identity), place, times, stopping)
    }

    fn new(stream: Stream, place: Place, times: Times, mut stopping: Receiver<()>) -> Self {
        let stopped = async move {
            let _: Result<(), _> = stopping.changed().await;
            sleep(LAST_WORDS).await;
        };
        let deadline = Box::pin(async move {
            let _: Result<(), _> = timeout(times.patience, stopped).await;
        });
        let preface = Preface { left: PREFACE, deadline };
        Self { stream, preface: Some(preface), farewell: None, end: Box::pin(sleep(times.life)), _place: place }
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
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream, _) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream, _) => Pin::new(stream).poll_flush(context),
        }
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
        match &self.stream {
            Stream::Plain(stream) => ConnectionInfo { tcp: stream.connect_info(), identity: None },
            Stream::Tls(stream, identity) => {
                ConnectionInfo { tcp: stream.get_ref().0.connect_info(), identity: identity.clone() }
            }
        }
    }
}
