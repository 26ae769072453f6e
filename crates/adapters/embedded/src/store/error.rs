//! What can go wrong, in words for people and for callers.

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
    /// Another process works on it.
    #[error("the state in {} is in use by another process", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The path leads to something that is no folder.
    #[error("{} is not a folder, so no state can be kept in it", dir.display())]
    NotAFolder {
        /// The path.
        dir: PathBuf,
    },
    /// The system does not let us write there.
    #[error("cannot write to the state in {}", dir.display())]
    NotWritable {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The system does not let us read there.
    #[error("cannot read the state in {}", dir.display())]
    NotReadable {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The disk is full.
    #[error("no room on the disk for the state in {}", dir.display())]
    NoRoom {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A newer release has written it.
    #[error(
        "the state in {} has format {found}, and this release reads up to format {known}: \
         use the release that wrote it, or a newer one", dir.display()
    )]
    TooNew {
        /// The folder.
        dir: PathBuf,
        /// The format's number.
        found: u64,
        /// The newest that we know.
        known: u64,
    },
    /// What is there is not a state of ours, or no longer one.
    #[error("the state in {} is damaged, or is not a Twincast state", dir.display())]
    Damaged {
        /// The folder.
        dir: PathBuf,
        /// What does not fit.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Anything else that the system says.
    #[error("cannot open the state in {}", dir.display())]
    System {
        /// The folder.
        dir: PathBuf,
        /// What it says.
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

/// Why an operation ended without its effect.
#[derive(Debug)]
pub(super) enum Fault {
    /// It was refused before it wrote anything.
    Refused(StoreError),
    /// It found data that cannot be; it has written nothing.
    Damaged(String),
    /// The file failed. Nothing of the transaction may be kept.
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

/// A failure that all requests of a group are told of.
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

/// Data that cannot be what was written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Misfit(pub(super) String);

/// The store was opened to look at it.
#[derive(Debug, thiserror::Error)]
#[error("the state was opened to look at it, and nothing of it can be changed")]
pub(super) struct ToLook;

/// The store was closed, or its thread has died.
#[derive(Debug, thiserror::Error)]
#[error("the store is closed")]
pub(super) struct Closed;
