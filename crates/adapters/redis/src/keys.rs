//! The names of the keys, and the format version.

use twincast_core::ids::{ConcurrencyGroup, HubName, RolloutName};

/// The format of a rollout's keys, of the record and headers in the keys, and of the scripts' data:
/// the newest format known to this release, and the format written by this release. Raise the
/// format with any change after which an older release would misread a rollout, or undo unknown
/// parts. A release with a newer format still writes an older format where the older format can
/// express everything. So different releases work side by side on rollouts readable by both.
pub(crate) const FORMAT: u32 = 1;

/// Builds the names of keys. The crate's documentation lists the content of the keys.
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

    /// The names of all rollouts.
    pub(crate) fn rollouts(&self) -> String {
        format!("{}rollouts", self.prefix)
    }

    /// The names of the active rollouts.
    pub(crate) fn active(&self) -> String {
        format!("{}{{registry}}:active", self.prefix)
    }

    /// The claims: driver and end of the claim, by rollout.
    pub(crate) fn claims(&self) -> String {
        format!("{}{{registry}}:claims", self.prefix)
    }

    /// Written to check for write access.
    pub(crate) fn ping(&self) -> String {
        format!("{}ping", self.prefix)
    }

    /// Reason and begin of the halt of all rollouts.
    pub(crate) fn halt(&self) -> String {
        format!("{}{{registry}}:halt", self.prefix)
    }

    /// A rollout's record, and the rows of the batches.
    pub(crate) fn head(&self, name: &RolloutName) -> String {
        format!("{}{{{name}}}", self.prefix)
    }

    /// The last published version of a rollout.
    pub(crate) fn registry(&self, name: &RolloutName) -> String {
        format!("{}:registry", self.head(name))
    }

    /// The keys of a rollout and the plan, in the order of the names in `rollout.lua`.
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
            ":counted",
        ]
        .map(|part| format!("{head}{part}"))
    }

    /// All keys of a rollout: the keys of [`rollout`](Self::rollout), and the registry entry.
    pub(crate) fn all_of(&self, name: &RolloutName) -> Vec<String> {
        let mut keys = self.rollout(name).to_vec();
        keys.push(self.registry(name));
        keys
    }

    /// The queue of a concurrency group.
    pub(crate) fn group_queue(&self, group: &ConcurrencyGroup) -> String {
        format!("{}{{group:{group}}}:queue", self.prefix)
    }

    /// The host name bound to a hub's alias.
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
