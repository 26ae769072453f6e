//! A disk that can lose power, or be full.
//!
//! Unsynced writes are in the system's cache: a power cut keeps an arbitrary part of the writes,
//! and of a single write an arbitrary part of the sectors, in any order.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;
use twincast_core::ports::Clock;

use super::super::disk::Disk;
use crate::{EmbeddedStore, OpenError};

const SECTOR: usize = 512;

/// Pseudo-random numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// A disk with a single file. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The content certain to survive a power cut.
    durable: Vec<u8>,
    /// The content seen by reads.
    current: Vec<u8>,
    /// The writes since the last sync.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// The number of writes and syncs until the power cut.
    fuse: Option<u64>,
    /// The number of writes and syncs so far.
    operations: u64,
    /// The largest possible size of written data.
    room: Option<u64>,
}

impl SimDisk {
    /// Opens a store on this disk.
    pub(super) fn open(&self, clock: Arc<dyn Clock>) -> Result<EmbeddedStore, OpenError> {
        let disk = self.clone();
        let disk = Disk::new(PathBuf::from("(simulated)"), move |builder| {
            builder.create_with_backend(disk.clone())
        });
        EmbeddedStore::start(disk, clock)
    }

    /// Cuts the power after this many further writes and syncs.
    pub(super) fn set_fuse(&self, operations: u64) {
        self.state().fuse = Some(operations);
    }

    /// Limits the file to this many bytes; `None` for no limit.
    pub(super) fn set_room(&self, bytes: Option<u64>) {
        self.state().room = bytes;
    }

    pub(super) fn operations(&self) -> u64 {
        self.state().operations
    }

    pub(super) fn bytes(&self) -> u64 {
        self.state().current.len() as u64
    }

    /// Restores power; the dice decide which cached writes have reached the disk.
    pub(super) fn power_on(&self, dice: &mut Dice) {
        let mut state = self.state();
        let mut image = std::mem::take(&mut state.durable);
        for (offset, data) in std::mem::take(&mut state.unsynced) {
            let keep = dice.below(3);
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                // All sectors, no sector, or every sector at random.
                if keep == 0 || keep == 1 && dice.below(2) == 0 {
                    let start = offset + index * SECTOR;
                    let end = start + sector.len();
                    image.resize(image.len().max(end), 0);
                    image[start..end].copy_from_slice(sector);
                }
            }
        }
        // The length of a file longer than the synced data comes from the cache.
        let length = state.current.len().max(image.len());
        image.resize(length, 0);
        state.current.clone_from(&image);
        state.durable = image;
        state.fuse = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some(0) => return Err(io::Error::other("the power is gone")),
            Some(left) => *left -= 1,
            None => {}
        }
        self.operations += 1;
        Ok(())
    }

    fn has_room(&self, end: u64) -> io::Result<()> {
        if self.room.is_some_and(|room| end > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl StorageBackend for SimDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let start = offset as usize;
        let source = state.current.get(start..start + out.len());
        out.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        // As on a real disk, growing a file takes no room; writing the pages does.
        state.current.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        state.unsynced.clear();
        let State {
            durable, current, ..
        } = &mut *state;
        durable.clone_from(current);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        let (start, end) = (offset as usize, offset as usize + data.len());
        state.has_room(end as u64)?;
        let length = state.current.len().max(end);
        state.current.resize(length, 0);
        state.current[start..end].copy_from_slice(data);
        state.unsynced.push((start, data.to_vec()));
        Ok(())
    }
}
