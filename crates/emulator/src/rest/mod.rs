//! The hub's REST interface: queries, twins, the registry and statistics.

mod bulk;
mod devices;
mod error;
mod query;
mod serve;
mod twins;

pub(crate) use serve::{Prefixed, serve};
