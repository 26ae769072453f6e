//! The trace of each request, for log lines and for the client.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;
use twincast_core::trace::{Span, TRACEPARENT};

use super::shared::Context;

/// The header with the trace's id, in every response.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives each request a span, passed on as the request's `traceparent`. Emits spans of `POST`
/// requests only: read-only requests are many, and have no effect.
pub(super) async fn traced(State(shared): Context, mut request: Request, next: Next) -> Response {
    let executor = &shared.api.executor;
    let caller = request.headers().get(TRACEPARENT);
    let request_span = executor.begin(caller.and_then(|value| value.to_str().ok()));
    let trace = request_span.context.trace;
    let own = HeaderValue::try_from(request_span.context.to_string()).expect("hexadecimal digits");
    request.headers_mut().insert(TRACEPARENT, own);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let start = executor.clock.now();
    let log = tracing::error_span!("request", trace_id = %trace);
    let mut response = next.run(request).instrument(log).await;
    let status = response.status();
    if method == Method::POST {
        let time = start..executor.clock.now();
        let mut span = Span::new(request_span.context, request_span.parent, "request", time)
            .with_text("http.request.method", method.as_str())
            .with_text("url.path", &path)
            .with_number("http.response.status_code", status.as_u16());
        span.trouble = status.is_server_error().then(|| status.to_string());
        executor.tracer.emit([span]);
    }
    let id = HeaderValue::try_from(trace.to_string()).expect("hexadecimal digits");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}
