//! The orchestrator: accepts rollouts, plans them, and drives them to their end.
//!
//! * [`accept`]: is this rollout new, the same as before, or in conflict with one of its name; [`groups`]: or with one
//!   of its group;
//! * [`planner`]: finds the devices in a stream and fills batches;
//! * [`command`]: what can be asked for, as JSON; [`intake`] does it;
//! * [`driver`]: a loop that reads what a rollout owes the world and does it, until it owes
//!   nothing. It keeps no state that it could not read again;
//! * [`service`]: drives all rollouts, together with other orchestrators; [`events`] tells the
//!   world what happened, [`metrics`] tells Prometheus, [`retention`] deletes what ended long ago;
//! * [`view`]: what there is to be seen of it all;
//! * [`http`]: the same over HTTP, for people and programs.

pub mod accept;
mod accounting;
mod adding;
mod answers;
pub mod command;
mod config;
pub mod driver;
pub mod events;
pub mod groups;
pub mod hearing;
pub mod http;
pub mod intake;
pub mod lists;
mod looks;
mod meaning;
mod measure;
pub mod members;
mod metric;
pub mod metrics;
pub mod news;
pub mod planner;
pub mod reach;
mod release;
pub mod retention;
mod retry;
mod ringing;
mod running;
mod seen;
pub mod service;
mod skipping;
pub mod standing;
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
    /// The way to it.
    pub hub: Arc<dyn Hub>,
    /// How fast it may be used.
    pub limits: HubLimits,
}

/// The configured hubs, by name.
pub type Hubs = BTreeMap<HubName, HubHandle>;
