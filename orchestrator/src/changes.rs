//! Notifies a driver of changes to its rollout by other components.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use twincast_core::ids::{RolloutName, Version};
use twincast_core::ports::{Halt, RolloutRegistry, Store, StoreError};
use twincast_core::rollout::Rollout;

/// The interval between two checks with the store that the known record is current, while no change
/// is reported. Matters only for a store that has lost its last writes.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(30);

/// The known state of a rollout, without a read of the record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newest {
    /// The newest version of the rollout's record, stored or about to be.
    pub version: Version,
    /// Whether all rollouts are halted.
    pub halted: bool,
}

/// The way in which a driver learns of changes to its rollout.
#[derive(Clone)]
pub enum ChangeSource {
    /// The driver polls the store. No halt of all rollouts exists.
    Polled,
    /// A poll of the rollout registry notifies all drivers of the process.
    Notified {
        /// The result of the last poll.
        newest: watch::Receiver<Newest>,
        /// The registry with the halt of all rollouts.
        registry: Arc<dyn RolloutRegistry>,
    },
}

impl ChangeSource {
    /// Returns whether changes arrive as notifications.
    pub(crate) fn is_notified(&self) -> bool {
        matches!(self, Self::Notified { .. })
    }

    /// Returns the halt of all rollouts at this moment, if any.
    pub(crate) async fn halted(&self) -> Result<Option<Halt>, StoreError> {
        match self {
            Self::Polled => Ok(None),
            Self::Notified { registry, .. } => registry.halted().await,
        }
    }

    /// Returns whether all rollouts were halted at the last poll.
    pub(crate) fn were_halted(&self) -> bool {
        match self {
            Self::Polled => false,
            Self::Notified { newest, .. } => newest.borrow().halted,
        }
    }

    /// Waits until the record of a rollout may differ from `known`, or until the halt of all
    /// rollouts differs from `were_halted` ([the last poll](Self::were_halted)), if given. `every`
    /// is the interval of polls where the driver polls. `confirmed_at` is the time at which the
    /// store last confirmed the known record; `None` counts as now.
    ///
    /// Cancel safety: may be dropped at any time; the next call continues with `confirmed_at`.
    pub(crate) async fn changed(
        &self,
        store: &dyn Store,
        known: &Rollout,
        were_halted: Option<bool>,
        every: Duration,
        confirmed_at: &mut Option<Instant>,
    ) -> Result<(), StoreError> {
        let name = &known.spec.name;
        let Self::Notified { newest, .. } = self else {
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
            // The registry lists a version before the store has the record.
            let is_listed = now.version == known.version;
            if !is_listed && !is_current(store, name, known).await? {
                return Ok(());
            }
            let until = match is_listed {
                true => *confirmed_at.get_or_insert_with(Instant::now) + CONFIRM_INTERVAL,
                false => Instant::now() + every,
            };
            match tokio::time::timeout_at(until, newest.changed()).await {
                // The registry is not polled any more.
                Ok(Err(_)) => std::future::pending().await,
                Ok(Ok(())) => {}
                Err(_) if is_listed => {
                    if !is_current(store, name, known).await? {
                        return Ok(());
                    }
                    *confirmed_at = Some(Instant::now());
                }
                Err(_) => {}
            }
        }
    }
}

/// Returns whether the stored record is the known record.
pub(crate) async fn is_current(
    store: &dyn Store,
    name: &RolloutName,
    known: &Rollout,
) -> Result<bool, StoreError> {
    Ok(store.revision(name).await? == Some(known.revision()))
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;
    use twincast_core::ids::Lineage;
    use twincast_core::ports::Rollouts as _;
    use twincast_testkit::{MemoryStore, RuntimeClock, build};

    use super::*;

    /// A store that lost its last writes may assign a version twice, so the listed version does not
    /// show the change.
    #[tokio::test(start_paused = true)]
    async fn short_waits_detect_a_new_record_of_equal_version() {
        let store = MemoryStore::new(Arc::new(RuntimeClock::default()));
        let rollout = build::running(&store, "r", vec![build::batch(0, 1)]).await;
        let mut known = store.rollout(&rollout.spec.name).await.unwrap().unwrap();
        known.lineage = Lineage(known.lineage.0 ^ 1);
        let listed = Newest {
            version: known.version,
            halted: false,
        };
        let (_listing, newest) = watch::channel(listed);
        let registry = Arc::new(store.clone());
        let changes = ChangeSource::Notified { newest, registry };
        let every = Duration::from_secs(1);
        let (began, mut confirmed_at) = (Instant::now(), None);
        // As between the passes of a driver.
        while timeout(
            every,
            changes.changed(&store, &known, None, every, &mut confirmed_at),
        )
        .await
        .is_err()
        {
            assert!(began.elapsed() <= CONFIRM_INTERVAL, "change not noticed");
        }
        let known = store.rollout(&rollout.spec.name).await.unwrap().unwrap();
        let changed = changes.changed(&store, &known, None, every, &mut confirmed_at);
        assert!(
            timeout(CONFIRM_INTERVAL * 3, changed).await.is_err(),
            "nothing has changed"
        );
    }
}
