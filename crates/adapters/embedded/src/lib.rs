//! The embedded adapters: what makes one process on one machine a whole Twincast.
//!
//! * [`EmbeddedStore`] keeps rollouts in one file, durably;
//! * [`InProcessQueue`] hands dispatches from task to task, in memory.
//!
//! The store is the truth, so the queue needs no durability: after a crash it is empty, and the
//! reconcile pass rings again for every batch that is open.

mod clock;
mod queue;
mod store;

pub use clock::SystemClock;
pub use queue::InProcessQueue;
pub use store::{EmbeddedStore, OpenError};
