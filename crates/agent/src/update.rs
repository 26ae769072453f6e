//! What a device knows of its updates, and what it does next: pure functions, no I/O, no clock.
//!
//! [`State`] is what stands on disk and is the truth. [`State::on`] takes an event into it; [`State::work`] says what is to
//! be done, and [`State::patch`] what is to be told, from nothing but the state. The driver stores the state before it acts
//! on it; after a crash it loads the state and finds the same work again. Every work may therefore be done twice, or be found
//! done.
//!
//! ```text
//! Received ─check─> Verified ─jitter─> Downloading ─> Installing ─> Activating ─> [AwaitingRestart] ─> Checking ─> Confirming ─> applied
//!    │                 │                   │            │   ▲           └──────────────┬────────────────┴───────────┘
//!    │                 └── cancel ─────────┤            │   └─ Pausing (try later)     │ fails
//!    └─> refused               cancelled, failed        └─> failed                 RollingBack ─> rolled_back | failed
//! ```
//!
//! One update is worked on at a time; others wait in the order of their arrival.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::report::{Reason, Report, Stage};

mod event;

pub use event::{Event, Hook, HookEnd, Limits, Patch, Work};

/// The form of the file that a state is stored in.
pub const FORMAT: u32 = 1;

/// How many updates may wait. A hub keeps 50 messages for a device; nobody needs more than the last few.
pub const WAITING_MAX: usize = 8;

/// How many ends are remembered, to know repeats by: far more than a hub keeps of messages for a device.
pub const HISTORY_MAX: usize = 256;

/// How often the agent may start in the middle of a health check, before the new version is taken for what ends it.
pub const STARTS_MAX: u32 = 5;

/// The longest message id: the hub's limit.
pub const ID_MAX: usize = 128;

/// Everything that a device knows of its updates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT`].
    pub format: u32,
    /// The version that runs.
    pub installed: Option<String>,
    /// The update that is worked on.
    pub current: Option<Update>,
    /// Updates that wait, the next one first.
    pub waiting: VecDeque<Update>,
    /// The ends, oldest first.
    pub history: VecDeque<Report>,
    /// What the hub is to be told, oldest first: of each update what came last.
    pub unreported: VecDeque<Report>,
    /// What was said last.
    pub said: Option<Report>,
    /// The version that the hub was told.
    pub reported_version: Option<String>,
    /// What the desired property asks to give up.
    pub cancelled: Option<String>,
}

/// An update on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The id of its message.
    pub id: String,
    /// The body of its message, until it was checked.
    pub body: String,
    /// What it is, once it was checked.
    pub manifest: Option<Manifest>,
    /// How often its installation was begun.
    pub attempt: u32,
    /// Where it is.
    pub step: Step,
}

/// Where an update is: more exactly than what is [reported](Stage).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "at")]
pub enum Step {
    /// Stored, not checked.
    Received,
    /// Good; the download begins later, so that a fleet does not begin all at once.
    Verified {
        /// When it begins.
        until: Timestamp,
    },
    /// Being fetched.
    Downloading {
        /// Since when; the limit of the whole download counts from here.
        since: Timestamp,
    },
    /// The hook `install` runs.
    Installing,
    /// `install` asked to be tried again.
    Pausing {
        /// When.
        until: Timestamp,
    },
    /// The hook `activate` runs.
    Activating {
        /// The boot of the machine in which it began.
        boot: String,
    },
    /// `activate` is done, and the machine or the agent is about to start anew.
    AwaitingRestart {
        /// When it is given up.
        until: Timestamp,
    },
    /// The new version shows whether it works.
    Checking {
        /// How often the agent was started since.
        starts: u32,
    },
    /// The hook `confirm` runs.
    Confirming,
    /// The hook `rollback` runs.
    RollingBack {
        /// Why.
        reason: Reason,
    },
}

impl State {
    /// A device that runs `installed` and knows of no update.
    #[must_use]
    pub fn new(installed: Option<String>) -> Self {
        Self {
            format: FORMAT,
            installed,
            current: None,
            waiting: VecDeque::new(),
            history: VecDeque::new(),
            unreported: VecDeque::new(),
            said: None,
            reported_version: None,
            cancelled: None,
        }
    }

    /// Takes an event in. What does not fit where the update is (a late answer, a repeat) changes nothing.
    pub fn on(&mut self, event: Event, limits: &Limits, now: Timestamp) {
        match event {
            Event::Started { boot, installed } => {
                self.runs(installed);
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
            Event::Ended {
                end,
                boot,
                installed,
            } => self.ended(end, boot, installed, limits, now),
            Event::Healthy(result) => self.healthy(result, now),
            Event::Reported(patch) => self.reported(patch),
            Event::Twin(patch) => self.twin(patch),
        }
        if self.current.is_none() {
            self.current = self.waiting.pop_front();
        }
    }

    /// What is to be done now.
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

    /// What the hub is to be told now.
    #[must_use]
    pub fn patch(&self) -> Option<Patch> {
        let version = self
            .installed
            .clone()
            .filter(|it| self.reported_version.as_ref() != Some(it));
        let patch = Patch {
            update: self.unreported.front().cloned(),
            version,
        };
        (patch != Patch::default()).then_some(patch)
    }

    /// Whether an id was seen: of an update on its way, or of one that ended and is remembered.
    fn knows(&self, id: &str) -> bool {
        let mut on_their_way = self.current.iter().chain(&self.waiting);
        on_their_way.any(|update| update.id == id)
    }

    fn runs(&mut self, installed: Option<String>) {
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
            // The hook itself has restarted the machine.
            Step::Activating { boot: before } if before != boot => {
                update.step = Step::Checking { starts: 1 }
            }
            Step::Checking { starts } if *starts < STARTS_MAX => *starts += 1,
            Step::Checking { .. } => {
                let text = format!(
                    "the agent was started {STARTS_MAX} times before the new version was found to work"
                );
                self.roll_back(Reason::new("health_check", text), now);
            }
            _ => {}
        }
    }

    fn message(&mut self, id: String, body: String, now: Timestamp) {
        if self.knows(&id) {
            return;
        }
        if let Some(end) = self.history.iter().find(|end| end.id == id) {
            // The answer is what it was, and is given if it is not what the hub has.
            if self.said.as_ref() != Some(end) {
                let end = end.clone();
                self.say(end);
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
            .is_some_and(|target| is_meant(target, &update.id));
        if is_cancelled {
            self.finish(&update, Stage::Cancelled, Some(cancelled()), now);
        } else if self.waiting.len() >= WAITING_MAX {
            let text = format!("{WAITING_MAX} updates wait on this device, and it takes no more");
            self.finish(
                &update,
                Stage::Refused,
                Some(Reason::new("busy", text)),
                now,
            );
        } else {
            self.say(report(&update, Stage::Received, None, now));
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
            .partition(|update: &Update| is_meant(target, &update.id));
        self.waiting = kept;
        let current = self
            .current
            .take_if(|it| is_meant(target, &it.id) && is_early(&it.step));
        let given_up: VecDeque<Update> = given_up;
        for update in current.into_iter().chain(given_up) {
            self.finish(&update, Stage::Cancelled, Some(cancelled()), now);
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
                self.go(Step::Verified { until }, now);
            }
            Err(reason) => self.end(Stage::Refused, Some(reason), now),
        }
    }

    fn due(&mut self, now: Timestamp) {
        let Some(update) = &mut self.current else {
            return;
        };
        match update.step {
            Step::Verified { .. } => self.go(Step::Downloading { since: now }, now),
            Step::Pausing { .. } => {
                update.attempt += 1;
                self.go(Step::Installing, now);
            }
            Step::AwaitingRestart { .. } => {
                let text = "the restart that activate announced did not come in time";
                self.roll_back(Reason::new("restart", text), now);
            }
            _ => {}
        }
    }

    fn downloaded(&mut self, result: Result<(), Reason>, now: Timestamp) {
        let Some(update) = self.current_at(|step| matches!(step, Step::Downloading { .. })) else {
            return;
        };
        // It may have expired on the way.
        let in_time = update
            .manifest
            .as_ref()
            .map_or(Ok(()), |manifest| manifest.check_time(now));
        match result.and(in_time) {
            Ok(()) => self.go(Step::Installing, now),
            Err(reason) => self.end(Stage::Failed, Some(reason), now),
        }
    }

    fn ended(
        &mut self,
        end: HookEnd,
        boot: String,
        installed: Option<String>,
        limits: &Limits,
        now: Timestamp,
    ) {
        let Some(update) = &mut self.current else {
            return;
        };
        let failed = |code, words: String| Reason::new(code, words);
        match (&update.step, end) {
            (Step::Installing, HookEnd::Done | HookEnd::Restart) => {
                self.go(Step::Activating { boot }, now);
            }
            (Step::Installing, HookEnd::Later(_)) if update.attempt < limits.tries => {
                self.go(
                    Step::Pausing {
                        until: later(now, limits.pause),
                    },
                    now,
                );
            }
            (Step::Installing, HookEnd::Later(words) | HookEnd::Failed(words)) => {
                self.end(Stage::Failed, Some(failed("install", words)), now);
            }
            (Step::Activating { .. }, HookEnd::Done) => self.go(Step::Checking { starts: 1 }, now),
            (Step::Activating { .. }, HookEnd::Restart) => {
                self.go(
                    Step::AwaitingRestart {
                        until: later(now, limits.restart_within),
                    },
                    now,
                );
            }
            (Step::Activating { .. }, HookEnd::Later(words) | HookEnd::Failed(words)) => {
                self.roll_back(failed("activate", words), now);
            }
            (Step::Confirming, HookEnd::Done | HookEnd::Restart) => {
                let installed =
                    installed.or_else(|| Some(update.manifest.as_ref()?.version.clone()));
                self.runs(installed);
                self.end(Stage::Applied, None, now);
            }
            (Step::Confirming, HookEnd::Later(words) | HookEnd::Failed(words)) => {
                self.roll_back(failed("confirm", words), now);
            }
            (Step::RollingBack { reason }, HookEnd::Done | HookEnd::Restart) => {
                let reason = reason.clone();
                self.runs(installed);
                self.end(Stage::RolledBack, Some(reason), now);
            }
            (Step::RollingBack { reason }, HookEnd::Later(words) | HookEnd::Failed(words)) => {
                let text = format!(
                    "{}: {}; and the rollback failed: {words}",
                    reason.code, reason.text
                );
                self.runs(installed);
                self.end(Stage::Failed, Some(failed("rollback", text)), now);
            }
            _ => {}
        }
    }

    fn healthy(&mut self, result: Result<(), String>, now: Timestamp) {
        if self
            .current_at(|step| matches!(step, Step::Checking { .. }))
            .is_none()
        {
            return;
        }
        match result {
            Ok(()) => self.go(Step::Confirming, now),
            Err(words) => self.roll_back(Reason::new("health_check", words), now),
        }
    }

    fn reported(&mut self, patch: Patch) {
        if patch.version.is_some() {
            self.reported_version = patch.version;
        }
        if let Some(report) = patch.update {
            self.unreported.retain(|it| *it != report);
        }
    }

    /// A write whose answer was lost was taken; a twin that says something else (it was made anew) is told again.
    fn twin(&mut self, patch: Patch) {
        self.reported_version = patch.version;
        if let Some(report) = &patch.update {
            self.unreported.retain(|it| it != report);
        }
        if self.unreported.is_empty() && patch.update != self.said {
            self.unreported.extend(self.said.clone());
        }
    }

    fn current_at(&mut self, is_there: impl Fn(&Step) -> bool) -> Option<&mut Update> {
        self.current
            .as_mut()
            .filter(|update| is_there(&update.step))
    }

    fn roll_back(&mut self, reason: Reason, now: Timestamp) {
        self.go(Step::RollingBack { reason }, now);
    }

    /// The current update goes on to a step; it is told if that is another stage.
    fn go(&mut self, step: Step, now: Timestamp) {
        let Some(update) = &mut self.current else {
            return;
        };
        let before = std::mem::replace(&mut update.step, step).stage();
        let stage = update.step.stage();
        if stage != before {
            let report = report(update, stage, None, now);
            self.say(report);
        }
    }

    fn end(&mut self, stage: Stage, error: Option<Reason>, now: Timestamp) {
        if let Some(update) = self.current.take() {
            self.finish(&update, stage, error, now);
        }
    }

    fn finish(&mut self, update: &Update, stage: Stage, error: Option<Reason>, now: Timestamp) {
        let report = report(update, stage, error, now);
        self.history.push_back(report.clone());
        if self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
        self.say(report);
    }

    /// What comes last of an update stands for what came before.
    fn say(&mut self, report: Report) {
        self.unreported.retain(|it| it.id != report.id);
        // A hub that does not listen for so many ends has messages for us no more: its queue for a device is 50.
        if self.unreported.len() >= HISTORY_MAX {
            self.unreported.pop_front();
        }
        self.unreported.push_back(report.clone());
        self.said = Some(report);
    }
}

impl Step {
    /// What of it is reported.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self {
            Self::Received => Stage::Received,
            Self::Verified { .. } => Stage::Verified,
            Self::Downloading { .. } => Stage::Downloading,
            Self::Installing | Self::Pausing { .. } => Stage::Installing,
            Self::Activating { .. }
            | Self::AwaitingRestart { .. }
            | Self::Checking { .. }
            | Self::Confirming
            | Self::RollingBack { .. } => Stage::Restarting,
        }
    }
}

fn report(update: &Update, state: Stage, error: Option<Reason>, at: Timestamp) -> Report {
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
    Reason::new("cancelled", "given up on request, before it was installed")
}

/// How many parts of a message id follow the rollout's name, each after a dot. A name may have dots itself.
const ID_PARTS: usize = 5;

/// Whether what is cancelled by `target`, a message id or a rollout's name, includes the message `id`.
fn is_meant(target: &str, id: &str) -> bool {
    let of_rollout = |rest: &str| rest.starts_with('.') && rest.matches('.').count() == ID_PARTS;
    let rest = id.strip_prefix(target).filter(|_| !target.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || of_rollout(rest))
}

fn later(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
