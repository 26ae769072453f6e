//! Which attempt a report is about, and whether it still counts.

use crate::ids::Attempt;
use crate::outcome::Outcome;

/// The attempts at a batch's devices, as far as they are told apart: by batch and not by device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// The one that is made at all of its devices that are pending.
    pub newest: Attempt,
    /// The newest that was made at its silent devices too: since then, no message of an older one
    /// is the last that its device was sent, unless it failed for good and was left at that.
    pub silent: Attempt,
    /// The newest that was made at devices which had answered that they failed. The twin of such a device says so until the
    /// device has taken the new message.
    pub failed: Attempt,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            newest: Attempt::FIRST,
            silent: Attempt::FIRST,
            failed: Attempt::FIRST,
        }
    }
}

impl Attempts {
    /// Devices with one of these outcomes are made pending again, as `attempt`. `had_failed`: some of them had answered that
    /// they failed.
    pub fn reopen(&mut self, attempt: Attempt, outcomes: &[Outcome], had_failed: bool) {
        self.newest = attempt;
        if outcomes.contains(&Outcome::Enqueued) {
            self.silent = attempt;
        }
        if had_failed {
            self.failed = attempt;
        }
    }

    /// Whether `report`, which is about a message of attempt `of`, is to be merged into the outcome of
    /// a device that is `known`.
    ///
    /// What is told of the newest attempt always is, and that a device has the message always is,
    /// whichever attempt brought it. A failure of an older attempt counts only for a device whose
    /// message that still is. One that is not yet sent to again is not `enqueued` (nor anything
    /// above). One that is may have been chosen for the new attempt only if the silent ones were,
    /// and then all of them were: failed ones have had all the feedback that they get. What a device has answered is read
    /// from its twin again and again, so that it failed counts only when no failed one was sent to again since.
    #[must_use]
    pub fn admits(&self, of: Attempt, known: Outcome, report: Outcome) -> bool {
        if report == Outcome::Failed && of < self.failed {
            return false;
        }
        of >= self.newest
            || report >= Outcome::Delivered
            || (of >= self.silent && known.was_enqueued())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feedback_counts_for_the_message_that_it_is_about() {
        use Outcome as O;
        let (first, second, third) = (Attempt(1), Attempt(2), Attempt(3));
        let mut attempts = Attempts::default();
        assert!(
            attempts.admits(first, O::Pending, O::Expired),
            "it overtook the send's record"
        );

        attempts.reopen(second, &[O::Rejected, O::NotFound], false);
        assert!(attempts.admits(second, O::Pending, O::Expired));
        assert!(
            !attempts.admits(first, O::Pending, O::Rejected),
            "it is to be sent to again"
        );
        assert!(
            attempts.admits(first, O::Pending, O::Delivered),
            "it has the message after all"
        );
        assert!(
            attempts.admits(first, O::Enqueued, O::Expired),
            "it was not chosen"
        );
        assert!(attempts.admits(first, O::Expired, O::Purged));

        attempts.reopen(third, &[O::Enqueued, O::Failed], false);
        assert!(
            !attempts.admits(second, O::Enqueued, O::Expired),
            "another message replaced that"
        );
        assert!(attempts.admits(first, O::Enqueued, O::Delivered));
        assert!(attempts.admits(third, O::Enqueued, O::Expired));
        assert!(attempts.admits(first, O::Enqueued, O::Failed));

        attempts.reopen(Attempt(4), &[O::Failed], true);
        assert!(
            !attempts.admits(third, O::Enqueued, O::Failed),
            "its twin still says so"
        );
        assert!(attempts.admits(third, O::Enqueued, O::Applied));
        assert!(attempts.admits(Attempt(4), O::Enqueued, O::Failed));
    }
}
