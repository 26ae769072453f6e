//! The store and the roster on Redis.

mod check;
mod error;
mod keys;
mod link;
mod reply;
mod scripts;
mod settings;
mod store;

pub use error::ConnectError;
pub use settings::{Settings, TimeSource};
pub use store::RedisStore;
