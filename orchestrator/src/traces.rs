//! What commands and rollouts tell of themselves, and what log lines of a rollout have in common: its trace.

use std::ops::Range;

use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;
use twincast_core::trace::{self, Begun, Span, TraceContext, Tracer};

use crate::command::{Answer, Command, Kind, Refusal};

/// What the log says about a rollout of that trace is said in here. It is an error's, so that no filter takes it from those.
#[must_use]
pub fn log_span(trace: Option<TraceContext>) -> tracing::Span {
    tracing::error_span!(
        "rollout",
        trace_id = trace.map(|trace| tracing::field::display(trace.trace))
    )
}

/// Begins a command's span: in the trace of `caller`, or in one of its own.
#[must_use]
pub fn begin(tracer: &Tracer, caller: Option<TraceContext>) -> Begun {
    tracer.begin(caller, rand::random())
}

/// Tells what has happened to a rollout: the log, and whoever keeps spans.
pub(crate) fn moved_on(tracer: &Tracer, before: &Rollout, after: &Rollout) {
    if let Some(happened) = after.happened() {
        let event = happened.event.name();
        let stage = after.stage_progress().map(|stage| stage.name.as_str());
        let (from, to) = (before.phase.as_str(), after.phase.as_str());
        tracing::info!(rollout = %after.spec.name, event, stage, from, to, "rollout moved on");
    }
    tracer.tell(trace::of_transition(before, after));
}

/// The span of a command. None of one that only looks.
pub(crate) fn of_command(
    command: &Command,
    begun: Begun,
    time: Range<Timestamp>,
    done: Result<&Answer, &Refusal>,
) -> Option<Span> {
    if command.command == Kind::Status {
        return None;
    }
    let mut span = Span::new(begun.context, begun.parent, "command", time)
        .with("twincast.command", &command.name());
    span.trouble = done.err().map(|refusal| refusal.error.clone());
    if let Ok(answer) = done {
        let changed = if answer.changed { "yes" } else { "no" };
        span = span.with("twincast.changed", changed);
        // One about all of them is linked to none.
        if let [state] = &*answer.rollouts {
            let started_by = state.trace.filter(|trace| trace.span != begun.context.span);
            span = span.with("twincast.rollout", &state.name);
            span.link = started_by;
        }
    }
    Some(span)
}
