//! The queues and exchanges, all durable:
//!
//! ```text
//! <prefix>.commands ────────┐ delivered too often
//! <prefix>.dispatch.<hub> ──┴─────────▶ <prefix>.dead        queues
//! <prefix>.events ──topic──▶ private queues of listeners
//! ```
//!
//! Declaring is idempotent, and repeated on every connection. The arguments of a queue are part of
//! the contract between all processes that share a prefix: the broker refuses to declare an
//! existing queue with other arguments.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use twincast_core::ids::HubName;

use crate::error::AmqpError;

/// The number of redeliveries after which a message becomes a dead letter: by then the message has
/// crashed consumers, or was requeued, too often for a coincidence. Declared explicitly, so that no
/// default of a broker version applies.
pub(crate) const DELIVERY_LIMIT: i64 = 20;
/// The delivery limit of the dead letters. Reading dead letters delivers and requeues each letter.
/// From RabbitMQ 4.0 on, a queue without a declared limit has a limit of 20, after which letters
/// would be lost. 3.x has no value for "without a limit".
const DEAD_DELIVERY_LIMIT: i64 = 1_000_000;
/// The most waiting commands. Commands come from people and pipelines; a longer backlog is a
/// mistake to push back on.
const COMMAND_LIMIT: i64 = 10_000;
/// Above either limit, new dead letters push out the oldest. An unlimited queue would fill the
/// broker's disk and stop everything. A queue that refuses would leave unworkable messages in the
/// way of workable messages.
const DEAD_LIMIT: i64 = 100_000;
const DEAD_BYTES: i64 = 1 << 30;

/// The names of queues and exchanges, derived from the prefix.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    prefix: String,
    dispatch_limit: usize,
}

/// A queue with the declared arguments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QueueSpec {
    pub(crate) name: String,
    arguments: FieldTable,
}

impl Names {
    pub(crate) fn new(prefix: &str, dispatch_limit: usize) -> Self {
        Self {
            prefix: prefix.to_owned(),
            dispatch_limit,
        }
    }

    pub(crate) fn commands(&self) -> QueueSpec {
        let name = self.commands_name();
        QueueSpec::new(name, self.bounded(COMMAND_LIMIT))
    }

    pub(crate) fn dispatch(&self, hub: &HubName) -> QueueSpec {
        // The broker refuses only when *more* messages than the limit wait.
        let limit = i64::try_from(self.dispatch_limit).unwrap_or(i64::MAX) - 1;
        QueueSpec::new(self.dispatch_name(hub), self.bounded(limit))
    }

    pub(crate) fn dead(&self) -> QueueSpec {
        let limits = [
            ("x-max-length", DEAD_LIMIT.into()),
            ("x-max-length-bytes", DEAD_BYTES.into()),
            ("x-overflow", text("drop-head")),
            ("x-delivery-limit", DEAD_DELIVERY_LIMIT.into()),
        ];
        QueueSpec::new(self.dead_name(), limits)
    }

    pub(crate) fn commands_name(&self) -> String {
        format!("{}.commands", self.prefix)
    }

    pub(crate) fn dispatch_name(&self, hub: &HubName) -> String {
        format!("{}.dispatch.{hub}", self.prefix)
    }

    pub(crate) fn dead_name(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// Returns the name of the events exchange.
    pub(crate) fn events(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// Returns whether a queue's name belongs to this topology.
    pub(crate) fn is_own(&self, queue: &str) -> bool {
        let rest = queue.strip_prefix(&self.prefix);
        rest.is_some_and(|rest| rest.starts_with('.'))
    }

    /// Returns the queue of commands or dispatches with this name.
    pub(crate) fn work_queue(&self, queue: &str) -> Option<QueueSpec> {
        if queue == self.commands_name() {
            return Some(self.commands());
        }
        let hub = queue.strip_prefix(&self.prefix)?;
        let hub = hub.strip_prefix(".dispatch.")?;
        HubName::new(hub).ok().map(|hub| self.dispatch(&hub))
    }

    /// Returns the arguments of a queue of work: refuse messages above the limit, and lose no
    /// message on the way to the dead letters (`at-least-once`, which requires `reject-publish`).
    fn bounded(&self, limit: i64) -> [(&'static str, AMQPValue); 6] {
        [
            ("x-max-length", limit.into()),
            ("x-overflow", text("reject-publish")),
            ("x-delivery-limit", DELIVERY_LIMIT.into()),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(&self.dead_name())),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]
    }
}

impl QueueSpec {
    fn new<const N: usize>(name: String, arguments: [(&'static str, AMQPValue); N]) -> Self {
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), text("quorum"));
        for (key, value) in arguments {
            table.insert(key.into(), value);
        }
        Self {
            name,
            arguments: table,
        }
    }

    /// Declares the queue with these arguments, unless present. An error closes the channel.
    pub(crate) async fn declare(&self, channel: &Channel) -> Result<(), AmqpError> {
        let declared = channel.queue_declare(
            short("queue name", &self.name)?,
            QueueDeclareOptions::durable(),
            self.arguments.clone(),
        );
        let declared = declared.await;
        let declared = declared.map_err(|error| AmqpError::declaring("queue", &self.name, error));
        declared.map(drop)
    }
}

/// Declares the queues and exchanges needed by every process. Queues of dispatches are declared on
/// first use.
pub(crate) async fn declare(names: &Names, channel: &Channel) -> Result<(), AmqpError> {
    names.dead().declare(channel).await?;
    names.commands().declare(channel).await?;
    let events = names.events();
    let options = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let declared = channel.exchange_declare(
        short("exchange name", &events)?,
        ExchangeKind::Topic,
        options,
        FieldTable::default(),
    );
    let declared = declared.await;
    declared.map_err(|error| AmqpError::declaring("exchange", &events, error))
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Converts a text to the protocol's short string, of at most 255 bytes.
pub(crate) fn short(what: &'static str, text: &str) -> Result<ShortString, AmqpError> {
    ShortString::try_new(text).map_err(|_| AmqpError::TooLong {
        what,
        length: text.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_commands_and_dispatches_are_work_queues() {
        let names = Names::new("t", 10);
        assert_eq!(names.work_queue("t.commands"), Some(names.commands()));
        let hub = HubName::new("eu-1").unwrap();
        assert_eq!(
            names.work_queue("t.dispatch.eu-1"),
            Some(names.dispatch(&hub))
        );
        for other in [
            "t.dead",
            "t.dispatch.",
            "t.dispatch.a b",
            "u.commands",
            "tt.commands",
        ] {
            assert_eq!(names.work_queue(other), None, "{other}");
        }
        assert!(names.is_own("t.dead"));
        assert!(!names.is_own("tt.dead"));
    }

    #[test]
    fn the_longest_names_fit() {
        let names = Names::new(&"p".repeat(64), 10);
        let hub = HubName::new("h".repeat(63)).unwrap();
        assert!(short("queue name", &names.dispatch_name(&hub)).is_ok());
    }
}
