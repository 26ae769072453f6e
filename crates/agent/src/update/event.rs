//! What goes into the state and what comes out of it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::manifest::{Artifact, Manifest};
use crate::report::{Reason, Report};

/// The steps that are commands of the device's maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// Puts the artefact where it does not run yet.
    Install,
    /// Makes the new version the one that runs.
    Activate,
    /// Makes that last.
    Confirm,
    /// Makes the version before it run again.
    Rollback,
}

impl Hook {
    /// Its name, in configuration, environment and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Activate => "activate",
            Self::Confirm => "confirm",
            Self::Rollback => "rollback",
        }
    }
}

/// How a hook ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookEnd {
    /// It did its work.
    Done,
    /// It did its work, and a restart of the machine or the agent is on its way (`activate` only).
    Restart,
    /// It could not do its work now, and is to be run again (`install` only).
    Later(String),
    /// It failed, in its own words.
    Failed(String),
}

/// What happens to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The agent was started.
    Started {
        /// The boot of the machine.
        boot: String,
        /// The version that runs, where the device says it.
        installed: Option<String>,
    },
    /// A message with an update came.
    Message {
        /// Its id.
        id: String,
        /// Its body.
        body: String,
    },
    /// A message asks to give up what has this id, or begins with this name and a dot.
    Cancel(String),
    /// The desired property asks the same, as long as it stands.
    Desired(Option<String>),
    /// The message was checked.
    Checked {
        /// What is in it.
        result: Result<Manifest, Reason>,
        /// When the download begins.
        until: Timestamp,
    },
    /// The time to wait for has come.
    Due,
    /// The artefact is there, or is not to be had.
    Downloaded(Result<(), Reason>),
    /// A hook ended.
    Ended {
        /// How.
        end: HookEnd,
        /// The boot of the machine.
        boot: String,
        /// The version that runs, where the device says it.
        installed: Option<String>,
    },
    /// The new version works, or not, in its own words.
    Healthy(Result<(), String>),
    /// The hub has taken what it was told.
    Reported(Patch),
    /// What the hub says that it was told.
    Twin(Patch),
}

/// What is to be done now, next to reporting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Check a message.
    Check(String),
    /// Wait.
    Wait(Timestamp),
    /// Fetch the artefact.
    Download {
        /// What.
        artifact: Artifact,
        /// Since when the device tries.
        since: Timestamp,
    },
    /// Run a hook for the `attempt`-th time.
    Run(Hook, u32),
    /// See whether the new version works.
    Health,
}

/// What is written to the reported properties at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patch {
    /// The property `update`.
    pub update: Option<Report>,
    /// The version that runs.
    pub version: Option<String>,
}

/// What the machine needs to know of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How often `install` is tried if it asks for it.
    pub tries: u32,
    /// How long is waited between two.
    pub pause: SignedDuration,
    /// How long a restart may take.
    pub restart_within: SignedDuration,
}
