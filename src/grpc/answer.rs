//! The answer of a call, which keeps what the call has taken until it has left.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Frame, SizeHint};
use prost::bytes::{Buf as _, Bytes};
use tonic::codegen::Body;

use super::connection_slots::Standing;

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
            let keeps = this.project().keeps;
            if keeps.as_ref().is_some_and(|keeps| keeps.complete) {
                Keeps::hand_over(keeps);
            }
        }
    }
}

/// The resources that an answer keeps until it is sent.
struct Keeps {
    standing: Arc<Standing>,
    kept: Box<dyn Any + Send + Sync>,
    /// True if all of it has been handed over.
    complete: bool,
}

impl Keeps {
    /// Hands the kept resources to the connection. All of the answer has been handed over, or is with what follows.
    /// This comes before the last piece is handed over, as the connection may write that on another thread at once.
    fn hand_over(keeps: &mut Option<Self>) {
        if let Some(Self { standing, kept, .. }) = keeps.take() {
            standing.unsent.handed(0, Some(kept));
        }
    }
}

impl<B: Default> Answer<B> {
    /// The same answer with another body.
    pub(super) fn map(mut self, change: impl FnOnce(B) -> B) -> Self {
        self.body = change(std::mem::take(&mut self.body));
        self
    }
}

/// An answer that keeps nothing.
impl<B> From<B> for Answer<B> {
    fn from(body: B) -> Self {
        Self { body, keeps: None, holds_back: false, last: None }
    }
}

impl<B: Body> Answer<B> {
    /// An answer that keeps something until all of it was written to the connection.
    ///
    /// With `holds_back` its last byte is a piece of its own. The server hands over a piece as soon as the caller has room for a single byte
    /// of it, and forgets the call with the last one: so this call is not forgotten before the caller has room for everything.
    pub(super) fn keeping(body: B, standing: &Arc<Standing>, kept: impl Any + Send + Sync, holds_back: bool) -> Self {
        let mut keeps = Some(Keeps { standing: Arc::clone(standing), kept: Box::new(kept), complete: false });
        if body.is_end_stream() {
            Keeps::hand_over(&mut keeps);
        }
        Self { body, keeps, holds_back, last: None }
    }
}

impl<B: Body<Data = Bytes>> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let handed = |keeps: &Option<Keeps>, bytes: usize| {
            if let Some(keeps) = keeps {
                keeps.standing.unsent.handed(bytes, None);
            }
        };
        if let Some(last) = this.last.take() {
            handed(&*this.keeps, last.len());
            return Poll::Ready(Some(Ok(Frame::data(last))));
        }
        let frame = match ready!(this.body.as_mut().poll_frame(context)) {
            Some(Ok(frame)) => frame,
            end => {
                if let Some(keeps) = this.keeps {
                    keeps.complete = end.is_none();
                }
                return Poll::Ready(end);
            }
        };
        let frame = match frame.into_data() {
            Ok(mut data) => {
                if *this.holds_back && data.remaining() > 1 {
                    *this.last = Some(data.split_off(data.len() - 1));
                }
                handed(&*this.keeps, data.len());
                Frame::data(data)
            }
            // They are asked for when the caller had room for all that came before.
            Err(trailers) => {
                Keeps::hand_over(this.keeps);
                trailers
            }
        };
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

    use super::super::connection_slots::ConnectionSlots;
    use super::*;

    #[tokio::test]
    async fn the_last_byte_is_a_piece_of_its_own_and_what_is_kept_is_kept_until_it_was_written() {
        let slots = ConnectionSlots::new(1);
        let Poll::Ready(Some(place)) = slots.poll_take(&mut Context::from_waker(std::task::Waker::noop())) else {
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
        assert!(answer.is_end_stream());
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
