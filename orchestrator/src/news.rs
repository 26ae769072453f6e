//! How a driver learns that others have changed its rollout.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use twincast_core::ids::{RolloutName, Version};
use twincast_core::ports::{Halt, Roster, Store, StoreError};
use twincast_core::rollout::Rollout;

/// The interval between two questions to the store whether a record is still the one that is known, when nothing says that
/// it is not. Only a store that has lost its last writes makes a difference.
const ASSURED: Duration = Duration::from_secs(30);

/// What is known of a rollout without asking for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newest {
    /// The newest version of its record, stored or about to be.
    pub version: Version,
    /// All rollouts are halted.
    pub halted: bool,
}

/// How a driver learns that others have changed its rollout.
#[derive(Clone)]
pub enum News {
    /// It asks the store now and then. Nothing halts all rollouts.
    Asked,
    /// Whoever looks at the roster for all drivers of the process tells it.
    Told {
        /// What the last look has shown.
        newest: watch::Receiver<Newest>,
        /// Where a halt of all rollouts is found.
        roster: Arc<dyn Roster>,
    },
}

impl News {
    /// Changes come by themselves.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self, Self::Told { .. })
    }

    /// Whether all rollouts are halted at this moment.
    pub(crate) async fn halted(&self) -> Result<Option<Halt>, StoreError> {
        match self {
            Self::Asked => Ok(None),
            Self::Told { roster, .. } => roster.halted().await,
        }
    }

    /// Whether all rollouts were halted at the last look.
    pub(crate) fn were_halted(&self) -> bool {
        match self {
            Self::Asked => false,
            Self::Told { newest, .. } => newest.borrow().halted,
        }
    }

    /// Waits until the record of a rollout may be another one than `known`, or whether all are halted is no longer as it
    /// [was](Self::were_halted), if that matters. `every` is the interval of questions, where there are any.
    ///
    /// Cancel safety: may be dropped at any time.
    pub(crate) async fn changed(
        &self,
        store: &dyn Store,
        known: &Rollout,
        were_halted: Option<bool>,
        every: Duration,
    ) -> Result<(), StoreError> {
        let name = &known.spec.name;
        let Self::Told { newest, .. } = self else {
            loop {
                tokio::time::sleep(every).await;
                if !is_current(store, name, known).await? {
                    return Ok(());
                }
            }
        };
        let mut newest = newest.clone();
        loop {
            let now = *newest.borrow_and_update();
            if were_halted.is_some_and(|halted| halted != now.halted) {
                return Ok(());
            }
            // A version is listed before it is stored.
            let is_listed = now.version == known.version;
            if !is_listed && !is_current(store, name, known).await? {
                return Ok(());
            }
            let patience = if is_listed { ASSURED } else { every };
            match tokio::time::timeout(patience, newest.changed()).await {
                // Nobody looks any more.
                Ok(Err(_)) => std::future::pending().await,
                Ok(Ok(())) => {}
                Err(_) if is_listed && !is_current(store, name, known).await? => return Ok(()),
                Err(_) => {}
            }
        }
    }
}

/// Whether the stored record is the one that is known.
pub(crate) async fn is_current(
    store: &dyn Store,
    name: &RolloutName,
    known: &Rollout,
) -> Result<bool, StoreError> {
    Ok(store.revision(name).await? == Some(known.revision()))
}
