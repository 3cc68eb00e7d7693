//! The streams of HTTP/2, each of which is a call with its answer. The server can end every one of them, whatever its
//! caller does.
//!
//! A caller who takes no bytes of an answer (a flow-control window of 0) is never asked again by the code that sends it. So the task of the
//! stream has a deadline of its own.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::task::AbortHandle;
use tokio::task::futures::TaskLocalFuture;
use tokio::time::{Sleep, sleep};

use super::connection_slots::{Level, Standing};

tokio::task_local! {
    static STREAM: Arc<Stream>;
}

/// A stream, as the service that answers it sees it.
#[derive(Default)]
pub(super) struct Stream {
    task: OnceLock<AbortHandle>,
    ended: AtomicBool,
    /// The time the caller may take for the answer, in milliseconds; 0 while there is none.
    patience_ms: AtomicU64,
    /// A stream of a connection that has authenticated with a secret key has no end.
    unless_secret: OnceLock<Arc<Standing>>,
}

impl Stream {
    /// The stream whose call is being answered.
    pub(super) fn current() -> Option<Arc<Self>> {
        STREAM.try_with(Arc::clone).ok()
    }

    /// The answer begins: from now on its caller has so long to take it.
    pub(super) fn answered(patience: Duration) {
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1);
        let _: Result<(), _> = STREAM.try_with(|stream| stream.patience_ms.store(patience_ms, Ordering::Relaxed));
    }

    /// The stream may go on without end if its connection has authenticated with a secret key by then.
    pub(super) fn endless_if_secret(&self, standing: &Arc<Standing>) {
        // It is set once, at the start.
        let _: Result<(), _> = self.unless_secret.set(Arc::clone(standing));
    }

    fn has_no_end(&self) -> bool {
        self.unless_secret.get().is_some_and(|standing| standing.level() == Level::Secret)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Runs each stream of a connection as a task that can be ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams;

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        let stream = Arc::new(Stream::default());
        let work = STREAM.scope(Arc::clone(&stream), work);
        let task = tokio::spawn(Timed { work, stream: Arc::clone(&stream), deadline: None });
        let handle = stream.task.get_or_init(|| task.abort_handle());
        // It may run already, and have been ended, on another thread.
        if stream.ended.load(Ordering::Relaxed) {
            handle.abort();
        }
    }
}

pin_project_lite::pin_project! {
    /// The task of a stream.
    struct Timed<F> {
        #[pin]
        work: TaskLocalFuture<Arc<Stream>, F>,
        stream: Arc<Stream>,
        // Only callers who do not take their answer at once cost a timer.
        deadline: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for Timed<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.work.poll(context).is_ready() {
            return Poll::Ready(());
        }
        let patience_ms = this.stream.patience_ms.load(Ordering::Relaxed);
        if patience_ms == 0 || this.stream.has_no_end() {
            return Poll::Pending;
        }
        let deadline = this.deadline.get_or_insert_with(|| Box::pin(sleep(Duration::from_millis(patience_ms))));
        // What is dropped before its end is reset, and its memory is free.
        if deadline.as_mut().poll(context).is_ready() && !this.stream.has_no_end() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// A bounded number of streams. One more ends the oldest: an honest one is done in a moment, or asks again.
pub(super) struct Pool {
    most: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    streams: BTreeMap<u64, Arc<Stream>>,
}

impl Pool {
    /// A pool for `most` streams.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// Takes a stream in until the result is dropped.
    pub(super) fn enter(self: &Arc<Self>, stream: Arc<Stream>) -> Pooled {
        let mut open = self.lock();
        while open.streams.len() >= self.most {
            let Some((_, oldest)) = open.streams.pop_first() else { break };
            // One whose connection has authenticated since is no longer counted.
            if !oldest.has_no_end() {
                oldest.end();
            }
        }
        let number = open.next;
        open.next += 1;
        open.streams.insert(number, stream);
        Pooled { pool: Arc::clone(self), number }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream's place in a pool.
pub(super) struct Pooled {
    pool: Arc<Pool>,
    number: u64,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.lock().streams.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_ends_after_its_answer_has_begun_and_not_before() {
        const PATIENCE: Duration = Duration::from_millis(100);
        let (begin, begun) = tokio::sync::oneshot::channel::<()>();
        let (alive, mut dropped) = tokio::sync::oneshot::channel::<()>();
        Streams.execute(async move {
            let _alive = alive;
            let _: Result<(), _> = begun.await;
            Stream::answered(PATIENCE);
            std::future::pending::<()>().await;
        });
        sleep(2 * PATIENCE).await;
        assert!(dropped.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty));
        let answered = tokio::time::Instant::now();
        begin.send(()).unwrap();
        dropped.await.unwrap_err();
        assert!(answered.elapsed() >= PATIENCE);
    }

    #[tokio::test]
    async fn one_stream_more_than_there_may_be_ends_the_oldest() {
        let pool = Pool::new(2);
        let mut alive = Vec::new();
        for _ in 0..3 {
            let (hold, dropped) = tokio::sync::oneshot::channel::<()>();
            let pool = Arc::clone(&pool);
            Streams.execute(async move {
                let _pooled = (pool.enter(Stream::current().unwrap()), hold);
                std::future::pending::<()>().await;
            });
            alive.push(dropped);
            tokio::task::yield_now().await;
        }
        alive.remove(0).await.unwrap_err();
        tokio::task::yield_now().await;
        for dropped in &mut alive {
            assert!(dropped.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty));
        }
        assert_eq!(pool.lock().streams.len(), 2);
    }
}
