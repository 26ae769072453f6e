//! Files that are whole or not there, whatever happens: written beside, synced, renamed, and the folder synced.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::update::{FORMAT, State};

/// The agent's folder.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    folder: PathBuf,
    /// Held as long as the agent runs.
    _lock: std::sync::Arc<File>,
}

impl Store {
    /// Opens the folder, and makes it if it is not there. Only one agent may have it open.
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

    /// Where artefacts are fetched to.
    pub(crate) fn downloads(&self) -> PathBuf {
        self.folder.join("download")
    }

    /// Where hooks leave what became of them.
    pub(crate) fn hooks(&self) -> PathBuf {
        self.folder.join("hooks")
    }

    /// The state as it was stored last. A damaged one is put aside and counts as none: the device must stay reachable, and
    /// its version guard still holds.
    pub(crate) fn load(&self) -> io::Result<Option<State>> {
        let path = self.folder.join("state.json");
        let damaged = match read::<State>(&path) {
            Ok(Some(state)) if state.format == FORMAT => return Ok(Some(state)),
            Ok(None) => return Ok(None),
            Ok(Some(state)) => format!("it has format {}; this agent reads {FORMAT}", state.format),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
            Err(error) => return Err(error),
        };
        tracing::error!(
            error = damaged,
            "state cannot be read; it is put aside as state.json.damaged"
        );
        fs::rename(&path, self.folder.join("state.json.damaged"))?;
        Ok(None)
    }

    /// Stores the state. When it returns, a power cut does not undo it.
    pub(crate) fn save(&self, state: &State) -> io::Result<()> {
        write(&self.folder.join("state.json"), state)
    }

    /// The hub that the provisioning service gave.
    pub(crate) fn assignment<T: DeserializeOwned>(&self) -> Option<T> {
        read(&self.folder.join("assignment.json")).ok().flatten()
    }

    /// Forgets it.
    pub(crate) fn forget_assignment(&self) {
        if let Err(error) = fs::remove_file(self.folder.join("assignment.json")) {
            tracing::warn!(%error, "assignment cannot be forgotten");
        }
    }

    /// Remembers it.
    pub(crate) fn assign(&self, assignment: &impl Serialize) -> io::Result<()> {
        write(&self.folder.join("assignment.json"), assignment)
    }
}

/// A file's content; none if it is not there, `InvalidData` if it is something else.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(Into::into),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts a file in the place of another one, at once and for good.
pub(crate) fn write(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(content)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_folder(path)
}

/// Makes what was renamed or made in a file's folder last.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes all that is in a folder.
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
    fn a_state_comes_back_and_a_damaged_one_is_put_aside() {
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
        // What a crash leaves of a write does not count.
        fs::write(folder.path().join("state.new"), "{\"for").unwrap();
        assert_eq!(store.load().unwrap().as_ref(), Some(&state));
        state.format = FORMAT + 1;
        store.save(&state).unwrap();
        assert_eq!(store.load().unwrap(), None);
        fs::write(folder.path().join("state.json"), "{}").unwrap();
        assert_eq!(store.load().unwrap(), None);
        assert!(folder.path().join("state.json.damaged").exists());
        assert_eq!(store.load().unwrap(), None);
    }
}
