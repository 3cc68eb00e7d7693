//! Faults: what Redis, the network and the processes can do to us, under load, through the real server and a real Redis. After each
//! fault service resumes by itself, and the counters equal what was acknowledged.
//!
//! A program of its own, so that nothing else competes for the machine with what is timed out here.

// The figures of each campaign are for its reader.
#![allow(clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod support;

mod cluster;
mod lost_replies;
mod redis_faults;
mod sentinel;

/// Held by a campaign while it runs: campaigns take turns, as they measure times.
async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    TURN.lock().await
}

/// The seeds of a campaign: one, or as many as `TOLLGATE_FAULTS_ROUNDS` says.
fn rounds() -> std::ops::Range<u64> {
    let rounds = std::env::var("TOLLGATE_FAULTS_ROUNDS").ok();
    0..rounds.map_or(1, |rounds| rounds.parse().expect("TOLLGATE_FAULTS_ROUNDS is a number"))
}
