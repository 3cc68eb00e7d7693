//! Drops the functions that a script does not use: it shares its libraries with others, and Redis would keep all of them in memory. A Lua
//! 5.1 script has room for 200 locals.

use std::collections::HashMap;

/// `source` without the functions of its outer level that nothing else in it names.
pub(super) fn drop(source: &str) -> String {
    let mut pieces = pieces(source);
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for piece in &mut pieces {
        for word in words_of(piece.text) {
            *uses.entry(word).or_default() += 1;
            piece.says_its_name += usize::from(piece.name == Some(word));
        }
    }
    loop {
        let before = pieces.len();
        pieces.retain(|piece| {
            let Some(name) = piece.name else { return true };
            let is_used = uses[name] > piece.says_its_name;
            if !is_used {
                // What only this one has named is not used either.
                words_of(piece.text).for_each(|word| *uses.entry(word).or_default() -= 1);
            }
            is_used
        });
        if pieces.len() == before {
            return pieces.into_iter().map(|piece| piece.text).collect();
        }
    }
}

/// A function of the outer level, or text between two of them.
struct Piece<'a> {
    name: Option<&'a str>,
    text: &'a str,
    /// The number of times that a function names itself, with the one in its first line.
    says_its_name: usize,
}

impl<'a> Piece<'a> {
    fn new(name: Option<&'a str>, text: &'a str) -> Self {
        Self { name, text, says_its_name: 0 }
    }
}

fn pieces(source: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut start, mut at, mut name) = (0, 0, None);
    for line in source.split_inclusive('\n') {
        if let Some(begun) = function(line) {
            if start < at {
                pieces.push(Piece::new(None, &source[start..at]));
            }
            (start, name) = (at, Some(begun));
        }
        at += line.len();
        // Lines of a function are indented, but for its last one.
        let ends = name.is_some()
            && (line.trim_end() == "end" || (function(line).is_some() && line.trim_end().ends_with(" end")));
        if ends {
            pieces.push(Piece::new(name.take(), &source[start..at]));
            start = at;
        }
    }
    if start < source.len() {
        pieces.push(Piece::new(None, &source[start..]));
    }
    pieces
}

/// The name of the function that begins with this line.
fn function(line: &str) -> Option<&str> {
    line.strip_prefix("local function ")?.split_once('(').map(|(name, _)| name)
}

/// The names, keywords and numbers of Lua code.
pub(super) fn words_of(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words.filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_names_is_dropped_and_what_only_that_has_named() {
        let source = "local a = 1\nlocal function used(x)\n  return x\nend\nlocal function leaf()\n  if a then\n    leaf()\n  \
                      end\nend\nlocal function unused()\n  return leaf()\nend\nlocal b = 2\nreturn used(a)\n";
        let left = "local a = 1\nlocal function used(x)\n  return x\nend\nlocal b = 2\nreturn used(a)\n";
        assert_eq!(drop(source), left);
        assert_eq!(drop(left), left);
    }

    #[test]
    fn a_function_of_one_line_is_one_too() {
        let source = "local function one() return 1 end\nlocal function two() return 2 end\nreturn two()";
        assert_eq!(drop(source), "local function two() return 2 end\nreturn two()");
    }
}
