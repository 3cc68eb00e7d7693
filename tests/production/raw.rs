//! Callers that speak HTTP/2 themselves: one by the `h2` crate, whose answers nothing prettifies, and one by bytes, who keeps to no rule.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::codegen::http::response::Parts;
use tonic::codegen::http::{HeaderMap, Request};

/// What a test that is not about time waits for at most: a busy machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A message as gRPC frames it.
pub fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// A connection by the `h2` crate.
#[derive(Clone)]
pub struct Raw {
    send: SendRequest<Bytes>,
    address: SocketAddr,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub http: u16,
    /// Of the headers, or of the trailers.
    pub status: Option<Status>,
}

impl Answer {
    pub fn status(self) -> Status {
        self.status.unwrap_or_else(|| panic!("HTTP status {} without a grpc-status", self.http))
    }
}

/// A call whose body is yet to come, or whose answer is.
pub struct Begun {
    response: h2::client::ResponseFuture,
    pub body: SendStream<Bytes>,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        let (send, connection) = h2::client::handshake(tcp).await.unwrap();
        tokio::spawn(async move {
            let _: Result<(), _> = connection.await;
        });
        Self { send, address }
    }

    /// Sends the headers of a call.
    pub async fn begin(&mut self, path: &str, more: &[(&str, &str)]) -> Result<Begun, h2::Error> {
        self.send.clone().ready().await?;
        let uri = format!("http://{}{path}", self.address);
        let mut request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        let (response, body) = self.send.send_request(request.body(()).unwrap(), false)?;
        Ok(Begun { response, body })
    }

    /// Sends any request, whole, and returns the head and the body of its answer.
    pub async fn send(&mut self, head: Request<()>, body: Bytes) -> Result<(Parts, Bytes), h2::Error> {
        self.send.clone().ready().await?;
        let (response, mut stream) = self.send.send_request(head, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(body, true)?;
        }
        let (head, mut body) = response.await?.into_parts();
        let mut read = BytesMut::new();
        while let Some(some) = body.data().await {
            let some = some?;
            body.flow_control().release_capacity(some.len())?;
            read.extend(some);
        }
        Ok((head, read.freeze()))
    }

    pub async fn call(&mut self, path: &str, more: &[(&str, &str)], body: Bytes) -> Result<Answer, h2::Error> {
        let mut begun = self.begin(path, more).await?;
        // A call that is refused by its headers is over before its body is sent. The answer tells, or the lack of one.
        drop(begun.body.send_data(body, true));
        begun.answer().await
    }
}

impl Begun {
    /// The body, and the answer that may come before its end.
    pub fn split(self) -> (SendStream<Bytes>, impl Future<Output = Result<Answer, h2::Error>>) {
        let Self { response, body } = self;
        (body, answered(response))
    }

    pub async fn answer(self) -> Result<Answer, h2::Error> {
        // Dropped before its end, the body would reset the call.
        let Self { response, body: _body } = self;
        answered(response).await
    }
}

async fn answered(response: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, body) = response.await?.into_parts();
    let status = match grpc_status(&head.headers) {
        Some(status) => Some(status),
        None => trailers(body).await?.as_ref().and_then(grpc_status),
    };
    Ok(Answer { http: head.status.as_u16(), status })
}

async fn trailers(mut body: RecvStream) -> Result<Option<HeaderMap>, h2::Error> {
    while let Some(some) = body.data().await {
        body.flow_control().release_capacity(some?.len())?;
    }
    body.trailers().await
}

fn grpc_status(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}

/// What every connection begins with, and settings that change nothing.
pub const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The same by a caller who has no room for any answer: `SETTINGS_INITIAL_WINDOW_SIZE` is 0.
pub const OPENING_WITHOUT_ROOM: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const GOAWAY: u8 = 7;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a call, by HPACK without its table: `:method POST`, `:scheme http`, and literals.
pub fn headers(path: &str) -> Vec<u8> {
    headers_with(path, &[])
}

/// The headers of a call, and more of them.
pub fn headers_with(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    let mut literal = |start: &[u8], texts: &[&str]| {
        block.extend(start);
        for text in texts {
            // An integer with a prefix of seven bits (RFC 7541, section 5.1).
            match text.len().checked_sub(127) {
                None => block.push(u8::try_from(text.len()).unwrap()),
                Some(mut rest) => {
                    block.push(127);
                    while rest >= 128 {
                        block.push(u8::try_from(rest % 128).unwrap() | 128);
                        rest /= 128;
                    }
                    block.push(u8::try_from(rest).unwrap());
                }
            }
            block.extend(text.as_bytes());
        }
    };
    literal(&[0x04], &[path]);
    literal(&[0x01], &["localhost"]);
    literal(&[0x0f, 0x10], &["application/grpc"]);
    literal(&[0x00], &["te", "trailers"]);
    for (name, value) in more {
        literal(&[0x00], &[name, value]);
    }
    block
}

/// Says this, and returns once the server has read it: it has answered a ping that came after.
pub async fn said_and_read(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    const PING: u8 = 6;
    let tcp = said(address, &[bytes, &frame(PING, 0, 0, &[7; 8])].concat()).await;
    read_until(tcp, |kind, payload| kind == PING && payload == [7; 8]).await
}

/// Reads frames until this is one of them.
pub async fn read_until(mut tcp: TcpStream, is_it: impl Fn(u8, &[u8]) -> bool) -> TcpStream {
    loop {
        let (kind, _, payload) = next_frame(&mut tcp).await.expect("the connection lives on");
        if is_it(kind, &payload) {
            return tcp;
        }
    }
}

/// Reads frames until the connection ends: kind, stream, payload. What was read before it broke counts.
pub async fn frames(tcp: &mut (impl AsyncRead + Unpin)) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(frame) = next_frame(tcp).await {
        frames.push(frame);
    }
    frames
}

/// The next one, unless the connection has ended.
pub async fn next_frame(tcp: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u32, Vec<u8>)> {
    let read = async {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        tcp.read_exact(&mut payload).await.ok()?;
        Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the server says something, or ends the connection")
}

/// Waits until the server has closed a connection, in order or not.
pub async fn closed(tcp: &mut TcpStream) {
    let mut buffer = [0; 1024];
    let read = async { while tcp.read(&mut buffer).await.is_ok_and(|read| read > 0) {} };
    tokio::time::timeout(PATIENCE, read).await.expect("the server closes the connection");
}

/// A connection that has said this, and no more.
pub async fn said(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    // Who is closed at once cannot always say it.
    let _: std::io::Result<()> = tcp.write_all(bytes).await;
    tcp
}
