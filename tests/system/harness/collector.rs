//! An OpenTelemetry collector; keeps all received spans.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::runtime::Runtime;
use wiremock::http::HeaderValue;
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

/// A collector on a free port.
pub(crate) struct Collector {
    runtime: Runtime,
    server: MockServer,
}

impl Collector {
    /// Starts a collector with immediate answers.
    pub(crate) fn start() -> Self {
        Self::answering_after(Duration::ZERO)
    }

    /// Starts a collector with answers delayed by an hour.
    pub(crate) fn hanging() -> Self {
        Self::answering_after(Duration::from_secs(3_600))
    }

    fn answering_after(delay: Duration) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let server = runtime.block_on(async {
            let server = MockServer::start().await;
            Mock::given(method("POST"))
                .and(path("/v1/traces"))
                .respond_with(ResponseTemplate::new(200).set_delay(delay))
                .mount(&server)
                .await;
            server
        });
        Self { runtime, server }
    }

    /// Returns the address, as configured.
    pub(crate) fn address(&self) -> String {
        self.server.uri()
    }

    /// Returns all spans received so far.
    pub(crate) fn received(&self) -> Vec<ReceivedSpan> {
        let requests = self.runtime.block_on(self.server.received_requests());
        let mut spans = Vec::new();
        for request in requests.expect("the server keeps requests") {
            let shown = request.headers.get("authorization").cloned();
            let request = ExportTraceServiceRequest::decode(&*request.body).expect("spans");
            for of_process in request.resource_spans {
                let resource = of_process.resource.unwrap_or_default();
                let process = text(&resource.attributes, "service.instance.id");
                let service = text(&resource.attributes, "service.name");
                let scopes = of_process.scope_spans.into_iter();
                spans.extend(
                    scopes
                        .flat_map(|scope| scope.spans)
                        .map(|span| ReceivedSpan {
                            service: service.clone(),
                            process: process.clone(),
                            shown: shown.clone(),
                            span,
                        }),
                );
            }
        }
        spans
    }
}

/// A span, with the sending process.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedSpan {
    pub(crate) service: String,
    pub(crate) process: String,
    /// The credentials of the process.
    pub(crate) shown: Option<HeaderValue>,
    span: Span,
}

impl ReceivedSpan {
    pub(crate) fn name(&self) -> &str {
        &self.span.name
    }

    pub(crate) fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub(crate) fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// Returns the parent's id; empty without a parent.
    pub(crate) fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// Returns an attribute as text; empty if missing.
    pub(crate) fn attribute(&self, name: &str) -> String {
        text(&self.span.attributes, name)
    }

    /// Returns true if the span ends no earlier than the start.
    pub(crate) fn is_in_order(&self) -> bool {
        self.span.start_time_unix_nano <= self.span.end_time_unix_nano
    }
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    let value = found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref());
    match value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
