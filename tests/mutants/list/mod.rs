//! Mutants: the scripts with one thing wrong. Each must give an answer, or leave a state, that the model contradicts.
//!
//! A mutant is a file below `lua/`, a text that occurs in it once, and what stands there instead.

mod decisions;
mod state;

/// File, text, replacement.
pub type Mutant = (&'static str, &'static str, &'static str);

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Mutant> {
    use decisions::{CALLS, DECIDE, PRICE, TOGETHER};
    use state::{MEMORY, UNSEEN, WINDOWS};
    [DECIDE, PRICE, MEMORY, WINDOWS, CALLS, TOGETHER, UNSEEN].into_iter().flatten()
}
