//! Converts Twincast's spans to OpenTelemetry's.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use twincast_core::time::Timestamp;
use twincast_core::trace::{Span, TraceContext};

/// Maximum length of a text attribute in bytes: reasons are meant for people. The SDK has no limit
/// of its own.
const MAX_TEXT_BYTES: usize = 1_024;

pub(crate) fn span(span: Span) -> SpanData {
    let mut links = SpanLinks::default();
    if let Some(to) = &span.link {
        links.links.push(Link::new(context(to), Vec::new(), 0));
    }
    let attributes = span.attributes.into_iter().map(|mut attribute| {
        if let Value::String(text) = attribute.value {
            attribute.value = cut(text.into()).into();
        }
        attribute
    });
    SpanData {
        span_context: context(&span.context),
        parent_span_id: span.parent.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: span.parent.is_some(),
        span_kind: match span.name {
            "command" | "request" => SpanKind::Server,
            _ => SpanKind::Internal,
        },
        name: Cow::Borrowed(span.name),
        start_time: time(span.start),
        end_time: time(span.end),
        attributes: attributes.collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links,
        status: span
            .trouble
            .map_or(Status::Unset, |trouble| Status::error(cut(trouble))),
        instrumentation_scope: InstrumentationScope::builder("twincast")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

fn context(of: &TraceContext) -> SpanContext {
    SpanContext::new(
        of.trace,
        of.span,
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    )
}

fn time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(at.0)
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}
