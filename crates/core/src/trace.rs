//! Traces: the course of a rollout as a tree of spans.
//!
//! ```text
//! command ─┬─ plan
//!          ├─ stage ─┬─ batch     (a worker's run)
//!          │         └─ gate      (each time that it decides)
//!          ├─ change              (paused, resumed, aborted …)
//!          └─ rollout             (all of it, once it has ended)
//! ```
//!
//! A rollout outlives processes, so its spans do not depend on a process. The rollout's record
//! keeps the trace context of the command that started the rollout, and the ids of all other spans
//! are derived from this context. Each span is emitted once its subject is over, by the component
//! that stored the change. A span emitted twice has the same id.
//!
//! A trace is bounded, however large the fleet: there is no span per device, and at most
//! [`MAX_TRACED_BATCHES`] batches have spans, for each run of a worker on the batch.

mod transition;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use opentelemetry::{Key, KeyValue};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{BatchId, StageIndex};
use crate::outcome::Counts;
use crate::time::Timestamp;

pub use opentelemetry::trace::{SpanId, TraceId};
pub use transition::transition_spans;

/// The most batches of a rollout with spans.
pub const MAX_TRACED_BATCHES: u32 = 1_000;

/// The name of the header that carries a context, in HTTP, AMQP and CloudEvents.
pub const TRACEPARENT: &str = "traceparent";

/// The ids of a span: W3C Trace Context, written as a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceContext {
    /// The trace. Never zero.
    pub trace: TraceId,
    /// The span. Never zero.
    pub span: SpanId,
    /// Whether the trace is recorded. No span of an unsampled trace is emitted.
    pub sampled: bool,
}

impl TraceContext {
    /// Derives another span of the same trace; `what` makes the span's id unique in the trace.
    #[must_use]
    pub fn derive(&self, what: fmt::Arguments<'_>) -> Self {
        let id = xxh3_64(format!("{} {what}", self.trace).as_bytes());
        Self {
            span: id.max(1).into(),
            ..*self
        }
    }

    /// The span of a stage, in the trace of its rollout.
    #[must_use]
    pub fn of_stage(&self, stage: StageIndex) -> Self {
        self.derive(format_args!("stage {}", stage.0))
    }

    /// Returns whether the runs of a batch have spans, in a rollout of `batches` batches.
    #[must_use]
    pub fn samples(&self, batch: BatchId, batches: u32) -> bool {
        let each = batches.div_ceil(MAX_TRACED_BATCHES).max(1);
        self.sampled && batch.0.is_multiple_of(each)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", self.trace, self.span)
    }
}

/// A text that is not a `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is not a traceparent such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)]
pub struct InvalidTraceparent {
    /// The text, cut to 140 characters.
    pub found: String,
}

impl FromStr for TraceContext {
    type Err = InvalidTraceparent;

    /// Parses a `traceparent`. The known fields of an unknown, later version are read, as the
    /// standard demands.
    fn from_str(text: &str) -> Result<Self, InvalidTraceparent> {
        let invalid = || InvalidTraceparent {
            found: text.chars().take(140).collect(),
        };
        let mut parts = text.trim().split('-');
        let mut field = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let lower = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
            part.bytes().all(lower).then_some(part)
        };
        let fields = (field(2), field(32), field(16), field(2));
        let (Some(version), Some(trace), Some(span), Some(flags)) = fields else {
            return Err(invalid());
        };
        let more = parts.next().is_some();
        let trace = u128::from_str_radix(trace, 16).map_err(|_| invalid())?;
        let span = u64::from_str_radix(span, 16).map_err(|_| invalid())?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| invalid())?;
        if version == "ff" || (version == "00" && more) || trace == 0 || span == 0 {
            return Err(invalid());
        }
        Ok(Self {
            trace: trace.into(),
            span: span.into(),
            sampled: flags & 1 == 1,
        })
    }
}

impl TryFrom<String> for TraceContext {
    type Error = InvalidTraceparent;
    fn try_from(text: String) -> Result<Self, InvalidTraceparent> {
        text.parse()
    }
}

impl From<TraceContext> for String {
    fn from(context: TraceContext) -> String {
        context.to_string()
    }
}

/// The span of a received command. If the caller passed a trace context, the command's span is a
/// child of the caller's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandSpan {
    /// The command's own span.
    pub context: TraceContext,
    /// The caller's span.
    pub parent: Option<SpanId>,
}

/// A span: an operation with its start and its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The ids of the span.
    pub context: TraceContext,
    /// The parent span.
    pub parent: Option<SpanId>,
    /// A related span of another trace.
    pub link: Option<TraceContext>,
    /// The kind of operation, one of a few names.
    pub name: &'static str,
    /// The start.
    pub start: Timestamp,
    /// The end.
    pub end: Timestamp,
    /// Why the operation failed, human-readable.
    pub trouble: Option<String>,
    /// Further attributes.
    pub attributes: Vec<KeyValue>,
}

impl Span {
    /// Creates a span without link, trouble and attributes.
    #[must_use]
    pub fn new(
        context: TraceContext,
        parent: Option<SpanId>,
        name: &'static str,
        time: Range<Timestamp>,
    ) -> Self {
        Self {
            context,
            parent,
            link: None,
            name,
            start: time.start,
            end: time.end,
            trouble: None,
            attributes: Vec::new(),
        }
    }

    /// Adds a text attribute.
    #[must_use]
    pub fn with_text(mut self, name: &'static str, text: &(impl fmt::Display + ?Sized)) -> Self {
        self.attributes.push(KeyValue::new(name, text.to_string()));
        self
    }

    /// Adds a number attribute.
    #[must_use]
    pub fn with_number(mut self, name: impl Into<Key>, number: impl Into<u64>) -> Self {
        let number = i64::try_from(number.into()).unwrap_or(i64::MAX);
        self.attributes.push(KeyValue::new(name, number));
        self
    }

    /// Adds an attribute for each outcome, with the number of devices.
    #[must_use]
    pub fn with_counts(self, counts: &Counts) -> Self {
        counts.iter().fold(self, |span, (outcome, devices)| {
            span.with_number(format!("twincast.outcome.{outcome}"), devices)
        })
    }
}

/// Passes spans to an exporter. Cheap to clone; the default discards all spans.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Exporter>>);

struct Exporter {
    sample: Box<dyn Fn(TraceId, Option<bool>) -> bool + Send + Sync>,
    export: Box<dyn Fn(Span) + Send + Sync>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.0.is_some()).finish()
    }
}

impl Tracer {
    /// Creates a tracer that passes spans to `export`, which must not block. `sample` makes the
    /// sampling decision for a new command by the trace id, and by the caller's decision for a
    /// trace begun by a caller.
    pub fn new(
        sample: impl Fn(TraceId, Option<bool>) -> bool + Send + Sync + 'static,
        export: impl Fn(Span) + Send + Sync + 'static,
    ) -> Self {
        let (sample, export) = (Box::new(sample), Box::new(export));
        Self(Some(Arc::new(Exporter { sample, export })))
    }

    /// Begins the span of a command, with ids from random bits: in the trace of `caller`, or in a
    /// new trace.
    #[must_use]
    pub fn begin(&self, caller: Option<TraceContext>, random: (u128, u64)) -> CommandSpan {
        let trace = caller.map_or_else(|| random.0.max(1).into(), |caller| caller.trace);
        let of_caller = caller.map(|caller| caller.sampled);
        let sampled = match &self.0 {
            Some(exporter) => (exporter.sample)(trace, of_caller),
            // No spans are exported here, but other processes may export spans of the caller's
            // trace.
            None => of_caller.unwrap_or(false),
        };
        CommandSpan {
            context: TraceContext {
                trace,
                span: random.1.max(1).into(),
                sampled,
            },
            parent: caller.map(|caller| caller.span),
        }
    }

    /// Emits the spans of sampled traces.
    pub fn emit(&self, spans: impl IntoIterator<Item = Span>) {
        let Some(exporter) = &self.0 else { return };
        for span in spans {
            if span.context.sampled {
                (exporter.export)(span);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn valid_traceparent_reads_back_and_invalid_is_refused() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert_eq!(context.to_string(), TEXT);
        assert!(context.sampled);
        let json = serde_json::to_string(&context).unwrap();
        assert_eq!(
            serde_json::from_str::<TraceContext>(&json).unwrap(),
            context
        );
        let later = TEXT.replace("00-4b", "cc-4b") + "-what-will-be-said-then";
        assert_eq!(later.parse(), Ok(context));
        let unsampled: TraceContext = TEXT.replace("-01", "-02").parse().unwrap();
        assert_eq!(unsampled.to_string(), TEXT.replace("-01", "-00"));
        for wrong in [
            "",
            "00",
            &TEXT[1..],
            &TEXT.to_uppercase(),
            &TEXT.replace("00-4b", "ff-4b"),
            &format!("{TEXT}-more"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert!(wrong.parse::<TraceContext>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn trace_origin_decides_sampling() {
        let caller: TraceContext = TEXT.parse().unwrap();
        let nowhere = Tracer::default();
        let command = nowhere.begin(Some(caller), (5, 7));
        assert_eq!(command.context.trace, caller.trace);
        assert_eq!(
            (command.context.span, command.parent),
            (SpanId::from(7), Some(caller.span))
        );
        assert!(command.context.sampled);
        let own = nowhere.begin(None, (5, 7));
        assert_eq!((own.context.trace, own.parent), (TraceId::from(5), None));
        assert!(!own.context.sampled, "the trace is not sampled");
        let some = Tracer::new(|trace, _| trace == TraceId::from(5), drop);
        for (trace, sampled) in [(5, true), (6, false)] {
            let command = some.begin(None, (trace, 7));
            assert_eq!(command.context.sampled, sampled, "{trace}");
        }
    }

    #[test]
    fn only_sampled_spans_are_emitted() {
        let emitted = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&emitted);
        let tracer = Tracer::new(|_, _| true, move |_| *counted.lock().unwrap() += 1);
        let context: TraceContext = TEXT.parse().unwrap();
        let span = |sampled| {
            let context = TraceContext { sampled, ..context };
            Span::new(context, None, "plan", Timestamp(1)..Timestamp(2))
        };
        tracer.emit([span(true), span(false), span(true)]);
        assert_eq!(*emitted.lock().unwrap(), 2);
    }

    #[test]
    fn the_batches_with_spans_are_bounded() {
        let context: TraceContext = TEXT.parse().unwrap();
        for batches in [1, 7, 999, 1_000, 1_001, 2_500, 1_000_000] {
            let emitted = (0..batches).filter(|batch| context.samples(BatchId(*batch), batches));
            let emitted = u32::try_from(emitted.count()).unwrap();
            assert!(
                emitted <= MAX_TRACED_BATCHES && emitted >= batches.min(500),
                "{batches}: {emitted}"
            );
        }
        assert!(context.samples(BatchId(3), 0), "unknown number of batches");
    }

    #[test]
    fn derived_spans_differ_by_stage() {
        let context: TraceContext = TEXT.parse().unwrap();
        let stage = context.of_stage(StageIndex(1));
        assert_eq!(stage, context.of_stage(StageIndex(1)));
        assert_ne!(stage.span, context.of_stage(StageIndex(2)).span);
        assert_eq!(stage.trace, context.trace);
    }
}
