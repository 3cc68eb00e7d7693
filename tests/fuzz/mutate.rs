//! Mutations of a corpus: the same ones for the same seed.

use fastrand::Rng;

/// Bytes at which formats change their mind: ends of ranges, and the marks of text.
const ODD_BYTES: &[u8] = b"\0\x01\x0a\x1a\x20\x22\x2a\x2d\x2e\x3a\x5b\x5c\x7b\x7f\x80\xc0\xdc\xff";

/// Makes inputs of others.
pub struct Mutator {
    random: Rng,
    tokens: Vec<Vec<u8>>,
    longest: usize,
}

impl Mutator {
    /// A mutator that knows the tokens of a dictionary, as libFuzzer reads one.
    pub fn new(seed: u64, dictionary: &str, longest: usize) -> Self {
        Self { random: Rng::with_seed(seed), tokens: dictionary.lines().filter_map(token).collect(), longest }
    }

    /// One file of the corpus with one to four changes.
    pub fn mutation(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.one_of(corpus);
        for _ in 0..self.random.u8(1..=4) {
            self.change(&mut input, corpus);
        }
        input.truncate(self.longest);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.random.usize(0..=input.len());
        let until = (at + self.random.usize(1..=16)).min(input.len());
        match self.random.u8(0..9) {
            0 if at < input.len() => input[at] ^= 1 << self.random.u8(0..8),
            1 if at < input.len() => input[at] = self.odd_byte(),
            2 => input.insert(at, self.odd_byte()),
            3 => drop(input.drain(at..until)),
            4 => {
                let copied = input[at..until].to_vec();
                drop(input.splice(at..at, copied));
            }
            5 => {
                // The start of this one, and the end of another.
                let other = self.one_of(corpus);
                let from = self.random.usize(0..=other.len());
                drop(input.splice(at.., other[from..].iter().copied()));
            }
            6 => {
                let number = self.odd_number().to_le_bytes();
                drop(input.splice(at..(at + 8).min(input.len()), number));
            }
            7 if !self.tokens.is_empty() => {
                let token = self.one_of_tokens();
                drop(input.splice(at..at, token));
            }
            8 if !self.tokens.is_empty() => {
                // A whole word becomes another one.
                let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-/".contains(byte);
                let start = input[..at].iter().rposition(|byte| !in_word(byte)).map_or(0, |before| before + 1);
                let end = input[at..].iter().position(|byte| !in_word(byte)).map_or(input.len(), |length| at + length);
                let token = self.one_of_tokens();
                drop(input.splice(start..end, token));
            }
            _ => input.truncate(at),
        }
    }

    fn one_of(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        self.random.choice(corpus).cloned().unwrap_or_default()
    }

    fn one_of_tokens(&mut self) -> Vec<u8> {
        self.random.choice(&self.tokens).cloned().unwrap_or_default()
    }

    fn odd_byte(&mut self) -> u8 {
        *self.random.choice(ODD_BYTES).unwrap_or(&0)
    }

    /// A power of two, or a number beside it.
    fn odd_number(&mut self) -> i64 {
        let power = 1_i64.wrapping_shl(self.random.u32(0..64));
        power.wrapping_add(self.random.i64(-1..=1))
    }
}

/// The bytes of a line such as `"plans:\x0a"` or `name="plans"`.
fn token(line: &str) -> Option<Vec<u8>> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let (_, quoted) = line.split_once('"')?;
    let mut bytes = Vec::new();
    let mut rest = quoted.strip_suffix('"')?.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'\\', [b'x', high, low, after @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                after
            }
            (b'\\', [escaped, after @ ..]) => {
                bytes.push(*escaped);
                after
            }
            _ => {
                bytes.push(byte);
                after
            }
        };
    }
    Some(bytes)
}
