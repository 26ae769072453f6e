//! Twincast's domain: rollouts, their planning and their state machines, and the ports to the
//! outside world.
//!
//! Everything here is deterministic. The crate has no runtime, no network and no clock: time,
//! random numbers and new ids arrive as arguments, so table tests can cover every rule.
//!
//! The modules:
//!
//! * [`spec`]: the rollout spec, its parser and its validation;
//! * [`plan`]: from a stream of devices to batches, cohorts, estimates and a digest;
//! * [`outcome`]: the outcome of one device, as a join-semilattice, and the counters of outcomes;
//! * [`answer`]: the answers of devices in their twins;
//! * [`gate`]: the test between two stages; [`evidence`]: how far the feedback behind a verdict has
//!   been received;
//! * [`rollout`] and [`batch`]: the two state machines;
//! * [`account`]: the time account of a rollout; [`explain`]: why a device is where it is;
//! * [`waiting`]: the reasons for waiting, and their texts;
//! * [`trace`]: the spans of a rollout, and how they form a trace;
//! * [`permits`]: the arithmetic of a hub's quota; [`link`]: whether workers can send through a
//!   hub;
//! * [`ports`]: queue, store, hub and clock, with the contract for all implementations.

pub mod account;
pub mod answer;
pub mod batch;
pub mod budget;
pub mod concurrency_group;
pub mod error;
pub mod evidence;
pub mod explain;
pub mod gate;
pub mod hub;
pub mod ids;
pub mod json;
pub mod link;
pub mod message;
pub mod outcome;
pub mod permits;
pub mod plan;
pub mod ports;
pub mod query;
pub mod reports;
pub mod rollout;
pub mod spec;
pub mod text;
pub mod time;
pub mod trace;
pub mod waiting;
