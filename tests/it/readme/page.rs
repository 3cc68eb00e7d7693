//! A page, and its fenced blocks.

use super::repository;

/// A page of the repository.
pub struct Page {
    /// Its path in the repository.
    pub path: String,
    /// Its fenced blocks, from top to bottom.
    pub blocks: Vec<Block>,
}

/// A fenced block.
pub struct Block {
    /// The line of its opening fence.
    pub line: usize,
    /// The language that the opening fence names.
    pub language: &'static str,
    /// The lines between the fences.
    pub text: &'static str,
}

impl Page {
    /// Reads a page by its path in the repository.
    pub fn read(path: String) -> Self {
        let text = std::fs::read_to_string(repository().join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        // It lives as long as the tests do.
        let text: &'static str = text.leak();
        let mut blocks = Vec::new();
        let mut opened: Option<(usize, &'static str, usize)> = None;
        let mut offset = 0;
        for (index, line) in text.split_inclusive('\n').enumerate() {
            if let Some(language) = line.trim_end().strip_prefix("```") {
                match opened.take() {
                    None => opened = Some((index + 1, language, offset + line.len())),
                    Some((line, language, start)) => blocks.push(Block { line, language, text: &text[start..offset] }),
                }
            }
            offset += line.len();
        }
        assert!(opened.is_none(), "{path}: a block is not closed");
        Self { path, blocks }
    }
}

impl Block {
    /// Whether it is a catalog, and not only limit groups of one.
    pub fn is_whole_catalog(&self) -> bool {
        !self.text.starts_with("- id:")
    }

    /// It as a catalog: limit groups alone stand in a plan that is monthly.
    pub fn catalog(&self) -> String {
        if self.is_whole_catalog() {
            return self.text.to_owned();
        }
        let groups: String = self.text.lines().map(|line| format!("      {line}\n")).collect();
        format!("plans:\n  p:\n    period: monthly\n    limit_groups:\n{groups}")
    }
}

/// Whether the lines of a snippet stand in a text, one after another. Where the snippet has a line `...`, others may stand between.
/// Indentation and empty lines do not count.
pub fn contains_in_order(text: &str, snippet: &str) -> bool {
    fn lines(text: &str) -> Vec<&str> {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
    }
    let (text, snippet) = (lines(text), lines(snippet));
    let mut rest = &text[..];
    for part in snippet.split(|line| *line == "...").filter(|part| !part.is_empty()) {
        let Some(start) = rest.windows(part.len()).position(|window| window == part) else { return false };
        rest = &rest[start + part.len()..];
    }
    !snippet.is_empty()
}

#[test]
fn a_snippet_stands_in_a_text_only_line_by_line_and_in_order() {
    let text = "a\n  b\n\nc\nd\n";
    for (snippet, expected) in [
        ("a\nb\nc", true),
        ("  b\n  c", true),
        ("a\n...\nd", true),
        ("a\nc", false),
        ("d\n...\na", false),
        ("b\nx", false),
        ("", false),
    ] {
        assert_eq!(contains_in_order(text, snippet), expected, "{snippet:?}");
    }
}
