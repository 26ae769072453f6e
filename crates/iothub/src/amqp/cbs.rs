//! Claims-based security: the first token of a connection, and renewals in time.
//!
//! One session with two links to the node `$cbs`. A request carries `operation`, `type` and `name`;
//! the body is the token. The answer's `status-code` is 200 (or 202), and its `correlation-id`
//! equals the request's `message-id`.
//!
//! Statuses 401 and 403 concern the key. After the first such refusal a new token is tried, since
//! the old token may have expired on the hub's clock. All other failures are transient.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::{RecvError, Sender};
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp_types::messaging::{
    AmqpValue, ApplicationProperties, Body, Message, MessageId, Outcome, Properties,
};
use fe2o3_amqp_types::primitives::SimpleValue;
use serde_amqp::Value;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;
use tracing::debug;

use crate::c2d::ConnectionFailure;
use crate::client::ClientInner;
use crate::credentials::HubToken;
use crate::hub_message::cut;

use super::connection::{broken, receiver_attach_failure, sender_attach_failure};

/// The hub's node for tokens.
const NODE: &str = "$cbs";

/// Longest single sleep, so that a forward step of the clock is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// The two token links of one connection.
pub(crate) struct Cbs {
    sender: Sender,
    receiver: Receiver,
    requests: u64,
}

impl Cbs {
    pub(crate) async fn attach(session: &mut SessionHandle<()>) -> Result<Self, ConnectionFailure> {
        let name = uuid::Uuid::new_v4();
        let receiver = Receiver::attach(session, format!("cbs-receiver-{name}"), NODE)
            .await
            .map_err(|error| receiver_attach_failure("attaching the token receiver", &error))?;
        let sender = Sender::attach(session, format!("cbs-sender-{name}"), NODE)
            .await
            .map_err(|error| sender_attach_failure("attaching the token sender", &error))?;
        Ok(Self {
            sender,
            receiver,
            requests: 0,
        })
    }

    /// Puts the current token on the connection, within the client's token time-out; retries with a
    /// new token after a refusal.
    pub(crate) async fn put_token(
        &mut self,
        client: &ClientInner,
    ) -> Result<HubToken, ConnectionFailure> {
        let limit = client.options.token_timeout;
        let mut retried = false;
        loop {
            let token = client
                .credentials
                .token()
                .await
                .map_err(ConnectionFailure::NoToken)?;
            let answer = timeout(limit, self.exchange(client, &token)).await;
            let (status, description) = answer.map_err(|_| ConnectionFailure::Timeout {
                stage: "sending the token",
                limit,
            })??;
            match status {
                Some(200 | 202) => return Ok(token),
                Some(status @ (401 | 403)) => {
                    client.credentials.refused();
                    if mem::replace(&mut retried, true) {
                        return Err(ConnectionFailure::Unauthorised {
                            identity: client.credentials.identity(),
                            status,
                            description,
                        });
                    }
                }
                status => {
                    return Err(ConnectionFailure::TokenNotTaken {
                        status,
                        description,
                    });
                }
            }
        }
    }

    /// Sends one request; returns the answer's status and text.
    async fn exchange(
        &mut self,
        client: &ClientInner,
        token: &HubToken,
    ) -> Result<(Option<i32>, String), ConnectionFailure> {
        self.requests += 1;
        let id = MessageId::String(format!("put-token-{}", self.requests));
        let message = Message::builder()
            .properties(
                Properties::builder()
                    .message_id(id.clone())
                    .to(NODE)
                    .reply_to("cbs")
                    .build(),
            )
            .application_properties(
                ApplicationProperties::builder()
                    .insert("operation", "put-token")
                    .insert("type", token.kind)
                    .insert("name", client.credentials.audience().to_owned())
                    .build(),
            )
            .body(AmqpValue(token.text.expose().to_owned()))
            .build();
        let outcome = self
            .sender
            .send(message)
            .await
            .map_err(|error| broken("sending the token", &error))?;
        if !matches!(outcome, Outcome::Accepted(_)) {
            return Err(ConnectionFailure::Broken {
                stage: "sending the token",
                detail: "the hub did not accept the request".to_owned(),
            });
        }
        loop {
            let (delivery, answer) = match self.receiver.recv::<Body<Value>>().await {
                Ok(delivery) => {
                    let (delivery, answer) = delivery.into_parts();
                    (delivery, Some(answer))
                }
                Err(RecvError::MessageDecode(error)) => (error.info, None),
                Err(error) => return Err(broken("sending the token", &error)),
            };
            self.receiver
                .accept(delivery)
                .await
                .map_err(|error| broken("sending the token", &error))?;
            let Some(answer) = answer else {
                return Ok((None, "the answer cannot be decoded".to_owned()));
            };
            let properties = answer.properties.as_ref();
            if properties.and_then(|p| p.correlation_id.as_ref()) == Some(&id) {
                return Ok(status(&answer));
            }
            // An answer to an abandoned request.
        }
    }
}

/// Renews the token of a connection until renewal fails; then reports the failure once. Transient
/// failures are retried while the last token lives.
///
/// `renew_now` requests an immediate renewal, for a token refused by the hub before its expiry.
pub(crate) async fn renew_loop(
    mut cbs: Cbs,
    client: Arc<ClientInner>,
    mut token: HubToken,
    renew_now: Arc<Notify>,
    failed: oneshot::Sender<ConnectionFailure>,
) {
    loop {
        tokio::select! {
            () = until(token.renew_at) => {}
            () = renew_now.notified() => client.credentials.refused(),
        }
        let policy = &client.options.reconnect;
        let mut delays = policy.delays();
        token = loop {
            let failure = match cbs.put_token(&client).await {
                Ok(fresh) => break fresh,
                Err(failure) => failure,
            };
            let wait = delays.next_delay().unwrap_or(policy.max());
            if !failure.is_transient() || SystemTime::now() + wait >= token.expires_at {
                let _ = failed.send(failure);
                return;
            }
            debug!(error = %failure, ?wait, "failed to renew the token; retrying");
            tokio::time::sleep(wait).await;
        };
        debug!("token renewed on the open connection");
    }
}

async fn until(time: SystemTime) {
    while let Ok(left) = time.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(MAX_SLEEP)).await;
    }
}

pub(crate) fn status(answer: &Message<Body<Value>>) -> (Option<i32>, String) {
    let properties = answer.application_properties.as_ref();
    let get = |name: &str| properties.and_then(|p| p.0.get(name));
    let description = match get("status-description") {
        Some(SimpleValue::String(text)) => cut(text),
        _ => String::new(),
    };
    (get("status-code").and_then(integer), description)
}

/// Reads an integer of any AMQP type.
fn integer(value: &SimpleValue) -> Option<i32> {
    match value {
        SimpleValue::Ubyte(value) => Some((*value).into()),
        SimpleValue::Ushort(value) => Some((*value).into()),
        SimpleValue::Uint(value) => (*value).try_into().ok(),
        SimpleValue::Ulong(value) => (*value).try_into().ok(),
        SimpleValue::Byte(value) => Some((*value).into()),
        SimpleValue::Short(value) => Some((*value).into()),
        SimpleValue::Int(value) => Some(*value),
        SimpleValue::Long(value) => (*value).try_into().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_every_integer_type_is_read() {
        use SimpleValue as V;
        let table = [
            (V::Ubyte(202), Some(202)),
            (V::Ushort(401), Some(401)),
            (V::Uint(401), Some(401)),
            (V::Ulong(401), Some(401)),
            (V::Byte(100), Some(100)),
            (V::Short(401), Some(401)),
            (V::Int(401), Some(401)),
            (V::Long(401), Some(401)),
            (V::Ulong(u64::MAX), None),
            (V::Long(i64::MIN), None),
            (V::String("401".into()), None),
            (V::Null, None),
        ];
        for (value, expected) in table {
            let properties = ApplicationProperties::builder().insert("status-code", value.clone());
            let answer = Message::builder()
                .application_properties(properties.build())
                .body(Body::Value(AmqpValue(Value::Null)))
                .build();
            assert_eq!(status(&answer), (expected, String::new()), "{value:?}");
        }
    }
}
