//! Writes AMQP 1.0 data and frames straight into the connection's output buffer.

use bytes::{BufMut, BytesMut};

/// Frame type of AMQP frames.
pub(crate) const FRAME_AMQP: u8 = 0;
/// Frame type of SASL frames.
pub(crate) const FRAME_SASL: u8 = 1;

/// Appends one frame with a body written by `body`.
pub(crate) fn frame(out: &mut BytesMut, kind: u8, channel: u16, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(2);
    out.put_u8(kind);
    out.put_u16(channel);
    body(out);
    let size = out.len() - start;
    patch_u32(out, start, size);
}

/// Appends an empty frame, which keeps an idle connection open.
pub(crate) fn heartbeat(out: &mut BytesMut) {
    frame(out, FRAME_AMQP, 0, |_| {});
}

fn patch_u32(out: &mut BytesMut, at: usize, value: usize) {
    // Frames and lists are bounded far below 4 GiB by the negotiated sizes.
    let value = u32::try_from(value).expect("an encoded value is smaller than 4 GiB");
    out[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Appends a list with the given descriptor.
pub(crate) fn described(out: &mut BytesMut, code: u8, fields: impl FnOnce(&mut Items<'_>)) {
    out.put_slice(&[0x00, 0x53, code]);
    list(out, fields);
}

/// Appends a list.
pub(crate) fn list(out: &mut BytesMut, fields: impl FnOnce(&mut Items<'_>)) {
    compound(out, 0xd0, fields);
}

/// Appends a map; `fields` writes keys and values in turn.
pub(crate) fn map(out: &mut BytesMut, fields: impl FnOnce(&mut Items<'_>)) {
    compound(out, 0xd1, fields);
}

fn compound(out: &mut BytesMut, code: u8, fields: impl FnOnce(&mut Items<'_>)) {
    out.put_u8(code);
    let at = out.len();
    out.put_u64(0);
    let mut items = Items { out, count: 0 };
    fields(&mut items);
    let count = items.count;
    let size = out.len() - at - 4;
    patch_u32(out, at, size);
    patch_u32(out, at + 4, count);
}

/// The items of a list or map being written.
pub(crate) struct Items<'a> {
    out: &'a mut BytesMut,
    count: usize,
}

impl Items<'_> {
    fn item(&mut self) -> &mut BytesMut {
        self.count += 1;
        self.out
    }

    /// Writes null.
    pub(crate) fn null(&mut self) -> &mut Self {
        self.item().put_u8(0x40);
        self
    }

    /// Writes a boolean.
    pub(crate) fn bool(&mut self, value: bool) -> &mut Self {
        self.item().put_u8(if value { 0x41 } else { 0x42 });
        self
    }

    /// Writes an unsigned byte.
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.item().put_slice(&[0x50, value]);
        self
    }

    /// Writes an unsigned short.
    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        let out = self.item();
        out.put_u8(0x60);
        out.put_u16(value);
        self
    }

    /// Writes an unsigned integer of 32 bits.
    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        let out = self.item();
        match u8::try_from(value) {
            Ok(0) => out.put_u8(0x43),
            Ok(small) => out.put_slice(&[0x52, small]),
            Err(_) => {
                out.put_u8(0x70);
                out.put_u32(value);
            }
        }
        self
    }

    /// Writes an unsigned integer of 64 bits.
    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        let out = self.item();
        out.put_u8(0x80);
        out.put_u64(value);
        self
    }

    /// Writes a signed integer of 32 bits.
    pub(crate) fn i32(&mut self, value: i32) -> &mut Self {
        let out = self.item();
        out.put_u8(0x71);
        out.put_i32(value);
        self
    }

    /// Writes a signed integer of 64 bits.
    pub(crate) fn i64(&mut self, value: i64) -> &mut Self {
        let out = self.item();
        out.put_u8(0x81);
        out.put_i64(value);
        self
    }

    /// Writes a uuid.
    pub(crate) fn uuid(&mut self, value: &uuid::Uuid) -> &mut Self {
        let out = self.item();
        out.put_u8(0x98);
        out.put_slice(value.as_bytes());
        self
    }

    /// Writes a timestamp in milliseconds since 1970.
    pub(crate) fn timestamp(&mut self, value: i64) -> &mut Self {
        let out = self.item();
        out.put_u8(0x83);
        out.put_i64(value);
        self
    }

    /// Writes a string.
    pub(crate) fn text(&mut self, value: &str) -> &mut Self {
        variable(self.item(), 0xa1, value.as_bytes());
        self
    }

    /// Writes a symbol.
    pub(crate) fn symbol(&mut self, value: &str) -> &mut Self {
        variable(self.item(), 0xa3, value.as_bytes());
        self
    }

    /// Writes binary data.
    pub(crate) fn binary(&mut self, value: &[u8]) -> &mut Self {
        variable(self.item(), 0xa0, value);
        self
    }

    /// Writes an already encoded value, or null for `None`.
    pub(crate) fn raw(&mut self, value: Option<&[u8]>) -> &mut Self {
        self.item().put_slice(value.unwrap_or(&[0x40]));
        self
    }

    /// Writes one item with `write`.
    pub(crate) fn with(&mut self, write: impl FnOnce(&mut BytesMut)) -> &mut Self {
        write(self.item());
        self
    }

    /// Writes an array of symbols.
    pub(crate) fn symbols(&mut self, values: &[&str]) -> &mut Self {
        let out = self.item();
        out.put_u8(0xf0);
        let at = out.len();
        out.put_u64(0);
        out.put_u8(0xb3);
        for value in values {
            let len = u32::try_from(value.len()).expect("a symbol is short");
            out.put_u32(len);
            out.put_slice(value.as_bytes());
        }
        let size = out.len() - at - 4;
        patch_u32(out, at, size);
        patch_u32(out, at + 4, values.len());
        self
    }
}

/// Appends binary data as one value.
pub(crate) fn binary(out: &mut BytesMut, value: &[u8]) {
    variable(out, 0xa0, value);
}

fn variable(out: &mut BytesMut, short_code: u8, value: &[u8]) {
    if let Ok(len) = u8::try_from(value.len()) {
        out.put_slice(&[short_code, len]);
    } else {
        let len = u32::try_from(value.len()).expect("an encoded value is smaller than 4 GiB");
        out.put_u8(short_code + 0x10);
        out.put_u32(len);
    }
    out.put_slice(value);
}

#[cfg(test)]
mod tests {
    use super::super::decode::Reader;
    use super::*;

    #[test]
    fn encoded_values_decode_unchanged() {
        let long = "x".repeat(300);
        let mut out = BytesMut::new();
        described(&mut out, 0x10, |items| {
            items
                .text(&long)
                .null()
                .u32(70_000)
                .bool(true)
                .timestamp(-5)
                .binary(b"tag");
        });
        let mut reader = Reader::new(&out);
        assert_eq!(reader.descriptor(), Ok(0x10));
        let mut fields = reader.list().unwrap();
        assert_eq!(fields.get(Reader::text), Ok(Some(long.as_str())));
        assert_eq!(fields.get(Reader::u32), Ok(None));
        assert_eq!(fields.get(Reader::u32), Ok(Some(70_000)));
        assert_eq!(fields.get(Reader::bool), Ok(Some(true)));
        assert_eq!(fields.get(Reader::timestamp), Ok(Some(-5)));
        assert_eq!(fields.get(Reader::binary), Ok(Some(&b"tag"[..])));
        assert!(reader.is_empty());
    }

    #[test]
    fn frame_header_holds_the_frame_size() {
        let mut out = BytesMut::new();
        heartbeat(&mut out);
        assert_eq!(out[..], [0, 0, 0, 8, 2, 0, 0, 0]);
    }
}
