//! Works on a single batch under a lease.
//!
//! ```text
//!            answers, records, permits, time, stop
//!   run ───────────────── Event ─────────────────▶ state
//!    ▲ ◀──────────────── Steps ──────────────────
//!    │       send, record, acquire a permit, report a throttle
//!  futures
//! ```
//!
//! A device of the batch goes through `pending → sent → answered → recorded`. At most
//! [`window`](crate::config::WorkerConfig::window) devices are sent or answered and not yet
//! recorded at any time, which bounds the sends that a crash can repeat. Records are made while
//! later sends are under way, so sends never wait for the store.
//!
//! With `at_most_once` there is an additional step: after a permit is acquired, `attempting` is
//! recorded, and only then the message is sent. A later run turns every `attempting` it finds into
//! `unknown`. This includes messages refused by the hub for a transient reason before the batch was
//! released, because an outcome never falls back to `pending`.

mod held;
mod run;
mod send;
mod state;

pub(crate) use held::{HeldBatch, lease_request};
pub(crate) use run::BatchRun;
pub(crate) use state::Ended;
