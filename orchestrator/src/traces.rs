//! The spans of commands and rollouts, and the trace of log lines.

use std::ops::Range;

use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;
use twincast_core::trace::{self, CommandSpan, Span, TraceContext, Tracer};

use crate::command::{Answer, Command, Kind, Refusal};

/// Returns the log span for lines about a rollout of this trace. The span has the level `error`, so
/// that no filter removes it from error lines.
#[must_use]
pub fn log_span(trace: Option<TraceContext>) -> tracing::Span {
    tracing::error_span!(
        "rollout",
        trace_id = trace.map(|trace| tracing::field::display(trace.trace))
    )
}

/// Begins a command's span, in the trace of `caller` or in a new trace.
#[must_use]
pub fn begin(tracer: &Tracer, caller: Option<TraceContext>) -> CommandSpan {
    tracer.begin(caller, rand::random())
}

/// Logs a transition of a rollout, and emits the span.
pub(crate) fn moved_on(tracer: &Tracer, before: &Rollout, after: &Rollout) {
    if let Some(happened) = after.change_entry() {
        let event = happened.event.name();
        let stage = after.stage_progress().map(|stage| stage.name.as_str());
        let (from, to) = (before.phase.as_str(), after.phase.as_str());
        tracing::info!(rollout = %after.spec.name, event, stage, from, to, "rollout transition");
    }
    tracer.emit(trace::transition_spans(before, after));
}

/// Returns the span of a command. A command without effect has no span.
pub(crate) fn of_command(
    command: &Command,
    command_span: CommandSpan,
    time: Range<Timestamp>,
    done: Result<&Answer, &Refusal>,
) -> Option<Span> {
    if command.command == Kind::Status {
        return None;
    }
    let mut span = Span::new(command_span.context, command_span.parent, "command", time)
        .with_text("twincast.command", &command.name());
    span.trouble = done.err().map(|refusal| refusal.error.clone());
    if let Ok(answer) = done {
        let changed = if answer.changed { "yes" } else { "no" };
        span = span.with_text("twincast.changed", changed);
        // A command about all rollouts is linked to none.
        if let [state] = &*answer.rollouts {
            let started_by = state
                .trace
                .filter(|trace| trace.span != command_span.context.span);
            span = span.with_text("twincast.rollout", &state.name);
            span.link = started_by;
        }
    }
    Some(span)
}
