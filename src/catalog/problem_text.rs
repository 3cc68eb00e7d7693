//! Formats text that somebody wrote for use in a problem: short, on one line, and with a suggestion of the word that
//! was meant.

/// The number of characters of a key or a value that a problem repeats. It keeps a report in proportion to the file,
/// whatever the file contains.
const MAX_SHOWN_CHARS: usize = 64;

/// The text for a path: on one line, and cut where it is long.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The text for a message, in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", shown(text))
}

/// `one, two or three`.
pub(super) fn one_of(words: &[&str]) -> String {
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

/// The known word that was probably meant: the nearest one, but for a letter or two.
pub(super) fn nearest<'a>(known: &[&'a str], written: &str) -> Option<&'a str> {
    let distances = known.iter().map(|word| (distance(word, written), *word));
    // Of a word as short as `id`, two other letters leave nothing.
    distances.filter(|(distance, word)| *distance <= 2 && *distance < word.len()).min().map(|(_, word)| word)
}

/// Levenshtein's distance.
fn distance(known: &str, written: &str) -> usize {
    let (known, written): (Vec<char>, Vec<char>) =
        (known.chars().collect(), written.chars().take(MAX_SHOWN_CHARS).collect());
    let mut row: Vec<usize> = (0..=written.len()).collect();
    for (i, left) in known.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in written.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[written.len()]
}

/// Returns whether it consists of digits, with or without a point between them: no sign, separator, exponent or other
/// base.
pub(super) fn is_plain_decimal(text: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    plain(whole) && plain(decimals)
}

/// Returns the number of significant decimals.
pub(super) fn decimals(text: &str) -> usize {
    text.split_once('.').map_or(0, |(_, decimals)| decimals.trim_end_matches('0').len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_on_one_line_and_cut_where_it_is_long() {
        let longest = "é".repeat(MAX_SHOWN_CHARS);
        for (text, expected) in [
            ("a b", "a b"),
            ("a\n\"", "a\\n\\\""),
            (&longest, &*longest),
            (&format!("{longest}x"), &format!("{longest}...")),
        ] {
            assert_eq!(shown(text), expected);
            assert_eq!(quoted(text), format!("\"{expected}\""));
        }
    }

    #[test]
    fn words_are_listed_as_people_do() {
        for (words, expected) in [
            (&[][..], ""),
            (&["one"], "one"),
            (&["one", "two"], "one or two"),
            (&["one", "two", "three"], "one, two or three"),
        ] {
            assert_eq!(one_of(words), expected);
        }
    }

    #[test]
    fn the_distance_is_the_fewest_letters_to_change() {
        let cases = [
            ("", "", 0),
            ("quota", "quota", 0),
            ("quota", "", 5),
            ("", "quota", 5),
            ("quota", "quta", 1),
            ("quota", "quotas", 1),
            ("quota", "quote", 1),
            ("ab", "ba", 2),
            ("kitten", "sitting", 3),
            ("saturday", "sunday", 3),
            ("é", "e", 1),
        ];
        for (one, two, expected) in cases {
            assert_eq!(distance(one, two), expected, "{one} {two}");
            assert_eq!(distance(two, one), expected, "{two} {one}");
        }
    }

    #[test]
    fn the_word_that_was_meant_is_two_letters_away_and_not_all_new() {
        let known = ["id", "hard", "period", "match"];
        let cases = [
            ("perod", Some("period")),
            ("prod", Some("period")),
            ("pod", None),
            ("hrad", Some("hard")),
            ("i", Some("id")),
            ("ud", Some("id")),
            // Of `id` nothing would be left.
            ("xy", None),
            ("ab", None),
            // The nearest of two.
            ("mach", Some("match")),
        ];
        for (written, expected) in cases {
            assert_eq!(nearest(&known, written), expected, "{written}");
        }
        assert_eq!(nearest(&["carts", "cart"], "carto"), Some("cart"));
        assert_eq!(nearest(&["reset", "set"], "rset"), Some("reset"), "as near as `set`, and first in the alphabet");
    }

    #[test]
    fn decimals_are_digits_with_or_without_a_point() {
        for (text, expected) in [("0", 0), ("12.5", 1), ("0.0010", 3), ("7.000", 0), ("007.25", 2)] {
            assert!(is_plain_decimal(text), "{text}");
            assert_eq!(decimals(text), expected, "{text}");
        }
        for text in ["", ".", ".5", "5.", "x.5", "5.x", "1_0", "-1", "+1", "1e3", "1.2.3", " 1"] {
            assert!(!is_plain_decimal(text), "{text}");
        }
    }
}
