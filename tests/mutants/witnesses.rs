//! What killed each mutant last time: asked first, so that a run takes minutes.
//!
//! A witness only says where to look first. A mutant that has none, or that its witness no longer kills, meets every check and every case.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::list::Mutant;

/// A check that kills a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Witness {
    /// A direct check, by its sentence.
    Direct(String),
    /// The case of the model with this seed.
    Case(u64),
}

/// By the mutants' names.
pub type Witnesses = BTreeMap<String, Witness>;

fn path() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "mutants", "witnesses.txt"].iter().collect()
}

/// The name of a mutant, which other mutants do not change: its file, and the beginning of a digest.
pub fn name((file, text, replacement): &Mutant) -> String {
    let digest = Sha256::digest([*file, *text, *replacement].join("\0"));
    let start: String = digest.iter().take(6).fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes all");
        hex
    });
    format!("{file}:{start}")
}

/// Reads the stored witnesses. A missing file has none.
pub fn read() -> Witnesses {
    let text = std::fs::read_to_string(path()).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let parsed = lines.map(|(name, witness)| {
        let seed = witness.strip_prefix("case ").and_then(|seed| seed.parse().ok());
        let witness = match seed {
            Some(seed) => Witness::Case(seed),
            None => Witness::Direct(witness.to_owned()),
        };
        (name.to_owned(), witness)
    });
    parsed.collect()
}

/// Stores the witnesses, a line each.
pub fn write(witnesses: &Witnesses) {
    let mut text = String::new();
    for (name, witness) in witnesses {
        match witness {
            Witness::Direct(what) => writeln!(text, "{name} {what}"),
            Witness::Case(seed) => writeln!(text, "{name} case {seed}"),
        }
        .expect("a string takes all");
    }
    std::fs::write(path(), text).expect("the file can be written");
}
