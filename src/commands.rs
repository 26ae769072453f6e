//! The commands, a file per command.

pub(crate) mod agent;
pub(crate) mod change;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod dead_letters;
pub(crate) mod delete;
pub(crate) mod demo;
pub(crate) mod explain;
pub(crate) mod hub;
pub(crate) mod hubs;
pub(crate) mod orchestrator;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod sign;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod token;
pub(crate) mod validate;
pub(crate) mod watch;
pub(crate) mod worker;
