//! Texts: files as people's editors and programs write them, and what is kept of long ones.

/// Why the bytes of a file are not taken as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotText {
    /// Every other byte is of a character's second half.
    #[error("it is UTF-16; save it as UTF-8")]
    Utf16,
    /// Neither.
    #[error("it is not UTF-8 text: byte {at} belongs to no character")]
    NotUtf8 {
        /// The first such byte, from 1.
        at: usize,
    },
}

/// The text of a file, without the mark (BOM) that some editors put before it.
///
/// # Errors
/// When it is not UTF-8.
pub fn of_file(bytes: &[u8]) -> Result<&str, NotText> {
    // With a mark; or without one, a text that begins with a character of ASCII.
    if matches!(
        bytes,
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..]
    ) {
        return Err(NotText::Utf16);
    }
    let text = std::str::from_utf8(bytes).map_err(|error| NotText::NotUtf8 {
        at: error.valid_up_to() + 1,
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Characters of an error that are stored: a chain of causes is shorter.
pub const ERROR_CHARS: usize = 600;

/// The text's first `most` characters, and a mark if there are more.
#[must_use]
pub fn cut(text: &str, most: usize) -> String {
    let mut cut: String = text.chars().take(most).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_dropped_and_other_encodings_named() {
        for (bytes, expected) in [
            (&b""[..], Ok("")),
            (b"a\r\n", Ok("a\r\n")),
            (b"\xef\xbb\xbfa", Ok("a")),
            ("aé".as_bytes(), Ok("aé")),
            (b"\xff\xfea\0", Err(NotText::Utf16)),
            (b"\xfe\xff\0a", Err(NotText::Utf16)),
            (b"a\0b\0", Err(NotText::Utf16)),
            (b"\0a\0b", Err(NotText::Utf16)),
            (b"ab\xe9", Err(NotText::NotUtf8 { at: 3 })),
        ] {
            assert_eq!(of_file(bytes), expected, "{bytes:?}");
        }
    }
}
