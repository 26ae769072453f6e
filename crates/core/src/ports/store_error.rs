//! What goes wrong with a store.

use super::Disposition;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has changed the record, or holds the lease, since. Read again, or let go.
    #[error("{what} was changed by somebody else in the meantime")]
    Superseded {
        /// What.
        what: String,
    },
    /// There is no such thing.
    #[error("{what} does not exist")]
    NotFound {
        /// What.
        what: String,
    },
    /// No room, or no permission to write: nothing was changed.
    #[error("cannot {doing}: the store cannot be written")]
    NotWritable {
        /// What was being done.
        doing: String,
        /// What the system says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store does not answer. The effect may or may not have taken place.
    #[error("cannot {doing}: the store does not answer")]
    Unavailable {
        /// What was being done.
        doing: String,
        /// What the store's client says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A newer release has written it, in a format that this one does not know. Nothing was changed; it is to be left to those
    /// that know it.
    #[error("{what} is of a newer release: format {found}, and this release knows up to {known}")]
    Newer {
        /// What.
        what: String,
        /// Its format.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// The store lost writes that it had acknowledged, so the call would rely on what is not there. Nothing was changed:
    /// read again, and do again what is missing.
    #[error("the store has lost its last writes: {what}")]
    Regressed {
        /// What is missing.
        what: String,
    },
    /// What is stored cannot be what was written.
    #[error("cannot {doing}: the stored data are damaged")]
    Corrupt {
        /// What was being done.
        doing: String,
        /// What does not fit.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// What is to be done about it. A store that [cannot be written](Self::NotWritable) may be written again when somebody
    /// makes room; a process whose store is on its own machine need not wait for that.
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
