//! The test at the end of a stage.
//!
//! [`judge`] evaluates a stage in its current state: the gate has passed, has failed, or waits for
//! a named condition. Failure is tested before success, from the first device on. Silence counts
//! only if an answer would have been received ([`crate::evidence`]). A gate never passes because
//! too little was measured, unless the spec says `too_little: pass`, and never waits without a
//! stated reason.

pub mod advice;
mod judge;
pub mod metric;
mod next;
mod shares;
#[cfg(test)]
mod tests;
mod verdict;

pub use judge::{StageView, answered_within, deadline, describe, judge};
#[cfg(test)]
pub(crate) use next::next_with_complete_evidence;
pub use next::{Next, ObservedState, next};
pub use shares::AppliedCount;
pub use verdict::Verdict;
