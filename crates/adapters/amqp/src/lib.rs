//! Twincast on RabbitMQ: the queue of dispatches, commands and replies, events, and dead letters,
//! over a single connection kept up by a supervisor.
//!
//! This crate is the only user of `lapin`, and exposes no `lapin` type. The recovery of `lapin` is
//! not used: a new connection replaces a lost connection, and everything is declared and consumed
//! again.
//!
//! ```text
//!  Amqp ──▶ supervisor: connects, watches, connects again          connection, link, transport
//!    ├────▶ publisher: one channel, many messages in flight        publisher
//!    └────▶ one task per consumer, with a channel of its own       consumer, channel
//!              ▲
//!   queue ─────┴──── command ──── event ──── dead_letter           on top of these
//! ```

mod channel;
mod command;
mod connection;
mod consumer;
mod dead_letter;
mod error;
mod event;
mod link;
mod message;
mod publisher;
mod queue;
mod settings;
mod tasks;
mod topology;
mod transport;

pub use command::{CommandBody, CommandConsumer, IncomingCommand, MAX_COMMAND_BYTES};
pub use connection::Amqp;
pub use dead_letter::DeadLetter;
pub use error::{AmqpError, BrokerError, ConnectError};
pub use event::{EventConsumer, EventItem};
pub use link::State;
pub use message::{COMMAND_TYPE, DISPATCH_TYPE, EVENT_TYPE, REPLY_TYPE};
pub use queue::AmqpQueue;
pub use settings::{BrokerUrl, BrokerUrlError, BrokerUrls, Settings, SettingsError};
