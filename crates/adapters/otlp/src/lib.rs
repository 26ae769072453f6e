//! Takes spans to an OpenTelemetry collector: OTLP over HTTP, as protobuf.
//!
//! ```text
//!  whoever has done something ──span──▶ queue (4,096) ──▶ task ──512 at a time, every second──▶ collector
//! ```
//!
//! Nobody waits for a collector. A span for which there is no room is dropped, and counted; so is one that the
//! collector does not take.
//!
//! What the standard's environment variables say of the service, and of headers, holds here too.

mod convert;

use std::time::{Duration, Instant};

use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use prometheus::{IntCounterVec, Opts, Registry};
use reqwest::header::{HeaderMap, HeaderValue};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use twincast_core::trace::Tracer;

/// Spans that wait for the collector, at the most.
const QUEUE: usize = 4_096;
/// Spans in one request, at the most.
const AT_ONCE: usize = 512;
/// How often the collector is given what there is.
const EVERY: Duration = Duration::from_secs(1);
/// How often the log says that the collector takes nothing.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Which collector, and what it is told.
#[derive(Clone)]
pub struct OtlpConfig {
    /// How it is asked.
    pub http: reqwest::Client,
    /// Its address, up to and not including `/v1/traces`.
    pub url: String,
    /// Headers of each request.
    pub headers: HeaderMap,
    /// How long one request may take, with what is tried again of it.
    pub timeout: Duration,
    /// The part of the traces that begin here which is kept, 0 to 1.
    pub ratio: f64,
    /// What this process is called, where the environment has no `OTEL_SERVICE_NAME`.
    pub service: String,
    /// What tells it apart from others of that name.
    pub instance: String,
}

/// Why a collector cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The address, or a variable of the standard, is not understood.
    #[error("cannot set up OTLP")]
    Otlp(#[source] opentelemetry_otlp::ExporterBuildError),
}

/// What has become of spans: `exported`, `failed`, which the collector did not take, or `dropped`, for want of room.
#[derive(Debug, Clone)]
pub struct SpanCounters(IntCounterVec);

impl Default for SpanCounters {
    fn default() -> Self {
        let help = "Spans of rollouts, by what has become of them";
        let options = Opts::new("twincast_trace_spans_total", help);
        let counters = IntCounterVec::new(options, &["result"]).expect("the name is right");
        for result in ["exported", "failed", "dropped"] {
            counters.with_label_values(&[result]);
        }
        Self(counters)
    }
}

impl SpanCounters {
    /// Exports them.
    ///
    /// # Errors
    /// When the registry has metrics of these names.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.0.clone()))
    }

    fn add(&self, result: &str, spans: usize) {
        let counter = self.0.with_label_values(&[result]);
        counter.inc_by(spans as u64);
    }
}

/// A task that takes spans to a collector.
#[derive(Debug)]
pub struct Otlp {
    tracer: Tracer,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Otlp {
    /// Starts the task, on the current runtime. Nothing is dialled before there is a span.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn start(config: OtlpConfig, counters: &SpanCounters) -> Result<Self, ConfigError> {
        let OtlpConfig {
            http,
            url,
            headers,
            timeout,
            ratio,
            service,
            instance,
        } = config;
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)));
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(http)
            .with_headers(headers.collect())
            .with_endpoint(format!("{}/v1/traces", url.trim_end_matches('/')))
            .with_timeout(timeout)
            .build()
            .map_err(ConfigError::Otlp)?;
        exporter.set_resource(&resource(service, instance));
        let (sender, spans) = mpsc::channel(QUEUE);
        let dropped = counters.clone();
        let tracer = Tracer::new(ratio, move |span| {
            if sender.try_send(convert::span(span)).is_err() {
                dropped.add("dropped", 1);
            }
        });
        let stop = CancellationToken::new();
        let courier = Courier {
            spans,
            exporter,
            counters: counters.clone(),
            lost: 0,
            told_at: None,
        };
        let task = tokio::spawn(courier.run(stop.clone()));
        Ok(Self { tracer, stop, task })
    }

    /// Where spans are told.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Takes what waits to the collector, and ends; after `within` with what is then left.
    pub async fn close(mut self, within: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(within, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// What the process is, by the environment or else by us.
fn resource(service: String, instance: String) -> Resource {
    let known = Resource::builder().build();
    let name = known.get(&Key::from("service.name"));
    let is_named = name.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let mut resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance),
    ]);
    if !is_named {
        resource = resource.with_service_name(service);
    }
    resource.build()
}

struct Courier {
    spans: mpsc::Receiver<SpanData>,
    exporter: SpanExporter,
    counters: SpanCounters,
    /// Spans that the collector did not take, since it last took some.
    lost: usize,
    told_at: Option<Instant>,
}

impl Courier {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
            self.take_all().await;
        }
    }

    async fn take_all(&mut self) {
        loop {
            let waiting = std::iter::from_fn(|| self.spans.try_recv().ok());
            let batch: Vec<_> = waiting.take(AT_ONCE).collect();
            if batch.is_empty() {
                return;
            }
            let spans = batch.len();
            match self.exporter.export(batch).await {
                Ok(()) => {
                    self.counters.add("exported", spans);
                    if self.told_at.take().is_some() {
                        tracing::info!(lost = self.lost, "the collector takes traces again");
                    }
                    self.lost = 0;
                }
                Err(error) => {
                    self.counters.add("failed", spans);
                    self.lost += spans;
                    self.tell_of(&error.to_string());
                }
            }
        }
    }

    fn tell_of(&mut self, error: &str) {
        if self.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            self.told_at = Some(Instant::now());
            tracing::warn!(
                error,
                lost = self.lost,
                "the collector takes no traces, they are lost"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use twincast_core::time::Timestamp;
    use twincast_core::trace::{Span, TraceContext};

    use super::*;

    fn span() -> Span {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: TraceContext = parent.parse().expect("a traceparent");
        Span::new(context, None, "plan", Timestamp(1)..Timestamp(2))
    }

    fn to(url: String) -> OtlpConfig {
        _ = rustls::crypto::ring::default_provider().install_default();
        OtlpConfig {
            http: reqwest::Client::new(),
            url,
            headers: HeaderMap::new(),
            timeout: Duration::from_secs(10),
            ratio: 1.0,
            service: "a-test".to_owned(),
            instance: "1".to_owned(),
        }
    }

    /// On one thread, where the task does not get its turn while spans are told.
    #[tokio::test]
    async fn what_does_not_fit_or_is_not_taken_is_counted_and_holds_nobody_up() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = port.local_addr().expect("an address");
        drop(port);
        let counters = SpanCounters::default();
        let otlp = Otlp::start(to(format!("http://{address}/")), &counters).expect("a task");
        let tracer = otlp.tracer();
        tracer.tell((0..QUEUE + 10).map(|_| span()));
        let count = |result| counters.0.with_label_values(&[result]).get();
        assert_eq!(count("dropped"), 10);
        otlp.close(Duration::from_millis(500)).await;
        assert_eq!(count("exported"), 0);
        tracer.tell([span()]);
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_refused() {
        let refused = Otlp::start(to("http://a b".to_owned()), &SpanCounters::default());
        assert!(matches!(refused, Err(ConfigError::Otlp(_))));
    }
}
