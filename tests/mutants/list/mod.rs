//! Mutants: the scripts with one thing wrong. Each must give an answer, or leave a state, that the model contradicts.
//!
//! A mutant is a file below `lua/`, a text that occurs in it once, and what stands there instead.

mod again;
mod calls;
mod crossed;
mod deadlines;
mod decide;
mod life;
mod listing;
mod memory;
mod periods;
mod state;
mod together;

/// File, text, replacement.
pub type Mutant = (&'static str, &'static str, &'static str);

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Mutant> {
    use again::{CLAIMS, LEDGERS, MADE_ONCE, SHARED};
    use calls::{ANSWERS, CALLS, REFUNDS};
    use crossed::CROSSED;
    use deadlines::{DEADLINES, PAGES};
    use decide::{DECIDE, MATCH, PRICE};
    use life::{CHANGED, COUNTING, EXTEND, PARTS};
    use listing::LISTING;
    use memory::{MEMORIES, RECORDS, UNDO};
    use periods::{PERIODS, RESETS, TIMES};
    use state::{PLANS, STATE, WINDOWS};
    use together::TOGETHER;
    [
        DECIDE, PRICE, MATCH, CALLS, REFUNDS, ANSWERS, RECORDS, MEMORIES, UNDO, DEADLINES, PAGES, WINDOWS, PLANS,
        STATE, TOGETHER, LEDGERS, CLAIMS, MADE_ONCE, SHARED, LISTING, PERIODS, RESETS, TIMES, EXTEND, PARTS, COUNTING,
        CHANGED, CROSSED,
    ]
    .into_iter()
    .flatten()
}
