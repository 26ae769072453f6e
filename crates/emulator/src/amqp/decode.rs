//! A cursor over AMQP 1.0 encoded data, without allocations.
//!
//! Values to be echoed (message ids, sources, targets) stay in the received encoding, which
//! preserves the exact type.

/// The reason why AMQP data could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// The data ends inside a value.
    #[error("the encoded value is cut short")]
    Truncated,
    /// A format code not allowed at this position.
    #[error("format code {code:#04x} where {expected} is expected")]
    Unexpected { code: u8, expected: &'static str },
    /// Text that is not UTF-8.
    #[error("a string that is not UTF-8")]
    NotUtf8,
}

/// Reads consecutive values from a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

/// The deepest nesting that `skip` follows; real frames have four levels.
const DEPTH_MAX: u32 = 32;

impl<'a> Reader<'a> {
    /// Creates a reader at the start of `data`.
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Returns the unread bytes.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether all bytes have been read.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self
            .rest
            .split_at_checked(n)
            .ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&first, tail) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(first)
    }

    fn be_u32(&mut self) -> Result<u32, DecodeError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn be_u64(&mut self) -> Result<u64, DecodeError> {
        let high = self.be_u32()?;
        let low = self.be_u32()?;
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn len_of(&mut self, wide: bool) -> Result<usize, DecodeError> {
        if wide {
            Ok(self.be_u32()? as usize)
        } else {
            Ok(usize::from(self.byte()?))
        }
    }

    /// Skips the next value and returns its encoded bytes.
    pub(crate) fn raw(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = self.rest;
        self.skip_value(0)?;
        Ok(&start[..start.len() - self.rest.len()])
    }

    /// Skips the next value.
    pub(crate) fn skip(&mut self) -> Result<(), DecodeError> {
        self.skip_value(0)
    }

    fn skip_value(&mut self, depth: u32) -> Result<(), DecodeError> {
        let code = self.byte()?;
        if code == 0 {
            if depth >= DEPTH_MAX {
                return Err(DecodeError::Unexpected {
                    code,
                    expected: "a value nested less deeply",
                });
            }
            self.skip_value(depth + 1)?;
            return self.skip_value(depth + 1);
        }
        let width = match code >> 4 {
            0x4 => 0,
            0x5 => 1,
            0x6 => 2,
            0x7 => 4,
            0x8 => 8,
            0x9 => 16,
            0xa | 0xc | 0xe => usize::from(self.byte()?),
            0xb | 0xd | 0xf => self.be_u32()? as usize,
            _ => {
                return Err(DecodeError::Unexpected {
                    code,
                    expected: "a value",
                });
            }
        };
        self.take(width)?;
        Ok(())
    }

    /// Reads the numeric descriptor of a described value; a symbolic descriptor is an error.
    pub(crate) fn descriptor(&mut self) -> Result<u64, DecodeError> {
        let code = self.byte()?;
        if code != 0 {
            return Err(DecodeError::Unexpected {
                code,
                expected: "a described type",
            });
        }
        self.u64()?.ok_or(DecodeError::Unexpected {
            code: 0x40,
            expected: "a numeric descriptor",
        })
    }

    /// Enters a list.
    pub(crate) fn list(&mut self) -> Result<Fields<'a>, DecodeError> {
        let (body, count) = match self.byte()? {
            0x45 => (&[][..], 0),
            code @ (0xc0 | 0xd0) => self.compound(code == 0xd0)?,
            code => {
                return Err(DecodeError::Unexpected {
                    code,
                    expected: "a list",
                });
            }
        };
        Ok(Fields {
            reader: Reader::new(body),
            left: count,
        })
    }

    /// Enters a map, whose items alternate between keys and values. Null counts as an empty map.
    pub(crate) fn map(&mut self) -> Result<Fields<'a>, DecodeError> {
        let (body, count) = match self.byte()? {
            0x40 => (&[][..], 0),
            code @ (0xc1 | 0xd1) => self.compound(code == 0xd1)?,
            code => {
                return Err(DecodeError::Unexpected {
                    code,
                    expected: "a map",
                });
            }
        };
        Ok(Fields {
            reader: Reader::new(body),
            left: count,
        })
    }

    fn compound(&mut self, wide: bool) -> Result<(&'a [u8], usize), DecodeError> {
        let size = self.len_of(wide)?;
        let mut body = Reader::new(self.take(size)?);
        let count = body.len_of(wide)?;
        Ok((body.rest, count))
    }

    /// Reads an unsigned integer of any width, or null.
    pub(crate) fn u64(&mut self) -> Result<Option<u64>, DecodeError> {
        Ok(Some(match self.byte()? {
            0x40 => return Ok(None),
            0x43 | 0x44 => 0,
            0x50 | 0x52 | 0x53 => u64::from(self.byte()?),
            0x60 => {
                let bytes = self.take(2)?;
                u64::from(u16::from_be_bytes([bytes[0], bytes[1]]))
            }
            0x70 => u64::from(self.be_u32()?),
            0x80 => self.be_u64()?,
            code => {
                return Err(DecodeError::Unexpected {
                    code,
                    expected: "an unsigned integer",
                });
            }
        }))
    }

    /// Reads an unsigned integer of at most 32 bits, or null.
    pub(crate) fn u32(&mut self) -> Result<Option<u32>, DecodeError> {
        match self.u64()? {
            None => Ok(None),
            Some(value) => match u32::try_from(value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(DecodeError::Unexpected {
                    code: 0x80,
                    expected: "a 32-bit integer",
                }),
            },
        }
    }

    /// Reads a signed or unsigned integer of any width within the range of `i64`, or null.
    pub(crate) fn i64(&mut self) -> Result<Option<i64>, DecodeError> {
        let mut probe = *self;
        let value = match probe.byte()? {
            0x51 | 0x54 | 0x55 => i64::from(probe.byte()?.cast_signed()),
            0x61 => {
                let bytes = probe.take(2)?;
                i64::from(i16::from_be_bytes([bytes[0], bytes[1]]))
            }
            0x71 => i64::from(probe.be_u32()?.cast_signed()),
            0x81 => probe.be_u64()?.cast_signed(),
            code => {
                let value = self.u64()?.map(i64::try_from).transpose();
                return value.map_err(|_| DecodeError::Unexpected {
                    code,
                    expected: "an integer",
                });
            }
        };
        *self = probe;
        Ok(Some(value))
    }

    /// Reads a boolean, or null.
    pub(crate) fn bool(&mut self) -> Result<Option<bool>, DecodeError> {
        Ok(Some(match self.byte()? {
            0x40 => return Ok(None),
            0x41 => true,
            0x42 => false,
            0x56 => self.byte()? != 0,
            code => {
                return Err(DecodeError::Unexpected {
                    code,
                    expected: "a boolean",
                });
            }
        }))
    }

    /// Reads a timestamp in milliseconds since 1970, or null.
    pub(crate) fn timestamp(&mut self) -> Result<Option<i64>, DecodeError> {
        match self.byte()? {
            0x40 => Ok(None),
            0x83 => Ok(Some(self.be_u64()?.cast_signed())),
            code => Err(DecodeError::Unexpected {
                code,
                expected: "a timestamp",
            }),
        }
    }

    /// Reads a string or a symbol, or null.
    pub(crate) fn text(&mut self) -> Result<Option<&'a str>, DecodeError> {
        let code = self.byte()?;
        let len = match code {
            0x40 => return Ok(None),
            0xa1 | 0xa3 => self.len_of(false)?,
            0xb1 | 0xb3 => self.len_of(true)?,
            _ => {
                return Err(DecodeError::Unexpected {
                    code,
                    expected: "a string",
                });
            }
        };
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes)
            .map(Some)
            .map_err(|_| DecodeError::NotUtf8)
    }

    /// Reads binary data, or null.
    pub(crate) fn binary(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        let code = self.byte()?;
        let len = match code {
            0x40 => return Ok(None),
            0xa0 => self.len_of(false)?,
            0xb0 => self.len_of(true)?,
            _ => {
                return Err(DecodeError::Unexpected {
                    code,
                    expected: "binary data",
                });
            }
        };
        self.take(len).map(Some)
    }
}

/// The items of a list or map. Trailing items may be absent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Fields<'a> {
    /// Returns a reader at the next item, or `None` after the last.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<&mut Reader<'a>> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        Some(&mut self.reader)
    }

    /// Reads the next item by `read`; an absent item counts as null.
    #[inline]
    pub(crate) fn get<T>(
        &mut self,
        read: impl FnOnce(&mut Reader<'a>) -> Result<Option<T>, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        self.next().map_or(Ok(None), read)
    }

    /// Returns the bytes of the next item, or `None` if null or absent.
    pub(crate) fn raw(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        match self.next() {
            None => Ok(None),
            Some(reader) => reader.raw().map(|raw| (raw != [0x40]).then_some(raw)),
        }
    }

    /// Returns the bytes of a map's value for `name`, or `None` if null or absent.
    pub(crate) fn value_of(mut self, name: &str) -> Option<&'a [u8]> {
        while let Some(key) = self.next() {
            let found = key.raw().ok()?;
            let value = self.next()?.raw().ok()?;
            if Reader::new(found).text() == Ok(Some(name)) {
                return (value != [0x40]).then_some(value);
            }
        }
        None
    }

    /// Skips `n` items.
    pub(crate) fn skip(&mut self, n: usize) -> Result<(), DecodeError> {
        for _ in 0..n {
            if let Some(reader) = self.next() {
                reader.skip()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_of_an_unsigned_integer_reads_the_same() {
        for data in [
            &[0x52, 7][..],
            &[0x53, 7],
            &[0x50, 7],
            &[0x60, 0, 7],
            &[0x70, 0, 0, 0, 7],
            &[0x80, 0, 0, 0, 0, 0, 0, 0, 7],
        ] {
            assert_eq!(Reader::new(data).u64(), Ok(Some(7)), "{data:02x?}");
        }
        assert_eq!(Reader::new(&[0x43]).u64(), Ok(Some(0)));
        assert_eq!(Reader::new(&[0x40]).u64(), Ok(None));
    }

    #[test]
    fn a_cut_value_is_an_error_and_never_a_panic() {
        let whole = [0xc0, 0x06, 0x02, 0xa1, 0x02, b'a', b'b', 0x41];
        for end in 0..whole.len() {
            assert_eq!(
                Reader::new(&whole[..end]).raw(),
                Err(DecodeError::Truncated),
                "{end}"
            );
        }
        assert_eq!(Reader::new(&whole).raw(), Ok(&whole[..]));
        let mut fields = Reader::new(&whole).list().unwrap();
        assert_eq!(fields.get(Reader::text), Ok(Some("ab")));
        assert_eq!(fields.get(Reader::bool), Ok(Some(true)));
        assert_eq!(fields.get(Reader::bool), Ok(None));
    }

    #[test]
    fn descriptors_nested_without_end_are_refused() {
        assert!(Reader::new(&[0u8; 4096]).skip().is_err());
    }
}
