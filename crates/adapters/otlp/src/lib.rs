//! Takes spans to an OpenTelemetry collector: OTLP over HTTP, as protobuf, by the SDK's batch span processor.
//!
//! ```text
//!  whoever has done something ──span──▶ BatchSpanProcessor ──512 at a time, every second──▶ collector
//! ```
//!
//! Nobody waits for a collector. A span for which there is no room is dropped, and counted; so is one that the
//! collector does not take.
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

use crate::client::Shown;

/// Spans that wait for the collector or are on their way to it, at the most.
const ROOM: usize = 4_096;
/// Spans in one request, at the most.
const AT_ONCE: usize = 512;
/// How often the collector is given what there is.
const EVERY: Duration = Duration::from_secs(1);
/// How often the log says that the collector takes nothing.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Which collector, and what it is told.
#[derive(Clone)]
pub struct OtlpConfig {
    /// The HTTP client.
    pub http: reqwest::Client,
    /// Where requests go, with the path.
    pub url: String,
    /// The headers of a request, asked for before each.
    pub headers: Headers,
    /// How long one request may take, with what is tried again of it.
    pub timeout: Duration,
    /// Which traces are kept.
    pub sampling: Sampling,
    /// What this process is called, where the environment has no `OTEL_SERVICE_NAME`.
    pub service: String,
    /// What tells it apart from others of that name.
    pub instance: String,
}

/// Gives the current headers of a request.
pub type Headers = Arc<dyn Fn() -> Result<HeaderMap, BoxError> + Send + Sync>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which traces are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Whether the decision of a caller who began the trace holds.
    pub follows_caller: bool,
    /// The part of all other traces that is kept, 0 to 1.
    pub ratio: f64,
}

/// What has become of spans: `exported`, `failed`, which the collector did not take, or `dropped`, for want of room.
#[derive(Debug, Clone)]
struct SpanCounters(IntCounterVec);

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
    fn add(&self, result: &str, spans: usize) {
        let counter = self.0.with_label_values(&[result]);
        counter.inc_by(spans as u64);
    }
}

/// Spans on their way to a collector. The default has none, and takes them nowhere.
#[derive(Debug, Default)]
pub struct Otlp {
    counters: SpanCounters,
    tracer: Tracer,
    processor: Option<Arc<BatchSpanProcessor>>,
}

impl Otlp {
    /// Starts the processor's thread; requests are made on the current runtime. Nothing is dialled before there is a
    /// span.
    ///
    /// # Errors
    /// The address, or a variable of the standard, is not understood.
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
            .with_http_client(Shown { http, headers })
            .with_endpoint(url)
            .with_timeout(timeout)
            .build()?;
        exporter.set_resource(&resource(service, instance));
        let counters = SpanCounters::default();
        let room = Arc::new(Semaphore::new(ROOM));
        let counted = Counted {
            exporter: Arc::new(exporter),
            runtime: Handle::current(),
            room: Arc::clone(&room),
            counters: counters.clone(),
            told_at: Mutex::default(),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(ROOM)
            .with_max_export_batch_size(AT_ONCE)
            .with_scheduled_delay(EVERY);
        let processor = Arc::new(BatchSpanProcessor::new(counted, batches.build()));
        let sampler = Sampler::TraceIdRatioBased(sampling.ratio);
        let is_kept = move |trace, of_caller: Option<bool>| {
            if let Some(kept) = of_caller.filter(|_| sampling.follows_caller) {
                return kept;
            }
            let sampled = sampler.should_sample(None, trace, "", &SpanKind::Internal, &[], &[]);
            sampled.decision == SamplingDecision::RecordAndSample
        };
        let (taking, dropped) = (Arc::clone(&processor), counters.clone());
        let tracer = Tracer::new(is_kept, move |span| match room.try_acquire() {
            Ok(place) => {
                place.forget();
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

    /// Where spans are told.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Exports what has become of spans.
    ///
    /// # Errors
    /// When the registry has metrics of these names.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.counters.0.clone()))
    }

    /// Takes what waits to the collector, and ends; after `within` with what is then left.
    pub async fn close(self, within: Duration) {
        if let Some(processor) = self.processor {
            let shutdown = move || processor.shutdown_with_timeout(within);
            // What it does not take within that time is lost, as the caller has decided.
            _ = tokio::task::spawn_blocking(shutdown).await;
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

/// The standard's exporter, with an account of what becomes of spans: the processor tells nobody what it drops.
#[derive(Debug)]
struct Counted {
    exporter: Arc<SpanExporter>,
    /// Where requests are made: the processor's thread is none of a runtime's.
    runtime: Handle,
    /// Places for spans, taken by whoever tells them; no more than the processor has.
    room: Arc<Semaphore>,
    counters: SpanCounters,
    /// When the log said last that the collector takes nothing, since it last took something.
    told_at: Mutex<Option<Instant>>,
}

impl opentelemetry_sdk::trace::SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exporter = Arc::clone(&self.exporter);
        let request = self
            .runtime
            .spawn(async move { exporter.export(batch).await });
        let done = request
            .await
            .unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        self.room.add_permits(spans);
        let result = if done.is_ok() { "exported" } else { "failed" };
        self.counters.add(result, spans);
        self.tell_of(done.as_ref().err());
        done
    }
}

impl Counted {
    fn tell_of(&self, error: Option<&OTelSdkError>) {
        let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(error) = error else {
            if told_at.take().is_some() {
                tracing::info!("the collector takes traces again");
            }
            return;
        };
        if told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            *told_at = Some(Instant::now());
            let error = error.to_string();
            let lost = self.counters.0.with_label_values(&["failed"]).get();
            tracing::warn!(error, lost, "the collector takes no traces, they are lost");
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

    /// On one thread, where no request is made while spans are told.
    #[tokio::test]
    async fn what_does_not_fit_or_is_not_taken_is_counted_and_holds_nobody_up() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = port.local_addr().expect("an address");
        drop(port);
        let otlp = Otlp::start(to(format!("http://{address}/"))).expect("a thread");
        let counters = otlp.counters.clone();
        let tracer = otlp.tracer();
        tracer.tell((0..ROOM + 10).map(|_| span()));
        let count = |result| counters.0.with_label_values(&[result]).get();
        assert_eq!(count("dropped"), 10);
        otlp.close(Duration::from_millis(500)).await;
        assert_eq!(count("exported"), 0);
        tracer.tell([span()]);
    }

    /// Each request is refused, and the next ones have as much room as the first.
    #[tokio::test]
    async fn room_is_free_again_once_a_request_is_over() {
        let port = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = port.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut asker, _)) = port.accept().await {
                let answer = b"HTTP/1.1 400 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                tokio::spawn(async move {
                    asker.read_u8().await?;
                    asker.write_all(answer).await?;
                    tokio::io::copy(&mut asker, &mut tokio::io::sink()).await
                });
            }
        });
        let otlp = Otlp::start(to(format!("http://{address}"))).expect("a thread");
        let count = |result| otlp.counters.0.with_label_values(&[result]).get();
        for round in 1..=3 {
            otlp.tracer().tell((0..ROOM).map(|_| span()));
            let refused = async {
                while count("failed") < (round * ROOM) as u64 {
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
    async fn a_caller_decides_unless_the_ratio_is_for_all() {
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
            let begun = otlp.tracer().begin(caller, (u128::from(trace), 7));
            begun.context.sampled
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
    async fn an_address_that_is_none_is_refused() {
        let refused = Otlp::start(to("http://a b".to_owned()));
        assert!(matches!(
            refused,
            Err(ExporterBuildError::InvalidConfiguration(_))
        ));
    }
}
