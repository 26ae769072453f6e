//! The HTTP API: what can be asked for over the queue, and everything that can be looked at.
//!
//! ```text
//!  client ──▶ who asks? may they? is there a place? ──▶ the body ──▶ handler ──▶ intake (changes) | store (looks)
//! ```
//!
//! * [`auth`]: tokens, roles, and what each role may do; `admitted`: whoever may do what a handler does;
//! * `places`: how many requests are answered at the same time, in all and for one caller;
//! * `operations` change something, `rollouts`, `devices`, `events` and `engine` look;
//! * `traced`: every request has an id, which is that of its trace;
//! * `problem`: every error is `application/problem+json`;
//! * `page`: what people look at, which asks the same API.
//!
//! The OpenAPI document is made from the handlers, and served at `/api/v1/openapi.json`.

mod admitted;
mod audit;
pub mod auth;
mod devices;
mod engine;
mod events;
mod operations;
mod page;
mod parameters;
mod places;
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

/// How long a request may take that is no stream and no plan, where many ask.
pub const TIME: Duration = Duration::from_secs(20);

impl Api {
    /// The API's routes. A router may also be called without a server: where the [door](auth::Door) wants to be told who asks,
    /// by a [`Caller`](auth::Caller) in each request's extensions. A [`StoreError`](twincast_core::ports::StoreError) that
    /// is in the way is then in the response's extensions, in an `Arc`.
    pub fn router(self) -> Router {
        let time = self.time;
        let shared = Arc::new(Shared::new(self));
        let (router, _) = documented(time).split_for_parts();
        router
            .merge(page::routes())
            .route("/api/v1/openapi.json", get(async || Json(&*DOCUMENT)))
            .fallback(nothing_here)
            .method_not_allowed_fallback(not_that_method)
            .layer(middleware::map_response(kept_nowhere))
            .layer(DefaultBodyLimit::max(MAX_DOCUMENT_BYTES))
            .layer(middleware::from_fn_with_state(
                Arc::clone(&shared),
                traced::traced,
            ))
            .with_state(shared)
    }
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(openapi);

/// The OpenAPI 3.1 document.
#[must_use]
pub fn openapi() -> Value {
    with_spec(&documented(TIME).to_openapi())
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Twincast",
    description = "Rolls messages out to fleets of devices behind Azure IoT Hub. Every request may be made twice: \
                   a rollout is known by its name, and an operation that has been done changes nothing.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Description;

fn documented(time: Duration) -> OpenApiRouter<Arc<Shared>> {
    let mut document = Description::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A token of the tokens file, or one of the configured issuer (a JWT)",
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
        .layer(middleware::from_fn_with_state(time, timed))
        // A plan asks hubs, which takes as long as their quota for queries says.
        .routes(routes!(operations::plan))
}

/// The document with the published schema of a spec, which is made by another library.
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
    repoint(&mut document);
    document
}

/// References to definitions of the spec's own schema become references into this document.
fn repoint(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(to) if name == "$ref" => {
                        *to = to.replace("#/$defs/", "#/components/schemas/");
                    }
                    other => repoint(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(repoint),
        _ => {}
    }
}

/// Each for so long.
async fn timed(State(time): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(time, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::busy("the store or the broker does not answer in time").into_response(),
    }
}

/// Nothing keeps an answer, or takes it for something else.
async fn kept_nowhere(mut response: Response) -> Response {
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

async fn nothing_here(uri: Uri) -> Problem {
    let path = uri.path();
    Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}"))
}

async fn not_that_method(method: Method, uri: Uri) -> Problem {
    let path = uri.path();
    let detail = format!("{method} is not for {path}; see /api/v1/openapi.json");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

#[cfg(test)]
mod tests {
    use twincast_core::spec::MAX_TEXT_CHARS;

    use super::*;

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        let document = openapi();
        assert_eq!(document["openapi"], "3.1.0");
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(references.len() > 40, "{references:?}");
        for reference in references {
            let pointer = reference
                .strip_prefix('#')
                .expect("a place in the document");
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
    fn every_reason_has_the_bound_that_is_kept() {
        let document = openapi();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for name in ["Because", "OfStage", "Again", "Override"] {
            let reason = &schemas[name]["properties"]["reason"];
            assert_eq!(reason["maxLength"], MAX_TEXT_CHARS, "{name}");
        }
    }

    #[test]
    fn every_operation_says_who_may_and_how_it_fails() {
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
