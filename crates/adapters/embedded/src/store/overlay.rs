//! A read-only file: writes of the database stay in memory.
//!
//! The database repairs an unclosed file when opening the file, and marks an open file in the
//! header. The overlay keeps both writes in memory. So a reader needs no write access, and changes
//! nothing for other processes.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// The size of the pieces in which writes are kept.
const PIECE: usize = 4096;

/// A file with the writes on top. The writes are those of a repair, a small part of a file.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    over: Mutex<Over>,
}

#[derive(Debug)]
struct Over {
    len: u64,
    /// The length of the valid part of the file, followed by zeros.
    file_len: u64,
    pieces: HashMap<u64, Box<[u8; PIECE]>>,
}

impl Overlay {
    pub(super) fn on(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let over = Over {
            len,
            file_len: len,
            pieces: HashMap::new(),
        };
        Ok(Self {
            file,
            over: Mutex::new(over),
        })
    }

    fn over(&self) -> MutexGuard<'_, Over> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the file at `offset`, with zeros beyond `end`.
    fn below(&self, end: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (from_file, beyond) = out.split_at_mut(there.min(out.len()));
        beyond.fill(0);
        self.file.read_exact_at(from_file, offset)
    }
}

/// Splits a range into pieces: the number of each piece, the offset in the piece, and the part of
/// the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = usize::try_from(at % PIECE as u64).expect("below the size of a piece");
        let part = (PIECE - within).min(len - done);
        let range = done..done + part;
        done += part;
        (part > 0).then_some((at / PIECE as u64, within, range))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.over().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let over = self.over();
        if offset.saturating_add(out.len() as u64) > over.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.below(over.file_len, offset, out)?;
        if over.pieces.is_empty() {
            return Ok(());
        }
        for (number, within, range) in pieces(offset, out.len()) {
            if let Some(piece) = over.pieces.get(&number) {
                let part = &piece[within..within + range.len()];
                out[range].copy_from_slice(part);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut over = self.over();
        over.len = len;
        over.file_len = over.file_len.min(len);
        // Truncated data reads as zeros after growing again.
        over.pieces
            .retain(|number, _| number.saturating_mul(PIECE as u64) < len);
        let within = usize::try_from(len % PIECE as u64).expect("below the size of a piece");
        if let Some(last) = over.pieces.get_mut(&(len / PIECE as u64)) {
            last[within..].fill(0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut over = self.over();
        for (number, within, range) in pieces(offset, data.len()) {
            if !over.pieces.contains_key(&number) {
                let mut piece = Box::new([0; PIECE]);
                self.below(over.file_len, number * PIECE as u64, &mut *piece)?;
                over.pieces.insert(number, piece);
            }
            let piece = over.pieces.get_mut(&number).expect("it is there by now");
            piece[within..within + range.len()].copy_from_slice(&data[range]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Every read returns the content of a plain file with the same writes, and the file below
    /// stays unchanged.
    #[test]
    fn overlay_reads_like_a_written_file() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut plain: Vec<u8> = (0..3 * PIECE + 100).map(|n| (n % 251) as u8).collect();
        file.write_all(&plain).expect("a temporary file");
        let below = plain.clone();
        let reopened = file.reopen().expect("the file exists");
        let overlay = Overlay::on(reopened).expect("the size of the file");
        let write = |plain: &mut Vec<u8>, at: usize, data: &[u8]| {
            overlay
                .write(at as u64, data)
                .expect("memory does not fail");
            plain[at..at + data.len()].copy_from_slice(data);
        };
        let cut = |plain: &mut Vec<u8>, len: usize| {
            overlay.set_len(len as u64).expect("memory does not fail");
            plain.resize(len, 0);
        };
        let same = |plain: &[u8]| {
            assert_eq!(
                overlay.len().expect("memory does not fail"),
                plain.len() as u64
            );
            for at in [0, 1, PIECE - 1, PIECE, 2 * PIECE + 7] {
                let mut out = vec![7; plain.len() - at];
                overlay
                    .read(at as u64, &mut out)
                    .expect("the range is within the file");
                assert_eq!(out, plain[at..], "from {at}");
            }
        };
        same(&plain);
        write(&mut plain, PIECE - 2, &[9; PIECE + 4]);
        same(&plain);
        cut(&mut plain, 5 * PIECE + 3);
        same(&plain);
        write(&mut plain, 4 * PIECE - 1, &[8; 5]);
        same(&plain);
        cut(&mut plain, 2 * PIECE + 50);
        cut(&mut plain, 4 * PIECE);
        same(&plain);
        let mut out = [0; 2];
        let beyond = overlay.read(4 * PIECE as u64 - 1, &mut out);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(std::fs::read(file.path()).expect("the file exists"), below);
    }
}
