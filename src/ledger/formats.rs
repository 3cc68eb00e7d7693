//! Stored values, calls and answers of the scripts, as `lua/formats.toml` declares them. `build.rs` generates these structs, and the Lua
//! that reads and writes the same bytes. `docs/reference/redis-layout.md` shows what is where.

use super::packed::{Misfit, Reader, push_integer};

include!(concat!(env!("OUT_DIR"), "/formats.rs"));

/// Appends an integer of `width` bytes that is not negative.
fn push_unsigned(bytes: &mut Vec<u8>, value: i64, width: usize) {
    assert!((0..1 << (8 * width)).contains(&value), "{value} does not fit into {width} bytes");
    push_integer(bytes, value, width);
}

/// Appends an integer of `width` bytes.
fn push_signed(bytes: &mut Vec<u8>, value: i64, width: usize) {
    let half = 1_i64 << (8 * width - 1);
    assert!((-half..half).contains(&value), "{value} does not fit into {width} bytes");
    push_integer(bytes, value, width);
}

/// Appends a length of `width` bytes, and the blob.
fn push_blob(bytes: &mut Vec<u8>, blob: &[u8], width: usize) {
    let length = i64::try_from(blob.len()).expect("a blob fits into memory");
    push_unsigned(bytes, length, width);
    bytes.extend_from_slice(blob);
}

/// Reads as many bytes as the array has.
fn array<const LENGTH: usize>(reader: &mut Reader<'_>) -> Result<[u8; LENGTH], Misfit> {
    reader.bytes(LENGTH)?.try_into().map_err(|_| Misfit::TooShort)
}

#[cfg(test)]
mod tests {
    use super::*;

    include!(concat!(env!("OUT_DIR"), "/formats_tests.rs"));

    fn round_trip<T: PartialEq + std::fmt::Debug>(
        size: Option<usize>,
        value: &T,
        write: impl Fn(&T, &mut Vec<u8>),
        read: impl Fn(&mut Reader<'_>) -> Result<T, Misfit>,
    ) {
        let mut bytes = Vec::new();
        write(value, &mut bytes);
        assert!(size.is_none_or(|size| size == bytes.len()), "{value:?} has {} bytes", bytes.len());
        for short in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            if short < bytes.len() {
                assert_eq!(read(&mut Reader(&bytes[..short])), Err(Misfit::TooShort), "{value:?} of {short} bytes");
            }
        }
        bytes.push(7);
        let mut reader = Reader(&bytes);
        assert_eq!(read(&mut reader).as_ref(), Ok(value));
        assert_eq!(reader.0, [7], "what follows stays");
    }

    #[test]
    #[should_panic(expected = "does not fit into 2 bytes")]
    fn a_value_beyond_its_field_is_a_mistake_of_the_caller() {
        Windows { count: 1 << 16 }.write(&mut Vec::new());
    }
}
