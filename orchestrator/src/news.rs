//! How a driver learns that others have changed its rollout.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
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
    /// [was](Self::were_halted), if that matters. `every` is the interval of questions, where there are any. `assured` is when
    /// the store last said that the record is the one that is known; from now on, if that is not said.
    ///
    /// Cancel safety: may be dropped at any time; `assured` goes on from there.
    pub(crate) async fn changed(
        &self,
        store: &dyn Store,
        known: &Rollout,
        were_halted: Option<bool>,
        every: Duration,
        assured: &mut Option<Instant>,
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
            let until = match is_listed {
                true => *assured.get_or_insert_with(Instant::now) + ASSURED,
                false => Instant::now() + every,
            };
            match tokio::time::timeout_at(until, newest.changed()).await {
                // Nobody looks any more.
                Ok(Err(_)) => std::future::pending().await,
                Ok(Ok(())) => {}
                Err(_) if is_listed => {
                    if !is_current(store, name, known).await? {
                        return Ok(());
                    }
                    *assured = Some(Instant::now());
                }
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

#[cfg(test)]
mod tests {
    use tokio::time::timeout;
    use twincast_core::ids::Lineage;
    use twincast_core::ports::Rollouts as _;
    use twincast_testkit::{MemoryStore, RuntimeClock, build};

    use super::*;

    /// A store that lost its last writes gives a version twice: what is listed does not tell.
    #[tokio::test(start_paused = true)]
    async fn another_record_of_the_same_version_is_noticed_though_nobody_waits_for_long() {
        let store = MemoryStore::new(Arc::new(RuntimeClock::default()));
        let rollout = build::running(&store, "r", vec![build::batch(0, 1)]).await;
        let mut known = store.rollout(&rollout.spec.name).await.unwrap().unwrap();
        known.lineage = Lineage(known.lineage.0 ^ 1);
        let listed = Newest {
            version: known.version,
            halted: false,
        };
        let (_listing, newest) = watch::channel(listed);
        let roster = Arc::new(store.clone());
        let news = News::Told { newest, roster };
        let every = Duration::from_secs(1);
        let (began, mut assured) = (Instant::now(), None);
        // As between the passes of a driver.
        while timeout(
            every,
            news.changed(&store, &known, None, every, &mut assured),
        )
        .await
        .is_err()
        {
            assert!(began.elapsed() <= ASSURED, "not noticed");
        }
        let known = store.rollout(&rollout.spec.name).await.unwrap().unwrap();
        let changed = news.changed(&store, &known, None, every, &mut assured);
        assert!(timeout(ASSURED * 3, changed).await.is_err(), "nothing has");
    }
}
