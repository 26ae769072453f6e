//! The commands, a file each.

pub(crate) mod demo;
pub(crate) mod hub;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod validate;
