//! What Twincast's own tests are made of. A development dependency only.
//!
//! * [`conformance`]: the contract of each port as a set of named cases, for any implementation;
//! * [`MemoryStore`]: a store that is obviously right, and the model that others are compared to;
//! * [`AwayStore`]: the way to another store, which can be broken, silent, full or slow;
//! * [`ScriptedHub`]: a hub that answers as it is told, and can be held at a point;
//! * [`ManualClock`]: a clock that stands still; [`RuntimeClock`]: one that goes with tokio's;
//! * [`build`]: rollouts and batches in a line;
//! * [`sim`]: doubles with seeded faults, for simulations of the whole engine;
//! * [`services`]: real RabbitMQ and Redis, and a proxy that cuts connections to them.
//!
//! There is no queue here: the embedded adapter's is in memory and takes part in the suite, so
//! tests use that one.

mod away;
pub mod build;
mod clock;
pub mod conformance;
mod feedback;
mod hub;
mod interposed;
mod memory;
mod metrics;
pub mod services;
pub mod sim;

pub use away::{AwayStore, Way};
pub use clock::{ManualClock, RuntimeClock};
pub use feedback::{FeedbackAnswer, FeedbackAnswered};
pub use hub::{ScriptedHub, Sent};
pub use interposed::{Between, Call, Interposed};
pub use memory::MemoryStore;
pub use metrics::{MetricAnswer, ScriptedMetrics};
