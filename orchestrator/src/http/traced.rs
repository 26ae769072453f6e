//! The trace of each request: what is logged of it carries it, and whoever asks is told.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;
use twincast_core::trace::{Span, TRACEPARENT};

use super::shared::Context;

/// The trace's id, in every response.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives a request a span of its own, which is handed on as its `traceparent`. Those that only look are not told of:
/// there are many, and they do nothing.
pub(super) async fn traced(State(shared): Context, mut request: Request, next: Next) -> Response {
    let intake = &shared.api.intake;
    let caller = request.headers().get(TRACEPARENT);
    let begun = intake.begin(caller.and_then(|value| value.to_str().ok()));
    let trace = begun.context.trace;
    let own = HeaderValue::try_from(begun.context.to_string()).expect("hexadecimal digits");
    request.headers_mut().insert(TRACEPARENT, own);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let start = intake.clock.now();
    let log = tracing::error_span!("request", trace_id = %trace);
    let mut response = next.run(request).instrument(log).await;
    let status = response.status();
    if method == Method::POST {
        let time = start..intake.clock.now();
        let mut span = Span::new(begun.context, begun.parent, "request", time)
            .with("http.request.method", method.as_str())
            .with("url.path", &path)
            .with_number("http.response.status_code", status.as_u16());
        span.trouble = status.is_server_error().then(|| status.to_string());
        intake.tracer.tell([span]);
    }
    let id = HeaderValue::try_from(trace.to_string()).expect("hexadecimal digits");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}
