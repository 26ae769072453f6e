//! The errors of a store.

use super::Disposition;

/// Why a call to the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has changed the record, or holds the lease now. Read again, or give up.
    #[error("{what} was changed by another process in the meantime")]
    Superseded {
        /// The record or lease.
        what: String,
    },
    /// The object does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// The missing object.
        what: String,
    },
    /// No space, or no permission to write; nothing was changed.
    #[error("cannot {doing}: the store is not writable")]
    NotWritable {
        /// The attempted operation.
        doing: String,
        /// The error of the server, or of the operating system.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store does not answer. The call may or may not have taken effect.
    #[error("cannot {doing}: the store does not answer")]
    Unavailable {
        /// The attempted operation.
        doing: String,
        /// The error of the store's client.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A newer release has written the object, in a format unknown to this release. Nothing was
    /// changed. Only releases with knowledge of the format may change the object.
    #[error(
        "{what} was written by a newer release: format {found}, and this release knows formats \
         up to {known}"
    )]
    Newer {
        /// The object.
        what: String,
        /// The object's format.
        found: u32,
        /// The newest known format.
        known: u32,
    },
    /// The store lost acknowledged writes, and the call relies on a lost write. Nothing was
    /// changed: read again, and repeat the lost changes.
    #[error("the store has lost acknowledged writes: {what}")]
    Regressed {
        /// The missing data.
        what: String,
    },
    /// The stored data cannot be the written data.
    #[error("cannot {doing}: the stored data are damaged")]
    Corrupt {
        /// The attempted operation.
        doing: String,
        /// The inconsistency.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Returns how to handle the error. A store without space or permission ([`Self::NotWritable`])
    /// may become writable again after an operator's intervention. A process with the store on its
    /// own machine need not wait for the intervention.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unavailable { .. } | Self::NotWritable { .. } => Disposition::Retry,
            Self::Superseded { .. } | Self::NotFound { .. } | Self::Regressed { .. } => {
                Disposition::Superseded
            }
            Self::Newer { .. } | Self::Corrupt { .. } => Disposition::Fatal,
        }
    }
}
