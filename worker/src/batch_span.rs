//! The trace span of a batch run.

use twincast_core::ids::Epoch;
use twincast_core::outcome::Counts;
use twincast_core::plan::BatchHeader;
use twincast_core::time::Timestamp;
use twincast_core::trace::Span;

use crate::batch::Ended;
use crate::rollout_cache::CachedRollout;

/// The span of a batch run under way, emitted when the run ends.
pub(crate) struct BatchSpan(Span);

impl BatchSpan {
    /// Begins the span. `None` if the rollout is not traced, or the batch is not among the
    /// rollout's sampled batches.
    pub(crate) fn begin(
        rollout: &CachedRollout,
        header: &BatchHeader,
        epoch: Epoch,
        start: Timestamp,
    ) -> Option<Self> {
        let root = rollout.trace?;
        if !root.samples(header.id, rollout.batches) {
            return None;
        }
        // Each lease of a batch is a run of its own, so the span id is derived from the epoch, too.
        let run = format_args!("batch {} {}", header.id, epoch);
        let stage = root.of_stage(header.stage).span;
        let span = Span::new(root.derive(run), Some(stage), "batch", start..start)
            .with_text("twincast.rollout", &rollout.spec.name)
            .with_text("twincast.hub", &header.hub)
            .with_number("twincast.batch", header.id.0)
            .with_number("twincast.devices", header.devices);
        Some(Self(span))
    }

    /// Ends the span, with the reason for the end and the counts recorded in the run.
    pub(crate) fn end(self, how: Ended, recorded: &Counts, end: Timestamp) -> Span {
        let span = Span { end, ..self.0 };
        let mut span = span.with_text("twincast.ended", how.as_str());
        span.trouble = match how {
            Ended::Done | Ended::NotRunning | Ended::Stopped | Ended::Newer => None,
            Ended::HubUnavailable | Ended::Fenced | Ended::OtherHub => {
                Some(how.as_str().replace('_', " "))
            }
        };
        span.with_counts(recorded)
    }
}
