//! The parameters of a query (`?limit=5`), parsed like all other user input.

use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use twincast_core::spec::{Document, InputValue};

use super::problem::Problem;

/// Parameters of a request.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let wrong = |what: String| Problem::new(StatusCode::BAD_REQUEST, what);
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|_| wrong("the parameters of the URL are malformed".into()))?;
        let entry = |(key, value)| (key, InputValue::UntypedText(value));
        let input = InputValue::Map(pairs.into_iter().map(entry).collect());
        let read = Document::from_input("the parameters", input).read();
        read.map(Self)
            .map_err(|problems| wrong(problems.in_one_line()))
    }
}
