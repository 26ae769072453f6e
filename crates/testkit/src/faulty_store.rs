//! A store behind a connection with controllable faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use twincast_core::ports::StoreError;

use crate::MemoryStore;
use crate::interposed::{Call, Interposed, Interposer};

/// The condition of the connection to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Calls reach the store.
    Open,
    /// Calls fail at once with [`StoreError::Unavailable`], without an effect.
    Broken,
    /// Calls wait until the condition changes.
    Silent,
    /// Calls fail at once with [`StoreError::NotWritable`], without an effect.
    Full,
    /// Calls take this much longer.
    Slow(Duration),
}

/// A store behind a connection with a [`Condition`], initially open. Clones share the store.
pub type FaultyStore = Interposed<Conditions>;

/// The conditions of calls, and the number of calls.
#[derive(Debug, Clone)]
pub struct Conditions {
    now: Arc<watch::Sender<Now>>,
    calls: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Now {
    /// The conditions of some calls, by name, or by name and subject.
    of: BTreeMap<String, Condition>,
    /// The condition of all other calls.
    others: Condition,
}

impl Now {
    fn of(&self, call: &Call) -> Condition {
        let about = format!("{} {}", call.name, call.about);
        let own = self.of.get(&about).or_else(|| self.of.get(call.name));
        own.copied().unwrap_or(self.others)
    }
}

impl FaultyStore {
    /// Creates a connection to `store`, initially open.
    #[must_use]
    pub fn new(store: &MemoryStore) -> Self {
        let open = Now {
            of: BTreeMap::new(),
            others: Condition::Open,
        };
        let conditions = Conditions {
            now: Arc::new(watch::Sender::new(open)),
            calls: Arc::default(),
        };
        Self::on(store, conditions)
    }

    /// Changes the condition of all calls without a condition of their own, including waiting
    /// calls.
    pub fn set(&self, condition: Condition) {
        self.interposer
            .now
            .send_modify(|now| now.others = condition);
    }

    /// Changes the condition of a single call: `throttled`, or `rollout NAME`.
    pub fn set_of(&self, call: &str, condition: Condition) {
        self.interposer
            .now
            .send_modify(|now| _ = now.of.insert(call.to_owned(), condition));
    }

    /// Returns the number of calls.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.interposer.calls.load(Ordering::Relaxed)
    }
}

impl Interposer for Conditions {
    async fn call<T: Send + 'static>(
        &self,
        call: Call,
        effect: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut now = self.now.subscribe();
        let found = now.wait_for(|now| now.of(&call) != Condition::Silent).await;
        let condition = found.expect("this store keeps the sender").of(&call);
        let doing = "reach the store".to_owned();
        match condition {
            Condition::Broken => Err(StoreError::Unavailable {
                doing,
                source: "the connection to it is broken".into(),
            }),
            Condition::Full => Err(StoreError::NotWritable {
                doing,
                source: "it is full".into(),
            }),
            Condition::Slow(time) => {
                tokio::time::sleep(time).await;
                effect.await
            }
            Condition::Open | Condition::Silent => effect.await,
        }
    }
}
