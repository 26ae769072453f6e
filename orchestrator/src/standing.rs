//! Where a rollout stands, in words.

use twincast_core::gate::{self, Next, Seen, metric};
use twincast_core::plan::Group;
use twincast_core::ports::Tally;
use twincast_core::rollout::{Phase, Rollout, StageProgress};
use twincast_core::time::Timestamp;
use twincast_core::waiting::Waiting;

/// Where a stage stands: over, under way, to come, or what it waits for.
#[must_use]
pub fn of_stage(
    rollout: &Rollout,
    index: u16,
    progress: &StageProgress,
    tallies: &[Tally],
    now: Timestamp,
) -> String {
    if let Some(at) = progress.passed_at {
        let how = match (&progress.promoted, &progress.ignored, &progress.approved) {
            (Some(word), _, _) => format!(", promoted by {word}"),
            (_, Some(_), _) => ", its gate failed".to_owned(),
            (_, _, Some(approval)) => format!(", approved by {}", approval.word),
            _ => String::new(),
        };
        return format!("passed at {at}{how}");
    }
    if rollout.stage().0 != index {
        return "to come".to_owned();
    }
    match &rollout.phase {
        Phase::Running => {
            let state = match waits_for(rollout, tallies, now) {
                Some(waits) => format!("waits for {waits}"),
                None => "under way".to_owned(),
            };
            let gate = rollout.spec.gate_of(rollout.stage());
            match gate.filter(|gate| !gate.metrics.is_empty()) {
                Some(gate) => format!("{state}; {}", metric::in_words(gate, progress)),
                None => state,
            }
        }
        // Its last stage needs no gate to be over.
        Phase::Succeeded | Phase::FinishedWithFailures => "done".to_owned(),
        phase => phase.as_str().replace('_', " "),
    }
}

/// The tallies that count of a rollout: none before its plan is whole. Batches of a try at planning may belong to no plan.
pub(crate) fn counted<'a>(rollout: &Rollout, tallies: &'a [Tally]) -> &'a [Tally] {
    match rollout.plan {
        Some(_) => tallies,
        None => &[],
    }
}

/// What a rollout waits for: its turn, or that its devices can be found; and when it runs, its schedule, room in its
/// budgets, or its current stage's gate when all of it is sent.
#[must_use]
pub fn waits_for(rollout: &Rollout, tallies: &[Tally], now: Timestamp) -> Option<Waiting> {
    if rollout.phase != Phase::Running {
        return rollout.waits_to_be_planned();
    }
    let stage = rollout.stage();
    let here = tallies.iter().filter(|tally| tally.stage == stage);
    let left = rollout.owing(tallies).next().is_some();
    // How far the hubs were heard is what the driver has noted.
    let mut rollout = rollout.clone();
    let evidence = rollout.notes.clock.evidence().clone();
    rollout.advance_clock(&evidence, now);
    let seen = Seen {
        stage: &Tally::sum(here),
        all: &Tally::sum(tallies),
        left,
        measured: None,
        unanswered: rollout.notes.answers.unanswered(tallies),
        recorded: false,
        evidence: &evidence,
    };
    match gate::next(&rollout, seen, now) {
        Next::Wait(waits) => Some(waits),
        Next::Measure | Next::Record => {
            let not_asked = rollout.notes.clock.not_asked();
            Some(Waiting::Applied(not_asked.map(str::to_owned)))
        }
        Next::Send => {
            let schedule = rollout.spec.opening(&Group::default(), now);
            // The driver alone knows the zones of the devices that are left.
            let closed = Waiting::of_schedule(&schedule).filter(|_| !rollout.spec.has_zones());
            closed.or_else(|| rollout.notes.account.held_back(now).cloned())
        }
        Next::Happened(_) | Next::Over => None,
    }
}
