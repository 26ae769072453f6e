//! The service's HTTPS routes.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;

use super::service::{Answer, Operation, Request};
use crate::hub::{ClientCertificate, Hub, Proof};
use crate::rest::json_response;

/// The API versions requested by official SDKs and tools; current device SDKs send the first.
const API_VERSIONS: [&str; 3] = [super::API_VERSION, "2018-11-01", "2021-06-01"];

/// The content of a path of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path<'a> {
    id_scope: &'a str,
    registration_id: &'a str,
    /// The operation to query; `None` for a request to register.
    operation_id: Option<&'a str>,
}

/// Parses a path of the service: `/{idScope}/registrations/{registrationId}/register` or
/// `…/operations/{operationId}`.
pub(crate) fn path_of<'a>(method: &Method, segments: &[&'a str]) -> Option<Path<'a>> {
    let &[
        id_scope,
        registrations,
        registration_id,
        verb,
        ref rest @ ..,
    ] = segments
    else {
        return None;
    };
    if !registrations.eq_ignore_ascii_case("registrations") {
        return None;
    }
    let operation_id = match (method.as_str(), verb.to_ascii_lowercase().as_str(), rest) {
        ("PUT", "register", []) => None,
        // The documentation specifies GET; some SDKs have sent POST.
        ("GET" | "POST", "operations", [id]) => Some(*id),
        _ => return None,
    };
    Some(Path {
        id_scope,
        registration_id,
        operation_id,
    })
}

/// Answers a request.
pub(crate) fn answer(
    hub: &Hub,
    path: Path<'_>,
    query: &str,
    headers: &HeaderMap,
    certificate: Option<&ClientCertificate>,
    body: &[u8],
) -> Response<Full<Bytes>> {
    if !has_version(query) {
        let text = format!(
            "The api-version is missing or unknown; {} are known.",
            API_VERSIONS.join(", ")
        );
        return response(&Answer::error(400, 400_001, text));
    }
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let proof = match (token, certificate) {
        (Some(token), _) => Some(Proof::Token(token)),
        (None, Some(certificate)) => Some(Proof::Certificate(certificate)),
        (None, None) => None,
    };
    let answer = hub.provisioning.handle(
        hub,
        Request {
            id_scope: path.id_scope,
            registration_id: path.registration_id,
            proof,
            operation: path
                .operation_id
                .map_or(Operation::Register(body), Operation::Status),
        },
    );
    response(&answer)
}

fn has_version(query: &str) -> bool {
    query.split('&').any(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        name.eq_ignore_ascii_case("api-version") && API_VERSIONS.contains(&value)
    })
}

fn response(answer: &Answer) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(status, &answer.body);
    if let Some(seconds) = answer.retry_after_s {
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provisioning_paths_are_distinguished_from_hub_paths() {
        let path = |registration_id, operation_id| {
            Some(Path {
                id_scope: "0ne1",
                registration_id,
                operation_id,
            })
        };
        for (method, segments, expected) in [
            ("PUT", "0ne1/registrations/d-1/register", path("d-1", None)),
            ("PUT", "0ne1/Registrations/d-1/Register", path("d-1", None)),
            (
                "GET",
                "0ne1/registrations/d/operations/4.a",
                path("d", Some("4.a")),
            ),
            (
                "POST",
                "0ne1/registrations/d/operations/4.a",
                path("d", Some("4.a")),
            ),
            ("POST", "0ne1/registrations/d/register", None),
            ("GET", "0ne1/registrations/d/operations", None),
            ("GET", "0ne1/registrations/d", None),
            ("PUT", "devices/d/messages/register", None),
        ] {
            let segments: Vec<&str> = segments.split('/').collect();
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(
                path_of(&method, &segments),
                expected,
                "{method} {segments:?}"
            );
        }
    }
}
