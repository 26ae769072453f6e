//! DSSE envelopes ([secure-systems-lab/dsse] v1) with ed25519 signatures: keys, signing and
//! verification.
//!
//! [secure-systems-lab/dsse]: https://github.com/secure-systems-lab/dsse

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The payload type of an update's envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.twincast.update+json";

/// The largest number of verified signatures. A rotation of keys needs fewer.
const SIGNATURES_MAX: usize = 8;

/// An envelope, as sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// The type of the payload.
    pub payload_type: String,
    /// The payload, base64.
    pub payload: String,
    /// The signatures. A single valid signature of a trusted key suffices.
    pub signatures: Vec<Signature>,
}

/// A signature in an [`Envelope`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The id of the signing key: [`PublicKey::id`]. A hint only; DSSE forbids security decisions
    /// based on the id.
    #[serde(default)]
    pub keyid: String,
    /// The signature, base64.
    pub sig: String,
}

/// Errors of [`open`].
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The message is not an envelope.
    #[error("the message is not a DSSE envelope: {0}")]
    Malformed(String),
    /// The payload has another type.
    #[error("the payload type is {found:?}; an update has {PAYLOAD_TYPE:?}")]
    OtherPayload {
        /// The type of the payload.
        found: String,
    },
    /// No signature is a valid signature of a trusted key.
    #[error("none of the {found} signatures is a valid signature of a trusted key ({trusted})")]
    NotSigned {
        /// The number of signatures.
        found: usize,
        /// The ids of the trusted keys.
        trusted: String,
    },
}

/// Returns the signed bytes: DSSE's pre-authentication encoding.
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    )
    .into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// Returns the payload of an envelope signed with any of `keys`.
///
/// # Errors
/// [`EnvelopeError`]. No part of an envelope is used before the signature is verified.
pub fn open(envelope: &[u8], keys: &[PublicKey]) -> Result<Vec<u8>, EnvelopeError> {
    let malformed = |what: &dyn std::fmt::Display| EnvelopeError::Malformed(what.to_string());
    let envelope: Envelope = serde_json::from_slice(envelope).map_err(|error| malformed(&error))?;
    let payload = STANDARD
        .decode(&envelope.payload)
        .map_err(|error| malformed(&format_args!("payload: {error}")))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(EnvelopeError::OtherPayload {
            found: envelope.payload_type.chars().take(64).collect(),
        });
    }
    let signed = pae(&envelope.payload_type, &payload);
    let is_good = |signature: &Signature| {
        let signature = STANDARD.decode(&signature.sig).unwrap_or_default();
        keys.iter().any(|key| key.verifies(&signed, &signature))
    };
    if envelope.signatures.iter().take(SIGNATURES_MAX).any(is_good) {
        return Ok(payload);
    }
    let trusted = keys
        .iter()
        .map(PublicKey::id)
        .collect::<Vec<_>>()
        .join(", ");
    Err(EnvelopeError::NotSigned {
        found: envelope.signatures.len(),
        trusted,
    })
}

/// Signs a payload with each of `keys`.
#[must_use]
pub fn seal(payload: &[u8], keys: &[SecretKey]) -> Envelope {
    let signed = pae(PAYLOAD_TYPE, payload);
    let signatures = keys.iter().map(|key| Signature {
        keyid: key.public().id(),
        sig: STANDARD.encode(key.0.sign(&signed)),
    });
    Envelope {
        payload_type: PAYLOAD_TYPE.to_owned(),
        payload: STANDARD.encode(payload),
        signatures: signatures.collect(),
    }
}

/// An ed25519 public key. The text form is the key's 32 bytes in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// Errors of reading or creating a key.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// The text is not a public key: 32 bytes in base64.
    #[error("is not an ed25519 public key: 32 bytes in base64")]
    Public,
    /// The text is not a secret key: PKCS#8 in PEM.
    #[error(
        "is not an ed25519 secret key: PKCS#8 in PEM, as `twincast sign key new` and `openssl genpkey -algorithm ed25519` write it"
    )]
    Secret,
    /// The system provides no random numbers.
    #[error("cannot create a key: the system provides no random numbers")]
    NoRandom,
}

impl std::str::FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| KeyError::Public)?;
        Ok(Self(bytes.try_into().map_err(|_| KeyError::Public)?))
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl PublicKey {
    /// Returns the key's id: the first 8 bytes of the key's SHA-256, in hex.
    #[must_use]
    pub fn id(&self) -> String {
        hex::encode(&ring::digest::digest(&ring::digest::SHA256, &self.0).as_ref()[..8])
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

/// An ed25519 signing key.
pub struct SecretKey(Ed25519KeyPair);

/// The prefix of the 32 seed bytes in PKCS#8 version 1 (RFC 8410 §7), the form written and read by
/// OpenSSL.
const PKCS8_ED25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

impl SecretKey {
    /// Creates a key. Returns the key and the key's PEM, meant for a file readable by the owner
    /// only.
    ///
    /// # Errors
    /// [`KeyError::NoRandom`].
    pub fn new() -> Result<(Self, String), KeyError> {
        let mut seed = [0; 32];
        SystemRandom::new()
            .fill(&mut seed)
            .map_err(|_| KeyError::NoRandom)?;
        let text = STANDARD.encode([&PKCS8_ED25519[..], &seed].concat());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
        Ok((Self::from_pem(&pem)?, pem))
    }

    /// Parses the key of a PEM file.
    ///
    /// # Errors
    /// [`KeyError::Secret`]; the error does not contain the text.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        use rustls_pki_types::pem::PemObject as _;
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| KeyError::Secret)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map_err(|_| KeyError::Secret)?;
        Ok(Self(pair))
    }

    /// Returns the public key for verifying this key's signatures.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let bytes = self.0.public_key().as_ref();
        PublicKey(
            bytes
                .try_into()
                .expect("an ed25519 public key has 32 bytes"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of DSSE's protocol specification.
    #[test]
    fn signed_bytes_match_the_dsse_example() {
        let bytes = pae("http://example.com/HelloWorld", b"hello world");
        assert_eq!(
            bytes,
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn only_trusted_keys_open() {
        let [(old, _), (new, pem), (stranger, _)] = [(); 3].map(|()| SecretKey::new().unwrap());
        let trusted = [old.public(), new.public()];
        let again = SecretKey::from_pem(&pem).unwrap();
        assert_eq!(again.public(), new.public());
        for (keys, opens) in [
            (vec![old], true),
            (vec![again], true),
            (vec![new, stranger], true),
            (vec![SecretKey::new().unwrap().0], false),
            (vec![], false),
        ] {
            let sealed = serde_json::to_vec(&seal(b"{}", &keys)).unwrap();
            assert_eq!(open(&sealed, &trusted).is_ok(), opens);
        }
    }

    #[test]
    fn changed_envelopes_are_refused() {
        let (key, _) = SecretKey::new().unwrap();
        let good = seal(b"{\"schema\":1}", std::slice::from_ref(&key));
        let opened =
            |envelope: &Envelope| open(&serde_json::to_vec(envelope).unwrap(), &[key.public()]);
        assert_eq!(opened(&good).unwrap(), b"{\"schema\":1}");
        let payload = Envelope {
            payload: STANDARD.encode(b"{\"schema\":2}"),
            ..good.clone()
        };
        assert!(matches!(
            opened(&payload),
            Err(EnvelopeError::NotSigned { found: 1, .. })
        ));
        let typed = Envelope {
            payload_type: "text/plain".to_owned(),
            ..good.clone()
        };
        assert!(matches!(
            opened(&typed),
            Err(EnvelopeError::OtherPayload { .. })
        ));
        let mut signed = good.clone();
        let mut bytes = STANDARD.decode(&signed.signatures[0].sig).unwrap();
        bytes[0] ^= 1;
        signed.signatures[0].sig = STANDARD.encode(bytes);
        assert!(matches!(
            opened(&signed),
            Err(EnvelopeError::NotSigned { .. })
        ));
        let renamed = Envelope {
            signatures: vec![Signature {
                keyid: "other".to_owned(),
                ..good.signatures[0].clone()
            }],
            ..good
        };
        assert!(opened(&renamed).is_ok(), "the key's id is a hint");
        for text in [
            "",
            "[]",
            "{\"payload\":\"*\",\"payloadType\":\"\",\"signatures\":[]}",
            "{}",
        ] {
            assert!(
                matches!(open(text.as_bytes(), &[]), Err(EnvelopeError::Malformed(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn keys_are_read_or_refused() {
        let (key, pem) = SecretKey::new().unwrap();
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
        assert_eq!(key.public().id().len(), 16);
        assert_eq!("AAAA".parse::<PublicKey>(), Err(KeyError::Public));
        for bad in ["", "x", &pem[..40]] {
            assert_eq!(SecretKey::from_pem(bad).err(), Some(KeyError::Secret));
        }
    }
}
