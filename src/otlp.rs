//! The collector that traces go to, as it is configured.

use std::time::Duration;

use twincast_core::trace::TraceContext;
use twincast_otlp::{Otlp, OtlpConfig};

use crate::config::{Settings, address};
use crate::exit::{ExitCode, Failure};
use crate::peer;

/// How long the last spans may take when a process ends.
pub(crate) const LAST: Duration = Duration::from_secs(3);

/// Starts to take spans to the collector, if an address of one is configured; `role` is what the process is.
///
/// # Errors
/// When the collector cannot be used as it is configured.
pub(crate) fn start(settings: &Settings, role: &str) -> Result<Otlp, Failure> {
    let (configured, base) = (&settings.otlp, &settings.base);
    let variable = || std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok();
    let url = configured.url.clone().or_else(variable);
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        return Ok(Otlp::default());
    };
    let url = address(&url, configured.allow_http)
        .map_err(|error| refused(anyhow::anyhow!("otlp.url: {error}")))?;
    let headers = peer::shown("otlp", configured, base).map_err(refused)?;
    let http = peer::builder("otlp", configured.ca_file.as_deref(), base)?
        .no_proxy()
        .timeout(configured.timeout.0)
        .default_headers(headers);
    let started = Otlp::start(OtlpConfig {
        http: peer::built(http)?,
        url: url.into(),
        timeout: configured.timeout.0,
        ratio: settings.traces.sampled.of_one(),
        service: format!("twincast-{role}"),
        instance: uuid::Uuid::new_v4().to_string(),
    });
    started.map_err(|error| {
        let error = anyhow::Error::new(error);
        refused(error.context("cannot send traces as it is configured"))
    })
}

/// The span that this process is part of, by the environment: pipelines set it for their steps.
pub(crate) fn caller() -> Option<TraceContext> {
    std::env::var("TRACEPARENT").ok()?.parse().ok()
}

fn refused(error: anyhow::Error) -> Failure {
    Failure::new(ExitCode::Refused, error)
}
