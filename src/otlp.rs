//! The collector that traces go to, as it is configured.

use std::time::Duration;

use prometheus::Registry;
use twincast_core::trace::{TraceContext, Tracer};
use twincast_otlp::{Otlp, OtlpConfig, SpanCounters};

use crate::config::{Settings, address};
use crate::exit::{ExitCode, Failure};
use crate::peer;

/// How long the last spans may take when a process ends.
const LAST: Duration = Duration::from_secs(3);

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
        let otlp = match config(settings, role)? {
            None => None,
            Some(config) => Some(Otlp::start(config, &spans).map_err(|error| {
                let error = anyhow::Error::new(error);
                refused(error.context("cannot send traces as it is configured"))
            })?),
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

/// `None` without an address.
fn config(settings: &Settings, role: &str) -> Result<Option<OtlpConfig>, Failure> {
    let (configured, base) = (&settings.otlp, &settings.base);
    let variable = || std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok();
    let url = configured.url.clone().or_else(variable);
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let url = address(&url, configured.allow_http)
        .map_err(|error| refused(anyhow::anyhow!("otlp.url: {error}")))?;
    let headers = peer::shown("otlp", configured, base).map_err(refused)?;
    let http = peer::builder("otlp", configured.ca_file.as_deref(), base)?
        .no_proxy()
        .timeout(configured.timeout.0)
        .default_headers(headers);
    Ok(Some(OtlpConfig {
        http: peer::built(http)?,
        url: url.into(),
        timeout: configured.timeout.0,
        ratio: settings.traces.sampled.of_one(),
        service: format!("twincast-{role}"),
        instance: uuid::Uuid::new_v4().to_string(),
    }))
}

fn refused(error: anyhow::Error) -> Failure {
    Failure::new(ExitCode::Refused, error)
}
