//! Writes a script's constants into it: a Lua 5.1 local costs each function that uses it, at every call of the script. And no script
//! has room for more than 200 of them.

use std::collections::HashMap;

/// `source` without the lines that declare constants, and with their values in the place of their names.
///
/// Such a line starts with `local`, and gives integers or text to names in capitals: `local USED, HELD = 7, 8`.
pub(super) fn fold(source: &str) -> String {
    let mut values = HashMap::new();
    let mut code = String::with_capacity(source.len());
    for line in source.lines() {
        match declaration(line) {
            Some(constants) => values.extend(constants),
            None => code.extend([line, "\n"]),
        }
    }
    substitute(&code, &values)
}

/// The constants that a line declares, if it does nothing else.
fn declaration(line: &str) -> Option<Vec<(&str, &str)>> {
    let (names, numbers) = line.strip_prefix("local ")?.split_once(" = ")?;
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_uppercase())
            && name.chars().all(|other| other.is_ascii_uppercase() || other.is_ascii_digit() || other == '_')
    };
    let names: Vec<_> = names.split(", ").collect();
    let numbers: Vec<_> = numbers.split(", ").collect();
    let fits = names.len() == numbers.len()
        && names.iter().all(|name| is_name(name))
        && numbers.iter().all(|value| is_number(value) || is_text(value));
    fits.then(|| names.into_iter().zip(numbers).collect())
}

fn is_number(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit())
}

/// Text without anything that would need care.
fn is_text(value: &str) -> bool {
    let inner = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    inner.is_some_and(|inner| inner.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"<_ ".contains(&byte)))
}

/// Puts the values in the place of the names, except in text.
fn substitute(code: &str, values: &HashMap<&str, &str>) -> String {
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let mut folded = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '\'' | '"' => rest[1..].find(first).map_or(rest.len(), |end| end + 2),
            _ if is_word(first) => rest.find(|character| !is_word(character)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (word, after) = rest.split_at(length);
        folded.push_str(values.get(word).unwrap_or(&word));
        rest = after;
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_numbers_but_not_in_text_or_other_words() {
        let source = "local USED, HELD = 7, 8\nlocal MAX = 9007199254740991\nlocal w = {}\nw[USED] = MAX - w[HELD]\n\
                      return fault('USED', \"it's HELD\"), UNUSED, w.HELDING\n";
        let folded =
            "local w = {}\nw[7] = 9007199254740991 - w[8]\nreturn fault('USED', \"it's HELD\"), UNUSED, w.HELDING\n";
        assert_eq!(fold(source), folded);
    }

    #[test]
    fn formats_become_text() {
        let source = "local ROW_FORMAT, NAME = '<I2c0', 'a b'\nreturn ROW_FORMAT, NAME, 'NAME'\n";
        assert_eq!(fold(source), "return '<I2c0', 'a b', 'NAME'\n");
    }

    #[test]
    fn what_is_no_constant_stays() {
        for line in [
            "local TEXT = 'it\\'s'",
            "local TEXT = 'a' .. 'b'",
            "local NAMES = { 1, 2 }",
            "local a = 1",
            "local A, B = 1",
            "  local A = 1",
            "local A = b",
            "A = 1",
        ] {
            let source = format!("{line}\nreturn A\n");
            assert_eq!(fold(&source), source);
        }
    }
}
