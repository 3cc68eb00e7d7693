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
mod witnesses;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use campaign::{LENGTH, setting};
use kill::Cases;
use list::Mutant;
use tokio::task::JoinSet;
use witnesses::Witnesses;

/// How many mutants run at the same time: each mostly waits for Redis.
const WORKERS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mutant_of_the_scripts_is_killed() {
    let ledger = support::stepped_ledger().await;
    assert_eq!(direct::wrong(&ledger).await, None, "without a mutant");
    // Most die in the first cases; few need the last ones.
    let cases = (1..=setting("TOLLGATE_MODEL_CASES", 300)).map(|seed| generate::case(seed, LENGTH));
    let cases = Arc::new(Cases::new(cases.collect(), ledger));
    let known = Arc::new(witnesses::read());
    // Only those whose names, which begin with their files, have one of these in them, for whoever works on one.
    let names = std::env::var("TOLLGATE_MUTANTS").unwrap_or_default();
    let is_written = setting("TOLLGATE_WRITE_WITNESSES", 0) == 1;
    let is_chosen = |mutant: &&Mutant| names.split(',').any(|part| witnesses::name(mutant).contains(part));
    let mutants: Vec<_> = list::all().filter(is_chosen).collect();
    let queue = Arc::new(Mutex::new(mutants));
    // Those that were taken off the list are forgotten.
    let listed: HashSet<_> = list::all().map(witnesses::name).collect();
    let kept = known.iter().filter(|(name, _)| !names.is_empty() && listed.contains(*name));
    let found: Witnesses = kept.map(|(name, witness)| (name.clone(), witness.clone())).collect();
    let found = Arc::new(Mutex::new(found));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let (cases, known, queue, found) =
            (Arc::clone(&cases), Arc::clone(&known), Arc::clone(&queue), Arc::clone(&found));
        workers.spawn(async move {
            let mut outcomes = Vec::new();
            while let Some(mutant) = next(&queue) {
                let name = witnesses::name(mutant);
                let killed = kill::kill(mutant, known.get(&name), &cases).await;
                if killed.is_none() {
                    println!("survives: {name} {mutant:?}");
                }
                if is_written {
                    // At once, as a run may be stopped.
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    match &killed {
                        Some(witness) => found.insert(name.clone(), witness.clone()),
                        None => found.remove(&name),
                    };
                    witnesses::write(&found);
                }
                outcomes.push((name, mutant, killed));
            }
            outcomes
        });
    }
    let outcomes = workers.join_all().await.concat();
    let survivors: Vec<_> = outcomes.iter().filter(|(.., killed)| killed.is_none()).collect();
    let anew = outcomes.iter().filter(|(name, _, killed)| killed.is_some() && known.get(name) != killed.as_ref());
    println!(
        "{} of {} mutants killed, {} of them not by the stored witness",
        outcomes.len() - survivors.len(),
        outcomes.len(),
        anew.count()
    );
    assert!(is_written || survivors.is_empty(), "these survive: {survivors:#?}");
}

fn next<T>(queue: &Mutex<Vec<T>>) -> Option<T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
}
