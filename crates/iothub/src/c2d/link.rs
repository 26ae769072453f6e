//! One attached C2D link: encoding messages, handing them to the protocol library, reading the
//! hub's answers.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use fe2o3_amqp::link::delivery::{DeliveryFut, Sendable};
use fe2o3_amqp::link::{DetachError, LinkStateError, SendError, Sender, SessionStopReason};
use fe2o3_amqp_types::definitions::SenderSettleMode;
use fe2o3_amqp_types::messaging::{
    ApplicationProperties, Data, Message, MessageId, Outcome, Properties,
};
use fe2o3_amqp_types::primitives::{Binary, Timestamp};
use futures::TryFutureExt as _;

use crate::amqp::connection::{
    HubConnection, attached, broken, ended, link_properties, sender_attach_failure,
};
use crate::amqp::supervise::supervised;
use crate::client::ClientInner;
use crate::credentials::Permission;

use super::message::{Ack, C2dMessage, C2dTemplate, EXPIRY_MARGIN, Expiry, MAX_TTL};
use super::outcome::{ConnectionFailure, NotSent, SendOutcome, UnknownCause};
use super::refusal::Refusal;

/// The hub's address for messages to all devices; the `to` property names the device.
const TARGET: &str = "/messages/devicebound";

/// Number of cached encoded templates. A worker handles few rollouts at once; a cache miss only
/// costs a copy of the body.
const PREPARED: usize = 8;

/// Encodes all but the unreserved characters of RFC 3986 in the device id of `to`.
const ENCODED: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The future answer to one delivery.
pub(crate) type Delivery = DeliveryFut<Result<Outcome, SendError>>;

/// The link with its connection.
pub(crate) struct Link {
    pub(crate) sender: Sender,
    pub(crate) connection: HubConnection,
}

/// Encoded messages by template, complete except for the fields of the single message.
#[derive(Default)]
pub(crate) struct Prepared(Vec<(Arc<C2dTemplate>, Sendable<Data>)>);

impl Link {
    /// Dials, authorises and attaches.
    pub(crate) async fn open(client: &Arc<ClientInner>) -> Result<Self, ConnectionFailure> {
        supervised("opening the C2D link", Self::open_any(client)).await
    }

    async fn open_any(client: &Arc<ClientInner>) -> Result<Self, ConnectionFailure> {
        let mut connection = HubConnection::open(client, "c2d").await?;
        let name = format!(
            "{}-c2d-{}",
            client.options.application,
            uuid::Uuid::new_v4().simple()
        );
        let kill = connection.kill();
        let attach = Sender::builder()
            .name(name)
            .target(TARGET)
            .sender_settle_mode(SenderSettleMode::Unsettled)
            .properties(link_properties(client))
            .attach(&mut connection.session);
        let (stage, limit) = ("attaching the C2D link", client.options.connect_timeout);
        let attach = attach.map_err(|error| {
            client.with_missing_permission(
                sender_attach_failure(stage, &error),
                Permission::SendMessages,
            )
        });
        let sender = attached(&kill, stage, limit, attach).await?;
        Ok(Self { sender, connection })
    }
}

impl Prepared {
    /// Returns the encoded form of `message`, to be sent by reference. `now` is the hub's time.
    pub(crate) fn get(&mut self, message: &C2dMessage, now: SystemTime) -> &Sendable<Data> {
        let found = self
            .0
            .iter()
            .position(|(t, _)| Arc::ptr_eq(t, &message.template));
        let index = found.unwrap_or_else(|| {
            if self.0.len() == PREPARED {
                self.0.remove(0);
            }
            self.0
                .push((Arc::clone(&message.template), prepare(&message.template)));
            self.0.len() - 1
        });
        let sendable = &mut self.0[index].1;
        let properties = sendable.message.properties.get_or_insert_default();
        // The previous message's text is overwritten in place, without a new allocation.
        let to = properties.to.get_or_insert_default();
        to.clear();
        to.push_str("/devices/");
        to.extend(percent_encoding::utf8_percent_encode(
            &message.device_id,
            ENCODED,
        ));
        to.push_str("/messages/devicebound");
        match &mut properties.message_id {
            Some(MessageId::String(id)) => id.clone_from(&message.message_id),
            other => *other = Some(MessageId::String(message.message_id.clone())),
        }
        if let Expiry::After(ttl) = message.template.expiry() {
            let ttl = ttl.min(MAX_TTL - EXPIRY_MARGIN);
            properties.absolute_expiry_time = Some(timestamp(now + ttl));
        }
        sendable
    }
}

fn prepare(template: &C2dTemplate) -> Sendable<Data> {
    let mut properties = Properties::builder();
    if let Some(content_type) = template.content_type() {
        properties = properties.content_type(content_type);
    }
    if let Some(content_encoding) = template.content_encoding() {
        properties = properties.content_encoding(content_encoding);
    }
    if let Some(id) = template.correlation_id() {
        properties = properties.correlation_id(MessageId::String(id.to_owned()));
    }
    if let Expiry::At(time) = template.expiry() {
        properties = properties.absolute_expiry_time(timestamp(time));
    }
    let mut own = ApplicationProperties::builder();
    for (name, value) in template.properties() {
        own = own.insert(name.clone(), value.clone());
    }
    if template.ack() != Ack::None {
        own = own.insert("iothub-ack", template.ack().as_str());
    }
    let own = own.build();
    let mut message = Message::from(Data(Binary::from(template.body().to_vec())));
    message.properties = Some(properties.build());
    message.application_properties = (!own.0.is_empty()).then_some(own);
    Sendable::builder().message(message).build()
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_milliseconds(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Interprets the library's answer to a delivery that has left.
pub(crate) fn read_answer(answer: Result<Outcome, SendError>) -> SendOutcome {
    match answer {
        Ok(Outcome::Accepted(_)) => SendOutcome::Accepted,
        Ok(Outcome::Rejected(rejected)) => SendOutcome::Refused(Refusal::from_amqp(rejected.error)),
        Ok(Outcome::Released(_)) => SendOutcome::Released {
            undeliverable: false,
        },
        Ok(Outcome::Modified(modified)) => SendOutcome::Released {
            undeliverable: modified.undeliverable_here.unwrap_or(false)
                || modified.delivery_failed.unwrap_or(false),
        },
        Err(SendError::NonTerminalDeliveryState | SendError::IllegalDeliveryState) => {
            SendOutcome::Unknown(UnknownCause::BadAnswer)
        }
        Err(error) => {
            SendOutcome::Unknown(UnknownCause::Disconnected(Arc::new(send_failure(&error))))
        }
        #[allow(
            unreachable_patterns,
            reason = "a feature of the library adds an outcome"
        )]
        Ok(_) => SendOutcome::Unknown(UnknownCause::BadAnswer),
    }
}

/// Interprets an error before the handover: an outcome for the message alone, or the end of the
/// link.
pub(crate) fn read_refused_handover(error: &SendError) -> Result<NotSent, ConnectionFailure> {
    match error {
        SendError::MessageSizeExceeded(limit) => Ok(NotSent::TooLarge {
            limit: limit.max_size,
        }),
        error => Err(send_failure(error)),
    }
}

/// Why a link has become unusable.
pub(crate) fn send_failure(error: &SendError) -> ConnectionFailure {
    match error {
        SendError::LinkStateError(
            LinkStateError::RemoteDetachedWithError(error)
            | LinkStateError::RemoteClosedWithError(error),
        ) => ended("link", error),
        SendError::LinkStateError(LinkStateError::SessionStopped(reason)) => stopped(reason),
        SendError::Detached(error) => detach_failure(error),
        error => broken("sending", error),
    }
}

/// Why the peer detached.
pub(crate) fn detach_failure(error: &DetachError) -> ConnectionFailure {
    match error {
        DetachError::RemoteDetachedWithError(error) | DetachError::RemoteClosedWithError(error) => {
            ended("link", error)
        }
        DetachError::SessionStopped(reason) => stopped(reason),
        error => broken("waiting for the hub", error),
    }
}

fn stopped(reason: &SessionStopReason) -> ConnectionFailure {
    match reason {
        SessionStopReason::RemoteEndedWithError(error) => ended("session", error),
        SessionStopReason::ConnectionStopped(
            fe2o3_amqp::connection::ConnectionStopReason::RemoteClosedWithError(error),
        ) => ended("connection", error),
        reason => ConnectionFailure::Broken {
            stage: "waiting for the hub",
            detail: match reason {
                SessionStopReason::RemoteEnded => "the hub has ended the session",
                SessionStopReason::ConnectionStopped(_) => "the connection has ended",
                _ => "the session was ended by this client",
            }
            .to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn messages_of_a_template_differ_in_address_and_id() {
        let template = C2dTemplate::builder("hello")
            .property("colour", "red")
            .content_type("text/plain")
            .ack(Ack::Full)
            .expiry(Expiry::After(Duration::from_secs(60)))
            .build()
            .unwrap();
        let mut prepared = Prepared::default();
        for (device, id, to) in [
            ("dev@1 x", "m1", "/devices/dev%401%20x/messages/devicebound"),
            ("d-2", "m2", "/devices/d-2/messages/devicebound"),
        ] {
            let message = C2dMessage::new(device, id, Arc::clone(&template)).unwrap();
            let sendable = prepared.get(&message, UNIX_EPOCH + Duration::from_secs(5));
            let properties = sendable.message.properties.as_ref().unwrap();
            assert_eq!(properties.to.as_deref(), Some(to));
            assert_eq!(properties.message_id, Some(MessageId::String(id.into())));
            assert_eq!(
                properties.absolute_expiry_time,
                Some(Timestamp::from_milliseconds(65_000))
            );
            let own = sendable.message.application_properties.as_ref().unwrap();
            assert_eq!(own.0.len(), 2);
            assert_eq!(sendable.message.body.0.as_ref(), b"hello");
        }
        assert_eq!(prepared.0.len(), 1);
    }

    #[test]
    fn the_expiry_stays_a_margin_below_the_maximum_ttl() {
        for (ttl, sent) in [
            (MAX_TTL, MAX_TTL - EXPIRY_MARGIN),
            (MAX_TTL - EXPIRY_MARGIN / 2, MAX_TTL - EXPIRY_MARGIN),
            (MAX_TTL - EXPIRY_MARGIN * 2, MAX_TTL - EXPIRY_MARGIN * 2),
            (Duration::from_secs(120), Duration::from_secs(120)),
        ] {
            let template = C2dTemplate::builder("x").expiry(Expiry::After(ttl));
            let message = C2dMessage::new("d", "m", template.build().unwrap()).unwrap();
            let mut prepared = Prepared::default();
            let sendable = prepared.get(&message, UNIX_EPOCH);
            let properties = sendable.message.properties.as_ref().unwrap();
            let expiry = properties.absolute_expiry_time.clone();
            assert_eq!(expiry, Some(timestamp(UNIX_EPOCH + sent)), "{ttl:?}");
        }
    }

    #[test]
    fn the_number_of_kept_templates_is_bounded() {
        let mut prepared = Prepared::default();
        for _ in 0..PREPARED * 2 {
            let template = C2dTemplate::builder("x").build().unwrap();
            let message = C2dMessage::new("d", "m", template).unwrap();
            let _ = prepared.get(&message, UNIX_EPOCH);
        }
        assert_eq!(prepared.0.len(), PREPARED);
    }
}
