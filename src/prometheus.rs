//! The Prometheus server that gates' metrics are asked of, as it is configured.

use std::sync::Arc;

use twincast_core::ports::MetricSource;
use twincast_core::spec::RolloutSpec;
use twincast_prometheus::Prometheus;

use crate::config::{Settings, address};
use crate::exit::{ExitCode, Failure};
use crate::peer;

/// A client of the configured server; `None` when there is none.
///
/// # Errors
/// When it cannot be used as it is configured.
pub(crate) fn server(settings: &Settings) -> Result<Option<Arc<dyn MetricSource>>, Failure> {
    let configured = &settings.prometheus;
    let Some(url) = &configured.url else {
        return Ok(None);
    };
    let url = address(url, configured.allow_http);
    let url = url
        .map_err(|error| Failure::message(ExitCode::Refused, format!("prometheus.url: {error}")))?;
    let base = &settings.base;
    let http = peer::builder("prometheus", configured.ca_file.as_deref(), base)?;
    let http = peer::built(http.no_proxy().timeout(configured.timeout.0))?;
    let (configured, base) = (configured.clone(), base.clone());
    // Files of tokens are rotated.
    let shown = move || peer::shown("prometheus", &configured, &base).map_err(Into::into);
    Ok(Some(Arc::new(Prometheus::new(http, url, shown))))
}

/// What is to be said of a spec whose gates ask for metrics where there is nobody to ask.
pub(crate) fn missing(spec: &RolloutSpec, settings: &Settings) -> Option<String> {
    let stage = spec.asks_for_metrics()?;
    settings.prometheus.url.is_none().then(|| {
        format!("the gate of stage {stage} has metrics, and no Prometheus server is configured")
    })
}

/// Refuses such a spec.
pub(crate) fn check(spec: &RolloutSpec, settings: &Settings) -> Result<(), Failure> {
    match missing(spec, settings) {
        None => Ok(()),
        Some(what) => Err(Failure::message(ExitCode::Refused, what).hint(
            "give its address as prometheus.url in the configuration file, or as TWINCAST__PROMETHEUS__URL",
        )),
    }
}
