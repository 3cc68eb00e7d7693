//! Hostile input, for a moment with every `cargo test`: each file of the corpora in `fuzz/corpus/`, and mutations of them.
//!
//! The mutations are the same in every run, unless `TOLLGATE_FUZZ_SEED` and `TOLLGATE_FUZZ_ROUNDS` say otherwise. An input that
//! breaks a promise is left in `fuzz/artifacts/TARGET/`, where `./dev fuzz TARGET FILE` runs it alone. `./dev fuzz TARGET` goes on
//! searching, guided by coverage.

mod mutate;
mod targets;

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use mutate::Mutator;
use targets::Target;

/// So many mutations take each target about a second.
const ROUNDS: u64 = 2000;

/// An input that takes so long will not end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Corpora are read by people, and copied with every clone.
const MOST_FILES: usize = 200;
const MOST_BYTES: usize = 300_000;

#[test]
fn requests_are_parsed_within_bounds() {
    run(&targets::REQUESTS);
}

#[test]
fn catalogs_are_read_within_bounds() {
    run(&targets::CATALOG);
}

#[test]
fn windows_partition_any_time() {
    run(&targets::WINDOWS);
}

#[test]
fn replies_are_understood_whole_or_refused() {
    run(&targets::REPLIES);
}

#[test]
fn ids_never_collide() {
    run(&targets::IDS);
}

#[test]
fn numbers_are_exact() {
    run(&targets::NUMBERS);
}

#[test]
fn patterns_say_what_names_say() {
    run(&targets::PATTERNS);
}

#[test]
fn a_configuration_is_read_within_bounds() {
    run(&targets::CONFIG);
}

/// The directory of the package for cargo-fuzz.
fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The files of a target's corpus, in the order of their names.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let directory = fuzz().join("corpus").join(target.name);
    let mut paths: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What a variable of the environment says, or the default.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}")))
}

/// Checks the corpus and its mutations. Another thread does, so that an input without end can be told as well.
fn run(target: &'static Target) {
    let (seed, rounds) = (setting("TOLLGATE_FUZZ_SEED", 1), setting("TOLLGATE_FUZZ_ROUNDS", ROUNDS));
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "{} has a corpus", target.name);
    let dictionary = fs::read_to_string(fuzz().join("dictionaries").join(format!("{}.dict", target.name)));
    let mut mutator = Mutator::new(seed, &dictionary.unwrap_or_default(), target.longest);
    // Each input is handed over before it is checked: the last one is the one that failed.
    let (begin, begun) = mpsc::sync_channel::<Vec<u8>>(0);
    let worker = std::thread::spawn(move || {
        let check = |input: Vec<u8>| {
            begin.send(input.clone()).unwrap();
            target.check(&input);
        };
        corpus.iter().cloned().for_each(check);
        (0..rounds).map(|_| mutator.mutation(&corpus)).for_each(check);
    });
    let mut last = Vec::new();
    let ended = loop {
        match begun.recv_timeout(PATIENCE) {
            Ok(input) => last = input,
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    if ended && worker.join().is_ok() {
        return;
    }
    let path = keep(target, &last);
    let what = if ended { "breaks a promise, which is told above" } else { "does not end" };
    panic!("an input of {} {what}: {} (seed {seed})", target.name, path.display());
}

/// Leaves an input where cargo-fuzz leaves its own.
fn keep(target: &Target, input: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let directory = fuzz().join("artifacts").join(target.name);
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join(format!("crash-{:016x}", hasher.finish()));
    fs::write(&path, input).unwrap();
    path
}

#[test]
fn every_target_is_there_for_cargo_fuzz_with_a_small_corpus() {
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for target in targets::ALL {
        let Target { name, .. } = target;
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")), "{name}");
        let text = fs::read_to_string(fuzz().join("fuzz_targets").join(format!("{name}.rs"))).unwrap();
        assert!(text.contains(&format!("{}.check(input)", name.to_uppercase())), "{name}");
        let corpus = corpus(target);
        let bytes: usize = corpus.iter().map(Vec::len).sum();
        assert!(corpus.len() <= MOST_FILES && bytes <= MOST_BYTES, "{name}: {} files, {bytes} bytes", corpus.len());
    }
    assert_eq!(manifest.matches("[[bin]]").count(), targets::ALL.len());
}
