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

use std::sync::{Arc, Mutex, PoisonError};

use campaign::{LENGTH, setting};
use kill::Cases;
use list::Mutant;
use tokio::task::JoinSet;
use witnesses::{Witness, Witnesses};

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
    // Only those of files whose names have one of these in them, for whoever works on one.
    let files = std::env::var("TOLLGATE_MUTANTS").unwrap_or_default();
    let mutants = list::all().filter(|(file, ..)| files.split(',').any(|part| file.contains(part)));
    let queue: Arc<Mutex<Vec<_>>> = Arc::new(Mutex::new(mutants.collect()));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let (cases, known, queue) = (Arc::clone(&cases), Arc::clone(&known), Arc::clone(&queue));
        workers.spawn(async move {
            let mut outcomes = Vec::new();
            while let Some(mutant) = next(&queue) {
                let name = witnesses::name(mutant);
                let killed = kill::kill(mutant, known.get(&name), &cases).await;
                if killed.is_none() {
                    println!("survives: {name} {mutant:?}");
                }
                outcomes.push((name, mutant, killed));
            }
            outcomes
        });
    }
    let outcomes = workers.join_all().await.concat();
    let survivors: Vec<_> = outcomes.iter().filter(|(.., killed)| killed.is_none()).collect();
    let anew =
        outcomes.iter().filter(|(name, _, killed)| killed.is_some() && known.get(name) != killed.as_ref()).count();
    println!(
        "{} of {} mutants killed, {anew} of them not by the stored witness",
        outcomes.len() - survivors.len(),
        outcomes.len()
    );
    if setting("TOLLGATE_WRITE_WITNESSES", 0) == 1 {
        keep(&known, &outcomes, files.is_empty());
    } else if anew > 0 {
        println!("to look there first next time: ./dev witnesses");
    }
    assert!(survivors.is_empty(), "these survive: {survivors:#?}");
}

/// Stores the witnesses. After a run of all mutants, nothing is kept of mutants that are no longer in the list.
fn keep(known: &Witnesses, outcomes: &[(String, &Mutant, Option<Witness>)], all: bool) {
    let mut witnesses = if all { Witnesses::new() } else { known.clone() };
    witnesses.extend(outcomes.iter().filter_map(|(name, _, killed)| Some((name.clone(), killed.clone()?))));
    witnesses::write(&witnesses);
}

fn next<T>(queue: &Mutex<Vec<T>>) -> Option<T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
}
