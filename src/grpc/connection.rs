//! The connection to a caller.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::tls::PeerIdentity;

/// A connection that says of itself that it cannot write several pieces at once, which is the default of [`AsyncWrite`].
///
/// Otherwise h2 sends every message of 256 bytes or more by a system call of its own, as a piece beside its buffer. Now it copies
/// those below 1 KiB into the buffer, and answers that are ready together leave together; with TLS as one record.
pub enum Connection {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS, after the handshake.
    Tls {
        /// The connection.
        stream: Box<TlsStream<TcpStream>>,
        /// Whom the client's certificate names, if one was asked for.
        identity: Option<Arc<PeerIdentity>>,
    },
}

/// What is known of a connection. Every request carries it among its extensions.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Its addresses.
    pub tcp: TcpConnectInfo,
    /// Whom the client's certificate names: it was verified by an authority of `tls-client-ca`. `None` where no certificates are asked for.
    pub identity: Option<Arc<PeerIdentity>>,
}

impl Connection {
    /// After the handshake.
    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = certificate.map(|certificate| Arc::new(PeerIdentity::of(certificate)));
        Self::Tls { stream: Box::new(stream), identity }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls { stream, .. } => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls { stream, .. } => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls { stream, .. } => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls { stream, .. } => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        match self {
            Self::Plain(stream) => ConnectionInfo { tcp: stream.connect_info(), identity: None },
            Self::Tls { stream, identity } => {
                ConnectionInfo { tcp: stream.get_ref().0.connect_info(), identity: identity.clone() }
            }
        }
    }
}
