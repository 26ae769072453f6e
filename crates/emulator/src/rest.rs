//! The hub's REST interface: queries, twins, the registry, statistics and feedback.

mod bulk;
mod devices;
mod error;
mod feedback;
mod identity;
mod query;
mod route;
mod serve;
mod twins;

pub(crate) use serve::{Prefixed, serve};
