//! Every mutant of the scripts must be killed: by the reference model, or by a direct check of what no answer shows.
//!
//! A program of its own, as a Redis full of what wrong scripts have left is no place for other tests.

// Of what the model's program consists of, only some is used here.
#![allow(dead_code)]
#![allow(clippy::print_stdout)]
// The model is to be obvious, not fast.
#![allow(clippy::result_large_err)]

#[path = "../common/mod.rs"]
mod support;

#[path = "../model/answers.rs"]
mod answers;
#[path = "../model/campaign.rs"]
mod campaign;
#[path = "../model/decisions.rs"]
mod decisions;
#[path = "../model/generate.rs"]
mod generate;
#[path = "../model/operations.rs"]
mod operations;
#[path = "../model/price.rs"]
mod price;
#[path = "../model/real.rs"]
mod real;
#[path = "../model/reference.rs"]
mod reference;
#[path = "../model/settlement.rs"]
mod settlement;
#[path = "../model/sketch.rs"]
mod sketch;
#[path = "../model/standing.rs"]
mod standing;
#[path = "../model/tracking.rs"]
mod tracking;
#[path = "../model/user.rs"]
mod user;
#[path = "../model/windows.rs"]
mod windows;

mod direct;
mod kill;
mod list;

use std::sync::{Arc, Mutex, PoisonError};

use campaign::{LENGTH, setting};
use tokio::task::JoinSet;

/// How many mutants run at the same time: each mostly waits for Redis.
const WORKERS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mutant_of_the_scripts_is_killed() {
    let ledger = support::stepped_ledger().await;
    assert_eq!(direct::wrong(&ledger).await, None, "without a mutant");
    // Most die in the first cases; few need the last ones.
    let cases = (1..=setting("TOLLGATE_MODEL_CASES", 300)).map(|seed| generate::case(seed, LENGTH));
    let cases: Arc<[generate::Case]> = cases.collect();
    for (index, case) in cases.iter().enumerate() {
        let Ok((_, real)) = campaign::compare(case, &ledger).await else {
            panic!("seed {}: without a mutant", index + 1)
        };
        real.clean_up().await;
    }
    // Only those of files whose names have one of these in them, for whoever works on one.
    let files = std::env::var("TOLLGATE_MUTANTS").unwrap_or_default();
    let mutants = list::all().filter(|(file, ..)| files.split(',').any(|part| file.contains(part)));
    let queue: Arc<Mutex<Vec<_>>> = Arc::new(Mutex::new(mutants.collect()));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let (cases, queue, ledger) = (Arc::clone(&cases), Arc::clone(&queue), ledger.clone());
        workers.spawn(async move {
            let mut outcomes = Vec::new();
            while let Some(mutant) = next(&queue) {
                let killed = kill::kill(mutant, &cases, &ledger).await;
                if killed.is_none() {
                    println!("survives: {mutant:?}");
                }
                outcomes.push((mutant, killed));
            }
            outcomes
        });
    }
    let outcomes = workers.join_all().await.concat();
    let survivors: Vec<_> = outcomes.iter().filter(|(_, killed)| killed.is_none()).collect();
    let hardest = outcomes.iter().filter_map(|(_, killed)| *killed).max();
    println!(
        "{} of {} mutants killed, the hardest after {hardest:?} operations",
        outcomes.len() - survivors.len(),
        outcomes.len()
    );
    assert!(survivors.is_empty(), "these survive: {survivors:#?}");
}

fn next<T>(queue: &Mutex<Vec<T>>) -> Option<T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
}
