//! The collector of traces: from the configuration, else from the variables of the OpenTelemetry
//! standard.
//!
//! A mistake in the configuration is refused. A mistake in a variable is logged, and the variable
//! is ignored, as the standard demands: a platform may have set the variable for all programs of a
//! machine, and no rollout waits for a trace.

mod standard;

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;
use twincast_core::trace::TraceContext;
use twincast_otlp::{Otlp, OtlpConfig, Sampling};

use self::standard::{Standard, with_path};
use crate::config::{Settings, address};
use crate::failure::{ExitCode, Failure};
use crate::http_client;

/// Time limit for exporting the last spans at the end of a process.
pub(crate) const FINAL_EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The destination of traces, and the choice of traces.
#[derive(Debug)]
struct Plan {
    url: Url,
    /// Headers from the environment.
    headers: HeaderMap,
    sampling: Sampling,
}

/// Starts the export of spans to the collector, if a collector's address is configured; `role` is
/// the kind of process.
///
/// # Errors
/// The collector cannot be used as configured.
pub(crate) fn start(settings: &Settings, role: &str) -> Result<Otlp, Failure> {
    let mut standard = Standard::new(|name| std::env::var(name).ok());
    let planned = plan(settings, &mut standard).map_err(refused)?;
    for problem in standard.invalid {
        tracing::warn!(problem, "environment variable is invalid");
    }
    let Some(plan) = planned else {
        return Ok(Otlp::default());
    };
    let (configured, base) = (settings.otlp.clone(), settings.base.clone());
    let http = http_client::builder("otlp", configured.ca_file.as_deref(), &base)?
        .no_proxy()
        .timeout(configured.timeout.0);
    let timeout = configured.timeout.0;
    // Token files are rotated.
    let headers = move || {
        let mut headers = plan.headers.clone();
        headers.extend(http_client::credential_headers("otlp", &configured, &base)?);
        Ok(headers)
    };
    headers().map_err(refused)?;
    let started = Otlp::start(OtlpConfig {
        http: http_client::build(http)?,
        url: plan.url.into(),
        headers: Arc::new(move || headers().map_err(Into::into)),
        timeout,
        sampling: plan.sampling,
        service: format!("twincast-{role}"),
        instance: uuid::Uuid::new_v4().to_string(),
    });
    // The address is valid, so the cause is a variable read by the exporter itself.
    Ok(started.unwrap_or_else(|error| {
        let error = twincast_core::error::describe(&error);
        tracing::warn!(error, "traces are not exported");
        Otlp::default()
    }))
}

/// Decides from configuration and environment whether traces are exported, with destination and
/// sampling.
fn plan(
    settings: &Settings,
    standard: &mut Standard<impl Fn(&str) -> Option<String>>,
) -> anyhow::Result<Option<Plan>> {
    let configured = &settings.otlp;
    if standard.is_disabled() {
        return Ok(None);
    }
    let url = match &configured.url {
        Some(url) => {
            let url = address(url, configured.allow_http);
            Some(with_path(
                url.map_err(|error| anyhow::anyhow!("otlp.url: {error}"))?,
            ))
        }
        None if standard.exports() => standard.endpoint(configured.allow_http),
        None => None,
    };
    let Some(url) = url else {
        return Ok(None);
    };
    let sampling = match settings.traces.sampled {
        Some(sampled) => Sampling {
            follows_caller: true,
            ratio: sampled.of_one(),
        },
        None => standard.sampling(),
    };
    Ok(Some(Plan {
        url,
        headers: standard.headers(),
        sampling,
    }))
}

/// Returns the span around this process, from the environment: pipelines set the variable for their
/// steps.
pub(crate) fn caller() -> Option<TraceContext> {
    std::env::var("TRACEPARENT").ok()?.parse().ok()
}

fn refused(error: anyhow::Error) -> Failure {
    Failure::new(ExitCode::Refused, error)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Returns the plan for a configuration and variables, as text, and the variables not
    /// understood.
    fn planned(toml: &str, variables: &[(&str, &str)]) -> anyhow::Result<(String, Vec<String>)> {
        let settings = Settings::of(toml);
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        let mut standard = Standard::new(|name| variables.get(name).map(ToString::to_string));
        let plan = plan(&settings, &mut standard)?;
        let plan = plan.map_or_else(
            || "nothing".to_owned(),
            |plan| {
                let Sampling {
                    follows_caller,
                    ratio,
                } = plan.sampling;
                let of = if follows_caller {
                    "of those that begin here"
                } else {
                    "of all"
                };
                let shown = plan.headers.iter().map(|(name, value)| {
                    format!(", {name}: {}", value.to_str().unwrap_or_default())
                });
                format!("{}, {ratio} {of}{}", plan.url, shown.collect::<String>())
            },
        );
        Ok((plan, standard.invalid))
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");
    const OURS: &str = "[otlp]\nurl = 'http://ours:4318'\n";

    #[test]
    fn configuration_precedes_standard_environment_variables() {
        let all = "http://c:4318/v1/traces, 1 of those that begin here";
        for (toml, variables, expected) in [
            ("", &[][..], "nothing"),
            ("", &[ENDPOINT], all),
            ("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "  ")], "nothing"),
            // An endpoint for traces is used unchanged.
            (
                "",
                &[
                    ENDPOINT,
                    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/x?key=1"),
                ],
                "https://t/x?key=1, 1 of those that begin here",
            ),
            (
                "",
                &[ENDPOINT, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")],
                all,
            ),
            (
                OURS,
                &[ENDPOINT],
                "http://ours:4318/v1/traces, 1 of those that begin here",
            ),
            // Switches.
            ("", &[ENDPOINT, ("OTEL_SDK_DISABLED", "True")], "nothing"),
            (OURS, &[("OTEL_SDK_DISABLED", "true")], "nothing"),
            ("", &[ENDPOINT, ("OTEL_SDK_DISABLED", "false")], all),
            ("", &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")], "nothing"),
            ("", &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "otlp")], all),
            (
                OURS,
                &[("OTEL_TRACES_EXPORTER", "none")],
                "http://ours:4318/v1/traces, 1 of those that begin here",
            ),
            // Samplers.
            (
                "",
                &[ENDPOINT, ("OTEL_TRACES_SAMPLER", "always_on")],
                "http://c:4318/v1/traces, 1 of all",
            ),
            (
                "",
                &[ENDPOINT, ("OTEL_TRACES_SAMPLER", "always_off")],
                "http://c:4318/v1/traces, 0 of all",
            ),
            (
                "",
                &[
                    ENDPOINT,
                    ("OTEL_TRACES_SAMPLER", "traceidratio"),
                    ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
                ],
                "http://c:4318/v1/traces, 0.25 of all",
            ),
            (
                "",
                &[ENDPOINT, ("OTEL_TRACES_SAMPLER", "traceidratio")],
                "http://c:4318/v1/traces, 1 of all",
            ),
            (
                "",
                &[ENDPOINT, ("OTEL_TRACES_SAMPLER", "parentbased_always_on")],
                all,
            ),
            (
                "",
                &[ENDPOINT, ("OTEL_TRACES_SAMPLER", "parentbased_always_off")],
                "http://c:4318/v1/traces, 0 of those that begin here",
            ),
            (
                "",
                &[
                    ENDPOINT,
                    ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                    ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
                ],
                "http://c:4318/v1/traces, 0.5 of those that begin here",
            ),
            (
                "",
                &[
                    ENDPOINT,
                    ("OTEL_TRACES_SAMPLER", "always_on"),
                    ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
                ],
                "http://c:4318/v1/traces, 1 of all",
            ),
            (
                "[traces]\nsampled = '10%'\n",
                &[ENDPOINT, ("OTEL_TRACES_SAMPLER", "always_on")],
                "http://c:4318/v1/traces, 0.1 of those that begin here",
            ),
            // Headers.
            (
                "",
                &[ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%2Cc, D = e")],
                "http://c:4318/v1/traces, 1 of those that begin here, a: b,c, d: e",
            ),
            (
                "",
                &[
                    ENDPOINT,
                    ("OTEL_EXPORTER_OTLP_HEADERS", "a=b"),
                    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "c=d"),
                ],
                "http://c:4318/v1/traces, 1 of those that begin here, c: d",
            ),
            (
                "",
                &[
                    ENDPOINT,
                    ("OTEL_EXPORTER_OTLP_HEADERS", "a=b"),
                    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", ""),
                ],
                "http://c:4318/v1/traces, 1 of those that begin here, a: b",
            ),
        ] {
            let (plan, invalid) = planned(toml, variables).unwrap();
            assert_eq!(
                (plan.as_str(), invalid),
                (expected, vec![]),
                "{toml} {variables:?}"
            );
        }
    }

    #[test]
    fn an_invalid_variable_is_reported_and_ignored() {
        let all = "http://c:4318/v1/traces, 1 of those that begin here";
        for (variable, value, reported, expected) in [
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "collector:4318",
                "is not the address of a server",
                "nothing",
            ),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "http://u:s3cr3t@c",
                "no user and password",
                "nothing",
            ),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "grpc://c",
                "is not the address",
                all,
            ),
            ("OTEL_SDK_DISABLED", "1", "allowed: true, false", all),
            ("OTEL_TRACES_EXPORTER", "zipkin", "otlp, none", all),
            (
                "OTEL_TRACES_SAMPLER",
                "jaeger_remote",
                "using parentbased_always_on",
                all,
            ),
            (
                "OTEL_TRACES_SAMPLER_ARG",
                "s3cr3t",
                "a number from 0 to 1",
                "http://c:4318/v1/traces, 1 of all",
            ),
            (
                "OTEL_TRACES_SAMPLER_ARG",
                "1.5",
                "a number from 0 to 1",
                "http://c:4318/v1/traces, 1 of all",
            ),
            (
                "OTEL_TRACES_SAMPLER_ARG",
                "NaN",
                "a number from 0 to 1",
                "http://c:4318/v1/traces, 1 of all",
            ),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "Bearer-s3cr3t,a=b",
                "name=value",
                "http://c:4318/v1/traces, 1 of those that begin here, a: b",
            ),
        ] {
            let sampler = if variable.ends_with("_ARG") {
                "traceidratio"
            } else {
                ""
            };
            let variables = [
                ENDPOINT,
                ("OTEL_TRACES_SAMPLER", sampler),
                (variable, value),
            ];
            let (plan, invalid) = planned("", &variables).unwrap();
            assert_eq!(plan, expected, "{variable}");
            let [invalid] = &invalid[..] else {
                panic!("{variable}: {invalid:?}");
            };
            assert!(
                invalid.contains(variable) && invalid.contains(reported),
                "{invalid}"
            );
            assert!(
                variable == "OTEL_TRACES_SAMPLER_ARG" || !invalid.contains("s3cr3t"),
                "{invalid}"
            );
        }
    }
}
