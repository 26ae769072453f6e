//! The state machine of a device's updates: pure functions without I/O or clock.
//!
//! [`State`] is stored on disk and is the source of truth. [`State::on`] applies an event;
//! [`State::work`] returns the work due, and [`State::patch`] the report due, both from the state
//! alone. The driver stores the state before acting. After a crash, the driver loads the state and
//! finds the same work again. All work may therefore be done twice, or be found done.
//!
//! ```text
//! Received ─check─> Verified ─jitter─> Downloading ─> Installing ─> Activating ─> [AwaitingRestart] ─> Checking ─> Confirming ─> applied
//!    │                 │                   │            │   ▲           └──────────────┬────────────────┴───────────┘
//!    │                 └── cancel ─────────┤            │   └─ Pausing (try later)     │ fails
//!    └─> refused               cancelled, failed        └─> failed                 RollingBack ─> rolled_back | failed
//! ```
//!
//! Only a single update is processed at a time; other updates wait in the order of arrival.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::report::{Progress, Reason, Report};

mod event;

pub use event::{Event, Hook, HookResult, Limits, Patch, Work};

/// The format version of the state file.
pub const FORMAT: u32 = 1;

/// The largest number of waiting updates. A hub keeps 50 messages for a device; only the last few
/// are of use.
pub const WAITING_MAX: usize = 8;

/// The number of remembered ends, for recognising repeated messages: far more than the messages
/// kept by a hub for a device.
pub const HISTORY_MAX: usize = 256;

/// The largest number of agent starts during a health check. Beyond this number, the new version
/// counts as the cause of the restarts.
pub const STARTS_MAX: u32 = 5;

/// The longest message id: the hub's limit.
pub const ID_MAX: usize = 128;

/// The state of all updates of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The format: [`FORMAT`].
    pub format: u32,
    /// The running version.
    pub installed: Option<String>,
    /// The update in progress.
    pub current: Option<Update>,
    /// Waiting updates, the next update first.
    pub waiting: VecDeque<Update>,
    /// The reports of ended updates, oldest first.
    pub history: VecDeque<Report>,
    /// The reports not yet accepted by the hub, oldest first: only the last report of each update.
    pub pending_reports: VecDeque<Report>,
    /// The last report.
    pub last_report: Option<Report>,
    /// The version last accepted by the hub.
    pub reported_version: Option<String>,
    /// The cancellation target in the desired property.
    pub cancelled: Option<String>,
}

/// An update, waiting or in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The id of the message.
    pub id: String,
    /// The body of the message; empty after the check.
    pub body: String,
    /// The manifest, after the check.
    pub manifest: Option<Manifest>,
    /// The number of the installation attempt, from 1.
    pub attempt: u32,
    /// The current step.
    pub step: Step,
}

/// The step of an update, finer than the [reported progress](Progress).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "at")]
pub enum Step {
    /// The message is stored, not checked.
    Received,
    /// The update is accepted. The download begins later, to spread the load of a fleet.
    Verified {
        /// The start of the download.
        until: Timestamp,
    },
    /// The artefact is being downloaded.
    Downloading {
        /// The start of the download; the time limit counts from here.
        since: Timestamp,
    },
    /// The hook `install` runs.
    Installing,
    /// `install` requested another attempt.
    Pausing {
        /// The time of the next attempt.
        until: Timestamp,
    },
    /// The hook `activate` runs.
    Activating {
        /// The boot id of the machine at the start of the hook.
        boot: String,
    },
    /// `activate` is done, and the machine or the agent is about to restart.
    AwaitingRestart {
        /// The deadline of the restart.
        until: Timestamp,
    },
    /// The health check of the new version runs.
    Checking {
        /// The number of agent starts during the health check, from 1.
        starts: u32,
    },
    /// The hook `confirm` runs.
    Confirming,
    /// The hook `rollback` runs.
    RollingBack {
        /// The reason for the rollback.
        reason: Reason,
    },
}

impl State {
    /// Creates the state of a device running version `installed`, without updates.
    #[must_use]
    pub fn new(installed: Option<String>) -> Self {
        Self {
            format: FORMAT,
            installed,
            current: None,
            waiting: VecDeque::new(),
            history: VecDeque::new(),
            pending_reports: VecDeque::new(),
            last_report: None,
            reported_version: None,
            cancelled: None,
        }
    }

    /// Applies an event. An event not fitting the current step (a late answer, a repeat) changes
    /// nothing.
    pub fn on(&mut self, event: Event, limits: &Limits, now: Timestamp) {
        match event {
            Event::Started { boot, installed } => {
                self.set_installed(installed);
                self.started(&boot, now);
            }
            Event::Message { id, body } => self.message(id, body, now),
            Event::Cancel(target) => self.cancel(&target, now),
            Event::Desired(target) => {
                self.cancelled = target;
                if let Some(target) = self.cancelled.clone() {
                    self.cancel(&target, now);
                }
            }
            Event::Checked { result, until } => self.checked(result, until, now),
            Event::Due => self.due(now),
            Event::Downloaded(result) => self.downloaded(result, now),
            Event::HookEnded {
                result,
                boot,
                installed,
            } => self.hook_ended(result, boot, installed, limits, now),
            Event::HealthChecked(result) => self.health_checked(result, now),
            Event::Reported(patch) => self.reported(patch),
            Event::Twin(patch) => self.twin(patch),
        }
        if self.current.is_none() {
            self.current = self.waiting.pop_front();
        }
    }

    /// Returns the work due now.
    #[must_use]
    pub fn work(&self) -> Option<Work> {
        let update = self.current.as_ref()?;
        let run = |hook| Work::Run(hook, update.attempt);
        Some(match &update.step {
            Step::Received => Work::Check(update.body.clone()),
            Step::Verified { until }
            | Step::Pausing { until }
            | Step::AwaitingRestart { until } => Work::Wait(*until),
            Step::Downloading { since } => Work::Download {
                artifact: update.manifest.as_ref()?.artifact.clone(),
                since: *since,
            },
            Step::Installing => run(Hook::Install),
            Step::Activating { .. } => run(Hook::Activate),
            Step::Checking { .. } => Work::Health,
            Step::Confirming => run(Hook::Confirm),
            Step::RollingBack { .. } => run(Hook::Rollback),
        })
    }

    /// Returns the patch of reported properties due now.
    #[must_use]
    pub fn patch(&self) -> Option<Patch> {
        let version = self
            .installed
            .clone()
            .filter(|it| self.reported_version.as_ref() != Some(it));
        let patch = Patch {
            update: self.pending_reports.front().cloned(),
            version,
        };
        (patch != Patch::default()).then_some(patch)
    }

    /// Returns whether an id belongs to an update in progress or waiting.
    fn is_open(&self, id: &str) -> bool {
        let mut open = self.current.iter().chain(&self.waiting);
        open.any(|update| update.id == id)
    }

    fn set_installed(&mut self, installed: Option<String>) {
        if installed.is_some() {
            self.installed = installed;
        }
    }

    fn started(&mut self, boot: &str, now: Timestamp) {
        let Some(update) = &mut self.current else {
            return;
        };
        match &mut update.step {
            Step::AwaitingRestart { .. } => update.step = Step::Checking { starts: 1 },
            // The hook itself restarted the machine.
            Step::Activating { boot: before } if before != boot => {
                update.step = Step::Checking { starts: 1 }
            }
            Step::Checking { starts } if *starts < STARTS_MAX => *starts += 1,
            Step::Checking { .. } => {
                let text = format!(
                    "the agent restarted {STARTS_MAX} times during the health check of the new version"
                );
                self.roll_back(Reason::new("health_check", text), now);
            }
            _ => {}
        }
    }

    fn message(&mut self, id: String, body: String, now: Timestamp) {
        if self.is_open(&id) {
            return;
        }
        if let Some(end) = self.history.iter().find(|end| end.id == id) {
            // Repeat the report of an ended update, unless it is still the last report.
            if self.last_report.as_ref() != Some(end) {
                let end = end.clone();
                self.queue_report(end);
            }
            return;
        }
        let update = Update {
            id,
            body,
            manifest: None,
            attempt: 1,
            step: Step::Received,
        };
        let is_cancelled = self
            .cancelled
            .as_deref()
            .is_some_and(|target| cancels(target, &update.id));
        if is_cancelled {
            self.end_update(&update, Progress::Cancelled, Some(cancelled()), now);
        } else if self.waiting.len() >= WAITING_MAX {
            let text =
                format!("too many waiting updates: at most {WAITING_MAX} can wait on this device");
            self.end_update(
                &update,
                Progress::Refused,
                Some(Reason::new("busy", text)),
                now,
            );
        } else {
            self.queue_report(report(&update, Progress::Received, None, now));
            self.waiting.push_back(update);
        }
    }

    fn cancel(&mut self, target: &str, now: Timestamp) {
        let is_early = |step: &Step| {
            matches!(
                step,
                Step::Received | Step::Verified { .. } | Step::Downloading { .. }
            )
        };
        let (given_up, kept) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|update: &Update| cancels(target, &update.id));
        self.waiting = kept;
        let current = self
            .current
            .take_if(|it| cancels(target, &it.id) && is_early(&it.step));
        let given_up: VecDeque<Update> = given_up;
        for update in current.into_iter().chain(given_up) {
            self.end_update(&update, Progress::Cancelled, Some(cancelled()), now);
        }
    }

    fn checked(&mut self, result: Result<Manifest, Reason>, until: Timestamp, now: Timestamp) {
        let Some(update) = self.current_at(|step| matches!(step, Step::Received)) else {
            return;
        };
        match result {
            Ok(manifest) => {
                update.body.clear();
                update.manifest = Some(manifest);
                self.go_to(Step::Verified { until }, now);
            }
            Err(reason) => self.end_current(Progress::Refused, Some(reason), now),
        }
    }

    fn due(&mut self, now: Timestamp) {
        let Some(update) = &mut self.current else {
            return;
        };
        match update.step {
            Step::Verified { .. } => self.go_to(Step::Downloading { since: now }, now),
            Step::Pausing { .. } => {
                update.attempt += 1;
                self.go_to(Step::Installing, now);
            }
            Step::AwaitingRestart { .. } => {
                let text = "the restart announced by activate did not happen in time";
                self.roll_back(Reason::new("restart", text), now);
            }
            _ => {}
        }
    }

    fn downloaded(&mut self, result: Result<(), Reason>, now: Timestamp) {
        let Some(update) = self.current_at(|step| matches!(step, Step::Downloading { .. })) else {
            return;
        };
        // The update may have expired during the download.
        let in_time = update
            .manifest
            .as_ref()
            .map_or(Ok(()), |manifest| manifest.check_time(now));
        match result.and(in_time) {
            Ok(()) => self.go_to(Step::Installing, now),
            Err(reason) => self.end_current(Progress::Failed, Some(reason), now),
        }
    }

    fn hook_ended(
        &mut self,
        result: HookResult,
        boot: String,
        installed: Option<String>,
        limits: &Limits,
        now: Timestamp,
    ) {
        let Some(update) = &mut self.current else {
            return;
        };
        let failed = |code, output: String| Reason::new(code, output);
        match (&update.step, result) {
            (Step::Installing, HookResult::Done | HookResult::Restart) => {
                self.go_to(Step::Activating { boot }, now);
            }
            (Step::Installing, HookResult::Retry(_)) if update.attempt < limits.max_attempts => {
                self.go_to(
                    Step::Pausing {
                        until: later(now, limits.retry_pause),
                    },
                    now,
                );
            }
            (Step::Installing, HookResult::Retry(output) | HookResult::Failed(output)) => {
                self.end_current(Progress::Failed, Some(failed("install", output)), now);
            }
            (Step::Activating { .. }, HookResult::Done) => {
                self.go_to(Step::Checking { starts: 1 }, now);
            }
            (Step::Activating { .. }, HookResult::Restart) => {
                self.go_to(
                    Step::AwaitingRestart {
                        until: later(now, limits.restart_within),
                    },
                    now,
                );
            }
            (Step::Activating { .. }, HookResult::Retry(output) | HookResult::Failed(output)) => {
                self.roll_back(failed("activate", output), now);
            }
            (Step::Confirming, HookResult::Done | HookResult::Restart) => {
                let installed =
                    installed.or_else(|| Some(update.manifest.as_ref()?.version.clone()));
                self.set_installed(installed);
                self.end_current(Progress::Applied, None, now);
            }
            (Step::Confirming, HookResult::Retry(output) | HookResult::Failed(output)) => {
                self.roll_back(failed("confirm", output), now);
            }
            (Step::RollingBack { reason }, HookResult::Done | HookResult::Restart) => {
                let reason = reason.clone();
                self.set_installed(installed);
                self.end_current(Progress::RolledBack, Some(reason), now);
            }
            (
                Step::RollingBack { reason },
                HookResult::Retry(output) | HookResult::Failed(output),
            ) => {
                let text = format!(
                    "{}: {}; and the rollback failed: {output}",
                    reason.code, reason.text
                );
                self.set_installed(installed);
                self.end_current(Progress::Failed, Some(failed("rollback", text)), now);
            }
            _ => {}
        }
    }

    fn health_checked(&mut self, result: Result<(), String>, now: Timestamp) {
        if self
            .current_at(|step| matches!(step, Step::Checking { .. }))
            .is_none()
        {
            return;
        }
        match result {
            Ok(()) => self.go_to(Step::Confirming, now),
            Err(output) => self.roll_back(Reason::new("health_check", output), now),
        }
    }

    fn reported(&mut self, patch: Patch) {
        if patch.version.is_some() {
            self.reported_version = patch.version;
        }
        if let Some(report) = patch.update {
            self.pending_reports.retain(|it| *it != report);
        }
    }

    /// Compares the twin with the state. A report in the twin counts as accepted, although the
    /// answer to the write was lost. A twin without the last report (the device was created anew)
    /// gets the report again.
    fn twin(&mut self, patch: Patch) {
        self.reported_version = patch.version;
        if let Some(report) = &patch.update {
            self.pending_reports.retain(|it| it != report);
        }
        if self.pending_reports.is_empty() && patch.update != self.last_report {
            self.pending_reports.extend(self.last_report.clone());
        }
    }

    fn current_at(&mut self, is_there: impl Fn(&Step) -> bool) -> Option<&mut Update> {
        self.current
            .as_mut()
            .filter(|update| is_there(&update.step))
    }

    fn roll_back(&mut self, reason: Reason, now: Timestamp) {
        self.go_to(Step::RollingBack { reason }, now);
    }

    /// Moves the current update to a step. Queues a report if the progress changes.
    fn go_to(&mut self, step: Step, now: Timestamp) {
        let Some(update) = &mut self.current else {
            return;
        };
        let before = std::mem::replace(&mut update.step, step).progress();
        let progress = update.step.progress();
        if progress != before {
            let report = report(update, progress, None, now);
            self.queue_report(report);
        }
    }

    fn end_current(&mut self, progress: Progress, error: Option<Reason>, now: Timestamp) {
        if let Some(update) = self.current.take() {
            self.end_update(&update, progress, error, now);
        }
    }

    fn end_update(
        &mut self,
        update: &Update,
        progress: Progress,
        error: Option<Reason>,
        now: Timestamp,
    ) {
        let report = report(update, progress, error, now);
        self.history.push_back(report.clone());
        if self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
        self.queue_report(report);
    }

    /// Queues a report. The last report of an update replaces earlier reports.
    fn queue_report(&mut self, report: Report) {
        self.pending_reports.retain(|it| it.id != report.id);
        // Dropping the oldest report is no loss: a hub that accepts none of so many reports has no
        // more messages for the device, because the queue of a device holds 50 messages.
        if self.pending_reports.len() >= HISTORY_MAX {
            self.pending_reports.pop_front();
        }
        self.pending_reports.push_back(report.clone());
        self.last_report = Some(report);
    }
}

impl Step {
    /// Returns the reported progress.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match self {
            Self::Received => Progress::Received,
            Self::Verified { .. } => Progress::Verified,
            Self::Downloading { .. } => Progress::Downloading,
            Self::Installing | Self::Pausing { .. } => Progress::Installing,
            Self::Activating { .. }
            | Self::AwaitingRestart { .. }
            | Self::Checking { .. }
            | Self::Confirming
            | Self::RollingBack { .. } => Progress::Restarting,
        }
    }
}

fn report(update: &Update, state: Progress, error: Option<Reason>, at: Timestamp) -> Report {
    Report {
        id: update.id.clone(),
        state,
        version: update
            .manifest
            .as_ref()
            .map(|manifest| manifest.version.clone()),
        error,
        attempt: update.attempt,
        at,
    }
}

fn cancelled() -> Reason {
    Reason::new("cancelled", "cancelled on request before the installation")
}

/// The number of parts after the rollout's name in a message id, each after a dot. The name itself
/// may contain dots.
const ID_PARTS: usize = 5;

/// Returns whether a cancellation of `target`, a message id or a rollout's name, includes the
/// message `id`.
fn cancels(target: &str, id: &str) -> bool {
    let of_rollout = |rest: &str| rest.starts_with('.') && rest.matches('.').count() == ID_PARTS;
    let rest = id.strip_prefix(target).filter(|_| !target.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || of_rollout(rest))
}

fn later(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
