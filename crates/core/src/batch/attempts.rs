//! The attempts at a batch's devices, and the rules for reports on older attempts.

use crate::ids::Attempt;
use crate::outcome::Outcome;

/// The attempts at a batch's devices. They are recorded for the batch as a whole, not for each
/// device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// The attempt made at all pending devices of the batch.
    pub newest: Attempt,
    /// The newest attempt that included silent devices. Since then, a message of an older attempt
    /// is the last message of a device only if the device failed permanently and was not retried.
    pub silent: Attempt,
    /// The newest attempt that included devices with an answered failure. The twin of such a device
    /// reports the failure until the device has taken the new message.
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
    /// Records a new attempt at the devices with one of `outcomes`. `had_failed`: some of these
    /// devices had answered with a failure.
    pub fn reopen(&mut self, attempt: Attempt, outcomes: &[Outcome], had_failed: bool) {
        self.newest = attempt;
        if outcomes.contains(&Outcome::Enqueued) {
            self.silent = attempt;
        }
        if had_failed {
            self.failed = attempt;
        }
    }

    /// Returns whether to merge `report`, about a message of attempt `of`, into the outcome `known`
    /// of a device.
    ///
    /// Reports on the newest attempt are always merged. A report that the device has the message is
    /// always merged, whichever attempt delivered the message. A failure of an older attempt counts
    /// only while the message of the older attempt is the device's last message:
    ///
    /// * A retried device that was not sent to yet is below `enqueued`.
    /// * A device at `enqueued` or above may be part of a newer attempt only if the newer attempt
    ///   included silent devices, and then it included all of them. Failed devices receive no
    ///   further feedback.
    ///
    /// A device's answer is read from its twin repeatedly. So an answered failure counts only if no
    /// device with an answered failure was retried since.
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
    fn failures_of_replaced_attempts_are_not_admitted() {
        use Outcome as O;
        let (first, second, third) = (Attempt(1), Attempt(2), Attempt(3));
        let mut attempts = Attempts::default();
        assert!(
            attempts.admits(first, O::Pending, O::Expired),
            "feedback may precede the send's record"
        );

        attempts.reopen(second, &[O::Rejected, O::NotFound], false);
        assert!(attempts.admits(second, O::Pending, O::Expired));
        assert!(
            !attempts.admits(first, O::Pending, O::Rejected),
            "the second attempt is prepared"
        );
        assert!(
            attempts.admits(first, O::Pending, O::Delivered),
            "the device has the first message"
        );
        assert!(
            attempts.admits(first, O::Enqueued, O::Expired),
            "the device is not retried"
        );
        assert!(attempts.admits(first, O::Expired, O::Purged));

        attempts.reopen(third, &[O::Enqueued, O::Failed], false);
        assert!(
            !attempts.admits(second, O::Enqueued, O::Expired),
            "the third message replaced the second"
        );
        assert!(attempts.admits(first, O::Enqueued, O::Delivered));
        assert!(attempts.admits(third, O::Enqueued, O::Expired));
        assert!(attempts.admits(first, O::Enqueued, O::Failed));

        attempts.reopen(Attempt(4), &[O::Failed], true);
        assert!(
            !attempts.admits(third, O::Enqueued, O::Failed),
            "the twin still reports the old failure"
        );
        assert!(attempts.admits(third, O::Enqueued, O::Applied));
        assert!(attempts.admits(Attempt(4), O::Enqueued, O::Failed));
    }
}
