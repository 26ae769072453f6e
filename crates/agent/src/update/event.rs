//! The input and output of the state machine.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::manifest::{Artifact, Manifest};
use crate::report::{Reason, Report};

/// The steps implemented by commands of the device's maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// Installs the artefact beside the running version.
    Install,
    /// Switches to the new version.
    Activate,
    /// Makes the switch permanent.
    Confirm,
    /// Switches back to the previous version.
    Rollback,
}

impl Hook {
    /// Returns the hook's name in configuration, environment and reports.
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

/// The result of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookResult {
    /// The hook succeeded.
    Done,
    /// The hook succeeded, and a restart of the machine or the agent follows (`activate` only).
    Restart,
    /// The hook requests another attempt later (`install` only), with the end of the output.
    Retry(String),
    /// The hook failed, with the end of the output.
    Failed(String),
}

/// An event on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The agent was started.
    Started {
        /// The boot id of the machine.
        boot: String,
        /// The running version, if the device names the version.
        installed: Option<String>,
    },
    /// A message with an update arrived.
    Message {
        /// The message's id.
        id: String,
        /// The message's body.
        body: String,
    },
    /// A message requests a cancellation: of the message with this id, or of all messages of the
    /// rollout with this name.
    Cancel(String),
    /// The desired property requests the same, while the property is set.
    Desired(Option<String>),
    /// The message was checked.
    Checked {
        /// The manifest, or the reason of a refusal.
        result: Result<Manifest, Reason>,
        /// The start of the download.
        until: Timestamp,
    },
    /// The awaited time has come.
    Due,
    /// The download succeeded or failed.
    Downloaded(Result<(), Reason>),
    /// A hook ended.
    HookEnded {
        /// The result of the hook.
        result: HookResult,
        /// The boot id of the machine.
        boot: String,
        /// The running version, if the device names the version.
        installed: Option<String>,
    },
    /// The health check succeeded, or failed with the end of the output.
    HealthChecked(Result<(), String>),
    /// The hub accepted a patch.
    Reported(Patch),
    /// The reported properties in the hub's twin.
    Twin(Patch),
}

/// The work due, besides reporting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Check a message.
    Check(String),
    /// Wait until a time.
    Wait(Timestamp),
    /// Download the artefact.
    Download {
        /// The artefact.
        artifact: Artifact,
        /// The start of the download; the time limit counts from here.
        since: Timestamp,
    },
    /// Run a hook. The number is the attempt, from 1.
    Run(Hook, u32),
    /// Run the health check of the new version.
    Health,
}

/// A single write to the reported properties.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patch {
    /// The property `update`.
    pub update: Option<Report>,
    /// The running version.
    pub version: Option<String>,
}

/// The limits of the state machine, from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest number of `install` attempts.
    pub max_attempts: u32,
    /// The pause between two attempts.
    pub retry_pause: SignedDuration,
    /// The time limit of a restart.
    pub restart_within: SignedDuration,
}
