//! The spans to emit after a change of a rollout's record.

use super::{Span, TraceContext};
use crate::ids::{StageIndex, StageName};
use crate::rollout::{Event, HistoryEntry, Phase, Rollout, StageProgress};
use crate::time::Timestamp;

/// Returns the spans that end with the transition from one record to the next; none for a rollout
/// without a trace.
#[must_use]
pub fn transition_spans(before: &Rollout, after: &Rollout) -> Vec<Span> {
    let (Some(root), Some(entry)) = (after.trace, after.change_entry()) else {
        return Vec::new();
    };
    let transition = TransitionSpans {
        root,
        before,
        after,
        entry,
    };
    let mut spans = Vec::new();
    if before.phase == Phase::Planning && after.phase != Phase::Planning {
        spans.push(transition.plan());
    }
    spans.extend(transition.gate());
    spans.extend(
        (0..)
            .zip(&after.stages)
            .filter_map(|it| transition.stage(it)),
    );
    if after.phase.is_ended() && !before.phase.is_ended() {
        spans.push(transition.rollout());
    } else if transition.is_intervention() {
        spans.push(transition.change());
    }
    spans
}

/// A transition.
struct TransitionSpans<'a> {
    root: TraceContext,
    before: &'a Rollout,
    after: &'a Rollout,
    entry: &'a HistoryEntry,
}

impl TransitionSpans<'_> {
    fn plan(&self) -> Span {
        let try_ = self.after.plan_id.0;
        let context = self.root.derive(format_args!("plan {try_}"));
        let span = self.span(context, self.root, "plan", self.before.changed_at);
        let mut span = span.with_number("twincast.plan.try", try_);
        if let Some(plan) = &self.after.plan {
            span = span
                .with_number("twincast.devices", plan.devices)
                .with_number("twincast.batches", plan.batches);
        }
        span.trouble = self.after.phase.reason().map(str::to_owned);
        span
    }

    /// The span of a gate's decision. A stage without a gate passes without such a span.
    fn gate(&self) -> Option<Span> {
        let (stage, decision, reason) = match &self.entry.event {
            Event::StagePassed { stage, reason } => (stage, "passed", reason),
            Event::GateFailed { stage, reason, .. } => (stage, "failed", reason),
            Event::GateUndecided { stage, reason } => (stage, "undecided", reason),
            _ => return None,
        };
        let (index, progress) = self.progress(stage)?;
        let stages = self.after.spec.all_stages();
        stages.get(usize::from(index.0))?.gate.as_ref()?;
        let start = progress.sent_at.or(progress.started_at)?;
        let parent = self.root.of_stage(index);
        let context = self.derived("gate");
        let mut span = self
            .span(context, parent, "gate", start)
            .with_text("twincast.stage", stage)
            .with_text("twincast.decision", decision)
            .with_text("twincast.reason", reason);
        span.trouble = (decision != "passed").then(|| reason.clone());
        Some(span)
    }

    /// Returns the stage's progress before the transition: a failing gate resets parts of the
    /// progress.
    fn progress(&self, name: &StageName) -> Option<(StageIndex, &StageProgress)> {
        let mut stages = (0..).zip(&self.before.stages);
        let (index, stage) = stages.find(|(_, stage)| stage.name == *name)?;
        Some((StageIndex(index), stage))
    }

    /// The span of a stage that ends with this transition, by itself or together with the rollout.
    fn stage(&self, (index, stage): (u16, &StageProgress)) -> Option<Span> {
        let before = self.before.stages.get(usize::from(index));
        let was_over =
            self.before.phase.is_ended() || before.is_some_and(|before| before.passed_at.is_some());
        let is_over = self.after.phase.is_ended() || stage.passed_at.is_some();
        if was_over || !is_over {
            return None;
        }
        let context = self.root.of_stage(StageIndex(index));
        let span = self.span(context, self.root, "stage", stage.started_at?);
        let mut span = span.with_text("twincast.stage", &stage.name);
        span.trouble = self.after.phase.reason().map(str::to_owned);
        Some(span)
    }

    fn rollout(&self) -> Span {
        let start = self.after.created_at;
        let span = self.span(self.derived("rollout"), self.root, "rollout", start);
        let mut span = span.with_text("twincast.phase", self.after.phase.as_str());
        if let Event::AllSettled { counts } = &self.entry.event {
            span = span.with_counts(counts);
        }
        span.trouble = match (&self.after.phase, self.after.phase.reason()) {
            (_, Some(reason)) => Some(reason.to_owned()),
            (Phase::Succeeded, None) => None,
            (phase, None) => Some(phase.as_str().replace('_', " ")),
        };
        span
    }

    /// Returns whether the transition stopped or continued the rollout, by an operator or by a
    /// rule.
    fn is_intervention(&self) -> bool {
        matches!(
            self.entry.event,
            Event::PauseRequested { .. }
                | Event::ResumeRequested { .. }
                | Event::HaltRequested { .. }
                | Event::HaltLifted { .. }
                | Event::AbortRequested { .. }
                | Event::RetryRequested { .. }
        )
    }

    fn change(&self) -> Span {
        let span = self.span(self.derived("change"), self.root, "change", self.entry.at);
        let span = span.with_text("twincast.event", &self.entry.event.name());
        match self.after.phase.reason() {
            Some(reason) => span.with_text("twincast.reason", reason),
            None => span,
        }
    }

    /// Derives the ids of a span emitted once for this transition.
    fn derived(&self, what: &str) -> TraceContext {
        let version = self.entry.version;
        self.root.derive(format_args!("{what} {version}"))
    }

    fn span(
        &self,
        context: TraceContext,
        parent: TraceContext,
        name: &'static str,
        start: Timestamp,
    ) -> Span {
        let span = Span::new(context, Some(parent.span), name, start..self.entry.at);
        span.with_text("twincast.rollout", &self.after.spec.name)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue;

    use super::*;
    use crate::outcome::{Counts, Outcome};
    use crate::plan::PlanSummary;
    use crate::rollout::Attribution;
    use crate::spec::{OnFailure, RolloutSpec};

    const ROOT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// Applies events, one a second, and returns all emitted spans.
    fn spans_of(events: impl IntoIterator<Item = Event>) -> Vec<Span> {
        spans_of_spec(
            "stages: [{name: canary, percent: 10%, gate: {approval: {}}}]",
            events,
        )
    }

    fn spans_of_spec(more: &str, events: impl IntoIterator<Item = Event>) -> Vec<Span> {
        let spec =
            format!("{{name: r, target: {{all: true}}, message: {{body: {{text: hi}}}}, {more}}}");
        let spec = RolloutSpec::read("test", &spec).unwrap();
        let rollout = Rollout::accepted(spec, Default::default(), Timestamp(1_000));
        let mut rollout = rollout.with_trace(ROOT.parse().unwrap());
        let mut spans = Vec::new();
        for (at, event) in (2..).zip(events) {
            let next = rollout
                .after(event, Timestamp(at * 1_000))
                .unwrap()
                .unwrap();
            spans.extend(transition_spans(&rollout, &next));
            rollout = next;
        }
        spans
    }

    fn planned() -> [Event; 2] {
        let plan = PlanSummary {
            checksum: Default::default(),
            devices: 10,
            batches: 2,
            digest: String::new(),
            hubs: vec![],
            stages: vec![],
            excluded: vec![],
            repeated: 0,
            malformed_rows: Default::default(),
            unknown_zones: Default::default(),
        };
        [Event::PlanningStarted, Event::PlanCompleted { plan }]
    }

    fn canary() -> StageName {
        StageName::new("canary").unwrap()
    }

    fn brief(spans: &[Span]) -> Vec<(&str, u64, u64)> {
        spans
            .iter()
            .map(|span| (span.name, span.start.0 / 1_000, span.end.0 / 1_000))
            .collect()
    }

    #[test]
    fn rollout_has_spans_from_plan_to_end() {
        let mut counts = Counts::default();
        counts.count(Outcome::Enqueued);
        let stage = canary();
        let after = [
            Event::StageSent {
                stage: stage.clone(),
            },
            Event::StagePassed {
                stage,
                reason: "approved by ann".into(),
            },
            Event::AllSettled { counts },
        ];
        let spans = spans_of(planned().into_iter().chain(after));
        let expected = [
            ("plan", 2, 3),
            ("gate", 4, 5),
            ("stage", 3, 5),
            ("stage", 5, 6),
            ("rollout", 1, 6),
        ];
        assert_eq!(brief(&spans), expected);
        let root: TraceContext = ROOT.parse().unwrap();
        let [plan, gate, canary, rest, rollout] = &spans[..] else {
            unreachable!()
        };
        assert_eq!(canary.context, root.of_stage(StageIndex(0)));
        assert_eq!(gate.parent, Some(canary.context.span));
        for span in [plan, canary, rest, rollout] {
            assert_eq!(span.parent, Some(root.span), "{}", span.name);
        }
        let enqueued = KeyValue::new("twincast.outcome.enqueued", 1);
        assert!(rollout.attributes.contains(&enqueued), "{rollout:?}");
        assert!(spans.iter().all(|span| span.trouble.is_none()), "{spans:?}");
    }

    #[test]
    fn failure_is_recorded_on_matching_span() {
        let reason = || "too many failures".to_owned();
        let failed = Event::GateFailed {
            stage: canary(),
            reason: reason(),
            then: OnFailure::Pause,
        };
        let resumed = Event::ResumeRequested {
            attribution: Attribution::default(),
        };
        let aborted = Event::AbortRequested {
            reason: "enough".into(),
        };
        let mut counts = Counts::default();
        counts.count(Outcome::Skipped);
        let after = [failed, resumed, aborted, Event::AllSettled { counts }];
        let spans = spans_of(planned().into_iter().chain(after));
        let expected = [
            ("plan", 2, 3),
            ("gate", 3, 4),
            ("change", 5, 5),
            ("change", 6, 6),
            ("stage", 3, 7),
            ("rollout", 1, 7),
        ];
        assert_eq!(brief(&spans), expected);
        assert_eq!(spans[1].trouble, Some(reason()));
        for over in &spans[4..] {
            assert_eq!(over.trouble.as_deref(), Some("enough"), "{}", over.name);
        }
    }

    #[test]
    fn restarted_planning_starts_a_new_span() {
        let [started, completed] = planned();
        let spans = spans_of([started.clone(), started, completed]);
        assert_eq!(brief(&spans), [("plan", 3, 4)]);
        let failed = Event::PlanningFailed {
            reason: "no such hub".into(),
        };
        let spans = spans_of([Event::PlanningStarted, failed]);
        assert_eq!(brief(&spans), [("plan", 2, 3), ("rollout", 1, 3)]);
        assert_eq!(spans[0].trouble.as_deref(), Some("no such hub"));
    }

    /// A scan changes the version of the record, too.
    #[test]
    fn a_scan_emits_no_span_of_earlier_transitions() {
        let resumed = Event::ResumeRequested {
            attribution: Attribution::default(),
        };
        let paused = Event::PauseRequested {
            reason: "wait".into(),
        };
        let after = [paused, resumed, Event::ScanStarted];
        let spans = spans_of_spec("continuous: true", planned().into_iter().chain(after));
        let expected = [("plan", 2, 3), ("change", 4, 4), ("change", 5, 5)];
        assert_eq!(brief(&spans), expected);
    }

    #[test]
    fn a_rollout_without_a_trace_has_no_spans() {
        let spec = "{name: r, target: {all: true}, message: {body: {text: hi}}}";
        let spec = RolloutSpec::read("test", spec).unwrap();
        let before = Rollout::accepted(spec, Default::default(), Timestamp(1));
        let after = before
            .after(Event::PlanningStarted, Timestamp(2))
            .unwrap()
            .unwrap();
        assert!(transition_spans(&before, &after).is_empty());
    }
}
