//! Errors of the store, for people and for callers.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use redb::{DatabaseError, StorageError};
use twincast_core::ports::StoreError;

/// Why a state folder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the state.
    #[error("the state in {} is in use by another process", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The path does not lead to a folder.
    #[error("{} is not a folder, so no state can be kept in it", dir.display())]
    NotAFolder {
        /// The path.
        dir: PathBuf,
    },
    /// The system denies write access.
    #[error("cannot write to the state in {}", dir.display())]
    NotWritable {
        /// The folder.
        dir: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The system denies read access.
    #[error("cannot read the state in {}", dir.display())]
    NotReadable {
        /// The folder.
        dir: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The disk is full.
    #[error("no room on the disk for the state in {}", dir.display())]
    NoRoom {
        /// The folder.
        dir: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// A newer release has written the state.
    #[error(
        "the state in {} has format {found}, and this release reads up to format {known}: \
         use the release that wrote it, or a newer one", dir.display()
    )]
    TooNew {
        /// The folder.
        dir: PathBuf,
        /// The number of the format.
        found: u64,
        /// The newest known format.
        known: u64,
    },
    /// The content is not a state of this program, or is damaged.
    #[error("the state in {} is damaged, or is not a Twincast state", dir.display())]
    Damaged {
        /// The folder.
        dir: PathBuf,
        /// The damage.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Any other error of the system.
    #[error("cannot open the state in {}", dir.display())]
    System {
        /// The folder.
        dir: PathBuf,
        /// The error of the system.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl OpenError {
    pub(super) fn from_io(dir: PathBuf, source: io::Error) -> Self {
        use io::ErrorKind as K;
        match source.kind() {
            K::NotADirectory | K::AlreadyExists => Self::NotAFolder { dir },
            K::PermissionDenied | K::ReadOnlyFilesystem => Self::NotWritable { dir, source },
            K::StorageFull | K::QuotaExceeded => Self::NoRoom { dir, source },
            K::InvalidData | K::UnexpectedEof => Self::Damaged {
                dir,
                source: Box::new(source),
            },
            _ => Self::System {
                dir,
                source: Box::new(source),
            },
        }
    }

    pub(super) fn from_reading(dir: PathBuf, source: io::Error) -> Self {
        match Self::from_io(dir, source) {
            Self::NotWritable { dir, source } => Self::NotReadable { dir, source },
            error => error,
        }
    }

    pub(super) fn from_database(dir: PathBuf, error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen => Self::InUse { dir },
            DatabaseError::Storage(StorageError::Io(source)) => Self::from_io(dir, source),
            DatabaseError::Storage(StorageError::Corrupted(_))
            | DatabaseError::UpgradeRequired(_)
            | DatabaseError::RepairAborted => Self::Damaged {
                dir,
                source: Box::new(error),
            },
            _ => Self::System {
                dir,
                source: Box::new(error),
            },
        }
    }

    pub(super) fn from_redb(dir: PathBuf, error: redb::Error) -> Self {
        match error {
            redb::Error::Io(source) => Self::from_io(dir, source),
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => Self::System {
                dir,
                source: Box::new(error),
            },
            _ => Self::Damaged {
                dir,
                source: Box::new(error),
            },
        }
    }
}

/// Why an operation had no effect.
#[derive(Debug)]
pub(super) enum Fault {
    /// The operation was refused before any write.
    Refused(StoreError),
    /// The operation found impossible data, and has written nothing.
    Damaged(String),
    /// The file failed. The whole transaction must be discarded.
    Failed(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Fault {
    pub(super) fn superseded(what: impl fmt::Display) -> Self {
        Self::Refused(StoreError::Superseded {
            what: what.to_string(),
        })
    }

    pub(super) fn regressed(what: String) -> Self {
        Self::Refused(StoreError::Regressed { what })
    }

    pub(super) fn not_found(what: impl fmt::Display) -> Self {
        Self::Refused(StoreError::NotFound {
            what: what.to_string(),
        })
    }

    pub(super) fn damaged(what: impl fmt::Display) -> Self {
        Self::Damaged(what.to_string())
    }
}

/// A failure reported to all requests of a group.
#[derive(Debug, Clone)]
pub(super) struct Cause(pub(super) Arc<dyn Error + Send + Sync>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Data that the store cannot have written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct InvalidData(pub(super) String);

/// The store was opened read-only.
#[derive(Debug, thiserror::Error)]
#[error("the state is open read-only, and cannot be changed")]
pub(super) struct ReadOnly;

/// The store was closed, or its thread has died.
#[derive(Debug, thiserror::Error)]
#[error("the store is closed")]
pub(super) struct Closed;
