//! The collector that traces go to, as it is configured.

use std::path::PathBuf;
use std::time::Duration;

use prometheus::Registry;
use serde::{Deserialize, Serialize};
use twincast_core::trace::{TraceContext, Tracer};
use twincast_iothub::Roots;
use twincast_otlp::{Otlp, OtlpConfig, SpanCounters};

use crate::config::{SecretText, Settings, Share};
use crate::exit::{ExitCode, Failure};
use crate::textfile;

/// How long the last spans may take when a process ends.
const LAST: Duration = Duration::from_secs(3);

/// Where it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OtlpSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) headers: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) headers_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) sampled: Share,
}

/// It must not have a password in it, for it is shown.
pub(crate) fn is_address(text: &str) -> bool {
    let rest = text
        .strip_prefix("http://")
        .or(text.strip_prefix("https://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', ' ', '?', '#']))
}

/// Traces, on their way to the collector if there is one.
pub(crate) struct Traces {
    spans: SpanCounters,
    otlp: Option<Otlp>,
}

impl Traces {
    /// Starts to take them there; `role` is what the process is.
    ///
    /// # Errors
    /// When the collector cannot be used as it is configured.
    pub(crate) fn start(settings: &Settings, role: &str) -> Result<Self, Failure> {
        let spans = SpanCounters::default();
        let refused = |error: anyhow::Error| {
            let error = error.context("cannot send traces as it is configured");
            Failure::new(ExitCode::Refused, error)
        };
        let otlp = match config(settings, role).map_err(refused)? {
            None => None,
            Some(config) => {
                Some(Otlp::start(config, &spans).map_err(|error| refused(error.into()))?)
            }
        };
        Ok(Self { spans, otlp })
    }

    /// Where spans are told.
    pub(crate) fn tracer(&self) -> Tracer {
        self.otlp.as_ref().map(Otlp::tracer).unwrap_or_default()
    }

    /// Exports what has become of them.
    pub(crate) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        self.spans.register(registry)
    }

    /// Takes the last ones there.
    pub(crate) async fn close(self) {
        if let Some(otlp) = self.otlp {
            otlp.close(LAST).await;
        }
    }
}

/// The span that this process is part of, by the environment: pipelines set it for their steps.
pub(crate) fn caller() -> Option<TraceContext> {
    std::env::var("TRACEPARENT").ok()?.parse().ok()
}

/// `None` without an endpoint.
fn config(settings: &Settings, role: &str) -> Result<Option<OtlpConfig>, anyhow::Error> {
    let configured = &settings.otlp;
    let read = |path: &PathBuf| textfile::read("", &settings.base.join(path));
    let variable = || std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok();
    let endpoint = configured.endpoint.clone().or_else(variable);
    let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.is_empty()) else {
        return Ok(None);
    };
    let headers = match (&configured.headers, &configured.headers_file) {
        (Some(text), _) => text.expose().to_owned(),
        (None, Some(path)) => read(path)?,
        (None, None) => String::new(),
    };
    let roots = match &configured.ca_file {
        Some(path) => Roots::SystemAnd(read(path)?),
        None => Roots::System,
    };
    Ok(Some(OtlpConfig {
        endpoint,
        headers: pairs(&headers)?,
        tls: (*twincast_iothub::client_config(&roots)?).clone(),
        ratio: configured.sampled.of_one(),
        service: format!("twincast-{role}"),
        instance: uuid::Uuid::new_v4().to_string(),
    }))
}

/// `name=value`, with commas between them. What is wrong with it is said without saying it, for it may be secret.
fn pairs(text: &str) -> Result<Vec<(String, String)>, anyhow::Error> {
    let parts = text
        .trim()
        .split(',')
        .filter(|part| !part.trim().is_empty());
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').ok_or_else(|| {
            anyhow::anyhow!("otlp.headers must be name=value, with commas between them")
        })?;
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    };
    parts.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_not_shown() {
        let read = pairs("authorization=Bearer a=b, tenant = x,\n").unwrap();
        let read: Vec<_> = read.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(read, [("authorization", "Bearer a=b"), ("tenant", "x")]);
        assert!(pairs("").unwrap().is_empty());
        let error = pairs("Bearer-secret").unwrap_err().to_string();
        assert!(
            error.contains("name=value") && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn addresses_are_told_from_others() {
        for right in ["http://collector:4318", "https://in.example.org/otlp"] {
            assert!(is_address(right), "{right}");
        }
        for wrong in [
            "",
            "collector:4318",
            "http://",
            "http://a:b@c",
            "grpc://c:4317",
        ] {
            assert!(!is_address(wrong), "{wrong}");
        }
    }
}
