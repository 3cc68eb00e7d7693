//! Reads the message of a call before the call is let in: in bounded time and memory.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Frame, SizeHint};
use prost::bytes::{Buf as _, Bytes, BytesMut};
use tonic::Status;
use tonic::codegen::Body;

use crate::domain::fault::Fault;

use super::shares::{Full, Share};

/// The length of the prefix of a message, in bytes: a flag for compression, and the message's length.
const PREFIX: usize = 5;

/// The reason why there is no message.
pub(super) enum Unread {
    /// The message is too large, by its length or after decompression.
    TooLarge,
    /// The message did not arrive in time.
    Late,
    /// The caller reset the call.
    Reset,
    /// There is not enough memory for it.
    Full(Full),
}

/// A message that has been read, as the body of a request.
pub(super) struct Message(Option<Bytes>);

/// Reads a body to its end. Its memory is taken from `share`.
pub(super) async fn read<B>(body: B, most: usize, patience: Duration, share: &mut Share) -> Result<Message, Unread>
where
    B: Body<Data = Bytes>,
{
    let mut read = pin!(read_all(body, most, share));
    if let Ok(read) = tokio::time::timeout(patience, &mut read).await {
        return read;
    }
    // On a busy machine the message may have arrived in time without having been read.
    tokio::task::yield_now().await;
    std::future::poll_fn(|context| match read.as_mut().poll(context) {
        Poll::Pending => Poll::Ready(Err(Unread::Late)),
        ready @ Poll::Ready(_) => ready,
    })
    .await
}

async fn read_all<B: Body<Data = Bytes>>(body: B, most: usize, share: &mut Share) -> Result<Message, Unread> {
    let mut body = pin!(body);
    let mut message = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let Ok(data) = frame.map_err(|_| Unread::Reset)?.into_data() else { continue };
        let first = message.is_empty();
        if is_too_large(if first { &data } else { &message }, most) || message.len() + data.len() > PREFIX + most {
            return Err(Unread::TooLarge);
        }
        if first && body.is_end_stream() {
            return Ok(Message(Some(data)));
        }
        // Copied, as a piece of it would keep all that was read from the socket with it.
        share.grow(data.len()).map_err(Unread::Full)?;
        message.extend_from_slice(&data);
        if is_too_large(&message, most) {
            return Err(Unread::TooLarge);
        }
    }
    Ok(Message(Some(message.freeze()).filter(|message| message.has_remaining())))
}

/// Returns whether a message announces a length above `most`. Bytes that do not begin as a message announce nothing:
/// they are malformed.
fn is_too_large(begun: &[u8], most: usize) -> bool {
    if begun.first().is_some_and(|flag| *flag > 1) {
        return false;
    }
    let length = begun.get(1..PREFIX).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    length.is_some_and(|length| usize::try_from(length).is_ok_and(|length| length > most))
}

impl Unread {
    /// Returns the status for the caller.
    pub(super) fn status(self, most: usize, patience: Duration, to_status: impl FnOnce(Fault) -> Status) -> Status {
        match self {
            Self::TooLarge => to_status(Fault::MessageTooLarge { most }),
            Self::Late => to_status(Fault::MessageLate { patience }),
            Self::Reset => Status::cancelled("the caller has reset the call"),
            Self::Full(full) => to_status(full.fault()),
        }
    }
}

impl Body for Message {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.take().map(|message| Ok(Frame::data(message))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |message| message.len() as u64))
    }
}

pin_project_lite::pin_project! {
    /// A body that is handed on as it comes, and ends when it was longer than it may be.
    pub(super) struct Bounded<B> {
        #[pin]
        body: B,
        left: usize,
    }
}

impl<B> Bounded<B> {
    /// Limits a body to `bytes` bytes.
    pub(super) fn new(body: B, bytes: usize) -> Self {
        Self { body, left: bytes }
    }
}

impl<B: Body<Data = Bytes>> Body for Bounded<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let frame = std::task::ready!(this.body.poll_frame(context));
        if let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(|frame| frame.data_ref())) {
            let bytes = data.map_or(0, Bytes::len);
            match this.left.checked_sub(bytes) {
                Some(left) => *this.left = left,
                None => return Poll::Ready(None),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
