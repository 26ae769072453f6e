//! A store that can be away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use twincast_core::ports::StoreError;

use crate::MemoryStore;
use crate::interposed::{Between, Call, Interposed};

/// How the way to a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Calls get through.
    Open,
    /// Calls fail at once with [`StoreError::Unavailable`], and take no effect.
    Broken,
    /// Calls wait until the way is another one.
    Silent,
    /// Calls fail at once with [`StoreError::NotWritable`], and take no effect.
    Full,
    /// Calls take so much longer.
    Slow(Duration),
}

/// A store that is reached over a [`Way`]; it begins open. Clones are the same store.
pub type AwayStore = Interposed<Ways>;

/// The ways of calls, and how many were made.
#[derive(Debug, Clone)]
pub struct Ways {
    now: Arc<watch::Sender<Now>>,
    calls: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Now {
    /// Of some calls, by name, or by name and what they are about.
    of: BTreeMap<String, Way>,
    /// Of all others.
    others: Way,
}

impl Now {
    fn of(&self, call: &Call) -> Way {
        let about = format!("{} {}", call.name, call.about);
        let own = self.of.get(&about).or_else(|| self.of.get(call.name));
        own.copied().unwrap_or(self.others)
    }
}

impl AwayStore {
    /// The way to `store`.
    #[must_use]
    pub fn new(store: &MemoryStore) -> Self {
        let open = Now {
            of: BTreeMap::new(),
            others: Way::Open,
        };
        let ways = Ways {
            now: Arc::new(watch::Sender::new(open)),
            calls: Arc::default(),
        };
        Self::on(store, ways)
    }

    /// Changes the way of all calls that have none of their own, for those that wait too.
    pub fn set(&self, way: Way) {
        self.between.now.send_modify(|now| now.others = way);
    }

    /// Changes the way of one call: `throttled`, or `rollout NAME`.
    pub fn set_of(&self, call: &str, way: Way) {
        self.between
            .now
            .send_modify(|now| _ = now.of.insert(call.to_owned(), way));
    }

    /// How many calls were made.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.between.calls.load(Ordering::Relaxed)
    }
}

impl Between for Ways {
    async fn call<T: Send + 'static>(
        &self,
        call: Call,
        effect: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut now = self.now.subscribe();
        let found = now.wait_for(|now| now.of(&call) != Way::Silent).await;
        let way = found.expect("this store keeps the sender").of(&call);
        let doing = "reach the store".to_owned();
        match way {
            Way::Broken => Err(StoreError::Unavailable {
                doing,
                source: "the way to it is broken".into(),
            }),
            Way::Full => Err(StoreError::NotWritable {
                doing,
                source: "it is full".into(),
            }),
            Way::Slow(time) => {
                tokio::time::sleep(time).await;
                effect.await
            }
            Way::Open | Way::Silent => effect.await,
        }
    }
}
