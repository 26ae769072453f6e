//! Values of the AMQP 1.0 type system as bytes: finding a value's end, checking well-formedness,
//! simple reads and writes. No value is decoded into memory: the cost of every function is bounded
//! by the bytes at hand, whatever sizes and counts these bytes claim.
//!
//! Encodings: AMQP 1.0, part 1, section 1.6. The high half of a constructor gives the width of the
//! data.

use std::ops::Range;

/// Maximum accepted nesting. Deeper than every frame and message of a hub, and far from exhausting
/// a stack.
const MAX_NESTING: usize = 16;

pub(crate) const NULL: u8 = 0x40;
pub(crate) const TRUE: u8 = 0x41;
pub(crate) const FALSE: u8 = 0x42;
pub(crate) const DESCRIBED: u8 = 0x00;
const UINT: u8 = 0x70;
const LIST0: u8 = 0x45;
const LIST32: u8 = 0xd0;
const MAP32: u8 = 0xd1;
const STRING32: u8 = 0xb1;
const SYMBOL32: u8 = 0xb3;

/// Returns the length of the value at the start of `bytes`. `None` if the value is incomplete,
/// malformed, or nested too deeply.
pub(crate) fn length(bytes: &[u8]) -> Option<usize> {
    value(bytes, MAX_NESTING)
}

fn value(bytes: &[u8], depth: usize) -> Option<usize> {
    let depth = depth.checked_sub(1)?;
    match *bytes.first()? {
        DESCRIBED => {
            let descriptor = 1 + value(&bytes[1..], depth)?;
            Some(descriptor + value(&bytes[descriptor..], depth)?)
        }
        code => Some(1 + body(code, &bytes[1..], depth)?),
    }
}

/// Returns the length of the data after the constructor `code`.
fn body(code: u8, bytes: &[u8], depth: usize) -> Option<usize> {
    let (width, size) = match code >> 4 {
        0x4 => return Some(0),
        fixed @ 0x5..=0x9 => {
            let length = 1 << (fixed - 5);
            return (bytes.len() >= length).then_some(length);
        }
        0xa | 0xc | 0xe => (1, usize::from(*bytes.first()?)),
        0xb | 0xd | 0xf => (4, number(bytes)?),
        _ => return None,
    };
    let end = usize::checked_add(width, size)?;
    let content = bytes.get(width..end)?;
    if code < 0xc0 {
        return Some(end);
    }
    let (count, mut rest) = match width {
        1 => (usize::from(*content.first()?), &content[1..]),
        _ => (number(content)?, &content[4..]),
    };
    // Every entry of a list or map takes at least one byte. Array entries may be empty, but then
    // carry no information.
    if count > rest.len() {
        return None;
    }
    if code >= 0xe0 {
        return array(count, rest, depth).map(|()| end);
    }
    let is_map = code & 0x0f == 1;
    if is_map && count % 2 == 1 {
        return None;
    }
    for _ in 0..count {
        rest = &rest[value(rest, depth)?..];
    }
    rest.is_empty().then_some(end)
}

/// `Some` if `count` entries with one constructor fill `rest`.
fn array(count: usize, rest: &[u8], depth: usize) -> Option<()> {
    if rest.is_empty() {
        return Some(());
    }
    let depth = depth.checked_sub(1)?;
    let (mut code, mut rest) = rest.split_first()?;
    if *code == DESCRIBED {
        rest = &rest[value(rest, depth)?..];
        (code, rest) = rest.split_first()?;
    }
    for _ in 0..count {
        rest = &rest[body(*code, rest, depth)?..];
    }
    rest.is_empty().then_some(())
}

fn number(bytes: &[u8]) -> Option<usize> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?) as usize)
}

/// Returns the entries of the list or map at `at` as ranges of `bytes`; a map gives keys and values
/// in turn. Ends early where `bytes` ends or is malformed.
pub(crate) fn entries(bytes: &[u8], at: usize) -> Option<Entries<'_>> {
    let rest = bytes.get(at + 1..)?;
    let (at, left) = match bytes[at] {
        LIST0 => (at + 1, 0),
        0xc0 | 0xc1 => (at + 3, usize::from(*rest.get(1)?)),
        LIST32 | MAP32 => (at + 9, number(rest.get(4..)?)?),
        _ => return None,
    };
    Some(Entries { bytes, at, left })
}

/// See [`entries`].
pub(crate) struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
    left: usize,
}

impl Iterator for Entries<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        self.left = self.left.checked_sub(1)?;
        let start = self.at;
        self.at = start + length(self.bytes.get(start..)?)?;
        Some(start..self.at)
    }
}

/// Returns the descriptor of the described value at `at`, and the start of the value itself.
pub(crate) fn described(bytes: &[u8], at: usize) -> Option<(Descriptor<'_>, usize)> {
    if *bytes.get(at)? != DESCRIBED {
        return None;
    }
    let descriptor = bytes.get(at + 1..)?;
    let end = length(descriptor)?;
    let descriptor = match integer(descriptor) {
        Some(code) => Descriptor::Code(code),
        None => Descriptor::Name(text(descriptor)?),
    };
    Some((descriptor, at + 1 + end))
}

/// The type of a described value: numeric or symbolic.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Descriptor<'a> {
    Code(i128),
    Name(&'a str),
}

/// Reads an integer of any integer type at the start of `bytes`.
pub(crate) fn integer(bytes: &[u8]) -> Option<i128> {
    let (code, rest) = bytes.split_first()?;
    Some(match code {
        0x43 | 0x44 => 0,
        0x50 | 0x52 | 0x53 => i128::from(*rest.first()?),
        0x51 | 0x54 | 0x55 => i128::from(i8::from_be_bytes(*rest.first_chunk()?)),
        0x60 => u16::from_be_bytes(*rest.first_chunk()?).into(),
        0x61 => i16::from_be_bytes(*rest.first_chunk()?).into(),
        0x70 => u32::from_be_bytes(*rest.first_chunk()?).into(),
        0x71 => i32::from_be_bytes(*rest.first_chunk()?).into(),
        0x80 => u64::from_be_bytes(*rest.first_chunk()?).into(),
        0x81 => i64::from_be_bytes(*rest.first_chunk()?).into(),
        _ => return None,
    })
}

/// Reads the `uint` at the start of `bytes`.
pub(crate) fn uint(bytes: &[u8]) -> Option<u32> {
    matches!(bytes.first()?, 0x43 | 0x52 | &UINT)
        .then(|| integer(bytes))
        .flatten()
        .and_then(|value| value.try_into().ok())
}

/// Whether `bytes` starts with `true`.
pub(crate) fn is_true(bytes: &[u8]) -> bool {
    matches!(bytes, [TRUE, ..] | [0x56, 1, ..])
}

/// Reads the string or symbol at the start of `bytes`.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    let text = match *bytes.first()? {
        0xa1 | 0xa3 => bytes.get(2..2 + usize::from(*bytes.get(1)?))?,
        STRING32 | SYMBOL32 => bytes.get(5..)?.get(..number(&bytes[1..])?)?,
        _ => return None,
    };
    std::str::from_utf8(text).ok()
}

/// Encodes a `uint`.
pub(crate) fn write_uint(value: u32) -> Vec<u8> {
    let mut bytes = vec![UINT];
    bytes.extend(value.to_be_bytes());
    bytes
}

/// Encodes a string.
pub(crate) fn write_string(text: &str) -> Vec<u8> {
    variable(STRING32, text.as_bytes())
}

/// Encodes a symbol; non-ASCII bytes of `text` are dropped.
pub(crate) fn write_symbol(text: &str) -> Vec<u8> {
    let ascii: Vec<u8> = text.bytes().filter(u8::is_ascii).collect();
    variable(SYMBOL32, &ascii)
}

/// Encodes a list of encoded values.
pub(crate) fn write_list(entries: &[Vec<u8>]) -> Vec<u8> {
    compound(LIST32, entries)
}

/// Encodes a map of encoded keys and values in turn.
pub(crate) fn write_map(entries: &[Vec<u8>]) -> Vec<u8> {
    compound(MAP32, entries)
}

/// Encodes a described value with a numeric descriptor.
pub(crate) fn write_described(code: u8, mut value: Vec<u8>) -> Vec<u8> {
    value.splice(..0, [DESCRIBED, 0x53, code]);
    value
}

fn variable(code: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![code];
    bytes.extend(size(content.len()));
    bytes.extend(content);
    bytes
}

fn compound(code: u8, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut content = size(entries.len()).to_vec();
    content.extend(entries.iter().flatten());
    variable(code, &content)
}

fn size(length: usize) -> [u8; 4] {
    let length = u32::try_from(length).expect("a frame is far below 4 GiB");
    length.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_complete_valid_values_have_a_length() {
        let values: [&[u8]; 16] = [
            &[0x40],
            &[0x53, 9],
            &[0x60, 1, 2],
            &[0x70, 0, 0, 0, 1],
            &[0x83, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xa1, 2, b'h', b'i'],
            &[0xb0, 0, 0, 0, 1, 7],
            &[0x45],
            &[0xc0, 3, 2, 0x40, 0x41],
            &[0xd0, 0, 0, 0, 5, 0, 0, 0, 1, 0x40],
            &[0xc1, 4, 2, 0xa3, 0, 0x40],
            &[0xe0, 4, 2, 0x50, 1, 2],
            &[0xf0, 0, 0, 0, 6, 0, 0, 0, 1, 0x50, 9],
            &[0xe0, 1, 0],
            &[0x00, 0x53, 0x24, 0x45],
        ];
        for bytes in values {
            assert_eq!(length(bytes), Some(bytes.len()), "{bytes:x?}");
            for end in 0..bytes.len() {
                assert_eq!(length(&bytes[..end]), None, "{bytes:x?} cut at {end}");
            }
            let mut longer = bytes.to_vec();
            longer.push(0xff);
            assert_eq!(length(&longer), Some(bytes.len()));
        }
        let lies: [&[u8]; 10] = [
            // Sizes too small to hold the count.
            &[0xc0, 0, 0],
            &[0xd0, 0, 0, 0, 3, 0, 0, 0, 0],
            &[0xe0, 0, 0],
            // Four billion entries.
            &[0xd1, 0, 0, 0, 6, 0xff, 0xff, 0xff, 0xfe, 0x40, 0x40],
            &[0xf0, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x40],
            &[0xf0, 0, 0, 0, 6, 0, 0, 0, 0, 0x40, 0x40],
            // A map with a key and no value; entries beyond the size; bytes after the entries.
            &[0xc1, 2, 1, 0x40],
            &[0xc0, 2, 2, 0x40, 0x40],
            &[0xc0, 3, 1, 0x40, 0x40],
            // An undefined constructor.
            &[0x10],
        ];
        for bytes in lies {
            assert_eq!(length(bytes), None, "{bytes:x?}");
        }
    }

    #[test]
    fn nesting_has_a_bound_in_every_form() {
        let nested = |depth: usize, wrap: fn(Vec<u8>) -> Vec<u8>| {
            (0..depth).fold(vec![NULL], |inner, _| wrap(inner))
        };
        let forms: [fn(Vec<u8>) -> Vec<u8>; 4] = [
            |inner| write_list(&[inner]),
            |inner| write_map(&[vec![NULL], inner]),
            |inner| write_described(1, inner),
            |inner| {
                let mut bytes = vec![DESCRIBED];
                bytes.extend(inner);
                bytes.push(NULL);
                bytes
            },
        ];
        for wrap in forms {
            let shallow = nested(MAX_NESTING - 1, wrap);
            assert_eq!(length(&shallow), Some(shallow.len()));
            assert_eq!(length(&nested(MAX_NESTING, wrap)), None);
        }
        assert_eq!(length(&[0; 65_536]), None);
    }

    #[test]
    fn integers_of_all_types_are_read() {
        let table: [(&[u8], i128); 13] = [
            (&[0x43], 0),
            (&[0x44], 0),
            (&[0x50, 200], 200),
            (&[0x51, 0xff], -1),
            (&[0x52, 200], 200),
            (&[0x53, 200], 200),
            (&[0x54, 0x80], -128),
            (&[0x55, 7], 7),
            (&[0x60, 1, 0x91], 401),
            (&[0x61, 1, 0x91], 401),
            (&[0x71, 0xff, 0xff, 0xff, 0xff], -1),
            (
                &[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                u64::MAX.into(),
            ),
            (&[0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], -1),
        ];
        for (bytes, value) in table {
            assert_eq!(integer(bytes), Some(value), "{bytes:x?}");
        }
        assert_eq!(integer(&[0xa1, 1, b'7']), None);
        assert_eq!(uint(&write_uint(7)), Some(7));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_or_exceeds_the_input(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(length) = length(&bytes) {
                prop_assert!(length <= bytes.len());
            }
            let _ = entries(&bytes, 0).map(Iterator::count);
            let _ = (described(&bytes, 0), text(&bytes), integer(&bytes));
        }
    }
}
