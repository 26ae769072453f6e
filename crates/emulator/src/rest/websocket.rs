//! `/$iothub/websocket`: MQTT and AMQP over WebSockets, on the ports that serve HTTPS.

use bytes::Bytes;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::error::{ApiError, empty_response};

/// The protocol inside a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subprotocol {
    Mqtt,
    Amqp,
}

impl Subprotocol {
    fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Amqp => "AMQPWSB10",
        }
    }
}

/// Checks a handshake. Returns the subprotocol and the response.
pub(crate) fn handshake(
    headers: &HeaderMap,
) -> Result<(Subprotocol, Response<Full<Bytes>>), ApiError> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let is_upgrade = text(UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    let key = text(SEC_WEBSOCKET_KEY).filter(|_| is_upgrade);
    let key =
        key.ok_or_else(|| ApiError::bad_request("the request is not a WebSocket handshake"))?;
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let offered: Vec<&str> = offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let known = [Subprotocol::Mqtt, Subprotocol::Amqp];
    let found = known.into_iter().find(|known| {
        let mut offered = offered.iter();
        offered.any(|name| name.eq_ignore_ascii_case(known.name()))
    });
    let subprotocol = found.ok_or_else(|| {
        ApiError::bad_request(format!(
            "the Sec-WebSocket-Protocol {offered:?} has neither mqtt nor AMQPWSB10"
        ))
    })?;
    let mut response = empty_response(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(
        SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(subprotocol.name()),
    );
    if let Ok(accept) = HeaderValue::try_from(derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok((subprotocol, response))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshake_requires_a_known_subprotocol() {
        let headers = |pairs: &[(&str, &str)]| -> HeaderMap {
            let pairs = pairs.iter().map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                (name, HeaderValue::from_str(value).unwrap())
            });
            pairs.collect()
        };
        // The example of RFC 6455, section 1.3.
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let upgrade = ("upgrade", "WebSocket");
        for (protocol, expected) in [
            ("mqtt", Subprotocol::Mqtt),
            ("soap, MQTT", Subprotocol::Mqtt),
            ("AMQPWSB10", Subprotocol::Amqp),
        ] {
            let requested = headers(&[key, upgrade, ("sec-websocket-protocol", protocol)]);
            let (found, response) = handshake(&requested).unwrap();
            assert_eq!(found, expected);
            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            let accept = &response.headers()[SEC_WEBSOCKET_ACCEPT];
            assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
            let selected = &response.headers()[SEC_WEBSOCKET_PROTOCOL];
            assert_eq!(selected, expected.name());
        }
        for bad in [
            &[upgrade, ("sec-websocket-protocol", "mqtt")][..],
            &[key, ("sec-websocket-protocol", "mqtt")],
            &[key, upgrade],
            &[key, upgrade, ("sec-websocket-protocol", "soap")],
        ] {
            assert!(handshake(&headers(bad)).is_err());
        }
    }
}
