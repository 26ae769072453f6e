//! Twincast on RabbitMQ: the queue of dispatches, commands and their replies, events, and the
//! dead letters, over one connection that is kept up.
//!
//! This is the only user of `lapin`, and no type of it shows. Its own recovery is not used: a lost
//! connection is replaced by a new one on which everything is declared and consumed again.
//!
//! ```text
//!  Amqp ──▶ supervisor: connects, watches, connects again          connection, link, transport
//!    ├────▶ publisher: one channel, many messages in flight        publisher
//!    └────▶ one task per consumer, with a channel of its own       intake, channel
//!              ▲
//!   queue ─────┴──── command ──── event ──── dead_letter           on top of these
//! ```

mod channel;
mod command;
mod connection;
mod dead_letter;
mod error;
mod event;
mod intake;
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
pub use error::{AmqpError, BrokerSaid, ConnectError};
pub use event::{EventConsumer, Heard};
pub use link::State;
pub use message::{COMMAND_TYPE, DISPATCH_TYPE, EVENT_TYPE, REPLY_TYPE};
pub use queue::AmqpQueue;
pub use settings::{BrokerUrl, BrokerUrlError, BrokerUrls, Settings, SettingsError};
