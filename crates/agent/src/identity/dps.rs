//! The Device Provisioning Service over HTTPS (api-version 2019-03-31): which hub does this device belong to?

use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, RETRY_AFTER};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use super::{Assignment, Proof};
use crate::sas::encode;

/// What the device registers as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) id_scope: String,
    pub(crate) registration_id: String,
}

/// Why a device was not given a hub.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum DpsError {
    /// The service cannot be reached, or its answer cannot be read.
    #[error("cannot ask the provisioning service {host}")]
    Http {
        /// Its host.
        host: String,
        /// Why.
        source: reqwest::Error,
    },
    /// It refuses.
    #[error("the provisioning service {host} answers {status}: {message}")]
    Refused {
        /// Its host.
        host: String,
        /// The status of HTTP, or of the registration.
        status: String,
        /// What it says.
        message: String,
    },
    /// It did not come to an end.
    #[error("the provisioning service {host} still assigns after {asked} questions")]
    Unfinished {
        /// Its host.
        host: String,
        /// How often it was asked.
        asked: u32,
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

/// How often the service is asked whether it is done, every 2 seconds if it does not say otherwise.
const POLLS_MAX: u32 = 60;

impl Registration {
    /// Registers, and waits until a hub is assigned. Cancel safe: registering again gives the same.
    pub(crate) async fn register(
        &self,
        http: &reqwest::Client,
        proof: &Proof,
        now: Timestamp,
    ) -> Result<Assignment, DpsError> {
        let resource = format!("{}/registrations/{}", self.id_scope, self.registration_id);
        let expires = now
            .checked_add(Duration::from_secs(3600))
            .unwrap_or(Timestamp::MAX);
        let token = proof.token(&resource, Some("registration"), expires);
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
            asked: POLLS_MAX,
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
            None => Err(self.refused("assigned".to_owned(), "it names no hub or no device id")),
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
