//! The driver's notes on the search for a rollout's devices, during planning and during the scans
//! of a continuous rollout.
//!
//! A note is no event: see [`Notes`](super::Notes).

use std::time::Duration;

use super::event::Event;
use super::phase::{Duty, Phase};
use super::record::Rollout;
use super::search::{Search, SearchTrouble};
use crate::account::NOTED_EVERY;
use crate::time::Timestamp;
use crate::waiting::Waiting;

impl Rollout {
    /// Returns the trouble of the search for the rollout's devices, if there is any.
    #[must_use]
    pub fn search_trouble(&self) -> Option<&SearchTrouble> {
        self.notes.search.as_ref()?.trouble.as_ref()
    }

    /// Returns the noted reason for waiting before the plan is complete: another rollout in the
    /// queue, or trouble with the search.
    #[must_use]
    pub fn waits_to_be_planned(&self) -> Option<Waiting> {
        let queue = self
            .queued_behind
            .clone()
            .zip(self.spec.concurrency_group().cloned());
        let queue = queue.map(|(behind, group)| Waiting::GroupQueue { behind, group });
        let trouble = self.search_trouble().cloned();
        let trouble = trouble.filter(|_| self.phase.duty() == Duty::Plan);
        queue.or_else(|| trouble.map(Waiting::Search))
    }

    /// Returns the rollout with a note on the current try at planning: `found` devices so far, and
    /// hubs without an answer since the time in `standstill`. `None` if the observation is noted
    /// already or the last note is too recent.
    #[must_use]
    pub fn with_search_note(
        &self,
        found: u64,
        standstill: Option<(Timestamp, &str)>,
        now: Timestamp,
    ) -> Option<Self> {
        let before = self.notes.search.clone().unwrap_or_default();
        let trouble = match standstill {
            Some((since, error)) => Some(SearchTrouble::after(&before, since, error, None)),
            // A try without any result yet does not prove the end of the trouble.
            None => before.trouble.clone().filter(|_| found == 0),
        };
        let is_early = before.noted_at <= now && now.since(before.noted_at) < NOTED_EVERY;
        let is_known = before.found == found && before.trouble == trouble;
        if self.phase.duty() != Duty::Plan || is_known || is_early {
            return None;
        }
        Some(self.with_search(found, trouble, now))
    }

    /// Returns the rollout with a note on a failed try or scan. The next try begins after `again`,
    /// if known. `None` if no search is due any more.
    #[must_use]
    pub fn with_failed_search(
        &self,
        error: &str,
        again: Option<Duration>,
        now: Timestamp,
    ) -> Option<Self> {
        let searches = self.phase.duty() == Duty::Plan || self.scans.is_some();
        if !searches || self.phase.is_ended() {
            return None;
        }
        let before = self.notes.search.clone().unwrap_or_default();
        let next_try = again.map(|again| now.plus(again));
        let trouble = SearchTrouble::after(&before, now, error, next_try);
        Some(self.with_search(before.found, Some(trouble), now))
    }

    fn with_search(&self, found: u64, trouble: Option<SearchTrouble>, now: Timestamp) -> Self {
        let search = Search {
            found,
            trouble,
            noted_at: now,
        };
        let mut noted = self.clone();
        noted.notes.search = Some(search);
        noted
    }

    /// Updates the note after an event. The trouble stays until a try has found devices.
    pub(super) fn search_after(&mut self, event: &Event) {
        let is_over = matches!(
            event,
            Event::PlanCompleted { .. }
                | Event::PlanningFailed { .. }
                | Event::ScanCompleted { .. }
        );
        if is_over || self.phase.is_ended() || matches!(self.phase, Phase::Aborting { .. }) {
            self.notes.search = None;
        } else if *event == Event::PlanningStarted
            && let Some(search) = &mut self.notes.search
        {
            search.found = 0;
            if let Some(trouble) = &mut search.trouble {
                trouble.next_try = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::tests::plan;
    use crate::rollout::{Attribution, Notes};
    use crate::spec::RolloutSpec;

    const START: Timestamp = Timestamp(1_790_000_000_000);

    fn at(seconds: u64) -> Timestamp {
        START.plus(Duration::from_secs(seconds))
    }

    fn planning() -> Rollout {
        let spec = RolloutSpec::read(
            "x",
            "{name: r, target: {all: true}, message: {body: {text: x}}}",
        );
        let accepted = Rollout::accepted(spec.unwrap(), Default::default(), START);
        after(&accepted, Event::PlanningStarted, 0)
    }

    fn after(rollout: &Rollout, event: Event, seconds: u64) -> Rollout {
        rollout
            .after(event, at(seconds))
            .unwrap()
            .expect("the event changes the rollout")
    }

    #[test]
    fn last_search_error_is_kept_until_devices_are_found() {
        let wait = Duration::from_secs(30);
        let failed = planning()
            .with_failed_search("no route", Some(wait), at(1))
            .unwrap();
        let says = "its devices to be found: no route; failing since 2026-09-21T14:13:21Z, next \
             try at 2026-09-21T14:13:51Z";
        assert_eq!(failed.waits_to_be_planned().unwrap().to_string(), says);
        assert_eq!(failed.version, planning().version, "a note is no event");
        // The next try begins; the last error is still the newest information.
        let again = after(&failed, Event::PlanningStarted, 31);
        let says = "its devices to be found: no route; failing since 2026-09-21T14:13:21Z";
        assert_eq!(again.waits_to_be_planned().unwrap().to_string(), says);
        assert_eq!(
            again.with_search_note(0, None, at(40)),
            None,
            "no progress to note"
        );
        let stands = again
            .with_search_note(0, Some((at(31), "busy")), at(40))
            .unwrap();
        let trouble = stands.search_trouble().unwrap();
        assert_eq!((trouble.since, &*trouble.error), (at(1), "busy"));
        let continued = stands.with_search_note(200, None, at(50)).unwrap();
        assert_eq!(continued.notes.search.as_ref().unwrap().found, 200);
        assert_eq!(continued.waits_to_be_planned(), None);
        let whole = after(&continued, plan(2), 60);
        assert_eq!(whole.notes.search, None);
    }

    #[test]
    fn search_notes_are_rate_limited_and_bounded() {
        let rollout = planning().with_search_note(100, None, at(10)).unwrap();
        assert_eq!(
            rollout.with_search_note(200, None, at(12)),
            None,
            "too early"
        );
        assert_eq!(
            rollout.with_search_note(100, None, at(20)),
            None,
            "unchanged"
        );
        assert!(rollout.with_search_note(200, None, at(15)).is_some());
        // The failure of a try is noted at once.
        let long = "x".repeat(5_000);
        let failed = rollout.with_failed_search(&long, None, at(11)).unwrap();
        assert_eq!(failed.search_trouble().unwrap().error.chars().count(), 601);
        let text = serde_json::to_string(&failed.notes).unwrap();
        assert_eq!(serde_json::from_str::<Notes>(&text).unwrap(), failed.notes);
    }

    #[test]
    fn search_notes_end_with_planning() {
        let failed = planning()
            .with_failed_search("no route", None, at(1))
            .unwrap();
        let aborting = after(&failed, Event::AbortRequested { reason: "x".into() }, 2);
        assert_eq!(aborting.notes.search, None);
        let running = after(&failed, plan(2), 2);
        assert_eq!(running.with_failed_search("x", None, at(3)), None);
        assert_eq!(running.with_search_note(1, None, at(9)), None);
        let attribution = Attribution::default();
        let resumed = failed.after(Event::ResumeRequested { attribution }, at(3));
        assert_eq!(resumed, Ok(None));
    }
}
