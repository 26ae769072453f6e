//! Keeps each distinct byte string once: the million messages of a rollout share one body.

use std::collections::HashMap;

use bytes::Bytes;

/// Up to this many bytes of content are kept in total; of later byte strings only the length is
/// kept. Without the bound, memory would grow with bodies that differ for every device.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// Distinct byte strings, by number.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    by_hash: HashMap<u64, u32>,
    pieces: Vec<Piece>,
    kept_bytes: usize,
}

#[derive(Debug)]
struct Piece {
    content: Option<Bytes>,
    len: u32,
}

impl Interner {
    /// Returns the number of `bytes`. With `needs`, the content is kept beyond the bound.
    pub(crate) fn intern(&mut self, bytes: &[u8], needs: bool) -> u32 {
        let hash = xxhash_rust::xxh3::xxh3_64(bytes);
        if let Some(number) = self.by_hash.get(&hash).copied() {
            if let Some(piece) = self.pieces.get_mut(number as usize)
                && needs
                && piece.content.is_none()
            {
                piece.content = Some(Bytes::copy_from_slice(bytes));
                self.kept_bytes += bytes.len();
            }
            return number;
        }
        let keep = needs || self.kept_bytes + bytes.len() <= KEPT_BYTES_MAX;
        if keep {
            self.kept_bytes += bytes.len();
        }
        // The store holds fewer messages than 2^32, and each adds at most one piece.
        let number = u32::try_from(self.pieces.len()).unwrap_or(u32::MAX);
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.pieces.push(Piece {
            content: keep.then(|| Bytes::copy_from_slice(bytes)),
            len,
        });
        self.by_hash.insert(hash, number);
        number
    }

    /// Returns the bytes of a number, if kept.
    pub(crate) fn get(&self, number: u32) -> Option<&Bytes> {
        self.pieces.get(number as usize)?.content.as_ref()
    }

    /// Returns the length in bytes of a number.
    pub(crate) fn len(&self, number: u32) -> u32 {
        self.pieces
            .get(number as usize)
            .map_or(0, |piece| piece.len)
    }
}

/// Short texts stored back to back in large blocks, without an allocation or any overhead per text.
#[derive(Debug, Default)]
pub(crate) struct TextArena {
    blocks: Vec<Vec<u8>>,
}

/// The position of a text in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TextRef(u64);

const BLOCK_BYTES: usize = 1 << 20;
const TEXT_BYTES_MAX: usize = u16::MAX as usize;

impl TextArena {
    /// Stores a text. A text above 64 KiB is cut; message ids are shorter.
    pub(crate) fn push(&mut self, text: &str) -> TextRef {
        let bytes = &text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        if self
            .blocks
            .last()
            .is_none_or(|block| block.len() + bytes.len() > BLOCK_BYTES)
        {
            self.blocks.push(Vec::with_capacity(BLOCK_BYTES));
        }
        let block = self.blocks.len() - 1;
        let start = self.blocks[block].len();
        self.blocks[block].extend_from_slice(bytes);
        TextRef((block as u64) << 40 | (start as u64) << 16 | bytes.len() as u64)
    }

    /// Returns a stored text.
    pub(crate) fn get(&self, at: TextRef) -> &str {
        let (block, start, len) = (
            (at.0 >> 40) as usize,
            (at.0 >> 16 & 0xff_ffff) as usize,
            (at.0 & 0xffff) as usize,
        );
        let bytes = self
            .blocks
            .get(block)
            .and_then(|block| block.get(start..start + len));
        bytes
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_share_a_number() {
        let mut interner = Interner::default();
        let a = interner.intern(b"body", false);
        assert_eq!(interner.intern(b"body", false), a);
        assert_ne!(interner.intern(b"other", false), a);
        assert_eq!(interner.get(a).unwrap(), &b"body"[..]);
        assert_eq!(interner.len(a), 4);
    }

    #[test]
    fn needed_content_is_kept_beyond_the_bound() {
        let mut interner = Interner {
            kept_bytes: KEPT_BYTES_MAX,
            ..Interner::default()
        };
        let late = interner.intern(b"late", false);
        assert_eq!((interner.get(late), interner.len(late)), (None, 4));
        assert_eq!(interner.intern(b"late", true), late);
        assert_eq!(interner.get(late).unwrap(), &b"late"[..]);
        let needed = interner.intern(b"needed", true);
        assert_eq!(interner.get(needed).unwrap(), &b"needed"[..]);
    }

    #[test]
    fn content_added_later_counts_towards_the_bound() {
        let mut interner = Interner {
            kept_bytes: KEPT_BYTES_MAX - 3,
            ..Interner::default()
        };
        let late = interner.intern(b"late", false);
        assert_eq!(interner.get(late), None);
        for _ in 0..2 {
            assert_eq!(interner.intern(b"late", true), late);
            assert_eq!(interner.kept_bytes, KEPT_BYTES_MAX + 1);
        }
        let next = interner.intern(b"abc", false);
        assert_eq!(interner.get(next), None);
    }

    #[test]
    fn texts_come_back_across_blocks() {
        let mut arena = TextArena::default();
        let texts: Vec<String> = (0..50_000)
            .map(|i| format!("rollout-{i}.{}", "x".repeat(i % 60)))
            .collect();
        let refs: Vec<_> = texts.iter().map(|text| arena.push(text)).collect();
        assert!(arena.blocks.len() > 1);
        for (text, at) in texts.iter().zip(refs) {
            assert_eq!(arena.get(at), text);
        }
    }
}
