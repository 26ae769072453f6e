//! Exports spans to an OpenTelemetry collector: OTLP over HTTP, as protobuf, by the SDK's batch
//! span processor.
//!
//! ```text
//!  engine ──span──▶ BatchSpanProcessor ──512 at a time, every second──▶ collector
//! ```
//!
//! The engine never waits for the collector. A span without room in the queue is dropped and
//! counted; so is a span refused by the collector.
//!
//! The standard's environment variables for the service's name and resource are honoured.

mod client;
mod convert;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanKind;
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, ShouldSample as _, SpanData,
    SpanExporter as _, SpanProcessor as _,
};
use prometheus::{IntCounterVec, Opts, Registry};
use reqwest::header::HeaderMap;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use twincast_core::trace::Tracer;

use crate::client::HeaderClient;

/// Most spans waiting for the collector or in transit to it.
const QUEUE_CAPACITY: usize = 4_096;
/// Most spans in one request.
const MAX_BATCH: usize = 512;
/// Interval of requests to the collector.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between log lines about a failing collector.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The collector's address, and the export settings.
#[derive(Clone)]
pub struct OtlpConfig {
    /// The HTTP client.
    pub http: reqwest::Client,
    /// The address of requests, including the path.
    pub url: String,
    /// Returns the headers of a request; called before each request.
    pub headers: Headers,
    /// Time limit of one request, including retries.
    pub timeout: Duration,
    /// The rule for keeping traces.
    pub sampling: Sampling,
    /// The service name, unless the environment has `OTEL_SERVICE_NAME`.
    pub service: String,
    /// The instance id: distinguishes this process from others with the same service name.
    pub instance: String,
}

/// Returns the current headers of a request.
pub type Headers = Arc<dyn Fn() -> Result<HeaderMap, BoxError> + Send + Sync>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The rule for keeping traces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Whether to follow the decision of the caller for a trace begun by the caller.
    pub follows_caller: bool,
    /// The share of all other traces to keep, 0 to 1.
    pub ratio: f64,
}

/// Number of spans by result: `exported`, `failed` (refused by the collector), or `dropped` (no
/// room in the queue).
#[derive(Debug, Clone)]
struct SpanCounters(IntCounterVec);

impl Default for SpanCounters {
    fn default() -> Self {
        let help = "Spans of rollouts, by result";
        let options = Opts::new("twincast_trace_spans_total", help);
        let counters = IntCounterVec::new(options, &["result"]).expect("the name is right");
        for result in ["exported", "failed", "dropped"] {
            counters.with_label_values(&[result]);
        }
        Self(counters)
    }
}

impl SpanCounters {
    fn add(&self, result: &str, spans: usize) {
        let counter = self.0.with_label_values(&[result]);
        counter.inc_by(spans as u64);
    }
}

/// The export of spans to a collector. The default exports no spans.
#[derive(Debug, Default)]
pub struct Otlp {
    counters: SpanCounters,
    tracer: Tracer,
    processor: Option<Arc<BatchSpanProcessor>>,
}

impl Otlp {
    /// Starts the processor's thread; requests run on the current runtime. The first span opens the
    /// first connection.
    ///
    /// # Errors
    /// The address, or a variable of the standard, is invalid.
    pub fn start(config: OtlpConfig) -> Result<Self, ExporterBuildError> {
        let OtlpConfig {
            http,
            url,
            headers,
            timeout,
            sampling,
            service,
            instance,
        } = config;
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(HeaderClient { http, headers })
            .with_endpoint(url)
            .with_timeout(timeout)
            .build()?;
        exporter.set_resource(&resource(service, instance));
        let counters = SpanCounters::default();
        let permits = Arc::new(Semaphore::new(QUEUE_CAPACITY));
        let counting = CountingExporter {
            exporter: Arc::new(exporter),
            runtime: Handle::current(),
            permits: Arc::clone(&permits),
            counters: counters.clone(),
            last_logged_at: Mutex::default(),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_CAPACITY)
            .with_max_export_batch_size(MAX_BATCH)
            .with_scheduled_delay(EXPORT_INTERVAL);
        let processor = Arc::new(BatchSpanProcessor::new(counting, batches.build()));
        let sampler = Sampler::TraceIdRatioBased(sampling.ratio);
        let sample = move |trace, of_caller: Option<bool>| {
            if let Some(kept) = of_caller.filter(|_| sampling.follows_caller) {
                return kept;
            }
            let sampled = sampler.should_sample(None, trace, "", &SpanKind::Internal, &[], &[]);
            sampled.decision == SamplingDecision::RecordAndSample
        };
        let (taking, dropped) = (Arc::clone(&processor), counters.clone());
        let tracer = Tracer::new(sample, move |span| match permits.try_acquire() {
            Ok(permit) => {
                permit.forget();
                taking.on_end(convert::span(span));
            }
            Err(_) => dropped.add("dropped", 1),
        });
        Ok(Self {
            counters,
            tracer,
            processor: Some(processor),
        })
    }

    /// Returns the tracer that feeds the exporter.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Registers the span counters.
    ///
    /// # Errors
    /// When the registry already has metrics of these names.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.counters.0.clone()))
    }

    /// Exports all waiting spans and stops the processor; spans left after `within` are lost.
    pub async fn close(self, within: Duration) {
        if let Some(processor) = self.processor {
            let shutdown = move || processor.shutdown_with_timeout(within);
            // The caller has accepted the loss of spans left after that time.
            _ = tokio::task::spawn_blocking(shutdown).await;
        }
    }
}

/// Describes the process: by the environment if set, else by the arguments.
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

/// The standard's exporter plus counters: the processor does not report dropped spans.
#[derive(Debug)]
struct CountingExporter {
    exporter: Arc<SpanExporter>,
    /// The runtime for requests: the processor's thread is outside any runtime.
    runtime: Handle,
    /// Permits for spans, acquired when a span is emitted; as many as the processor's queue holds.
    permits: Arc<Semaphore>,
    counters: SpanCounters,
    /// When the latest failure was logged; `None` after a success.
    last_logged_at: Mutex<Option<Instant>>,
}

impl opentelemetry_sdk::trace::SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exporter = Arc::clone(&self.exporter);
        let request = self
            .runtime
            .spawn(async move { exporter.export(batch).await });
        let done = request
            .await
            .unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        self.permits.add_permits(spans);
        let result = if done.is_ok() { "exported" } else { "failed" };
        self.counters.add(result, spans);
        self.log_result(done.as_ref().err());
        done
    }
}

impl CountingExporter {
    fn log_result(&self, error: Option<&OTelSdkError>) {
        let mut last_logged_at = self
            .last_logged_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(error) = error else {
            if last_logged_at.take().is_some() {
                tracing::info!("the collector accepts traces again");
            }
            return;
        };
        if last_logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            *last_logged_at = Some(Instant::now());
            let error = error.to_string();
            let lost = self.counters.0.with_label_values(&["failed"]).get();
            tracing::warn!(
                error,
                lost,
                "the collector accepts no traces, spans are lost"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
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
            headers: Arc::new(|| Ok(HeaderMap::new())),
            timeout: Duration::from_secs(10),
            sampling: Sampling {
                follows_caller: true,
                ratio: 1.0,
            },
            service: "a-test".to_owned(),
            instance: "1".to_owned(),
        }
    }

    /// Runs on one thread, so no request is made while spans are emitted.
    #[tokio::test]
    async fn dropped_spans_are_counted_without_blocking() {
        // A bound port without a listener refuses connections.
        let port = tokio::net::TcpSocket::new_v4().expect("a socket");
        port.bind("127.0.0.1:0".parse().expect("an address"))
            .expect("a free port");
        let address = port.local_addr().expect("an address");
        let otlp = Otlp::start(to(format!("http://{address}/"))).expect("a thread");
        let counters = otlp.counters.clone();
        let tracer = otlp.tracer();
        tracer.emit((0..QUEUE_CAPACITY + 10).map(|_| span()));
        let count = |result| counters.0.with_label_values(&[result]).get();
        assert_eq!(count("dropped"), 10);
        otlp.close(Duration::from_millis(500)).await;
        assert_eq!(count("exported"), 0);
        tracer.emit([span()]);
    }

    /// Each request is refused, and later spans have as much room as the first.
    #[tokio::test]
    async fn room_is_free_again_once_a_request_is_over() {
        let port = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = port.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut client, _)) = port.accept().await {
                let answer = b"HTTP/1.1 400 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                tokio::spawn(async move {
                    client.read_u8().await?;
                    client.write_all(answer).await?;
                    tokio::io::copy(&mut client, &mut tokio::io::sink()).await
                });
            }
        });
        let otlp = Otlp::start(to(format!("http://{address}"))).expect("a thread");
        let count = |result| otlp.counters.0.with_label_values(&[result]).get();
        for round in 1..=3 {
            otlp.tracer().emit((0..QUEUE_CAPACITY).map(|_| span()));
            let refused = async {
                while count("failed") < (round * QUEUE_CAPACITY) as u64 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let refused = tokio::time::timeout(Duration::from_secs(30), refused).await;
            assert!(refused.is_ok(), "{} of round {round}", count("failed"));
        }
        assert_eq!((count("dropped"), count("exported")), (0, 0));
        otlp.close(Duration::from_secs(3)).await;
    }

    #[tokio::test]
    async fn sampling_follows_caller_unless_ratio_covers_all_traces() {
        let kept = |trace: u64, of_caller: Option<bool>, follows_caller, ratio| {
            let config = OtlpConfig {
                sampling: Sampling {
                    follows_caller,
                    ratio,
                },
                ..to("http://127.0.0.1:9".to_owned())
            };
            let otlp = Otlp::start(config).expect("a thread");
            let caller = of_caller.map(|sampled| TraceContext {
                trace: u128::from(trace).into(),
                span: 9.into(),
                sampled,
            });
            let started = otlp.tracer().begin(caller, (u128::from(trace), 7));
            started.context.sampled
        };
        for follows_caller in [true, false] {
            assert!(kept(u64::MAX, None, follows_caller, 1.0));
            assert!(!kept(1, None, follows_caller, 0.0));
            assert!(kept(1 << 61, None, follows_caller, 0.25));
            assert!(!kept(1 << 62, None, follows_caller, 0.25));
        }
        for of_caller in [true, false] {
            assert_eq!(kept(1, Some(of_caller), true, 0.0), of_caller);
            assert!(kept(1, Some(of_caller), false, 1.0));
            assert!(!kept(1, Some(of_caller), false, 0.0));
        }
    }

    #[tokio::test]
    async fn invalid_address_is_refused() {
        let refused = Otlp::start(to("http://a b".to_owned()));
        assert!(matches!(
            refused,
            Err(ExporterBuildError::InvalidConfiguration(_))
        ));
    }
}
