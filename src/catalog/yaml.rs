//! A YAML tree that knows the line of every node, and keeps scalars as they were written: a price of 0.00025 must not become a
//! float on the way.

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::problem_text::quoted;
use super::{Problem, Problems};

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
    /// Text as it is written. `quoted` if it was in quotes or a block.
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    /// A map, in the order of the file.
    Map(Vec<Entry>),
    /// An alias, which has been reported: nothing more is to be said of it.
    Refused,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Node,
}

impl Node {
    /// Describes the value for a sentence such as "must be a list, but is ...".
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Scalar { text, quoted: false } if is_null(text) => "empty".to_owned(),
            Value::Scalar { text, .. } => quoted(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
            Value::Refused => "an alias".to_owned(),
        }
    }

    /// Returns whether it is written as null.
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

/// Parses one document. YAML that is not supported here is reported, and parsing goes on; text that is not YAML ends
/// it.
pub(super) fn parse(text: &str, problems: &mut Problems) -> Option<Node> {
    if text.len() > MAX_BYTES {
        problems.push(problem(1, format!("the file is larger than {MAX_BYTES} bytes; remove what is not needed")));
        return None;
    }
    let mut reader = Reader { parser: Parser::new_from_str(text), problems };
    match reader.document() {
        Ok(root) => Some(root),
        Err(problem) => {
            problems.push(problem);
            None
        }
    }
}

struct Reader<'a, 'p> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    problems: &'p mut Problems,
}

impl<'a> Reader<'a, '_> {
    fn next(&mut self) -> Result<(Event<'a>, usize), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => {
                Err(problem(error.marker().line(), format!("this is not valid YAML: {}", error.info())))
            }
            None => Ok((Event::StreamEnd, 1)),
        }
    }

    fn report(&mut self, line: usize, message: &str) {
        self.problems.push(problem(line, message));
    }

    fn document(&mut self) -> Result<Node, Problem> {
        let mut root = None;
        loop {
            let (event, line) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
                Event::StreamEnd => break,
                _ if root.is_some() => {
                    return Err(problem(line, "a second document begins; write one catalog per file"));
                }
                event => root = Some(self.node(event, line, 0)?),
            }
        }
        root.ok_or_else(|| problem(1, "the file is empty; write `plans:` with at least one plan"))
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, Problem> {
        if depth > MAX_DEPTH {
            let message = format!("the file is nested deeper than {MAX_DEPTH} levels; a catalog needs nine");
            return Err(problem(line, message));
        }
        let value = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.check_plain(line, anchor, tag.is_some());
                Value::Scalar { text: text.into_owned(), quoted: style != ScalarStyle::Plain }
            }
            Event::SequenceStart(anchor, tag) => {
                self.check_plain(line, anchor, tag.is_some());
                Value::List(self.list(depth)?)
            }
            Event::MappingStart(anchor, tag) => {
                self.check_plain(line, anchor, tag.is_some());
                Value::Map(self.map(depth)?)
            }
            Event::Alias(_) => {
                self.report(line, "aliases are not supported; write the value where it is needed");
                Value::Refused
            }
            _ => return Err(problem(line, "the file ends too early; write the rest of it")),
        };
        Ok(Node { line, value })
    }

    fn check_plain(&mut self, line: usize, anchor: usize, tagged: bool) {
        if anchor != 0 {
            self.report(line, "anchors are not supported; write the value where it is needed");
        }
        if tagged {
            self.report(line, "tags are not supported; write the value without it");
        }
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
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let key = self.node(event, line, depth + 1)?;
            let (event, value_line) = self.next()?;
            let value = self.node(event, value_line, depth + 1)?;
            match key.value {
                Value::Scalar { text, quoted: false } if text == "<<" => {
                    self.report(line, "merge keys are not supported; write the values where they are needed");
                }
                Value::Scalar { text, .. } => entries.push(Entry { key: text, line, value }),
                Value::List(_) | Value::Map(_) => self.report(line, "a key must be plain text; write a name"),
                Value::Refused => {}
            }
        }
    }
}
