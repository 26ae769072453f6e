//! Text files, as written by editors and platforms.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The largest file read, in bytes.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system reported an error.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file is larger than [`MAX_FILE_BYTES`].
    #[error("cannot read {}: the file is larger than {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not UTF-8.
    #[error("cannot read {}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The encoding error.
        source: NotText,
    },
}

/// Why bytes are not text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotText {
    /// The bytes are UTF-16.
    #[error("the text is UTF-16; save it as UTF-8")]
    Utf16,
    /// The bytes are in no known encoding.
    #[error("the text is not UTF-8: byte {at} is not part of a character")]
    NotUtf8 {
        /// The position of the first such byte, counted from one.
        at: usize,
    },
}

/// Reads a whole text file and removes a byte order mark.
///
/// The call blocks; files of secrets and certificates are small, and mounted ones are in memory.
///
/// # Errors
/// The file cannot be read, is larger than [`MAX_FILE_BYTES`], or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
        });
    }
    match text_of(&bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(source) => Err(FileError::NotText {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Returns the text of a file's bytes, without the byte order mark written first by some editors.
///
/// # Errors
/// The bytes are not UTF-8.
pub fn text_of(bytes: &[u8]) -> Result<&str, NotText> {
    // UTF-16 with a byte order mark, or without a mark and with an ASCII character first.
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
            assert_eq!(text_of(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn files_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(matches!(read_text(&path), Err(FileError::Read { .. })));
        std::fs::write(&path, vec![b'a'; MAX_FILE_BYTES]).unwrap();
        assert_eq!(read_text(&path).unwrap().len(), MAX_FILE_BYTES);
        std::fs::write(&path, vec![b'a'; MAX_FILE_BYTES + 1]).unwrap();
        assert!(matches!(read_text(&path), Err(FileError::TooLarge { .. })));
    }
}
