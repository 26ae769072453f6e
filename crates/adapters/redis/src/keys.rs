//! The names of the keys, and what of a record is stored beside it.

use twincast_core::ids::{GroupName, HubName, RolloutName};

/// The format of a rollout's keys, of the record and headers in them, and of what scripts make of them: the newest that this
/// release knows, and the one that it writes. To be raised by a change after which an older release would misread a rollout or
/// undo what it does not know of. A release that knows a newer one still writes an older one where that says all: so
/// releases work side by side on the rollouts that both can read.
pub(crate) const FORMAT: u32 = 1;

/// Names keys. See the crate's documentation for what is in them.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// All names.
    pub(crate) fn rollouts(&self) -> String {
        format!("{}rollouts", self.prefix)
    }

    /// The active ones' names.
    pub(crate) fn active(&self) -> String {
        format!("{}{{roster}}:active", self.prefix)
    }

    /// Who drives which rollout, and until when.
    pub(crate) fn claims(&self) -> String {
        format!("{}{{roster}}:claims", self.prefix)
    }

    /// Written to see whether it can be.
    pub(crate) fn ping(&self) -> String {
        format!("{}ping", self.prefix)
    }

    /// Why and since when all are halted.
    pub(crate) fn halt(&self) -> String {
        format!("{}{{roster}}:halt", self.prefix)
    }

    /// A rollout's record, and its batches' rows.
    pub(crate) fn head(&self, name: &RolloutName) -> String {
        format!("{}{{{name}}}", self.prefix)
    }

    /// What was told of a rollout.
    pub(crate) fn roster(&self, name: &RolloutName) -> String {
        format!("{}:roster", self.head(name))
    }

    /// The keys of a rollout and its plan, in the order in which `rollout.lua` names them.
    pub(crate) fn rollout(&self, name: &RolloutName) -> [String; 9] {
        let head = self.head(name);
        [
            "",
            ":numbers",
            ":headers",
            ":manifests",
            ":states",
            ":open",
            ":tallies",
            ":groups",
            ":begun",
        ]
        .map(|part| format!("{head}{part}"))
    }

    /// All keys of a rollout: [those](Self::rollout) that `rollout.lua` names, and its roster.
    pub(crate) fn all_of(&self, name: &RolloutName) -> Vec<String> {
        let mut keys = self.rollout(name).to_vec();
        keys.push(self.roster(name));
        keys
    }

    /// A group's line.
    pub(crate) fn line(&self, group: &GroupName) -> String {
        format!("{}{{group:{group}}}:line", self.prefix)
    }

    /// The host name that a hub's alias is bound to.
    pub(crate) fn host(&self, hub: &HubName) -> String {
        format!("{}{{hub:{hub}}}:host", self.prefix)
    }

    /// A hub's permits.
    pub(crate) fn permits(&self, hub: &HubName) -> String {
        format!("{}{{hub:{hub}}}:permits", self.prefix)
    }

    /// The listeners to a hub's feedback.
    pub(crate) fn listeners(&self, hub: &HubName) -> String {
        format!("{}{{hub:{hub}}}:listeners", self.prefix)
    }

    /// The workers' sending links to a hub.
    pub(crate) fn senders(&self, hub: &HubName) -> String {
        format!("{}{{hub:{hub}}}:senders", self.prefix)
    }

    /// A hub's budget for links.
    pub(crate) fn links(&self, hub: &HubName) -> String {
        format!("{}{{hub:{hub}}}:links", self.prefix)
    }
}
