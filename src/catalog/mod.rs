//! The catalog: from YAML to plans.
//!
//! - `yaml` parses a tree that knows its lines.
//! - `read` turns the tree into plans, and reports every problem at once.
//! - `problem_text` formats parts of the file for problems.
//! - `warnings` finds parts that are valid but perhaps not intended.
//! - `schema` describes the format for editors.

mod problem_text;
mod read;
mod schema;
mod warnings;
mod yaml;

use std::fmt;

use jiff::tz::TimeZoneDatabase;

use crate::domain::counted::counted;
use crate::domain::plan::Catalog;

pub use schema::schema;

/// The catalog that a newcomer learns from, and that `tollgate serve` loads when none is named.
pub const EXAMPLE: &str = include_str!("../../catalogs/example.yaml");

/// Something wrong with a catalog, or perhaps not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// Such as `plans.free.limit_groups[0].quota`; empty for the file as a whole.
    pub path: String,
    /// The problem, and how to correct it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, path, message } = self;
        if path.is_empty() { write!(f, "line {line}: {message}") } else { write!(f, "line {line}, {path}: {message}") }
    }
}

/// Everything that is wrong with a catalog, by line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidCatalog {
    /// The problems: at least one.
    pub problems: Vec<Problem>,
}

impl std::error::Error for InvalidCatalog {}

impl fmt::Display for InvalidCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

/// The number of problems that are reported. A file can have one for every two of its bytes, each with a path of a
/// thousand.
const MAX_PROBLEMS: usize = 1000;

/// Collects problems while a catalog is read.
#[derive(Default)]
struct Problems {
    told: Vec<Problem>,
    untold: usize,
}

impl Problems {
    fn push(&mut self, problem: Problem) {
        if self.told.len() < MAX_PROBLEMS { self.told.push(problem) } else { self.untold += 1 }
    }

    fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// Sorts the problems by line. The last one gives the number of those that were left out.
    fn report(self) -> InvalidCatalog {
        InvalidCatalog { problems: self.sorted("problem") }
    }

    fn sorted(mut self, noun: &str) -> Vec<Problem> {
        self.told.sort_by(|one, two| (one.line, &one.path).cmp(&(two.line, &two.path)));
        if self.untold > 0 {
            let line = self.told.last().map_or(1, |problem| problem.line);
            let message = format!("and {}; correct these first", counted(self.untold, &format!("more {noun}")));
            self.told.push(Problem { line, path: String::new(), message });
        }
        self.told
    }
}

/// A valid catalog, and what in it is perhaps not meant.
#[derive(Debug, Clone)]
pub struct Checked {
    /// All plans.
    pub catalog: Catalog,
    /// Warnings, sorted by line. They make nothing fail.
    pub warnings: Vec<Problem>,
}

/// Reads a catalog. Time zones are looked up in `zones`.
///
/// # Errors
/// Every problem at once, up to 1000 of them.
pub fn parse(text: &str, zones: &TimeZoneDatabase) -> Result<Catalog, InvalidCatalog> {
    check(text, zones).map(|checked| checked.catalog)
}

/// Parses a catalog as [`parse`] does, and looks for parts that are valid but perhaps not intended.
///
/// # Errors
/// Every problem at once, up to 1000 of them.
pub fn check(text: &str, zones: &TimeZoneDatabase) -> Result<Checked, InvalidCatalog> {
    let (mut problems, mut warnings) = (Problems::default(), Problems::default());
    let tree = yaml::parse(text, &mut problems);
    let catalog = tree.and_then(|tree| read::catalog(&tree, zones, &mut problems, &mut warnings));
    match catalog {
        Some(catalog) => Ok(Checked { catalog, warnings: warnings.sorted("warning") }),
        None => Err(problems.report()),
    }
}

#[cfg(test)]
mod tests;
