//! The TOML file: the text of each entry, and its line.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// An entry of the file.
pub(super) struct Entry {
    pub(super) name: String,
    /// The value as a flag would give it; several for a list.
    pub(super) values: Vec<String>,
    pub(super) line: usize,
}

/// The entries of a file, and every problem with its form.
#[derive(Default)]
pub(super) struct Entries {
    pub(super) entries: Vec<Entry>,
    pub(super) problems: Vec<String>,
}

/// Reads a file whose entries may have these names.
pub(super) fn read(path: &Path, known: &[String]) -> Entries {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text, known),
        Err(error) => {
            Entries { problems: vec![format!("cannot read {}: {error}", path.display())], ..Entries::default() }
        }
    }
}

/// Reads the text of a file. Problems tell the place and the reason, and never the text: it may hold a password.
pub(super) fn parse(path: &Path, text: &str, known: &[String]) -> Entries {
    let line = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    let told = |at: usize, problem: &str| format!("{}, line {}: {problem}", path.display(), line(at));
    let mut found = Entries::default();
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            found.problems.push(told(at, error.message()));
            return found;
        }
    };
    for (name, value) in table {
        let (at, name) = (name.span().start, name.into_inner());
        if !known.iter().any(|known| *known == name) {
            // A name is shown only if it is one: it may be a password that lost its quotes.
            let shown = if name.len() <= 40 && name.chars().all(|c| c.is_ascii_lowercase() || "-_".contains(c)) {
                format!("{name} is not a setting")
            } else {
                "this is not a setting".to_owned()
            };
            found.problems.push(told(at, &format!("{shown}; `tollgate serve --help` lists them")));
            continue;
        }
        match texts(value) {
            Some(values) => found.entries.push(Entry { name: name.into_owned(), values, line: line(at) }),
            None => {
                let problem = format!("{name} must be a string, a number, true or false, or a list of strings");
                found.problems.push(told(at, &problem));
            }
        }
    }
    found
}

/// The texts that a value stands for, or `None` if it is of no kind that a setting has.
fn texts(value: Spanned<DeValue<'_>>) -> Option<Vec<String>> {
    match value.into_inner() {
        DeValue::Array(items) => items.into_iter().map(|item| text(item.into_inner())).collect(),
        single => text(single).map(|text| vec![text]),
    }
}

fn text(value: DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.into_owned()),
        DeValue::Boolean(boolean) => Some(boolean.to_string()),
        // Other notations than decimal: 0x10.
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        // A fraction as it is written. Those of a number that takes none are refused by its own rule.
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}
