//! The pages below `docs/`: links, what is generated in them, and lists that must be complete.
//!
//! `./dev docs` writes the generated parts anew.

mod api;
mod catalogs;
mod errors;
mod links;
mod settings;

use std::path::{Path, PathBuf};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads a page by its path in the repository.
fn page(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Compares a page with what it has to be, or writes it where `./dev docs` asks for that.
fn hold(path: &str, expected: &str) {
    let file = repository().join(path);
    if std::env::var_os("TOLLGATE_WRITE_DOCS").is_some() {
        std::fs::write(&file, expected).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == expected, "{path} is not what the source gives: run ./dev docs");
}

/// Every file of the repository below a directory, with this ending.
pub fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![repository().join(directory)];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The pages: those below `docs/`, and those at the root.
fn pages() -> Vec<PathBuf> {
    let root = std::fs::read_dir(repository()).unwrap().map(|entry| entry.unwrap().path());
    let at_root = root.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut pages: Vec<PathBuf> = at_root.chain(files("docs", "md")).collect();
    pages.push(repository().join("fuzz/README.md"));
    pages.sort();
    pages
}

/// Breaks text at 100 columns, with `indent` in front of every line but the first.
fn wrap(text: &str, indent: &str) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for (index, word) in text.split_whitespace().enumerate() {
        let width = word.chars().count();
        if index > 0 && column + 1 + width > 100 {
            lines.push('\n');
            lines.push_str(indent);
            column = indent.chars().count();
        } else if index > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += width;
    }
    lines
}
