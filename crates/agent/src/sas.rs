//! Shared access signatures: tokens of a device with a symmetric key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;

/// The characters to encode in a URL component: all except the unreserved characters of RFC 3986
/// §2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Percent-encodes a URL component.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Returns a token for `resource` (`{host}/devices/{id}`), valid until `expires` (seconds since
/// 1970) and signed with a key in base64. `policy` is the policy name required by the Device
/// Provisioning Service. Returns none if the key is not base64.
pub(crate) fn token(
    resource: &str,
    key: &str,
    policy: Option<&str>,
    expires: i64,
) -> Option<String> {
    let resource = encode(resource);
    let signature = STANDARD.encode(sign(key, format!("{resource}\n{expires}").as_bytes())?);
    let policy = policy
        .map(|policy| format!("&skn={policy}"))
        .unwrap_or_default();
    Some(format!(
        "SharedAccessSignature sr={resource}&sig={}&se={expires}{policy}",
        encode(&signature)
    ))
}

/// Derives a device's key from the key of the enrolment group.
pub(crate) fn derive(group_key: &str, registration_id: &str) -> Option<String> {
    Some(STANDARD.encode(sign(group_key, registration_id.as_bytes())?))
}

fn sign(key: &str, text: &[u8]) -> Option<hmac::Tag> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).ok()?);
    Some(hmac::sign(&key, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values were computed with Python's `hmac` and `base64`.
    #[test]
    fn tokens() {
        let token = token(
            "hub.azure-devices.net/devices/fridge 1",
            "c2VjcmV0",
            None,
            1_700_000_000,
        )
        .unwrap();
        assert_eq!(
            token,
            "SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Ffridge%201&sig=I4KYGyEXr44ELxsnfolPppyfIxGGZUNAMFEnXNq8caA%3D&se=1700000000"
        );
        assert!(super::token("x", "no base64", None, 1).is_none());
        assert_eq!(
            derive("c2VjcmV0", "fridge-1").unwrap(),
            "9u4wP9f7ZY+UWh7n6vhAGh657HS0f0rAbDntVXiKZS8="
        );
    }
}
