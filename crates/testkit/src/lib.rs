//! Test support for Twincast. A development dependency only.
//!
//! * [`conformance`]: the contract of each port as a set of named cases, for any implementation;
//! * [`MemoryStore`]: an obviously correct store, and the model for other stores;
//! * [`FaultyStore`]: a store behind a connection that can be broken, silent, full or slow;
//! * [`ScriptedHub`]: a hub with scripted answers, able to hold sends;
//! * [`ManualClock`]: a clock set by tests; [`RuntimeClock`]: a clock following tokio's;
//! * [`build`]: builders of rollouts and batches;
//! * [`sim`]: doubles with seeded faults, for simulations of the whole engine;
//! * [`services`]: real RabbitMQ and Redis, and a proxy for cutting connections.
//!
//! This crate has no queue: the embedded adapter's queue is in memory and passes the conformance
//! cases, so tests use the embedded queue.

pub mod build;
mod clock;
pub mod conformance;
mod faulty_store;
mod feedback;
mod hub;
mod interposed;
mod memory;
mod metrics;
pub mod services;
pub mod sim;

pub use clock::{ManualClock, RuntimeClock};
pub use faulty_store::{Condition, FaultyStore};
pub use feedback::{FeedbackAnswer, FeedbackAnswered};
pub use hub::{ScriptedHub, Sent};
pub use interposed::{Call, Interposed, Interposer};
pub use memory::MemoryStore;
pub use metrics::{MetricAnswer, ScriptedMetrics};
