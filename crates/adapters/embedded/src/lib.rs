//! The embedded adapters, for an engine in a single process on a single machine.
//!
//! * [`EmbeddedStore`] keeps rollouts durably in a single file;
//! * [`InProcessQueue`] passes dispatches from task to task, in memory.
//!
//! All state is in the store, so the queue needs no durability: the queue is empty after a crash,
//! and the driver redispatches every open batch.

mod clock;
mod queue;
mod store;

pub use clock::SystemClock;
pub use queue::InProcessQueue;
pub use store::{EmbeddedStore, OpenError};
