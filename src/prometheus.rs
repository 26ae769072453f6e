//! The Prometheus server that gates' metrics are asked of, as it is configured.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use twincast_core::ports::MetricSource;
use twincast_core::spec::{RolloutSpec, Span};
use twincast_prometheus::{Prometheus, PrometheusConfig, Token};

use crate::config::{SecretText, Settings};
use crate::exit::{ExitCode, Failure};

/// Where it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PrometheusSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) timeout: Span,
}

impl PrometheusSettings {
    /// It must not have a password in it, for it is shown.
    pub(crate) fn is_without_secret(&self) -> bool {
        self.url.as_ref().is_none_or(|url| !url.contains('@'))
    }
}

/// A client of the configured server; `None` when there is none.
///
/// # Errors
/// When it cannot be used as it is configured.
pub(crate) fn server(settings: &Settings) -> Result<Option<Arc<dyn MetricSource>>, Failure> {
    let configured = &settings.prometheus;
    let Some(url) = &configured.url else {
        return Ok(None);
    };
    let in_file = || {
        let file = configured.token_file.as_ref()?;
        Some(Token::File(settings.base.join(file)))
    };
    let token = configured.token.as_ref();
    let token = token.map(|token| Token::Text(token.expose().to_owned()));
    let ca_file = configured.ca_file.as_ref();
    let server = Prometheus::new(&PrometheusConfig {
        url: url.clone(),
        token: token.or_else(in_file),
        ca_file: ca_file.map(|file| settings.base.join(file)),
        timeout: configured.timeout.0,
    });
    let server = server.map_err(|error| {
        let doing = "cannot use the configured Prometheus server";
        Failure::new(ExitCode::Refused, anyhow::Error::new(error).context(doing))
    })?;
    Ok(Some(Arc::new(server)))
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
