//! A rollout's life.
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
//! [`transition`] decides, and nothing else does. What a rollout *owes* the world ([`Rollout::owed`])
//! follows from its record alone: after a crash that is loaded and what is owed is done again, which is
//! always safe.
//!
//! A retry lowers outcomes, which nothing else does. It is requested, then prepared, batch by batch; until
//! it is, nothing is sent and no gate is asked.

mod adding;
mod booking;
mod change;
mod commands;
mod event;
mod hearing;
pub mod history;
mod life;
mod looks;
mod notes;
mod phase;
mod planning;
mod progress;
mod record;
mod refusal;
mod search;
mod stance;
#[cfg(test)]
mod tests;

pub use adding::{Adding, Found, LookId, Looks, PlanId};
pub use commands::{Commands, Keyed};
pub use event::Event;
pub use history::HistoryEntry;
pub use life::transition;
pub use notes::Notes;
pub use phase::{Owed, Phase, Wanted};
pub use progress::{Approval, MetricResult, MetricTally, StageProgress, Word};
pub use record::{Reliance, Retry, Rollout};
pub use refusal::IllegalTransition;
pub use search::{Search, SearchTrouble};
pub use stance::Stance;
