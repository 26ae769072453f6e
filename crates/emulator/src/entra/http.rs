//! The HTTP interface of the token endpoint, of the token service's documents, and of the metadata
//! endpoint.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::Full;
use percent_encoding::percent_decode_str;
use serde_json::json;
use uuid::Uuid;

use super::directory::Principal;
use super::issuer::{AssertionError, Issuer};
use crate::rest::json_response;

const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A resource of the token service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Token,
    Keys,
    Discovery,
}

/// Parses a path of the token service into the resource and the tenant.
pub(crate) fn path_of<'a>(method: &Method, segments: &[&'a str]) -> Option<(Resource, &'a str)> {
    match (method, segments) {
        (&Method::POST, [tenant, "oauth2", "v2.0", "token"]) => Some((Resource::Token, tenant)),
        (&Method::GET, [tenant, "discovery", "v2.0", "keys"]) => Some((Resource::Keys, tenant)),
        (&Method::GET, [tenant, "v2.0", ".well-known", "openid-configuration"]) => {
            Some((Resource::Discovery, tenant))
        }
        _ => None,
    }
}

/// An error of the token service: the AADSTS number and text.
struct Refusal {
    status: StatusCode,
    error: &'static str,
    code: u32,
    text: String,
}

impl Refusal {
    fn new(status: StatusCode, error: &'static str, code: u32, text: impl Into<String>) -> Self {
        Self {
            status,
            error,
            code,
            text: text.into(),
        }
    }

    fn response(&self) -> Response<Full<Bytes>> {
        let (trace, correlation) = (Uuid::new_v4(), Uuid::new_v4());
        let Self { code, text, .. } = self;
        let body = json!({
            "error": self.error,
            "error_description": format!("AADSTS{code}: {text} Trace ID: {trace} Correlation ID: {correlation}"),
            "error_codes": [code],
            "trace_id": trace,
            "correlation_id": correlation,
        });
        json_response(self.status, &body)
    }
}

/// Answers a request to the token service of `tenant`, at `base` such as `https://localhost:443`.
pub(crate) fn answer(
    issuer: &Issuer,
    (resource, tenant): (Resource, &str),
    base: &str,
    body: &[u8],
    now_s: u64,
) -> Response<Full<Bytes>> {
    let answered = if tenant == issuer.directory.tenant_id {
        let endpoint = format!("{base}/{tenant}/oauth2/v2.0/token");
        match resource {
            Resource::Token => token(issuer, &endpoint, body, now_s),
            Resource::Keys => Ok(json_response(StatusCode::OK, &issuer.key_set())),
            Resource::Discovery => {
                let document = json!({
                    "issuer": issuer.name(),
                    "token_endpoint": endpoint,
                    "jwks_uri": format!("{base}/{tenant}/discovery/v2.0/keys"),
                });
                Ok(json_response(StatusCode::OK, &document))
            }
        }
    } else {
        let text = format!("Tenant '{tenant}' not found.");
        Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            90_002,
            text,
        ))
    };
    answered.unwrap_or_else(|refusal| refusal.response())
}

fn token(
    issuer: &Issuer,
    endpoint: &str,
    body: &[u8],
    now_s: u64,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let form = Form::read(body);
    let bad =
        |code, text: &str| Refusal::new(StatusCode::BAD_REQUEST, "invalid_request", code, text);
    if form.get("grant_type") != Some("client_credentials") {
        return Err(bad(70_003, "The app requested an unsupported grant type."));
    }
    let client_id = form
        .get("client_id")
        .ok_or_else(|| bad(900_144, "The request body must contain 'client_id'."))?;
    let audience = form
        .get("scope")
        .and_then(|scope| scope.strip_suffix("/.default"))
        .ok_or_else(|| bad(70_011, "The provided value for 'scope' is not valid."))?;
    let principal = authenticate_client(issuer, &form, client_id, endpoint, now_s)?;
    let issued = issuer.issue(principal, audience, now_s);
    let seconds = issued.lifetime.as_secs();
    let answer = json!({
        "token_type": "Bearer",
        "expires_in": seconds,
        "ext_expires_in": seconds,
        "access_token": issued.token,
    });
    Ok(json_response(StatusCode::OK, &answer))
}

/// Authenticates the client by a secret or an assertion.
fn authenticate_client<'a>(
    issuer: &'a Issuer,
    form: &Form,
    client_id: &str,
    endpoint: &str,
    now_s: u64,
) -> Result<&'a Principal, Refusal> {
    let unauthorized =
        |code, text: &str| Refusal::new(StatusCode::UNAUTHORIZED, "invalid_client", code, text);
    let unknown = || {
        let text = format!(
            "Application with identifier '{client_id}' was not found in the directory '{}'.",
            issuer.directory.tenant_id
        );
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "unauthorized_client",
            700_016,
            text,
        )
    };
    if form.get("client_assertion_type") == Some(JWT_BEARER) {
        let assertion = form.get("client_assertion").unwrap_or_default();
        let now = UNIX_EPOCH + Duration::from_secs(now_s);
        return match issuer.verify_assertion(client_id, assertion, endpoint, now) {
            Ok(principal) => Ok(principal),
            Err(AssertionError::Client) => Err(unknown()),
            Err(AssertionError::Subject) => Err(unauthorized(
                700_213,
                "No matching federated identity record found for presented assertion subject.",
            )),
            Err(AssertionError::Audience) => Err(unauthorized(
                700_212,
                "No matching federated identity record found for presented assertion audience.",
            )),
            Err(AssertionError::Time) => Err(unauthorized(
                700_024,
                "Client assertion is not within its valid time range.",
            )),
            Err(AssertionError::Signature) => Err(unauthorized(
                700_027,
                "The certificate with identifier used to sign the client assertion is not registered on application.",
            )),
        };
    }
    let principal = issuer.directory.principal(client_id).ok_or_else(unknown)?;
    let secret = form.get("client_secret").ok_or_else(|| {
        unauthorized(
            7_000_218,
            "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.",
        )
    })?;
    if principal.client_secrets.iter().any(|known| known == secret) {
        Ok(principal)
    } else {
        Err(unauthorized(7_000_215, "Invalid client secret provided."))
    }
}

/// Answers `GET /metadata/identity/oauth2/token`, as a virtual machine's metadata endpoint does
/// (learn.microsoft.com, "How to use managed identities for Azure resources on an Azure VM to acquire an access token").
pub(crate) fn metadata(
    issuer: &Issuer,
    headers: &HeaderMap,
    query: &str,
    now_s: u64,
) -> Response<Full<Bytes>> {
    let refused = |text: &str| {
        let body = json!({ "error": "invalid_request", "error_description": text });
        json_response(StatusCode::BAD_REQUEST, &body)
    };
    let is_marked = headers
        .get("metadata")
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"));
    if !is_marked {
        return refused("Required metadata header not specified");
    }
    let form = Form::read(query.as_bytes());
    let Some(resource) = form.get("resource") else {
        return refused("Required query variable 'resource' is missing");
    };
    let is_match = |principal: &Principal| {
        principal.is_managed
            && form
                .get("client_id")
                .is_none_or(|id| principal.client_id.eq_ignore_ascii_case(id))
            && form
                .get("object_id")
                .is_none_or(|id| principal.object_id.eq_ignore_ascii_case(id))
    };
    let principals = &issuer.directory.principals;
    let Some(principal) = principals.iter().find(|principal| is_match(principal)) else {
        return refused("Identity not found");
    };
    let issued = issuer.issue(principal, resource, now_s);
    let answer = json!({
        "access_token": issued.token,
        "client_id": principal.client_id,
        "expires_in": issued.lifetime.as_secs().to_string(),
        "expires_on": issued.expires_s.to_string(),
        "ext_expires_in": issued.lifetime.as_secs().to_string(),
        "not_before": issued.not_before_s.to_string(),
        "resource": resource,
        "token_type": "Bearer",
    });
    json_response(StatusCode::OK, &answer)
}

/// The pairs of a form or a query.
struct Form(Vec<(String, String)>);

impl Form {
    fn read(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let decode = |part: &str| {
            let part = part.replace('+', " ");
            percent_decode_str(&part).decode_utf8_lossy().into_owned()
        };
        let pairs = text.split('&').map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Self(pairs.collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.as_str())
    }
}
