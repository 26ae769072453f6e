//! The orchestrator: accepts rollouts, plans them and drives them to their end.
//!
//! * [`accept`]: decides whether a submitted rollout is new, a repetition, or in conflict with a
//!   stored rollout of the same name; [`groups`]: decides about conflicts within a concurrency
//!   group.
//! * [`planner`]: finds the devices in a stream and fills batches.
//! * [`command`]: the commands as JSON; [`command_executor`]: executes commands.
//! * [`driver`]: a loop that reads a rollout's pending work and performs the work until none is
//!   left. A driver keeps no state beyond copies of readable data.
//! * [`service`]: drives all rollouts, together with other orchestrators; [`events`]: publishes
//!   transitions; [`metrics`]: exports Prometheus metrics; [`retention`]: deletes rollouts long
//!   after their end.
//! * [`view`]: read models for the command line and the HTTP API.
//! * [`http`]: commands and views over HTTP, for people and programs.

pub mod accept;
mod accounting;
mod adding;
mod answers;
pub mod changes;
pub mod command;
mod command_events;
pub mod command_executor;
mod config;
mod device_set;
mod dispatching;
pub mod driver;
pub mod events;
pub mod evidence;
pub mod groups;
pub mod http;
pub mod lists;
mod measure;
pub mod members;
mod metric;
pub mod metrics;
mod paused;
pub mod planner;
pub mod reachability;
mod release;
pub mod retention;
mod retry;
pub mod rollout_text;
mod running;
mod scans;
pub mod service;
mod skipping;
pub mod traces;
pub mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use twincast_core::hub::HubLimits;
use twincast_core::ids::{HubHost, HubName};
use twincast_core::ports::Hub;

/// A hub that rollouts may use.
#[derive(Clone)]
pub struct HubHandle {
    /// The hub's host name, which identifies it.
    pub host: HubHost,
    /// The client of the hub.
    pub hub: Arc<dyn Hub>,
    /// The limits on the use of the hub.
    pub limits: HubLimits,
}

/// The configured hubs, by name.
pub type Hubs = BTreeMap<HubName, HubHandle>;
