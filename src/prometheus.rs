//! The configured Prometheus server for the metrics of gates.

use std::sync::Arc;

use twincast_core::ports::MetricSource;
use twincast_core::spec::RolloutSpec;
use twincast_prometheus::Prometheus;

use crate::config::{Settings, address};
use crate::failure::{ExitCode, Failure};
use crate::http_client;

/// Returns a client of the configured server; `None` if no server is configured.
///
/// # Errors
/// The server cannot be used as configured.
pub(crate) fn server(settings: &Settings) -> Result<Option<Arc<dyn MetricSource>>, Failure> {
    let configured = &settings.prometheus;
    let Some(url) = &configured.url else {
        return Ok(None);
    };
    let url = address(url, configured.allow_http);
    let url = url
        .map_err(|error| Failure::message(ExitCode::Refused, format!("prometheus.url: {error}")))?;
    let base = &settings.base;
    let http = http_client::builder("prometheus", configured.ca_file.as_deref(), base)?;
    let http = http_client::build(http.no_proxy().timeout(configured.timeout.0))?;
    let (configured, base) = (configured.clone(), base.clone());
    // Token files are rotated.
    let shown = move || {
        http_client::credential_headers("prometheus", &configured, &base).map_err(Into::into)
    };
    Ok(Some(Arc::new(Prometheus::new(http, url, shown))))
}

/// Returns an objection if gates of the spec need metrics and no server is configured.
pub(crate) fn missing(spec: &RolloutSpec, settings: &Settings) -> Option<String> {
    let stage = spec.asks_for_metrics()?;
    settings.prometheus.url.is_none().then(|| {
        format!("the gate of stage {stage} has metrics, but no Prometheus server is configured")
    })
}

/// Refuses a spec with metrics if no server is configured.
pub(crate) fn check(spec: &RolloutSpec, settings: &Settings) -> Result<(), Failure> {
    match missing(spec, settings) {
        None => Ok(()),
        Some(what) => Err(Failure::message(ExitCode::Refused, what)
            .hint("set prometheus.url in the configuration file, or TWINCAST__PROMETHEUS__URL")),
    }
}
