//! EXACT: quantities, weights and units against integers of any size.
//!
//! Eight bytes are a double, and an amount in smallest units; the rest is decimal text.

use num_bigint::BigUint;
use tollgate::domain::amount::InvalidQuantity::{self, Negative, NotANumber, RoundsToZero, TooLarge};
use tollgate::domain::amount::{MAX_UNITS, Quantity, Unit, Weight};

use super::Numbers;

pub(super) fn run(input: &[u8]) {
    let mut numbers = Numbers(input);
    let bits = numbers.long() as u64;
    check_double(f64::from_bits(bits));
    for unit in [Unit::Count, Unit::Tokens, Unit::Seconds, Unit::Cents] {
        check_units(unit, bits % (unit.max_units() + 1));
    }
    let text = String::from_utf8_lossy(numbers.0);
    check_decimal(&text);
    check_weight(&text);
}

fn check_double(number: f64) {
    let expected = if !number.is_finite() {
        Err(NotANumber)
    } else if number < 0.0 {
        Err(Negative)
    } else {
        let bits = number.to_bits();
        let (exponent, fraction) = ((bits >> 52) as u32 & 0x7ff, bits & ((1 << 52) - 1));
        // The number is mantissa * 2^(shift - 1074).
        let (mantissa, shift) = if exponent == 0 { (fraction, 0) } else { (fraction | (1 << 52), exponent - 1) };
        nearest(BigUint::from(mantissa) << shift, BigUint::from(1_u8) << 1074)
    };
    assert_eq!(parts(Quantity::from_f64(number)), expected, "{number:?}");
}

fn check_decimal(text: &str) {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let expected = match fraction(digits) {
        None => Err(NotANumber),
        Some((value, _)) if value != BigUint::ZERO && digits.len() < text.len() => Err(Negative),
        Some((value, scale)) => nearest(value, scale),
    };
    let found = Quantity::from_decimal(text);
    assert_eq!(parts(found), expected, "{text:?}");
    if let Ok(quantity) = found {
        assert_eq!(Quantity::from_decimal(&quantity.to_string()), Ok(quantity), "{text:?}");
    }
}

fn check_weight(text: &str) {
    let pico = fraction(text).and_then(|(value, scale)| {
        let scaled = value * 1_000_000_000_000_u64;
        let exact = &scaled % &scale == BigUint::ZERO;
        u64::try_from(scaled / scale).ok().filter(|pico| exact && *pico <= 1_000_000_000_000_000_000)
    });
    assert_eq!(Weight::from_decimal(text).ok().map(Weight::pico), pico, "{text:?}");
}

/// An amount is shown as the nearest double, and what is shown is read as the same amount.
fn check_units(unit: Unit, units: u64) {
    let scale = unit.scale();
    let decimals = scale.ilog10() as usize;
    let text = format!("{}.{:0decimals$}0", units / scale, units % scale);
    let shown = unit.to_f64(units);
    assert_eq!(shown.to_bits(), text.parse::<f64>().unwrap().to_bits(), "{units} {unit:?}");
    if units.is_multiple_of(scale) || units / scale < 8_000_000_000 {
        assert_eq!(Quantity::from_f64(shown).unwrap().in_units(unit), Some(units), "{shown} {unit:?}");
        assert_eq!(Quantity::from_decimal(&text).unwrap().in_units(unit), Some(units), "{text} {unit:?}");
    }
}

/// Numerator and denominator of plain decimal text.
fn fraction(text: &str) -> Option<(BigUint, BigUint)> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !plain(whole) || !plain(decimals) {
        return None;
    }
    let value = BigUint::parse_bytes(format!("{whole}{decimals}").as_bytes(), 10)?;
    Some((value, BigUint::from(10_u8).pow(u32::try_from(decimals.len()).unwrap())))
}

/// The nearest millionth of a fraction, whole part and rest, a tie rounded up; as SPEC section 4 bounds it.
fn nearest(value: BigUint, scale: BigUint) -> Result<(u64, u64), InvalidQuantity> {
    let micros = (&value * 2_000_000_u32 + &scale) / (scale * 2_u32);
    if micros == BigUint::ZERO && value != BigUint::ZERO {
        return Err(RoundsToZero);
    }
    let whole = u64::try_from(&micros / 1_000_000_u32).map_err(|_| TooLarge)?;
    let micro = u64::try_from(micros % 1_000_000_u32).unwrap();
    let most = if micro == 0 { MAX_UNITS } else { 7_999_999_999 };
    if whole > most { Err(TooLarge) } else { Ok((whole, micro)) }
}

fn parts(found: Result<Quantity, InvalidQuantity>) -> Result<(u64, u64), InvalidQuantity> {
    found.map(|quantity| (quantity.whole_part(), u64::from(quantity.micro_part())))
}
