//! The hub's HTTPS interface. For services: queries, twins, the registry, statistics, feedback and
//! direct methods. For devices: messages and WebSockets.

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

pub(crate) use error::json_response;
pub(crate) use serve::{Prefixed, serve};
