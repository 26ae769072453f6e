//! How a device proves who it is: the `authentication` of its identity.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::policy::seeded_key;

/// The lengths of a symmetric key, in bytes (`SecurityConstants` of the official C# SDK).
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=64;
/// The lengths of a thumbprint in hexadecimal digits: SHA-1 and SHA-256.
const THUMBPRINT_DIGITS: [usize; 2] = [40, 64];

/// What a device authenticates with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Authentication {
    /// Two symmetric keys, in base64.
    Sas([String; 2]),
    /// The thumbprints of one or two certificates.
    SelfSigned([Option<String>; 2]),
    /// A certificate of an authority that the hub knows.
    CertificateAuthority,
    /// Nothing.
    None,
}

/// What a client wants a device to authenticate with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// Symmetric keys that the hub makes, unless the device has some.
    Generated,
    Given(Authentication),
}

/// An `authentication` object as clients send it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct AuthenticationBody {
    r#type: Option<String>,
    symmetric_key: Option<SymmetricKey>,
    x509_thumbprint: Option<Thumbprints>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SymmetricKey {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Thumbprints {
    primary_thumbprint: Option<String>,
    secondary_thumbprint: Option<String>,
}

impl AuthenticationBody {
    /// The credentials that the object stands for; refused in the way of the hub: both keys or neither, in
    /// base64, and nothing beside what the type needs.
    pub(crate) fn credentials(self) -> Result<Credentials, String> {
        let keys = self.symmetric_key.unwrap_or_default();
        let keys = [keys.primary_key, keys.secondary_key].map(given);
        let thumbprints = self.x509_thumbprint.unwrap_or_default();
        let thumbprints = [
            thumbprints.primary_thumbprint,
            thumbprints.secondary_thumbprint,
        ]
        .map(given);
        let has_keys = keys.iter().any(Option::is_some);
        let has_thumbprints = thumbprints.iter().any(Option::is_some);
        let kind = self.r#type.map_or_else(
            || if has_thumbprints { "selfsigned" } else { "sas" }.to_owned(),
            |kind| kind.to_ascii_lowercase(),
        );
        let only = |unwanted: bool, what: &str| {
            if unwanted {
                Err(format!("an authentication of the type '{kind}' has {what}"))
            } else {
                Ok(())
            }
        };
        match kind.as_str() {
            "sas" => {
                only(has_thumbprints, "no x509Thumbprint")?;
                match keys {
                    [None, None] => Ok(Credentials::Generated),
                    [Some(primary), Some(secondary)] => {
                        check_key("primaryKey", &primary)?;
                        check_key("secondaryKey", &secondary)?;
                        Ok(Credentials::Given(Authentication::Sas([primary, secondary])))
                    }
                    _ => Err("symmetricKey has one key: both must be there, or neither, to have the hub make them".to_owned()),
                }
            }
            "selfsigned" => {
                only(has_keys, "no symmetricKey")?;
                only(
                    !has_thumbprints,
                    "at least one thumbprint, which is missing",
                )?;
                thumbprints
                    .iter()
                    .flatten()
                    .try_for_each(|text| check_thumbprint(text))?;
                Ok(Credentials::Given(Authentication::SelfSigned(thumbprints)))
            }
            "certificateauthority" | "none" => {
                only(has_keys, "no symmetricKey")?;
                only(has_thumbprints, "no x509Thumbprint")?;
                Ok(Credentials::Given(if kind == "none" {
                    Authentication::None
                } else {
                    Authentication::CertificateAuthority
                }))
            }
            _ => Err(format!(
                "the authentication type '{kind}' is none of sas, selfSigned, certificateAuthority and none"
            )),
        }
    }
}

/// Clients write an empty text for what is not there.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

fn check_key(name: &str, key: &str) -> Result<(), String> {
    match STANDARD.decode(key) {
        Err(_) => Err(format!("the {name} is not base64")),
        Ok(bytes) if !KEY_BYTES.contains(&bytes.len()) => Err(format!(
            "the {name} has {} bytes; {} to {} are allowed",
            bytes.len(),
            KEY_BYTES.start(),
            KEY_BYTES.end()
        )),
        Ok(_) => Ok(()),
    }
}

fn check_thumbprint(text: &str) -> Result<(), String> {
    if THUMBPRINT_DIGITS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        Ok(())
    } else {
        Err(format!(
            "the thumbprint '{text}' does not have {} or {} hexadecimal digits",
            THUMBPRINT_DIGITS[0], THUMBPRINT_DIGITS[1]
        ))
    }
}

impl Authentication {
    /// The keys that the hub makes for a device.
    pub(crate) fn generated(seed: u64, id: &str) -> Self {
        Self::Sas(
            ["primary", "secondary"]
                .map(|which| STANDARD.encode(seeded_key(seed, &["device", id, which]))),
        )
    }

    /// The type's name in documents.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Sas(_) => "sas",
            Self::SelfSigned(_) => "selfSigned",
            Self::CertificateAuthority => "certificateAuthority",
            Self::None => "none",
        }
    }

    /// The `x509Thumbprint` object of twins and identities.
    pub(crate) fn thumbprints(&self) -> Value {
        let [primary, secondary] = match self {
            Self::SelfSigned(thumbprints) => thumbprints.each_ref().map(Option::as_deref),
            _ => [None, None],
        };
        json!({ "primaryThumbprint": primary, "secondaryThumbprint": secondary })
    }

    /// The `authentication` object of identities.
    pub(crate) fn document(&self) -> Value {
        let [primary, secondary] = match self {
            Self::Sas(keys) => keys.each_ref().map(|key| Some(key.as_str())),
            _ => [None, None],
        };
        json!({
            "symmetricKey": { "primaryKey": primary, "secondaryKey": secondary },
            "x509Thumbprint": self.thumbprints(),
            "type": self.kind(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Credentials, String> {
        serde_json::from_value::<AuthenticationBody>(body)
            .unwrap()
            .credentials()
    }

    fn key(bytes: usize) -> String {
        STANDARD.encode(vec![7; bytes])
    }

    #[test]
    fn each_type_is_kept_with_what_belongs_to_it() {
        let (one, two) = ("a".repeat(40), "B".repeat(64));
        let keys = json!({ "primaryKey": key(16), "secondaryKey": key(64) });
        let none = json!({ "primaryKey": "", "secondaryKey": null });
        let given = |authentication| Ok(Credentials::Given(authentication));
        for (body, expected) in [
            (json!({}), Ok(Credentials::Generated)),
            (json!({ "type": "sas" }), Ok(Credentials::Generated)),
            (
                json!({ "type": "sas", "symmetricKey": none }),
                Ok(Credentials::Generated),
            ),
            (
                json!({ "symmetricKey": keys }),
                given(Authentication::Sas([key(16), key(64)])),
            ),
            (
                json!({ "type": "SelfSigned", "x509Thumbprint": { "primaryThumbprint": one, "secondaryThumbprint": two } }),
                given(Authentication::SelfSigned([
                    Some(one.clone()),
                    Some(two.clone()),
                ])),
            ),
            (
                json!({ "x509Thumbprint": { "secondaryThumbprint": two } }),
                given(Authentication::SelfSigned([None, Some(two.clone())])),
            ),
            (
                json!({ "type": "certificateAuthority", "symmetricKey": none }),
                given(Authentication::CertificateAuthority),
            ),
            (json!({ "type": "none" }), given(Authentication::None)),
        ] {
            assert_eq!(read(body.clone()), expected, "{body}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let keys = |primary: &str, secondary: &str| json!({ "symmetricKey": { "primaryKey": primary, "secondaryKey": secondary } });
        let good = key(32);
        let thumbprints = json!({ "primaryThumbprint": "a".repeat(40) });
        for (body, expected) in [
            (keys("not base64", &good), "primaryKey is not base64"),
            (keys(&good, "c2hvcnQ"), "secondaryKey is not base64"),
            (keys(&good, &key(15)), "has 15 bytes; 16 to 64"),
            (keys(&key(65), &good), "has 65 bytes"),
            (keys(&good, ""), "one key"),
            (json!({ "type": "selfSigned" }), "thumbprint"),
            (
                json!({ "type": "sas", "x509Thumbprint": thumbprints }),
                "no x509Thumbprint",
            ),
            (
                json!({ "type": "certificateAuthority", "x509Thumbprint": thumbprints }),
                "no x509Thumbprint",
            ),
            (
                json!({ "type": "none", "symmetricKey": { "primaryKey": good } }),
                "no symmetricKey",
            ),
            (
                json!({ "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": "a".repeat(41) } }),
                "hexadecimal digits",
            ),
            (
                json!({ "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": "g".repeat(40) } }),
                "hexadecimal digits",
            ),
            (json!({ "type": "password" }), "none of sas"),
        ] {
            let error = read(body.clone()).unwrap_err();
            assert!(error.contains(expected), "{body}: {error}");
        }
    }
}
