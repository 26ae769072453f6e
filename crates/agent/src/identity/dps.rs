//! A client of the Device Provisioning Service over HTTPS (api-version 2019-03-31), for finding the
//! hub of the device.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, RETRY_AFTER};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use super::{Assignment, Credential};
use crate::sas::encode;

/// The registration data of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) id_scope: String,
    pub(crate) registration_id: String,
}

/// Errors of [`Registration::register`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum DpsError {
    /// The service cannot be reached, or the answer cannot be read.
    #[error("request to the provisioning service {host} failed")]
    Http {
        /// The service's host.
        host: String,
        /// The error of the HTTP client.
        source: reqwest::Error,
    },
    /// The service refuses the registration.
    #[error("the provisioning service {host} answers {status}: {message}")]
    Refused {
        /// The service's host.
        host: String,
        /// The HTTP status, or the status of the registration.
        status: String,
        /// The service's message.
        message: String,
    },
    /// The service has not assigned a hub after [`POLLS_MAX`] polls.
    #[error("the provisioning service {host} has not assigned a hub after {polls} polls")]
    Unfinished {
        /// The service's host.
        host: String,
        /// The number of polls.
        polls: u32,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    operation_id: Option<String>,
    status: String,
    registration_state: Option<RegistrationState>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegistrationState {
    assigned_hub: Option<String>,
    device_id: Option<String>,
    error_message: Option<String>,
}

const API: &str = "api-version=2019-03-31";

/// The largest number of polls for an assignment. The interval is 2 seconds, unless the service
/// requests another interval.
const POLLS_MAX: u32 = 60;

impl Registration {
    /// Registers the device and waits for the assigned hub. Cancel safe: a repeated registration
    /// gives the same assignment.
    pub(crate) async fn register(
        &self,
        http: &reqwest::Client,
        credential: &Credential,
        now: Timestamp,
    ) -> Result<Assignment, DpsError> {
        let resource = format!("{}/registrations/{}", self.id_scope, self.registration_id);
        let expires = now
            .checked_add(Duration::from_secs(3600))
            .unwrap_or(Timestamp::MAX);
        let token = credential.token(&resource, Some("registration"), expires);
        let base = format!(
            "https://{}:{}/{}/registrations/{}",
            self.host,
            self.port,
            encode(&self.id_scope),
            encode(&self.registration_id)
        );
        let put = http
            .put(format!("{base}/register?{API}"))
            .json(&json!({ "registrationId": self.registration_id }));
        let (mut answer, mut wait) = self.ask(put, token.as_deref()).await?;
        for _ in 0..POLLS_MAX {
            let state = answer.registration_state;
            match (&*answer.status, answer.operation_id) {
                ("assigned", _) => return self.assignment(state),
                ("assigning", Some(operation)) => {
                    tokio::time::sleep(wait).await;
                    let get = http.get(format!("{base}/operations/{}?{API}", encode(&operation)));
                    (answer, wait) = self.ask(get, token.as_deref()).await?;
                }
                (status, _) => {
                    let message = state.and_then(|state| state.error_message);
                    return Err(self.refused(
                        status.to_owned(),
                        &message.unwrap_or_else(|| "no reason given".to_owned()),
                    ));
                }
            }
        }
        Err(DpsError::Unfinished {
            host: self.host.clone(),
            polls: POLLS_MAX,
        })
    }

    async fn ask(
        &self,
        request: reqwest::RequestBuilder,
        token: Option<&str>,
    ) -> Result<(Answer, Duration), DpsError> {
        let http = |source: reqwest::Error| DpsError::Http {
            host: self.host.clone(),
            source: source.without_url(),
        };
        let request = token.into_iter().fold(request, |request, token| {
            request.header(AUTHORIZATION, token)
        });
        let answer = request
            .timeout(Duration::from_secs(30))
            .send()
            .await
            .map_err(http)?;
        let status = answer.status();
        if status != StatusCode::OK && status != StatusCode::ACCEPTED {
            let text = answer.text().await.unwrap_or_default();
            return Err(self.refused(status.to_string(), &text));
        }
        let wait = answer
            .headers()
            .get(RETRY_AFTER)
            .and_then(|it| it.to_str().ok()?.parse().ok());
        let wait = Duration::from_secs(wait.unwrap_or(2).clamp(1, 60));
        Ok((answer.json().await.map_err(http)?, wait))
    }

    fn assignment(&self, state: Option<RegistrationState>) -> Result<Assignment, DpsError> {
        let state = state.and_then(|state| Some((state.assigned_hub?, state.device_id?)));
        match state {
            Some((hub, device_id)) => Ok(Assignment { hub, device_id }),
            None => Err(self.refused(
                "assigned".to_owned(),
                "the hub or the device id is missing in the answer",
            )),
        }
    }

    fn refused(&self, status: String, message: &str) -> DpsError {
        DpsError::Refused {
            host: self.host.clone(),
            status,
            message: message.chars().take(256).collect(),
        }
    }
}
