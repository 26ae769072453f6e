//! The hub's REST interface: queries, twins, the registry, statistics and feedback.

mod bulk;
mod device;
mod devices;
mod error;
mod feedback;
mod identity;
mod methods;
mod query;
mod route;
mod serve;
mod twins;
mod websocket;

pub(crate) use serve::{Prefixed, serve};
