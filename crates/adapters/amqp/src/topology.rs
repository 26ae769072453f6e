//! The queues and exchanges, all durable:
//!
//! ```text
//! <prefix>.commands ────────┐ delivered too often
//! <prefix>.dispatch.<hub> ──┴─────────▶ <prefix>.dead        queues
//! <prefix>.events ──topic──▶ private queues of those who watch
//! ```
//!
//! Declaring is idempotent and done again on every connection. A queue's arguments are part of the
//! contract between all processes that share a prefix: the broker refuses to declare a queue that
//! exists with others.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use twincast_core::ids::HubName;

use crate::error::AmqpError;

/// How often a message comes back before it is put aside: it has taken its holder down, or been
/// handed back, so often that it is not by chance. Stated, so that no broker's default is used.
pub(crate) const DELIVERY_LIMIT: i64 = 20;
/// Looking at dead letters hands each one out and back. From RabbitMQ 4.0 a queue that states no
/// limit has one of 20, after which the letters would be gone. 3.x knows no "without".
const LOOKING_LIMIT: i64 = 1_000_000;
/// Commands come from people and pipelines; so many that nobody takes are a mistake to push back on.
const COMMAND_LIMIT: i64 = 10_000;
/// Dead letters beyond either of these push out the oldest. It is better than an endless queue,
/// which fills the broker's disk and so stops everything, and than one that refuses, which leaves
/// what cannot be worked on in the way of what can.
const DEAD_LIMIT: i64 = 100_000;
const DEAD_BYTES: i64 = 1 << 30;

/// The names, which follow from the prefix.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    prefix: String,
    dispatch_limit: usize,
}

/// A queue as we declare it.
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
        // The broker refuses once *more* than its limit wait.
        let limit = i64::try_from(self.dispatch_limit).unwrap_or(i64::MAX) - 1;
        QueueSpec::new(self.dispatch_name(hub), self.bounded(limit))
    }

    pub(crate) fn dead(&self) -> QueueSpec {
        let limits = [
            ("x-max-length", DEAD_LIMIT.into()),
            ("x-max-length-bytes", DEAD_BYTES.into()),
            ("x-overflow", text("drop-head")),
            ("x-delivery-limit", LOOKING_LIMIT.into()),
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

    /// The exchange.
    pub(crate) fn events(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// Whether a queue's name is one that only this system uses.
    pub(crate) fn is_ours(&self, queue: &str) -> bool {
        let rest = queue.strip_prefix(&self.prefix);
        rest.is_some_and(|rest| rest.starts_with('.'))
    }

    /// The queue of commands or dispatches that has this name.
    pub(crate) fn workable(&self, queue: &str) -> Option<QueueSpec> {
        if queue == self.commands_name() {
            return Some(self.commands());
        }
        let hub = queue.strip_prefix(&self.prefix)?;
        let hub = hub.strip_prefix(".dispatch.")?;
        HubName::new(hub).ok().map(|hub| self.dispatch(&hub))
    }

    /// For queues whose messages are work: refuse what is above the limit, and lose nothing on the
    /// way to the dead letters (`at-least-once`, which asks for `reject-publish`).
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

    /// Makes sure that the queue is there, with these arguments. An error closes the channel.
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

/// Declares what every process needs. Queues of dispatches are declared when first used.
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

/// A text as the protocol's short string, which holds 255 bytes.
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
    fn only_queues_of_work_are_workable() {
        let names = Names::new("t", 10);
        assert_eq!(names.workable("t.commands"), Some(names.commands()));
        let hub = HubName::new("eu-1").unwrap();
        assert_eq!(
            names.workable("t.dispatch.eu-1"),
            Some(names.dispatch(&hub))
        );
        for other in [
            "t.dead",
            "t.dispatch.",
            "t.dispatch.a b",
            "u.commands",
            "tt.commands",
        ] {
            assert_eq!(names.workable(other), None, "{other}");
        }
        assert!(names.is_ours("t.dead"));
        assert!(!names.is_ours("tt.dead"));
    }

    #[test]
    fn the_longest_names_fit() {
        let names = Names::new(&"p".repeat(64), 10);
        let hub = HubName::new("h".repeat(63)).unwrap();
        assert!(short("queue name", &names.dispatch_name(&hub)).is_ok());
    }
}
