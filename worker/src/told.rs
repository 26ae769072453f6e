//! What is told of a run of a batch, in the trace of its rollout.

use twincast_core::ids::Epoch;
use twincast_core::outcome::Counts;
use twincast_core::plan::BatchHeader;
use twincast_core::time::Timestamp;
use twincast_core::trace::Span;

use crate::batch::Ended;
use crate::known::Known;

/// A run that is under way, and will be told of.
pub(crate) struct Telling(Span);

impl Telling {
    /// Begins, if the batch is one of those that are told of.
    pub(crate) fn of(
        known: &Known,
        header: &BatchHeader,
        epoch: Epoch,
        start: Timestamp,
    ) -> Option<Self> {
        let root = known.trace?;
        if !root.tells_of(header.id, known.batches) {
            return None;
        }
        // Each lease of a batch is another run.
        let run = format_args!("batch {} {}", header.id, epoch);
        let stage = root.of_stage(header.stage).span;
        let span = Span::new(root.derive(run), Some(stage), "batch", start..start)
            .with("twincast.rollout", &known.spec.name)
            .with("twincast.hub", &header.hub)
            .with_number("twincast.batch", header.id.0)
            .with_number("twincast.devices", header.devices);
        Some(Self(span))
    }

    /// The span of the run that has ended, with what it has recorded.
    pub(crate) fn ended(self, how: Ended, recorded: &Counts, end: Timestamp) -> Span {
        let span = Span { end, ..self.0 };
        let mut span = span.with("twincast.ended", how.as_str());
        span.trouble = match how {
            Ended::Done | Ended::Unwanted | Ended::Stopped | Ended::Newer => None,
            Ended::HubShut | Ended::Fenced | Ended::OtherHub => {
                Some(how.as_str().replace('_', " "))
            }
        };
        span.with_counts(recorded)
    }
}
