//! Walks the tree. Every function reports a value that is not as expected, and returns `None` then.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::{MAX_ID_BYTES, MAX_TEXT_BYTES, Reader};
use crate::catalog::Problem;
use crate::catalog::problem_text::{is_plain_decimal, nearest, one_of, quoted, shown};
use crate::catalog::yaml::{Entry, Node, Value};

/// The entries of a map, by known key.
pub(super) struct Fields<'a> {
    path: String,
    pub(super) line: usize,
    entries: Vec<&'a Entry>,
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { shown(key) } else { format!("{path}.{}", shown(key)) }
}

impl Reader<'_> {
    pub(super) fn report(&mut self, line: usize, path: &str, message: impl Into<String>) {
        self.problems.push(Problem { line, path: path.to_owned(), message: message.into() });
    }

    /// The entries of a map with these keys only.
    pub(super) fn fields<'a>(&mut self, node: &'a Node, path: &str, known: &[&str]) -> Option<Fields<'a>> {
        let entries = self.map(node, path)?;
        for entry in entries {
            if !known.contains(&entry.key.as_str()) {
                let mut message = format!("is not known here; there are: {}", known.join(", "));
                if let Some(near) = nearest(known, &entry.key) {
                    let _: std::fmt::Result = write!(message, " (did you mean `{near}`?)");
                }
                self.report(entry.line, &join(path, &entry.key), message);
            }
        }
        Some(Fields { path: path.to_owned(), line: node.line, entries: entries.iter().collect() })
    }

    pub(super) fn required<'a>(&mut self, fields: &Fields<'a>, key: &str) -> Option<&'a Node> {
        let found = fields.get(key);
        if found.is_none() {
            self.report(fields.line, &fields.path, format!("lacks `{key}:`; write it"));
        }
        found
    }

    /// A map without duplicate keys.
    pub(super) fn map<'a>(&mut self, node: &'a Node, path: &str) -> Option<&'a [Entry]> {
        let Value::Map(entries) = &node.value else {
            self.report_kind(node, path, "a map");
            return None;
        };
        let mut seen = HashSet::new();
        for entry in entries {
            if !seen.insert(entry.key.as_str()) {
                self.report(entry.line, &join(path, &entry.key), "stands here twice; keep one");
            }
        }
        Some(entries)
    }

    pub(super) fn list<'a>(&mut self, node: &'a Node, path: &str, most: usize) -> Option<&'a [Node]> {
        let Value::List(items) = &node.value else {
            self.report_kind(node, path, "a list");
            return None;
        };
        if items.is_empty() {
            self.report(node.line, path, "is an empty list; write at least one item");
        }
        if items.len() > most {
            self.report(node.line, path, format!("has more than {most} items; keep at most so many"));
            return None;
        }
        Some(items)
    }

    pub(super) fn scalar<'a>(&mut self, node: &'a Node, path: &str, wanted: &str) -> Option<&'a str> {
        match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => Some(text),
            _ => {
                self.report_kind(node, path, wanted);
                None
            }
        }
    }

    /// An alias has been reported already, when the file was read.
    pub(super) fn report_kind(&mut self, node: &Node, path: &str, wanted: &str) {
        if !matches!(node.value, Value::Refused) {
            self.report(node.line, path, format!("must be {wanted}, but is {}", node.describe()));
        }
    }

    /// A number as it is written. YAML's other notations are refused: what `1_000` or `010` means differs between readers.
    pub(super) fn decimal<'a>(&mut self, node: &'a Node, path: &str, wanted: &str) -> Option<&'a str> {
        let text = self.scalar(node, path, wanted)?;
        if !is_plain_decimal(text) {
            let message = format!(
                "is {}; write {wanted} in plain digits such as 100 or 0.5, without sign, separator or exponent",
                quoted(text)
            );
            self.report(node.line, path, message);
            return None;
        }
        Some(text)
    }

    /// Text of 1 to 256 bytes.
    pub(super) fn text(&mut self, node: &Node, path: &str) -> Option<String> {
        let text = self.scalar(node, path, "text")?;
        if text.is_empty() || text.len() > MAX_TEXT_BYTES {
            self.report(node.line, path, format!("has {} bytes; write 1 to {MAX_TEXT_BYTES}", text.len()));
            return None;
        }
        Some(text.to_owned())
    }

    pub(super) fn optional_text(&mut self, fields: &Fields<'_>, key: &str) -> Option<String> {
        fields.get(key).and_then(|node| self.text(node, &fields.path_of(key)))
    }

    /// Reads one of the known words, where the key is there.
    pub(super) fn word<T: Copy>(&mut self, fields: &Fields<'_>, key: &str, known: &[(&str, T)]) -> Option<T> {
        let node = fields.get(key)?;
        let path = fields.path_of(key);
        let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
        let text = self.scalar(node, &path, &one_of(&words))?;
        let found = known.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            self.report(node.line, &path, format!("is {}; write {}", quoted(text), one_of(&words)));
        }
        found
    }

    /// `true` or `false`, where the key is there. In quotes they are text.
    pub(super) fn flag(&mut self, fields: &Fields<'_>, key: &str) -> Option<bool> {
        let node = fields.get(key)?;
        if let Value::Scalar { quoted: true, .. } = &node.value {
            let message = format!("is the text {}; write true or false, without quotes", node.describe());
            self.report(node.line, &fields.path_of(key), message);
            return None;
        }
        self.word(fields, key, &[("true", true), ("false", false)])
    }

    pub(super) fn check_id(&mut self, id: &str, line: usize, path: &str) {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(known) {
            self.report(line, path, format!("the id {} must be 1 to {MAX_ID_BYTES} of A-Z a-z 0-9 . _ -", quoted(id)));
        }
    }
}
