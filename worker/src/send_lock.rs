//! The lock of the sends through a hub: shared, or exclusive.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// The lock of the sends of all batches of a hub: any number of shared holders at a time, or a
/// single exclusive holder. The lock is granted in order of arrival, so no send waits for ever.
#[derive(Debug, Default)]
pub(crate) struct SendLock(Arc<RwLock<()>>);

/// The right to send, held until dropped.
#[derive(Debug)]
pub(crate) enum SendGuard {
    #[expect(dead_code, reason = "held until it is dropped")]
    Shared(OwnedRwLockReadGuard<()>),
    #[expect(dead_code, reason = "held until it is dropped")]
    Exclusive(OwnedRwLockWriteGuard<()>),
}

impl SendLock {
    /// Acquires the lock; `alone` acquires it exclusively: after every earlier send is answered or
    /// given up, and no other send begins before the guard is dropped.
    ///
    /// Cancel safety: if dropped, the place in the order is lost.
    pub(crate) async fn acquire(&self, alone: bool) -> SendGuard {
        let lock = Arc::clone(&self.0);
        match alone {
            true => SendGuard::Exclusive(lock.write_owned().await),
            false => SendGuard::Shared(lock.read_owned().await),
        }
    }
}
