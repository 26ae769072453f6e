//! Atomic, durable files: written under another name, synced, renamed, and the folder synced.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::update::{FORMAT, State};

/// The agent's state folder.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    folder: PathBuf,
    /// The lock of the folder, held while the agent runs.
    _lock: std::sync::Arc<File>,
}

impl Store {
    /// Opens the folder, and creates a missing folder. Only a single agent may have the folder
    /// open.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        for folder in [
            folder.to_owned(),
            folder.join("download"),
            folder.join("hooks"),
        ] {
            fs::create_dir_all(folder)?;
        }
        let lock = File::create(folder.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another agent uses this folder",
            ),
            fs::TryLockError::Error(error) => error,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            _lock: lock.into(),
        })
    }

    /// Returns the folder of downloaded artefacts.
    pub(crate) fn downloads(&self) -> PathBuf {
        self.folder.join("download")
    }

    /// Returns the folder of hook results.
    pub(crate) fn hooks(&self) -> PathBuf {
        self.folder.join("hooks")
    }

    /// Returns the last stored state. A damaged state is put aside and counts as absent: the device
    /// must stay reachable, and the version guard still holds.
    pub(crate) fn load(&self) -> io::Result<Option<State>> {
        let path = self.folder.join("state.json");
        let damaged = match read::<State>(&path) {
            Ok(Some(state)) if state.format == FORMAT => return Ok(Some(state)),
            Ok(None) => return Ok(None),
            Ok(Some(state)) => format!(
                "the file has format {}; this agent supports {FORMAT}",
                state.format
            ),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
            Err(error) => return Err(error),
        };
        tracing::error!(
            error = damaged,
            "cannot read the state; renaming the file to state.json.damaged"
        );
        fs::rename(&path, self.folder.join("state.json.damaged"))?;
        Ok(None)
    }

    /// Stores the state. After the return, the state survives a power cut.
    pub(crate) fn save(&self, state: &State) -> io::Result<()> {
        write(&self.folder.join("state.json"), state)
    }

    /// Returns the stored assignment of the provisioning service.
    pub(crate) fn assignment<T: DeserializeOwned>(&self) -> Option<T> {
        read(&self.folder.join("assignment.json")).ok().flatten()
    }

    /// Deletes the stored assignment.
    pub(crate) fn forget_assignment(&self) {
        if let Err(error) = fs::remove_file(self.folder.join("assignment.json")) {
            tracing::warn!(%error, "failed to delete the stored assignment");
        }
    }

    /// Stores the assignment.
    pub(crate) fn assign(&self, assignment: &impl Serialize) -> io::Result<()> {
        write(&self.folder.join("assignment.json"), assignment)
    }
}

/// Reads a JSON file. Returns none for a missing file, and `InvalidData` for damaged content, which
/// includes an empty and a truncated file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file, atomically and durably.
pub(crate) fn write(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(content)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// Syncs the parent folder of a file, so that created and renamed files survive a power cut.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes the content of a folder.
pub(crate) fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_restored_and_a_damaged_file_is_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(
            Store::open(folder.path())
                .unwrap_err()
                .to_string()
                .contains("another agent")
        );
        assert_eq!(store.load().unwrap(), None);
        let mut state = State::new(Some("1.0".to_owned()));
        store.save(&state).unwrap();
        assert_eq!(store.load().unwrap().as_ref(), Some(&state));
        // The remains of an interrupted write do not count.
        fs::write(folder.path().join("state.new"), "{\"for").unwrap();
        assert_eq!(store.load().unwrap().as_ref(), Some(&state));
        state.format = FORMAT + 1;
        store.save(&state).unwrap();
        assert_eq!(store.load().unwrap(), None);
        for damaged in ["{}", "", "{\"format\": 1, \"ver", "hello"] {
            fs::write(folder.path().join("state.json"), damaged).unwrap();
            assert_eq!(store.load().unwrap(), None, "{damaged:?}");
            let aside = folder.path().join("state.json.damaged");
            assert_eq!(fs::read_to_string(&aside).unwrap(), damaged);
            fs::remove_file(&aside).unwrap();
            assert_eq!(store.load().unwrap(), None);
        }
    }
}
