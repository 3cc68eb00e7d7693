//! Faults: what Redis, the network and the processes can do to us, under load, through the real server and a real Redis. After each
//! fault service resumes by itself on every replica, and the counters equal what was acknowledged.
//!
//! A program of its own, so that nothing else competes for the machine with what is timed here. `TOLLGATE_FAULTS_ROUNDS` repeats
//! every campaign with so many seeds; `TOLLGATE_FAULTS_SEED` is the first of them.

// The figures of each campaign are for its reader.
#![allow(clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod support;

mod campaign;

mod cluster;
mod failover;
mod health;
mod lost_replies;
mod network;
mod processes;
mod redis_faults;
mod sentinel;

/// Held by a campaign while it runs: campaigns take turns, as they measure times.
async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    TURN.lock().await
}
