//! Claims-based security: putting a token on a connection, and putting a new one in time.
//!
//! One session, two links on the node `$cbs`; the request carries `operation`, `type` and `name`, the body is the
//! token. The answer's `status-code` is 200 (or 202); its `correlation-id` is the request's `message-id`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fe2o3_amqp::link::Sender;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::{Delivery, Receiver};
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
use crate::hub_message::cut;
use crate::sas::{SAS_TOKEN_TYPE, SasToken};

use super::connection::broken;

/// The node for tokens.
const NODE: &str = "$cbs";

/// A sleep is cut into pieces of this length, so that a clock that is set forward is noticed.
const LONGEST_NAP: Duration = Duration::from_secs(60);

/// The two links for tokens of one connection.
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
            .map_err(|error| broken("attaching the token receiver", &error))?;
        let sender = Sender::attach(session, format!("cbs-sender-{name}"), NODE)
            .await
            .map_err(|error| broken("attaching the token sender", &error))?;
        Ok(Self {
            sender,
            receiver,
            requests: 0,
        })
    }

    /// Puts the current token on the connection, within the client's time-out for it.
    pub(crate) async fn put_token(
        &mut self,
        client: &ClientInner,
    ) -> Result<SasToken, ConnectionFailure> {
        let limit = client.options.token_timeout;
        let token = client.tokens.token();
        let put = self.exchange(client, &token);
        let answer = timeout(limit, put)
            .await
            .map_err(|_| ConnectionFailure::Timeout {
                stage: "putting the token",
                limit,
            })??;
        let (status, description) = status(answer.message());
        match status {
            200 | 202 => Ok(token),
            500..=599 => Err(ConnectionFailure::Broken {
                stage: "putting the token",
                detail: format!("status {status}: {description}"),
            }),
            _ => {
                client.tokens.invalidate();
                let policy = client.key_name.clone();
                Err(ConnectionFailure::Unauthorised {
                    policy,
                    status,
                    description,
                })
            }
        }
    }

    async fn exchange(
        &mut self,
        client: &ClientInner,
        token: &SasToken,
    ) -> Result<Delivery<Body<Value>>, ConnectionFailure> {
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
                    .insert("type", SAS_TOKEN_TYPE)
                    .insert("name", client.tokens.audience().to_owned())
                    .build(),
            )
            .body(AmqpValue(token.token().expose().to_owned()))
            .build();
        let outcome = self
            .sender
            .send(message)
            .await
            .map_err(|error| broken("putting the token", &error))?;
        if !matches!(outcome, Outcome::Accepted(_)) {
            return Err(ConnectionFailure::Broken {
                stage: "putting the token",
                detail: "request was not accepted".to_owned(),
            });
        }
        loop {
            let answer = self
                .receiver
                .recv::<Body<Value>>()
                .await
                .map_err(|error| broken("putting the token", &error))?;
            self.receiver
                .accept(&answer)
                .await
                .map_err(|error| broken("putting the token", &error))?;
            let properties = answer.message().properties.as_ref();
            if properties.and_then(|p| p.correlation_id.as_ref()) == Some(&id) {
                return Ok(answer);
            }
            // The answer to a request that was given up.
        }
    }
}

/// Keeps the token of a connection fresh until it cannot; then tells why, once.
///
/// `now` asks for a renewal at once, for use when the hub refuses a token before its time.
pub(crate) async fn keep_fresh(
    mut cbs: Cbs,
    client: Arc<ClientInner>,
    mut token: SasToken,
    now: Arc<Notify>,
    failed: oneshot::Sender<ConnectionFailure>,
) {
    loop {
        tokio::select! {
            () = until(token.renew_at()) => {}
            () = now.notified() => client.tokens.invalidate(),
        }
        match cbs.put_token(&client).await {
            Ok(fresh) => {
                debug!("token renewed on the open connection");
                token = fresh;
            }
            Err(failure) => {
                let _ = failed.send(failure);
                return;
            }
        }
    }
}

async fn until(time: SystemTime) {
    while let Ok(left) = time.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_NAP)).await;
    }
}

fn status(answer: &Message<Body<Value>>) -> (i32, String) {
    let properties = answer.application_properties.as_ref();
    let get = |name: &str| properties.and_then(|p| p.0.get(name));
    let status = match get("status-code") {
        Some(SimpleValue::Int(status)) => *status,
        Some(SimpleValue::Long(status)) => i32::try_from(*status).unwrap_or(0),
        Some(SimpleValue::Uint(status)) => i32::try_from(*status).unwrap_or(0),
        _ => 0,
    };
    let description = match get("status-description") {
        Some(SimpleValue::String(text)) => cut(text),
        _ => String::new(),
    };
    (status, description)
}
