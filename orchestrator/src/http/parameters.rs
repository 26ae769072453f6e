//! The parameters of a query (`?limit=5`), read as all else that people write.

use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use twincast_core::spec::{Document, Given};

use super::problem::Problem;

/// Parameters of a request.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let wrong = |what: String| Problem::new(StatusCode::BAD_REQUEST, what);
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|_| wrong("the parameters are not those of a URL".into()))?;
        let word = |(key, value)| (key, Given::Word(value));
        let given = Given::Map(pairs.into_iter().map(word).collect());
        let read = Document::given("the parameters", given).read();
        read.map(Self)
            .map_err(|problems| wrong(problems.in_one_line()))
    }
}
