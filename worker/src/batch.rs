//! One batch, worked on under a lease.
//!
//! ```text
//!            answers, records, permits, time, stop
//!   run ───────────────── Event ─────────────────▶ state
//!    ▲ ◀──────────────── Steps ──────────────────
//!    │       send, record, acquire a permit, tell of a throttle
//!  futures
//! ```
//!
//! A device of the batch goes `pending → sent → answered → recorded`. At most [`window`](crate::config::WorkerConfig::window)
//! devices are between the first and the last of these at any time; that bounds what a crash can repeat. Records are made
//! while later sends are under way, so the connection never waits for the store.
//!
//! With `at_most_once` there is one step more: once there is a permit, `attempting` is recorded, and only then the message
//! is sent. What is found in that state later becomes `unknown`: that includes messages which the hub had turned away for
//! a passing reason when their batch was put down, because an outcome never falls back to `pending`.

mod held;
mod run;
mod send;
mod state;

pub(crate) use held::{HeldBatch, wish};
pub(crate) use run::BatchRun;
pub(crate) use state::Ended;
