//! What a problem says of text that somebody wrote: short, on one line, and with the word that was meant.

/// How much of a key or a value a problem repeats: a report stays in proportion to the file, whatever is written there.
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

/// Whether it is digits, with or without a point between: no sign, separator, exponent or other base.
pub(super) fn is_plain_decimal(text: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    plain(whole) && plain(decimals)
}

/// How many decimals count.
pub(super) fn decimals(text: &str) -> usize {
    text.split_once('.').map_or(0, |(_, decimals)| decimals.trim_end_matches('0').len())
}
