//! Traces: what happens for one rollout, told as spans that belong together.
//!
//! ```text
//! command ─┬─ plan
//!          ├─ stage ─┬─ batch     (a worker's run)
//!          │         └─ gate      (each time that it decides)
//!          ├─ change              (paused, resumed, aborted …)
//!          └─ rollout             (all of it, once it has ended)
//! ```
//!
//! A rollout outlives processes, so its spans do not hang on them: its record keeps the context of the command that
//! started it, the ids of all further spans follow from that, and each is told when what it is about is over, by
//! whoever has stored that. A span that is told twice has the same id.
//!
//! A trace is bounded, however large the fleet is: there is no span for a device, and of the batches
//! [`SPANS_OF_BATCHES`] are told at the most, for each time that they are worked on.

mod told;

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
pub use told::of_transition;

/// Of how many batches of a rollout the runs are told, at the most.
pub const SPANS_OF_BATCHES: u32 = 1_000;

/// The name of the header that carries a context, in HTTP, AMQP and CloudEvents.
pub const TRACEPARENT: &str = "traceparent";

/// A span by its ids: W3C Trace Context, written as its `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceContext {
    /// The trace. Never zero.
    pub trace: TraceId,
    /// The span. Never zero.
    pub span: SpanId,
    /// Somebody keeps the trace. If not, nothing of it is told.
    pub sampled: bool,
}

impl TraceContext {
    /// Another span of the same trace; `what` is what tells it apart from all others.
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

    /// Whether runs of a batch are told of a rollout that has so many.
    #[must_use]
    pub fn tells_of(&self, batch: BatchId, batches: u32) -> bool {
        let each = batches.div_ceil(SPANS_OF_BATCHES).max(1);
        self.sampled && batch.0.is_multiple_of(each)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", self.trace, self.span)
    }
}

/// A text that is no `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is no traceparent, such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)]
pub struct InvalidTraceparent {
    /// The text, cut to 140 characters.
    pub found: String,
}

impl FromStr for TraceContext {
    type Err = InvalidTraceparent;

    /// Of a version that is not known yet, what is known is read, as the standard wants it.
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

/// The span of a command: begun by us, below a span of whoever gave it, if they said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// The command's own span.
    pub context: TraceContext,
    /// Theirs.
    pub parent: Option<SpanId>,
}

/// What was done, from when to when.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its ids.
    pub context: TraceContext,
    /// The span of which it is a part.
    pub parent: Option<SpanId>,
    /// A span of another trace that it has to do with.
    pub link: Option<TraceContext>,
    /// What it was: one of a few words.
    pub name: &'static str,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Why it did not come to a good end, for people.
    pub trouble: Option<String>,
    /// What else is to be known of it.
    pub attributes: Vec<KeyValue>,
}

impl Span {
    /// A span of which no more is known yet.
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

    /// The same, with a text that is to be known of it.
    #[must_use]
    pub fn with(mut self, name: &'static str, text: &(impl fmt::Display + ?Sized)) -> Self {
        self.attributes.push(KeyValue::new(name, text.to_string()));
        self
    }

    /// The same, with a number that is to be known of it.
    #[must_use]
    pub fn with_number(mut self, name: impl Into<Key>, number: impl Into<u64>) -> Self {
        let number = i64::try_from(number.into()).unwrap_or(i64::MAX);
        self.attributes.push(KeyValue::new(name, number));
        self
    }

    /// The same, with how many devices came to what.
    #[must_use]
    pub fn with_counts(self, counts: &Counts) -> Self {
        counts.iter().fold(self, |span, (outcome, devices)| {
            span.with_number(format!("twincast.outcome.{outcome}"), devices)
        })
    }
}

/// Takes the spans to whoever keeps them. Cheap to clone; the default takes them nowhere.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Kept>>);

struct Kept {
    is_kept: Box<dyn Fn(TraceId, Option<bool>) -> bool + Send + Sync>,
    keep: Box<dyn Fn(Span) + Send + Sync>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.0.is_some()).finish()
    }
}

impl Tracer {
    /// Gives spans to `keep`, which must not wait, if `is_kept` holds for their trace. Of a trace that a caller began,
    /// `is_kept` is given the caller's decision too.
    pub fn new(
        is_kept: impl Fn(TraceId, Option<bool>) -> bool + Send + Sync + 'static,
        keep: impl Fn(Span) + Send + Sync + 'static,
    ) -> Self {
        let (is_kept, keep) = (Box::new(is_kept), Box::new(keep));
        Self(Some(Arc::new(Kept { is_kept, keep })))
    }

    /// Begins a command's span, out of random bits: in the trace of `caller`, or in one of its own.
    #[must_use]
    pub fn begin(&self, caller: Option<TraceContext>, random: (u128, u64)) -> Begun {
        let trace = caller.map_or_else(|| random.0.max(1).into(), |caller| caller.trace);
        let of_caller = caller.map(|caller| caller.sampled);
        let sampled = match &self.0 {
            Some(kept) => (kept.is_kept)(trace, of_caller),
            // No spans are kept here, but other processes may keep theirs of the caller's trace.
            None => of_caller.unwrap_or(false),
        };
        Begun {
            context: TraceContext {
                trace,
                span: random.1.max(1).into(),
                sampled,
            },
            parent: caller.map(|caller| caller.span),
        }
    }

    /// Tells of spans, of traces that are kept.
    pub fn tell(&self, spans: impl IntoIterator<Item = Span>) {
        let Some(kept) = &self.0 else { return };
        for span in spans {
            if span.context.sampled {
                (kept.keep)(span);
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
    fn a_traceparent_reads_back_and_others_are_refused() {
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
    fn whoever_began_a_trace_decides_whether_it_is_kept() {
        let caller: TraceContext = TEXT.parse().unwrap();
        let nowhere = Tracer::default();
        let begun = nowhere.begin(Some(caller), (5, 7));
        assert_eq!(begun.context.trace, caller.trace);
        assert_eq!(
            (begun.context.span, begun.parent),
            (SpanId::from(7), Some(caller.span))
        );
        assert!(begun.context.sampled);
        let own = nowhere.begin(None, (5, 7));
        assert_eq!((own.context.trace, own.parent), (TraceId::from(5), None));
        assert!(!own.context.sampled, "nobody keeps it");
        let some = Tracer::new(|trace, _| trace == TraceId::from(5), drop);
        for (trace, kept) in [(5, true), (6, false)] {
            let begun = some.begin(None, (trace, 7));
            assert_eq!(begun.context.sampled, kept, "{trace}");
        }
    }

    #[test]
    fn only_what_is_kept_is_told() {
        let told = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&told);
        let tracer = Tracer::new(|_, _| true, move |_| *counted.lock().unwrap() += 1);
        let context: TraceContext = TEXT.parse().unwrap();
        let span = |sampled| {
            let context = TraceContext { sampled, ..context };
            Span::new(context, None, "plan", Timestamp(1)..Timestamp(2))
        };
        tracer.tell([span(true), span(false), span(true)]);
        assert_eq!(*told.lock().unwrap(), 2);
    }

    #[test]
    fn the_batches_that_are_told_of_are_bounded() {
        let context: TraceContext = TEXT.parse().unwrap();
        for batches in [1, 7, 999, 1_000, 1_001, 2_500, 1_000_000] {
            let told = (0..batches).filter(|batch| context.tells_of(BatchId(*batch), batches));
            let told = u32::try_from(told.count()).unwrap();
            assert!(
                told <= SPANS_OF_BATCHES && told >= batches.min(500),
                "{batches}: {told}"
            );
        }
        assert!(context.tells_of(BatchId(3), 0), "of an unknown number");
    }

    #[test]
    fn derived_spans_differ_by_what_they_are_about() {
        let context: TraceContext = TEXT.parse().unwrap();
        let stage = context.of_stage(StageIndex(1));
        assert_eq!(stage, context.of_stage(StageIndex(1)));
        assert_ne!(stage.span, context.of_stage(StageIndex(2)).span);
        assert_eq!(stage.trace, context.trace);
    }
}
