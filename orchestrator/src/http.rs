//! The HTTP API: the commands of the queue, and all views.
//!
//! ```text
//!  client ──▶ identity, right, slot ──▶ body ──▶ handler ──▶ executor (changes) | store (views)
//! ```
//!
//! * [`auth`]: tokens, roles, and the permissions of each role; `admitted`: the admission of a
//!   caller to a handler;
//! * `caller_limits`: the limits of concurrent requests, in all and per caller;
//! * `operations`: the handlers with effect; `rollouts`, `devices`, `events` and `engine`: the
//!   read-only handlers;
//! * `traced`: every request has an id, equal to the id of the request's trace;
//! * `problem`: every error is `application/problem+json`;
//! * `page`: the live page for people, a client of the same API.
//!
//! The OpenAPI document is made from the handlers, and served at `/api/v1/openapi.json`.

mod admitted;
mod audit;
pub mod auth;
mod caller_limits;
mod devices;
mod engine;
mod events;
mod operations;
mod page;
mod parameters;
mod problem;
mod rollouts;
mod shared;
mod streams;
mod traced;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::Value;
use twincast_core::spec::{MAX_DOCUMENT_BYTES, RolloutSpec};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use problem::Problem;
use shared::Shared;
pub use shared::{Api, DeadLetters};

/// The time limit of a request, except for streams and plans, where the API serves many callers.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

impl Api {
    /// Returns the API's routes. A router may also be called without a server: with
    /// [`Access::Provided`](auth::Access::Provided), each request has a [`Caller`](auth::Caller) in
    /// its extensions. If the store fails, the response has the
    /// [`StoreError`](twincast_core::ports::StoreError) in its extensions, in an `Arc`.
    pub fn router(self) -> Router {
        let time = self.request_timeout;
        let shared = Arc::new(Shared::new(self));
        let (router, _) = documented(time).split_for_parts();
        router
            .merge(page::routes())
            .route("/api/v1/openapi.json", get(async || Json(&*DOCUMENT)))
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .layer(middleware::map_response(forbid_caching))
            .layer(DefaultBodyLimit::max(MAX_DOCUMENT_BYTES))
            .layer(middleware::from_fn_with_state(
                Arc::clone(&shared),
                traced::traced,
            ))
            .with_state(shared)
    }
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(openapi);

/// Returns the OpenAPI 3.1 document.
#[must_use]
pub fn openapi() -> Value {
    with_spec(&documented(REQUEST_TIMEOUT).to_openapi())
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Twincast",
    description = "Rolls messages out to fleets of devices behind Azure IoT Hub. Every request may \
         be repeated: the name identifies a rollout, and an operation already in effect changes \
         nothing.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Description;

fn documented(time: Duration) -> OpenApiRouter<Arc<Shared>> {
    let mut document = Description::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A token of the tokens file, or a token (JWT) of the configured issuer",
        ))
        .build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    OpenApiRouter::with_openapi(document)
        .routes(routes!(rollouts::list, operations::start))
        .routes(routes!(rollouts::one))
        .routes(routes!(rollouts::outcomes))
        .routes(routes!(operations::pause))
        .routes(routes!(operations::resume))
        .routes(routes!(operations::abort))
        .routes(routes!(operations::delete))
        .routes(routes!(operations::retry))
        .routes(routes!(operations::approve))
        .routes(routes!(operations::reject))
        .routes(routes!(operations::promote))
        .routes(routes!(operations::stop_all))
        .routes(routes!(operations::resume_all))
        .routes(routes!(rollouts::batches))
        .routes(routes!(devices::page))
        .routes(routes!(devices::export))
        .routes(routes!(devices::explain))
        .routes(routes!(events::follow))
        .routes(routes!(engine::hubs))
        .routes(routes!(engine::dead_letters))
        .routes(routes!(engine::whoami))
        .layer(middleware::from_fn_with_state(time, with_timeout))
        // A plan queries the hubs, at the pace of their query quota.
        .routes(routes!(operations::plan))
}

/// Adds the published schema of a spec to the document. Another library makes the schema.
fn with_spec(document: &utoipa::openapi::OpenApi) -> Value {
    let mut document = serde_json::to_value(document).expect("a document is plain data");
    let mut spec = RolloutSpec::json_schema();
    let definitions = spec.as_object_mut().and_then(|spec| {
        spec.remove("$schema");
        spec.remove("$defs")
    });
    let schemas = &mut document["components"]["schemas"];
    schemas["RolloutSpec"] = spec;
    for (name, schema) in definitions
        .as_ref()
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        schemas[name] = schema.clone();
    }
    redirect_references(&mut document);
    document
}

/// Turns references to definitions of the spec's schema into references into this document.
fn redirect_references(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(to) if name == "$ref" => {
                        *to = to.replace("#/$defs/", "#/components/schemas/");
                    }
                    other => redirect_references(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redirect_references),
        _ => {}
    }
}

/// Limits the time of each request.
async fn with_timeout(State(time): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(time, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::busy("the store or the broker does not answer in time").into_response(),
    }
}

/// Prevents caching and content sniffing of responses.
async fn forbid_caching(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    response
}

async fn not_found(uri: Uri) -> Problem {
    let path = uri.path();
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is no resource at {path}"),
    )
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let path = uri.path();
    let detail = format!("method {method} is not allowed for {path}; see /api/v1/openapi.json");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

#[cfg(test)]
mod tests {
    use twincast_core::spec::MAX_TEXT_CHARS;

    use super::*;

    #[test]
    fn every_reference_of_the_document_resolves() {
        let document = openapi();
        assert_eq!(document["openapi"], "3.1.0");
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(references.len() > 40, "{references:?}");
        for reference in references {
            let pointer = reference
                .strip_prefix('#')
                .expect("a reference within the document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    fn collect(value: &Value, references: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(to)) = fields.get("$ref") {
                    references.push(to.clone());
                }
                fields.values().for_each(|field| collect(field, references));
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
            _ => {}
        }
    }

    #[test]
    fn the_document_states_the_length_limit_of_reasons() {
        let document = openapi();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for name in ["ReasonBody", "StageBody", "RetryBody", "PromoteBody"] {
            let reason = &schemas[name]["properties"]["reason"];
            assert_eq!(reason["maxLength"], MAX_TEXT_CHARS, "{name}");
        }
    }

    #[test]
    fn every_operation_documents_security_and_errors() {
        let document = openapi();
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.len() >= 15);
        for (path, operations) in paths {
            for (method, operation) in operations.as_object().unwrap() {
                assert!(operation["security"].is_array(), "{method} {path}");
                for code in ["401", "503"] {
                    let problem = &operation["responses"][code]["content"];
                    assert!(
                        problem["application/problem+json"].is_object(),
                        "{method} {path} {code}"
                    );
                }
            }
        }
        assert_eq!(document["info"]["title"], "Twincast");
    }
}
