//! Integers of fixed width and text after its length, little-endian, as scripts read and write them with Lua's `struct`.

/// The reason why bytes do not fit a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The bytes end too early.
    #[error("it ends after too few bytes")]
    TooShort,
    /// Text that is none.
    #[error("it has text that is not UTF-8")]
    NotText,
}

/// Appends the lower `width` bytes of `value`.
///
/// # Panics
/// If `width` is above 8.
pub fn push_integer(bytes: &mut Vec<u8>, value: i64, width: usize) {
    bytes.extend_from_slice(&value.to_le_bytes()[..width]);
}

/// Appends a length of `width` bytes, and the text.
///
/// # Panics
/// If the text is longer than such a length can say: callers have bounded it.
pub fn push_text(bytes: &mut Vec<u8>, text: &str, width: usize) {
    let length = i64::try_from(text.len()).expect("text fits in memory");
    assert!(length < 1 << (8 * width), "text of {length} bytes has a length of {width} bytes");
    push_integer(bytes, length, width);
    bytes.extend_from_slice(text.as_bytes());
}

/// Reads from the front.
#[derive(Debug, Clone)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// Returns whether everything was read.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`Misfit::TooShort`].
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Misfit> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Misfit::TooShort)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// An integer that is not negative, of at most 7 bytes.
    ///
    /// # Errors
    /// [`Misfit::TooShort`].
    ///
    /// # Panics
    /// If `width` is above 7.
    pub fn integer(&mut self, width: usize) -> Result<i64, Misfit> {
        assert!(width < 8, "an unsigned integer of {width} bytes");
        let mut padded = [0; 8];
        padded[..width].copy_from_slice(self.bytes(width)?);
        Ok(i64::from_le_bytes(padded))
    }

    /// An integer of at most 7 bytes that may be negative.
    ///
    /// # Errors
    /// [`Misfit::TooShort`].
    ///
    /// # Panics
    /// If `width` is above 7.
    pub fn signed(&mut self, width: usize) -> Result<i64, Misfit> {
        let above = 64 - 8 * u32::try_from(width).expect("a few bytes");
        Ok(self.integer(width)? << above >> above)
    }

    /// Reads the next bytes: as many as the array takes.
    ///
    /// # Errors
    /// [`Misfit::TooShort`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Misfit> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Misfit::TooShort)?;
        self.0 = rest;
        Ok(*array)
    }

    /// Text after a length of `width` bytes.
    ///
    /// # Errors
    /// [`Misfit`].
    pub fn text(&mut self, width: usize) -> Result<&'a str, Misfit> {
        std::str::from_utf8(self.blob(width)?).map_err(|_| Misfit::NotText)
    }

    /// Bytes after a length of `width` bytes.
    ///
    /// # Errors
    /// [`Misfit::TooShort`].
    pub fn blob(&mut self, width: usize) -> Result<&'a [u8], Misfit> {
        let length = usize::try_from(self.integer(width)?).map_err(|_| Misfit::TooShort)?;
        self.bytes(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        push_integer(&mut bytes, 0x0102_0304, 6);
        push_integer(&mut bytes, -1, 7);
        push_integer(&mut bytes, (1 << 53) - 1, 7);
        push_text(&mut bytes, "ä", 2);
        assert_eq!(bytes[..6], [4, 3, 2, 1, 0, 0]);
        let mut reader = Reader(&bytes);
        assert_eq!(reader.integer(6), Ok(0x0102_0304));
        assert_eq!(reader.clone().integer(7), Ok((1 << 56) - 1));
        assert_eq!(reader.signed(7), Ok(-1));
        assert_eq!(reader.signed(7), Ok((1 << 53) - 1));
        assert_eq!(reader.text(2), Ok("ä"));
        assert!(reader.is_at_end());
        assert_eq!(reader.integer(1), Err(Misfit::TooShort));
    }

    #[test]
    fn a_length_beyond_the_end_and_text_that_is_none_are_misfits() {
        assert_eq!(Reader(&[3, b'a', b'b']).text(1), Err(Misfit::TooShort));
        assert_eq!(Reader(&[1, 0xff]).text(1), Err(Misfit::NotText));
        assert_eq!(Reader(&[1, 0xff]).blob(1), Ok(&[0xff][..]));
    }
}
