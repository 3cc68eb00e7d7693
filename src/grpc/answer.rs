//! The answer of a call, which keeps what the call has taken until it has left.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Frame, SizeHint};
use prost::bytes::{Buf as _, Bytes};
use tonic::codegen::Body;

use super::places::Standing;

pin_project_lite::pin_project! {
    /// The body of an answer.
    #[derive(Default)]
    pub struct Answer<B> {
        #[pin]
        body: B,
        keeps: Option<Keeps>,
        // See `keeping`.
        holds_back: bool,
        last: Option<Bytes>,
    }

    impl<B> PinnedDrop for Answer<B> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(Keeps { standing, kept, bytes, complete: true }) = this.project().keeps.take() {
                standing.unsent.handed(bytes, kept);
            }
        }
    }
}

/// What an answer keeps.
struct Keeps {
    standing: Arc<Standing>,
    kept: Box<dyn Any + Send + Sync>,
    /// How many bytes of it have been handed over.
    bytes: usize,
    /// Whether that was all.
    complete: bool,
}

impl<B: Body> Answer<B> {
    /// An answer that keeps something until all of it was written to the connection.
    ///
    /// With `holds_back` its last byte is a piece of its own. The server hands over a piece as soon as the caller has room for a single byte
    /// of it, and forgets the call with the last one: so this call is not forgotten before the caller has room for everything.
    pub(super) fn keeping(body: B, standing: &Arc<Standing>, kept: impl Any + Send + Sync, holds_back: bool) -> Self {
        let complete = body.is_end_stream();
        let keeps = Keeps { standing: Arc::clone(standing), kept: Box::new(kept), bytes: 0, complete };
        Self { body, keeps: Some(keeps), holds_back, last: None }
    }
}

impl<B: Body<Data = Bytes>> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        if let Some(last) = this.last.take() {
            return Poll::Ready(Some(Ok(Frame::data(last))));
        }
        let frame = ready!(this.body.as_mut().poll_frame(context));
        let Some(keeps) = this.keeps else { return Poll::Ready(frame) };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            end => {
                keeps.complete = end.is_none();
                return Poll::Ready(end);
            }
        };
        let frame = match frame.into_data() {
            Ok(mut data) => {
                keeps.bytes += data.len();
                if *this.holds_back && data.remaining() > 1 {
                    *this.last = Some(data.split_off(data.len() - 1));
                }
                Frame::data(data)
            }
            Err(trailers) => {
                keeps.complete = true;
                trailers
            }
        };
        keeps.complete |= this.last.is_none() && this.body.is_end_stream();
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.last.is_none() { self.body.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::super::places::Places;
    use super::*;

    #[tokio::test]
    async fn the_last_byte_is_a_piece_of_its_own_and_what_is_kept_is_kept_until_it_was_written() {
        let places = Places::new(1);
        let Poll::Ready(Some(place)) = places.poll_take(&mut Context::from_waker(std::task::Waker::noop())) else {
            panic!("there is room")
        };
        let kept = Arc::new(());
        let body = Full::new(Bytes::from_static(b"answer"));
        let mut answer = Answer::keeping(body, place.standing(), Arc::clone(&kept), true);
        let mut pieces = Vec::new();
        while let Some(frame) = answer.frame().await {
            pieces.push(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(pieces, ["answe", "r"]);
        drop(answer);
        place.standing().unsent.written(5);
        assert_eq!(Arc::strong_count(&kept), 2);
        place.standing().unsent.written(1);
        assert_eq!(Arc::strong_count(&kept), 1);

        // The caller has reset the call: nothing of it will be written.
        let answer =
            Answer::keeping(Full::new(Bytes::from_static(b"answer")), place.standing(), Arc::clone(&kept), true);
        drop(answer);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
