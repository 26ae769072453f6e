//! Twincast's domain: what a rollout is, how it is planned, what may happen to it, and the
//! ports through which the rest of the world is reached.
//!
//! Everything here is deterministic. There is no runtime, no network and no clock: time,
//! random numbers and new ids arrive as arguments, so every rule can be tested as a table.
//!
//! Where to look:
//!
//! * [`spec`]: what a user writes, how it is read, and what is wrong with it;
//! * [`plan`]: from a stream of devices to batches, cohorts, estimates and a digest;
//! * [`outcome`]: what is known of one device, as a join-semilattice, and how it is counted;
//! * [`answer`]: what devices answer in their twins;
//! * [`gate`]: the test between two stages; [`evidence`]: whether those were heard that it judges;
//! * [`rollout`] and [`batch`]: the two state machines;
//! * [`account`]: where a rollout's time goes; [`explain`]: why a device is where it is;
//! * [`waiting`]: what is waited for, and its words;
//! * [`trace`]: the spans that tell of a rollout, and how they belong together;
//! * [`permits`]: the arithmetic of a hub's quota; [`link`]: whether anything can be sent through a hub;
//! * [`ports`]: queue, store, hub and clock, with the contract that each implementation keeps.

pub mod account;
pub mod answer;
pub mod batch;
pub mod budget;
pub mod error;
pub mod evidence;
pub mod explain;
pub mod gate;
pub mod group;
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
