//! From our spans to those of OpenTelemetry.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use twincast_core::time::Timestamp;
use twincast_core::trace::{Span, TraceContext, Value};

/// What is kept of a text, in bytes: reasons are for people.
const LONGEST: usize = 1_024;

pub(crate) fn span(span: Span) -> SpanData {
    let mut links = SpanLinks::default();
    if let Some(to) = &span.link {
        links.links.push(Link::new(context(to), Vec::new(), 0));
    }
    let parent = span
        .parent
        .map(|parent| SpanId::from_bytes(parent.to_bytes()));
    let attributes = span.attributes.into_iter().map(|(key, value)| match value {
        Value::Text(text) => KeyValue::new(key, cut(text)),
        Value::Number(number) => KeyValue::new(key, i64::try_from(number).unwrap_or(i64::MAX)),
    });
    SpanData {
        span_context: context(&span.context),
        parent_span_id: parent.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: parent.is_some(),
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
        TraceId::from_bytes(of.trace.to_bytes()),
        SpanId::from_bytes(of.span.to_bytes()),
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    )
}

fn time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(at.0)
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(LONGEST));
    text
}
