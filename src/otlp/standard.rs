//! The variables of the OpenTelemetry standard about traces.
//!
//! Specification of the variables:
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables>, and of the
//! exporter's variables: <https://opentelemetry.io/docs/specs/otel/protocol/exporter>.
//!
//! An empty variable counts as not set. An invalid variable is noted, and counts as not set.

use percent_encoding::percent_decode_str;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName};
use twincast_otlp::Sampling;

use crate::config::{address, endpoint};
use crate::http_client::secret;

/// The variables of a process.
pub(super) struct Standard<V> {
    variables: V,
    /// A text per invalid variable: the name, the allowed values, and the value in force.
    pub(super) invalid: Vec<String>,
}

impl<V: Fn(&str) -> Option<String>> Standard<V> {
    pub(super) fn new(variables: V) -> Self {
        Self {
            variables,
            invalid: Vec::new(),
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        let value = (self.variables)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Returns true if traces are switched off altogether.
    pub(super) fn is_disabled(&mut self) -> bool {
        let name = "OTEL_SDK_DISABLED";
        match self.get(name) {
            None => false,
            Some(value) if value.eq_ignore_ascii_case("true") => true,
            Some(value) => {
                if !value.eq_ignore_ascii_case("false") {
                    self.invalid.push(format!(
                        "{name} is {value:?}; allowed: true, false; using false"
                    ));
                }
                false
            }
        }
    }

    /// Returns true if the environment asks for the export of traces.
    pub(super) fn exports(&mut self) -> bool {
        let name = "OTEL_TRACES_EXPORTER";
        match self.get(name).as_deref() {
            None | Some("otlp") => true,
            Some("none") => false,
            Some(value) => {
                self.invalid.push(format!(
                    "{name} is {value:?}; supported: otlp, none; using otlp"
                ));
                true
            }
        }
    }

    /// Returns the destination of traces. An address for traces alone is used unchanged.
    pub(super) fn endpoint(&mut self, allow_http: bool) -> Option<Url> {
        let of_traces = |text: &str| endpoint(text, allow_http);
        let of_all = |text: &str| address(text, allow_http).map(with_path);
        self.read("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", of_traces)
            .or_else(|| self.read("OTEL_EXPORTER_OTLP_ENDPOINT", of_all))
    }

    fn read<T, E: std::fmt::Display>(
        &mut self,
        name: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.get(name)?;
        read(&text)
            .map_err(|error| self.invalid.push(format!("{name}: {error}")))
            .ok()
    }

    /// Returns the choice of traces.
    pub(super) fn sampling(&mut self) -> Sampling {
        let name = "OTEL_TRACES_SAMPLER";
        let sampler = self.get(name);
        let of = |follows_caller, ratio| Sampling {
            follows_caller,
            ratio,
        };
        match sampler.as_deref() {
            None | Some("parentbased_always_on") => of(true, 1.0),
            Some("parentbased_always_off") => of(true, 0.0),
            Some("parentbased_traceidratio") => of(true, self.ratio()),
            Some("always_on") => of(false, 1.0),
            Some("always_off") => of(false, 0.0),
            Some("traceidratio") => of(false, self.ratio()),
            Some(other) => {
                self.invalid.push(format!(
                    "{name} is {other:?}; supported: always_on, always_off, traceidratio, each \
                     also with the prefix parentbased_; using parentbased_always_on"
                ));
                of(true, 1.0)
            }
        }
    }

    fn ratio(&mut self) -> f64 {
        let ratio = self.read("OTEL_TRACES_SAMPLER_ARG", |text| {
            let ratio = text
                .parse()
                .ok()
                .filter(|ratio| (0.0..=1.0).contains(ratio));
            ratio.ok_or_else(|| format!("{text:?} is not a number from 0 to 1; using 1"))
        });
        ratio.unwrap_or(1.0)
    }

    /// Returns the headers of each request. Values are percent-encoded.
    pub(super) fn headers(&mut self) -> HeaderMap {
        let name = [
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ]
        .into_iter()
        .find(|name| self.get(name).is_some());
        let Some(name) = name else {
            return HeaderMap::new();
        };
        let listed = self.get(name).unwrap_or_default();
        let mut headers = HeaderMap::new();
        for part in listed.split(',').filter(|part| !part.trim().is_empty()) {
            let pair = part.split_once('=').and_then(|(name, value)| {
                let name: HeaderName = name.trim().parse().ok()?;
                let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
                Some((name, secret(&value)?))
            });
            match pair {
                Some((name, value)) => drop(headers.insert(name, value)),
                // The part may be a secret, so the text does not show the part.
                None => self.invalid.push(format!(
                    "{name} must be comma-separated name=value pairs with percent-encoded values; \
                     leaving out a pair"
                )),
            }
        }
        headers
    }
}

/// Returns the address of a collector for traces.
pub(super) fn with_path(mut url: Url) -> Url {
    let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
    url.set_path(&path);
    url
}
