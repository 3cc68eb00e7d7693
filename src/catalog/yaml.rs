//! A YAML tree that knows the line of every node, and keeps scalars as they were written: a price of 0.00025 must not become a
//! float on the way.

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::Problem;

/// Larger files are refused.
const MAX_BYTES: usize = 1 << 20;

/// Deeper files are refused; a catalog needs nine levels.
const MAX_DEPTH: usize = 32;

/// A node and where it starts.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub line: usize,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// As written; `quoted` if it was in quotes or a block.
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    /// In the order of the file.
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Node,
}

impl Node {
    /// What it is, in a sentence such as "must be a list, but is ...".
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Scalar { text, quoted: false } if is_null(text) => "empty".to_owned(),
            Value::Scalar { text, .. } => format!("{text:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }

    /// Whether it is written as nothing.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, quoted: false } if is_null(text))
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn problem(line: usize, message: impl Into<String>) -> Problem {
    Problem { line, path: String::new(), message: message.into() }
}

/// Reads one document.
pub(super) fn parse(text: &str) -> Result<Node, Problem> {
    if text.len() > MAX_BYTES {
        return Err(problem(1, format!("the file is larger than {MAX_BYTES} bytes")));
    }
    let mut reader = Reader { parser: Parser::new_from_str(text) };
    let mut root = None;
    loop {
        let (event, line) = reader.next()?;
        match event {
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            Event::StreamEnd => break,
            _ if root.is_some() => return Err(problem(line, "a second document begins; write one catalog per file")),
            event => root = Some(reader.node(event, line, 0)?),
        }
    }
    root.ok_or_else(|| problem(1, "the file is empty; write `plans:` with at least one plan"))
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => {
                Err(problem(error.marker().line(), format!("this is not valid YAML: {}", error.info())))
            }
            None => Ok((Event::StreamEnd, 1)),
        }
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, Problem> {
        if depth > MAX_DEPTH {
            return Err(problem(line, format!("the file is nested deeper than {MAX_DEPTH} levels")));
        }
        let plain = |anchor: usize, tagged: bool| match (anchor, tagged) {
            (0, false) => Ok(()),
            (_, true) => Err(problem(line, "tags are not supported; write the value without it")),
            (_, false) => Err(problem(line, "anchors are not supported; write the value where it is needed")),
        };
        let value = match event {
            Event::Scalar(text, style, anchor, tag) => {
                plain(anchor, tag.is_some())?;
                Value::Scalar { text: text.into_owned(), quoted: style != ScalarStyle::Plain }
            }
            Event::SequenceStart(anchor, tag) => {
                plain(anchor, tag.is_some())?;
                Value::List(self.list(depth)?)
            }
            Event::MappingStart(anchor, tag) => {
                plain(anchor, tag.is_some())?;
                Value::Map(self.map(depth)?)
            }
            Event::Alias(_) => {
                return Err(problem(line, "aliases are not supported; write the value where it is needed"));
            }
            _ => return Err(problem(line, "the file ends too early")),
        };
        Ok(Node { line, value })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Problem> {
        let mut items = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(items);
            }
            items.push(self.node(event, line, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Problem> {
        let mut entries = Vec::new();
        loop {
            let (event, line) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(text, _, 0, None) => text.into_owned(),
                _ => return Err(problem(line, "a key must be plain text")),
            };
            if key == "<<" {
                return Err(problem(line, "merge keys are not supported; write the values where they are needed"));
            }
            let (event, value_line) = self.next()?;
            entries.push(Entry { key, line, value: self.node(event, value_line, depth + 1)? });
        }
    }
}
