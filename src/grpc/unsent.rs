//! The answers of one connection that its socket has not taken yet. Each of them keeps its call's place until it has, so that a caller who
//! never reads cannot make the server collect answers.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time after which an answer counts as sent once nothing is left to write. Its caller has reset the call, and it
/// will never be written.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// A value that is dropped when an answer has been written.
type Kept = Box<dyn Any + Send + Sync>;

/// See the module.
#[derive(Default)]
pub(super) struct Unsent(Mutex<State>);

#[derive(Default)]
struct State {
    closed: bool,
    /// Their pieces, in the order in which they were handed over, with how many bytes of them are not yet written.
    answers: VecDeque<(usize, Instant, Option<Kept>)>,
}

impl Unsent {
    /// Notes that this many bytes of an answer are about to be handed over. `kept` is dropped when they, and all before
    /// them, have been written.
    pub(super) fn handed(&self, bytes: usize, kept: Option<Kept>) {
        let mut state = self.lock();
        if !state.closed {
            state.answers.push_back((bytes, Instant::now(), kept));
        }
    }

    /// The socket has taken `bytes`. Frames of the protocol count as well, so an answer may count as sent a little early.
    pub(super) fn written(&self, mut bytes: usize) {
        let mut state = self.lock();
        let mut sent = Vec::new();
        while let Some((left, ..)) = state.answers.front_mut() {
            if *left > bytes {
                *left -= bytes;
                break;
            }
            bytes -= *left;
            sent.extend(state.answers.pop_front());
        }
        // What is dropped here takes locks of its own.
        drop(state);
    }

    /// Notes that nothing is left to write.
    pub(super) fn flushed(&self) {
        let mut state = self.lock();
        let mut sent = Vec::new();
        while state.answers.front().is_some_and(|(_, handed, _)| handed.elapsed() > FORGOTTEN) {
            sent.extend(state.answers.pop_front());
        }
        drop(state);
    }

    /// The connection has ended.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let _unsent = std::mem::take(&mut state.answers);
        drop(state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_answer_is_kept_until_it_is_written() {
        let unsent = Unsent::default();
        let answers = [Arc::new(1), Arc::new(2), Arc::new(3)];
        let kept = || answers.each_ref().map(Arc::strong_count);
        for answer in &answers {
            unsent.handed(100, Some(Box::new(Arc::clone(answer))));
        }
        unsent.written(99);
        unsent.flushed();
        assert_eq!(kept(), [2, 2, 2]);
        unsent.written(101);
        assert_eq!(kept(), [1, 1, 2]);
        unsent.close();
        assert_eq!(kept(), [1, 1, 1]);
        unsent.handed(100, Some(Box::new(Arc::clone(&answers[0]))));
        assert_eq!(kept(), [1, 1, 1], "nothing is written any more");
    }
}
