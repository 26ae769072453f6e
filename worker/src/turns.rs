//! Who may send through a hub at the same time.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Sends of all batches of a hub: any number together, or one alone. In order of arrival, so nobody waits for ever.
#[derive(Debug, Default)]
pub(crate) struct Turns(Arc<RwLock<()>>);

/// The right to send, until it is dropped.
#[derive(Debug)]
pub(crate) enum Turn {
    #[expect(dead_code, reason = "held until it is dropped")]
    Together(OwnedRwLockReadGuard<()>),
    #[expect(dead_code, reason = "held until it is dropped")]
    Alone(OwnedRwLockWriteGuard<()>),
}

impl Turns {
    /// Waits for a turn. Alone means that every send before it has been answered, or given up, and no other begins
    /// before the turn is over.
    ///
    /// Cancel safety: if dropped, the place in the order is lost.
    pub(crate) async fn take(&self, alone: bool) -> Turn {
        let lock = Arc::clone(&self.0);
        match alone {
            true => Turn::Alone(lock.write_owned().await),
            false => Turn::Together(lock.read_owned().await),
        }
    }
}
