//! Why nothing of a rollout is sent.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::budget::FullGroup;
use crate::ids::HubName;
use crate::link::Impasse;
use crate::spec::Opening;
use crate::time::Timestamp;

/// The most hubs that a text names.
const NAMED: usize = 3;

/// The reason why nothing of a rollout is sent, as its driver has seen it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Words that follow "waits for".
    pub waits_for: String,
    /// The end, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Hold {
    fn without_end(waits_for: String) -> Self {
        let until = None;
        Self { waits_for, until }
    }

    /// A schedule that is closed; `None` while it is open.
    #[must_use]
    pub fn of_schedule(opening: &Opening) -> Option<Self> {
        let until = match opening {
            Opening::Open { until } | Opening::Closed { until, .. } => *until,
        };
        let waits_for = opening.waits_for()?;
        Some(Self { waits_for, until })
    }

    /// Budgets without room; `None` when none is full.
    #[must_use]
    pub fn of_budgets(full: &[FullGroup]) -> Option<Self> {
        FullGroup::waits_for(full).map(Self::without_end)
    }

    /// Hubs that something is to be sent through, and that nothing can be sent through. `others` are those that it can.
    /// `None` when there are none.
    #[must_use]
    pub fn of_hubs(stuck: &[(HubName, Impasse)], others: usize) -> Option<Self> {
        let named = stuck.iter().take(NAMED);
        let mut parts: Vec<_> = named.map(|(hub, is)| is.of_hub(hub)).collect();
        match stuck.len() {
            0 => return None,
            n if n > NAMED => parts.push(format!("and {} more hubs", n - NAMED)),
            _ => {}
        }
        match others {
            0 => {}
            1 => parts.push("1 other hub goes on".to_owned()),
            n => parts.push(format!("{n} other hubs go on")),
        }
        Some(Self::without_end(parts.join("; ")))
    }

    /// A hub whose batches no worker takes.
    #[must_use]
    pub fn of_workers(hub: &HubName) -> Self {
        Self::without_end(format!("a worker: none takes the batches of hub {hub}"))
    }

    /// Hubs that have refused sends for their quota of late.
    #[must_use]
    pub fn of_throttle(hubs: &BTreeSet<&HubName>) -> Self {
        let names: Vec<_> = hubs.iter().take(NAMED).map(|hub| hub.as_str()).collect();
        let names = match hubs.len().saturating_sub(NAMED) {
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        };
        Self::without_end(format!(
            "the quota of hub {names}: it has refused sends of late, so they are slower"
        ))
    }

    /// A queue that takes no dispatches; `why` is for people.
    #[must_use]
    pub fn of_queue(why: &str) -> Self {
        Self::without_end(format!("the queue to take dispatches: {why}"))
    }

    /// The hold that ends first.
    #[must_use]
    pub fn sooner(self, other: Self) -> Self {
        let end = |hold: &Self| (hold.until.is_none(), hold.until);
        if end(&other) < end(&self) {
            other
        } else {
            self
        }
    }
}
