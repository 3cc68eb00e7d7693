//! Numbers: quantities as callers send them, weights as the catalog writes them, charges as the ledger keeps them.
//!
//! EXACT: every one of them is an integer. A float exists only on the wire, and is turned into an integer here, exactly.

use std::fmt;

use serde::{Serialize, Serializer};

/// The largest amount of any counter, in the smallest unit of its group: 2^53 - 1, the last integer up to which every
/// integer is exactly a `double` (and so a Lua number).
pub const MAX_UNITS: u64 = (1 << 53) - 1;

/// Above this many, a quantity on the wire must be whole.
const MAX_FRACTIONAL: u64 = 8_000_000_000;

const MICRO: u64 = 1_000_000;

/// The reason why a number cannot be a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuantity {
    /// NaN, infinite, or not a decimal number.
    #[error("is not a finite number; send a decimal number of at least 0")]
    NotANumber,
    /// Below zero.
    #[error("is negative; send a number of at least 0")]
    Negative,
    /// Positive, but nearer to 0 than to 0.000001.
    #[error("is positive but rounds to 0; the smallest quantity is 0.000001")]
    RoundsToZero,
    /// More than a counter can hold.
    #[error("is too large; the largest is 9007199254740991, and 8000000000 for a number with decimals")]
    TooLarge,
}

/// A non-negative number with at most six decimals: the nearest multiple of 0.000001 up to 8x10^9, or a whole number up
/// to 2^53 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Quantity {
    whole: u64,
    micro: u32,
}

impl Quantity {
    /// The quantity of an event that names none.
    pub const ONE: Self = Self { whole: 1, micro: 0 };

    fn new(whole: u64, micro: u32) -> Result<Self, InvalidQuantity> {
        let limit = if micro == 0 { MAX_UNITS } else { MAX_FRACTIONAL - 1 };
        if whole > limit { Err(InvalidQuantity::TooLarge) } else { Ok(Self { whole, micro }) }
    }

    /// The nearest multiple of 0.000001 (a tie rounds up), computed in integers from the bits of the double.
    ///
    /// # Errors
    /// See [`InvalidQuantity`].
    pub fn from_f64(number: f64) -> Result<Self, InvalidQuantity> {
        if !number.is_finite() {
            return Err(InvalidQuantity::NotANumber);
        }
        if number < 0.0 {
            return Err(InvalidQuantity::Negative);
        }
        if number == 0.0 {
            return Ok(Self::default());
        }
        if number > MAX_UNITS as f64 {
            return Err(InvalidQuantity::TooLarge);
        }
        // number = mantissa * 2^-shift, with a mantissa of 53 bits, and no exponent above 1075 up to 2^53 - 1. Subnormal numbers
        // have another mantissa, but are 0 with this one too.
        let bits = number.to_bits();
        let (mantissa, shift) = (bits % (1 << 52) + (1 << 52), 1075 - (bits >> 52) as u32);
        // Twice the millionths, cut; half of that, rounded up, is the nearest.
        let twice = (2 * u128::from(MICRO) * u128::from(mantissa)).checked_shr(shift).unwrap_or(0);
        let micros = twice.div_ceil(2);
        if micros == 0 {
            return Err(InvalidQuantity::RoundsToZero);
        }
        Self::new((micros / u128::from(MICRO)) as u64, (micros % u128::from(MICRO)) as u32)
    }

    /// Reads plain decimal digits, `12` or `12.5`, without sign or exponent; more than six decimals round to the nearest.
    ///
    /// # Errors
    /// See [`InvalidQuantity`].
    pub fn from_decimal(text: &str) -> Result<Self, InvalidQuantity> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, decimals) = digits.split_once('.').unwrap_or((digits, "0"));
        let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !plain(whole) || !plain(decimals) {
            return Err(InvalidQuantity::NotANumber);
        }
        let nothing = digits.bytes().all(|byte| matches!(byte, b'0' | b'.'));
        if negative && !nothing {
            return Err(InvalidQuantity::Negative);
        }
        let whole = whole.trim_start_matches('0');
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| InvalidQuantity::TooLarge)? };
        if whole > MAX_UNITS {
            return Err(InvalidQuantity::TooLarge);
        }
        let digit = |place: usize| decimals.as_bytes().get(place).map_or(0, |byte| u32::from(byte - b'0'));
        let mut micro = (0..6).fold(0, |sum, place| sum * 10 + digit(place));
        micro += u32::from(digit(6) >= 5);
        let (whole, micro) = if u64::from(micro) == MICRO { (whole + 1, 0) } else { (whole, micro) };
        if whole == 0 && micro == 0 && !nothing {
            return Err(InvalidQuantity::RoundsToZero);
        }
        Self::new(whole, micro)
    }

    /// Returns the sum, up to 2^53 - 1. It may have decimals where no caller could send them.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        let micro = u64::from(self.micro) + u64::from(other.micro);
        Self::of_parts(self.whole + other.whole + micro / MICRO, (micro % MICRO) as u32)
    }

    /// The quantity of these parts, up to 2^53 - 1.
    #[must_use]
    pub fn of_parts(whole: u64, micro: u32) -> Self {
        if whole >= MAX_UNITS { Self { whole: MAX_UNITS, micro: 0 } } else { Self { whole, micro } }
    }

    /// Returns whether it is 0.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.whole_part() == 0 && self.micro_part() == 0
    }

    /// The part before the point.
    #[must_use]
    pub fn whole_part(self) -> u64 {
        self.whole
    }

    /// The part after the point, in millionths.
    #[must_use]
    pub fn micro_part(self) -> u32 {
        self.micro
    }

    /// This quantity in the smallest unit of `unit`, if it is a multiple of it and fits a counter.
    #[must_use]
    pub fn in_units(self, unit: Unit) -> Option<Units> {
        let (units, exact) = self.scaled(unit);
        let units = u64::try_from(units).ok()?;
        (exact && units <= unit.max_units()).then_some(units)
    }

    /// This quantity in the smallest unit of `unit`, rounded down to it, and at most what a counter holds.
    #[must_use]
    pub fn in_units_rounded_down(self, unit: Unit) -> Units {
        let (units, _) = self.scaled(unit);
        u64::try_from(units).map_or(unit.max_units(), |units| units.min(unit.max_units()))
    }

    /// This quantity in the smallest unit of `unit`, rounded up to it, if it fits a counter.
    #[must_use]
    pub fn in_units_rounded_up(self, unit: Unit) -> Option<Units> {
        let (units, exact) = self.scaled(unit);
        let units = u64::try_from(units).ok()? + u64::from(!exact);
        (units <= unit.max_units()).then_some(units)
    }

    /// Converts to whole smallest units. The flag tells whether the conversion is exact.
    fn scaled(self, unit: Unit) -> (u128, bool) {
        let micros = u128::from(self.whole) * u128::from(MICRO) + u128::from(self.micro);
        let scaled = micros * u128::from(unit.scale());
        (scaled / u128::from(MICRO), scaled % u128::from(MICRO) == 0)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.micro == 0 {
            return write!(f, "{}", self.whole);
        }
        let decimals = format!("{:06}", self.micro);
        write!(f, "{}.{}", self.whole, decimals.trim_end_matches('0'))
    }
}

/// Serializes for the scripts: a plain integer, or `[whole, micro]` where there are decimals.
impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.micro == 0 { self.whole.serialize(serializer) } else { (self.whole, self.micro).serialize(serializer) }
    }
}

/// An amount in the smallest unit of a group (SPEC section 3): what the ledger counts.
pub type Units = u64;

/// The unit that a limit group counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Things, to 1.
    Count,
    /// Tokens, to 1.
    Tokens,
    /// Seconds, to 0.001.
    Seconds,
    /// Cents, to 0.000001.
    Cents,
}

impl Unit {
    /// Returns the number of smallest units in one unit.
    #[must_use]
    pub fn scale(self) -> u64 {
        match self {
            Self::Count | Self::Tokens => 1,
            Self::Seconds => 1_000,
            Self::Cents => MICRO,
        }
    }

    /// The largest amount of a counter, in smallest units: 2^53 - 1, and 8,000,000,000 cents.
    #[must_use]
    pub fn max_units(self) -> Units {
        match self {
            Self::Count | Self::Tokens | Self::Seconds => MAX_UNITS,
            Self::Cents => MAX_FRACTIONAL * MICRO,
        }
    }

    /// The amount as the API shows it: the double nearest to the exact decimal.
    #[must_use]
    pub fn to_f64(self, units: Units) -> f64 {
        // Both operands are exact, so that this division is rounded once.
        units as f64 / self.scale() as f64
    }

    /// Returns its number in messages and in stored data. `lua/lib/base.lua` has the same numbers.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Count => 1,
            Self::Tokens => 2,
            Self::Seconds => 3,
            Self::Cents => 4,
        }
    }

    /// The unit with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Count, Self::Tokens, Self::Seconds, Self::Cents].into_iter().find(|unit| unit.code() == code)
    }

    /// The word for it in the catalog and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Tokens => "tokens",
            Self::Seconds => "seconds",
            Self::Cents => "cents",
        }
    }
}

/// A weight of a measure in the catalog: at most twelve decimals, at most 10^6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Weight {
    pico: u64,
}

impl Weight {
    /// The weight of a plain quantity.
    pub const ONE: Self = Self { pico: 1_000_000_000_000 };

    /// Reads decimal digits, `1` or `0.00025`, without sign or exponent.
    ///
    /// # Errors
    /// A sentence that continues "the weight ...".
    pub fn from_decimal(text: &str) -> Result<Self, &'static str> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !plain(whole) || !plain(decimals) {
            return Err("must be a decimal number of at least 0, such as 1 or 0.00025");
        }
        let decimals = decimals.trim_end_matches('0');
        if decimals.len() > 12 {
            return Err("has more than 12 decimals");
        }
        let whole = whole.trim_start_matches('0');
        let too_large = "is larger than 1000000";
        if whole.len() > 7 {
            return Err(too_large);
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_large)? };
        let fraction: u64 = format!("{decimals:0<12}").parse().map_err(|_| too_large)?;
        let pico = whole * Self::ONE.pico + fraction;
        if pico > 1_000_000 * Self::ONE.pico { Err(too_large) } else { Ok(Self { pico }) }
    }

    /// The weight in millionths of millionths.
    #[must_use]
    pub fn pico(self) -> u64 {
        self.pico
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_exact_as_far_as_a_quantity_goes() {
        let sum = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| Quantity::from_decimal(text).unwrap());
            one.saturating_add(other)
        };
        let expected = |text: &str| Quantity::from_decimal(text).unwrap();
        assert_eq!(sum("1.5", "2.6"), expected("4.1"));
        assert_eq!(sum("0", "0.000001"), expected("0.000001"));
        assert_eq!(sum("7999999999.5", "0.5"), expected("8000000000"));
        assert_eq!(sum("7999999999.5", "7"), Quantity::of_parts(8_000_000_006, 500_000));
        assert_eq!(sum("9007199254740991", "9007199254740991"), expected("9007199254740991"));
        assert!(Quantity::default().is_zero() && !Quantity::ONE.is_zero());
    }

    #[test]
    fn a_double_becomes_the_nearest_millionth() {
        let cases = [
            (0.0, Ok((0, 0))),
            (1.0, Ok((1, 0))),
            (0.1, Ok((0, 100_000))),
            (0.3, Ok((0, 300_000))),
            (0.000_001, Ok((0, 1))),
            (0.000_000_51, Ok((0, 1))),
            // A tie, exactly: 1/128 has seven decimals.
            (0.007_812_5, Ok((0, 7_813))),
            (3.007_812_5, Ok((3, 7_813))),
            (4_503_599_627_370_497.0, Ok((4_503_599_627_370_497, 0))),
            // The nearest double is a little below the tie.
            (0.000_000_5, Err(InvalidQuantity::RoundsToZero)),
            (0.000_000_49, Err(InvalidQuantity::RoundsToZero)),
            (1e-30, Err(InvalidQuantity::RoundsToZero)),
            (5e-324, Err(InvalidQuantity::RoundsToZero)),
            (7_999_999_999.999_999, Ok((7_999_999_999, 999_999))),
            (8e9, Ok((8_000_000_000, 0))),
            (8_000_000_000.5, Err(InvalidQuantity::TooLarge)),
            (9_007_199_254_740_991.0, Ok((9_007_199_254_740_991, 0))),
            (9_007_199_254_740_992.0, Err(InvalidQuantity::TooLarge)),
            (-0.0, Ok((0, 0))),
            (-1e-9, Err(InvalidQuantity::Negative)),
            (f64::NAN, Err(InvalidQuantity::NotANumber)),
            (f64::INFINITY, Err(InvalidQuantity::NotANumber)),
        ];
        for (number, expected) in cases {
            let found = Quantity::from_f64(number).map(|quantity| (quantity.whole, quantity.micro));
            assert_eq!(found, expected, "{number}");
        }
    }

    #[test]
    fn decimal_text_becomes_the_nearest_millionth() {
        let cases = [
            ("0", Ok((0, 0))),
            ("-0", Ok((0, 0))),
            ("12.5", Ok((12, 500_000))),
            ("007.123456", Ok((7, 123_456))),
            ("0.0000015", Ok((0, 2))),
            ("0.00000149", Ok((0, 1))),
            ("0.9999999", Ok((1, 0))),
            ("41.9999999", Ok((42, 0))),
            ("0.0000004", Err(InvalidQuantity::RoundsToZero)),
            ("9007199254740991", Ok((9_007_199_254_740_991, 0))),
            ("9007199254740992", Err(InvalidQuantity::TooLarge)),
            ("7999999999.999999", Ok((7_999_999_999, 999_999))),
            ("8000000000.000001", Err(InvalidQuantity::TooLarge)),
            ("99999999999999999999999", Err(InvalidQuantity::TooLarge)),
            ("18446744073709551615.9999999", Err(InvalidQuantity::TooLarge)),
            ("-3", Err(InvalidQuantity::Negative)),
            ("-0.5", Err(InvalidQuantity::Negative)),
            ("1e3", Err(InvalidQuantity::NotANumber)),
            ("", Err(InvalidQuantity::NotANumber)),
            (".5", Err(InvalidQuantity::NotANumber)),
            ("5.", Err(InvalidQuantity::NotANumber)),
            ("x.5", Err(InvalidQuantity::NotANumber)),
            ("5.x", Err(InvalidQuantity::NotANumber)),
            (" 5", Err(InvalidQuantity::NotANumber)),
        ];
        for (text, expected) in cases {
            let found = Quantity::from_decimal(text).map(|quantity| (quantity.whole, quantity.micro));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_quantity_is_shown_as_it_was_written() {
        for text in ["0", "1", "12.5", "0.000001", "7999999999.999999"] {
            assert_eq!(Quantity::from_decimal(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_quantity_is_rounded_down_to_a_unit_and_to_its_counter() {
        let units = |text, unit| Quantity::from_decimal(text).unwrap().in_units_rounded_down(unit);
        assert_eq!(units("1.5009", Unit::Seconds), 1500);
        assert_eq!(units("1.999999", Unit::Tokens), 1);
        assert_eq!(units("1.999999", Unit::Cents), 1_999_999);
        assert_eq!(units("9007199254740991", Unit::Tokens), MAX_UNITS);
        assert_eq!(units("9007199254740991", Unit::Cents), Unit::Cents.max_units());
    }

    #[test]
    fn a_quantity_is_rounded_up_to_a_unit_if_its_counter_holds_it() {
        let units = |text, unit| Quantity::from_decimal(text).unwrap().in_units_rounded_up(unit);
        assert_eq!(units("1.5001", Unit::Seconds), Some(1501));
        assert_eq!(units("1.5", Unit::Seconds), Some(1500));
        assert_eq!(units("0.000001", Unit::Tokens), Some(1));
        assert_eq!(units("0.000001", Unit::Cents), Some(1));
        assert_eq!(units("9007199254740991", Unit::Tokens), Some(MAX_UNITS));
        assert_eq!(units("9007199254741", Unit::Seconds), None);
        assert_eq!(units("8000000001", Unit::Cents), None);
    }

    #[test]
    fn weights_keep_twelve_decimals() {
        assert_eq!(Weight::from_decimal("0.000000000001").unwrap().pico(), 1);
        assert_eq!(Weight::from_decimal("1000000").unwrap().pico(), 1_000_000_000_000_000_000);
        assert_eq!(Weight::from_decimal("0012.50").unwrap().pico(), 12_500_000_000_000);
        assert_eq!(Weight::from_decimal("0.0000000000010000").unwrap().pico(), 1, "zeros at the end are no decimals");
        assert_eq!(Weight::from_decimal("0").unwrap().pico(), 0);
        let no_number = "must be a decimal number of at least 0, such as 1 or 0.00025";
        let cases = [
            ("0.0000000000001", "has more than 12 decimals"),
            ("1000000.000000000001", "is larger than 1000000"),
            ("1000001", "is larger than 1000000"),
            ("9999999", "is larger than 1000000"),
            ("10000000", "is larger than 1000000"),
            // Too large even for 64 bits, once it is scaled or as it stands.
            ("18446745", "is larger than 1000000"),
            ("99999999999999999999999", "is larger than 1000000"),
            ("-1", no_number),
            ("1e3", no_number),
            ("", no_number),
            ("x", no_number),
            (".5", no_number),
            ("5.", no_number),
            ("5.x", no_number),
        ];
        for (text, expected) in cases {
            assert_eq!(Weight::from_decimal(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_quantity_has_a_part_before_the_point_and_one_after() {
        let quantity = Quantity::from_decimal("12.000034").unwrap();
        assert_eq!((quantity.whole_part(), quantity.micro_part()), (12, 34));
    }

    #[test]
    fn scripts_read_a_plain_integer_or_a_pair() {
        assert_eq!(serde_json::to_value(Quantity::from_decimal("12").unwrap()).unwrap(), 12);
        let pair = serde_json::to_value(Quantity::from_decimal("12.5").unwrap()).unwrap();
        assert_eq!(pair, serde_json::json!([12, 500_000]));
    }

    #[test]
    fn a_unit_has_one_word_one_number_and_one_resolution() {
        let cases = [
            (Unit::Count, "count", 1, 1, 9_007_199_254_740_991),
            (Unit::Tokens, "tokens", 2, 1, 9_007_199_254_740_991),
            (Unit::Seconds, "seconds", 3, 1_000, 9_007_199_254_740_991),
            (Unit::Cents, "cents", 4, 1_000_000, 8_000_000_000_000_000),
        ];
        for (unit, word, code, scale, max_units) in cases {
            assert_eq!((unit.as_str(), unit.code(), unit.scale(), unit.max_units()), (word, code, scale, max_units));
            assert_eq!(Unit::from_code(code), Some(unit));
        }
        assert_eq!((Unit::from_code(0), Unit::from_code(5)), (None, None));
    }

    #[test]
    fn an_amount_is_shown_in_its_unit() {
        let cases = [
            (Unit::Tokens, 9_007_199_254_740_991, 9_007_199_254_740_991.0),
            (Unit::Seconds, 1_500, 1.5),
            (Unit::Cents, 100_000, 0.1),
            (Unit::Cents, 0, 0.0),
        ];
        for (unit, units, expected) in cases {
            assert_eq!(unit.to_f64(units), expected, "{unit:?} {units}");
        }
    }

    #[test]
    fn a_quantity_is_counted_in_smallest_units_or_not_at_all() {
        let cases = [
            (Unit::Count, "0", Some(0)),
            (Unit::Count, "7", Some(7)),
            (Unit::Count, "7.5", None),
            (Unit::Tokens, "9007199254740991", Some(9_007_199_254_740_991)),
            (Unit::Seconds, "7.512", Some(7_512)),
            (Unit::Seconds, "7.5125", None),
            (Unit::Seconds, "9007199254740", Some(9_007_199_254_740_000)),
            (Unit::Seconds, "9007199254741", None),
            (Unit::Cents, "7.512345", Some(7_512_345)),
            (Unit::Cents, "8000000000", Some(8_000_000_000_000_000)),
            (Unit::Cents, "8000000001", None),
            // More than 64 bits of millionths.
            (Unit::Cents, "9007199254740991", None),
        ];
        for (unit, text, expected) in cases {
            assert_eq!(Quantity::from_decimal(text).unwrap().in_units(unit), expected, "{unit:?} {text}");
        }
    }
}
