//! The life of a rollout, as a state machine.
//!
//! ```text
//!                      ┌────────────── plan failed ─────────────▶ Failed
//!                      │
//!  Accepted ──▶ Planning ──▶ Running ──▶ Succeeded | FinishedWithFailures
//!                  ▲  │        │  ▲
//!                  │  └─ (again, after a crash)
//!                  │           │  └── resume ── Paused
//!                  │           ├───── pause ────▶ │
//!                  │           │                  │
//!                  │           └── halt all ▶ Halted ── lift ──▶ Running
//!      pause before there is a plan: the plan leads to Paused
//!      abort from any of these ──▶ Aborting ──▶ Aborted
//!      retry: Succeeded | FinishedWithFailures ──▶ Running
//! ```
//!
//! Only [`transition`] decides about phases. The duty of a rollout's driver ([`Rollout::duty`])
//! follows from the record alone: after a crash, the driver loads the record and repeats the duty,
//! which is always safe.
//!
//! A retry lowers outcomes; nothing else does. A retry is requested, and then prepared batch by
//! batch. Until the preparation is complete, nothing is sent and no gate is judged.

mod adding;
mod apply;
mod commands;
mod control;
mod event;
mod feedback;
pub mod history;
mod notes;
mod phase;
mod progress;
mod record;
mod refusal;
mod scans;
mod search;
mod search_notes;
#[cfg(test)]
mod tests;
mod time_account;
mod transition;

pub use adding::{Adding, PlanId, ScanId, ScanResult, Scans};
pub use commands::{Commands, KeyedCommand};
pub use control::RolloutControl;
pub use event::Event;
pub use history::HistoryEntry;
pub use notes::Notes;
pub use phase::{Directive, Duty, Phase};
pub use progress::{Approval, Attribution, MetricResult, MetricTally, StageProgress};
pub use record::{Retry, Rollout, StorePrecondition};
pub use refusal::IllegalTransition;
pub use search::{Search, SearchTrouble};
pub use transition::transition;
