//! The queue of a lane: calls that arrive while a command is in flight there, to be sent together as one.
//!
//! No call waits for company: a lane without a command in flight sends at once. So batches grow with the load of Redis.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::{Cmd, ErrorKind, RedisError, Value};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::message::Message;
use super::super::script::Script;
use super::timed_out;
use crate::telemetry::{metrics, outcomes};

/// The number of commands that may be in flight on a lane before calls wait for each other.
const UNDER_WAY: usize = 1;

/// The answer to one call. Calls that were sent together share an error.
pub(super) type Answer = Result<Vec<u8>, Arc<RedisError>>;

/// A call of a script that waits for its lane.
pub(super) struct QueuedCall {
    script: &'static Script,
    /// Tells users apart, nearly always.
    user: usize,
    message: Message,
    deadline: Instant,
    /// Gone once it is answered.
    caller: Option<oneshot::Sender<Answer>>,
}

impl QueuedCall {
    /// Makes a call, and the receiver of its answer.
    pub(super) fn new(
        script: &'static Script,
        user: usize,
        message: Message,
        deadline: Instant,
    ) -> (Self, oneshot::Receiver<Answer>) {
        let (caller, answer) = oneshot::channel();
        (Self { script, user, message, deadline, caller: Some(caller) }, answer)
    }

    fn is_awaited(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| !caller.is_closed())
    }

    fn answer(&mut self, answer: Answer) {
        if let Some(caller) = self.caller.take() {
            // A caller that has gone away needs no answer.
            let _: Result<(), _> = caller.send(answer);
        }
    }

    fn expire(&mut self, now: Instant) {
        if self.deadline <= now {
            self.answer(Err(Arc::new(timed_out())));
        }
    }
}

/// Calls of one script that are sent together.
pub(super) struct Batch(Vec<QueuedCall>);

impl Batch {
    pub(super) fn script(&self) -> &'static Script {
        self.0[0].script
    }

    /// Makes one command of all calls: the keys of each, then the arguments of each.
    pub(super) fn command(&self, name: &str, subject: &str) -> Cmd {
        let messages: Vec<_> = self.0.iter().map(|call| &call.message).collect();
        command(name, subject, &messages)
    }

    /// Returns the deadline of the call that expires next; `None` if all have expired.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.iter().filter(|call| call.caller.is_some()).map(|call| call.deadline).min()
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.0.iter_mut().for_each(|call| call.expire(now));
    }

    /// Leaves those who still wait; whether there are any.
    pub(super) fn keep_waiting(&mut self) -> bool {
        self.0.retain(|call| call.caller.is_some());
        !self.0.is_empty()
    }

    /// Gives each its part of the answer.
    pub(super) fn answer(self, answer: Result<Value, RedisError>) {
        match answer.and_then(|answer| parts(answer, self.0.len())) {
            Ok(parts) => {
                for (mut call, part) in self.0.into_iter().zip(parts) {
                    call.answer(part.map_err(Arc::new));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                self.0.into_iter().for_each(|mut call| call.answer(Err(Arc::clone(&error))));
            }
        }
    }
}

/// The command that sends calls of a script: the keys of each, then the arguments of each.
pub(super) fn command(name: &str, subject: &str, messages: &[&Message]) -> Cmd {
    let sum = |of: fn(&Message) -> usize| messages.iter().map(|message| of(message)).sum::<usize>();
    let mut command = Cmd::with_capacity(3 + sum(Message::len), sum(Message::bytes) + subject.len() + 16);
    command.arg(name).arg(subject).arg(sum(Message::keys));
    for message in messages {
        for key in message.parts().take(message.keys()) {
            command.arg(key);
        }
    }
    for message in messages {
        for argument in message.parts().skip(message.keys()) {
            command.arg(argument);
        }
    }
    command
}

/// The answers to `count` calls of a script. If holds have lapsed or clocks were corrected, both numbers come behind them.
pub(super) fn parts(
    answer: Value,
    count: usize,
) -> Result<impl Iterator<Item = Result<Vec<u8>, RedisError>>, RedisError> {
    let Value::Array(mut parts) = answer else { return Err(unfitting(&answer)) };
    if parts.len() == count + 2
        && let [.., Value::Int(lapsed), Value::Int(corrected)] = parts[..]
    {
        metrics().holds_lapsed.inc_by(u64::try_from(lapsed).unwrap_or_default());
        outcomes::clocks_corrected(corrected);
        parts.truncate(count);
    }
    if parts.len() != count {
        return Err(unfitting(&Value::Array(parts)));
    }
    metrics().batch(count);
    Ok(parts.into_iter().map(|part| match part {
        Value::BulkString(part) => Ok(part),
        other => Err(unfitting(&other)),
    }))
}

fn unfitting(answer: &Value) -> RedisError {
    (ErrorKind::UnexpectedReturnType, "a script answered in another shape", format!("{answer:?}")).into()
}

/// Calls that wait for a lane.
#[derive(Default)]
pub(super) struct Waiting(Mutex<State>);

#[derive(Default)]
struct State {
    calls: VecDeque<QueuedCall>,
    /// The number of commands in flight on the lane's connection.
    under_way: usize,
    /// The number of that connection. A connection that was replaced may hold its commands for long.
    connection: u64,
    master: u64,
}

impl State {
    fn start(&mut self) -> Option<u64> {
        if self.under_way >= UNDER_WAY {
            return None;
        }
        self.under_way += 1;
        Some(self.connection)
    }

    fn replaced(&mut self) {
        self.under_way = 0;
        self.connection += 1;
    }

    /// The oldest call and up to `most` in all that go with it, as they are of the same script. Nobody overtakes an earlier call
    /// of the same user.
    fn take(&mut self, most: usize) -> Option<Batch> {
        let now = Instant::now();
        let (mut taken, mut passed) = (Vec::<QueuedCall>::new(), Vec::<QueuedCall>::new());
        while taken.len() < most && passed.len() < most {
            let Some(mut call) = self.calls.pop_front() else { break };
            call.expire(now);
            if !call.is_awaited() {
                continue;
            }
            let fits = taken.first().is_none_or(|first| std::ptr::eq(first.script, call.script));
            if fits && passed.iter().all(|other| other.user != call.user) {
                taken.push(call);
            } else {
                passed.push(call);
            }
        }
        passed.into_iter().rev().for_each(|call| self.calls.push_front(call));
        Some(Batch(taken)).filter(|batch| !batch.0.is_empty())
    }
}

impl Waiting {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a call, for a lane that leads to this master. If no command is in flight there, the caller has to send it
    /// now.
    #[must_use]
    pub(super) fn push(&self, call: QueuedCall, master: u64) -> Option<u64> {
        let mut state = self.state();
        if state.master != master {
            state.master = master;
            state.replaced();
        }
        state.calls.push_back(call);
        state.start()
    }

    /// Notes that the lane has another connection, on which no command is in flight.
    pub(super) fn replaced(&self) {
        self.state().replaced();
    }

    /// Returns the deadline of the oldest call.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.state().calls.front().map(|call| call.deadline)
    }

    pub(super) fn expire(&self, now: Instant) {
        let mut state = self.state();
        while state.calls.front().is_some_and(|call| call.deadline <= now) {
            let call = state.calls.pop_front();
            call.into_iter().for_each(|mut call| call.expire(now));
        }
    }
}

/// The right to have a command in flight on a connection.
pub(super) struct Turn<'a> {
    waiting: &'a Waiting,
    connection: Option<u64>,
}

impl<'a> Turn<'a> {
    /// A turn on the connection that [`Waiting::push`] has returned.
    pub(super) fn new(waiting: &'a Waiting, connection: u64) -> Self {
        Self { waiting, connection: Some(connection) }
    }

    /// Returns the batch to send next. The turn is over if no call waits, or if others send already on the connection
    /// that has replaced its own.
    pub(super) fn next(&mut self, most: usize) -> Option<Batch> {
        let mut state = self.waiting.state();
        if self.connection != Some(state.connection) {
            self.connection = state.start();
        }
        self.connection?;
        let batch = state.take(most);
        if batch.is_none() {
            state.under_way -= 1;
            self.connection = None;
        }
        batch
    }
}

impl Drop for Turn<'_> {
    /// Only a panic ends a turn early. Nobody would send what waits then.
    fn drop(&mut self) {
        if let Some(connection) = self.connection {
            let mut state = self.waiting.state();
            state.calls.clear();
            if state.connection == connection {
                state.under_way -= 1;
            }
        }
    }
}
