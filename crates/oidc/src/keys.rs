//! An issuer's keys (RFC 7517), each tied to the algorithms of its kind.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::Value;

use crate::claims::Claims;
use crate::jws::{Algorithm, Parts};
use crate::rejection::Rejection;

/// The most keys accepted in a set. Issuers have two or three.
const MAX_KEYS: usize = 100;
/// The shortest accepted RSA modulus in bytes: 2048 bits.
const SHORTEST_MODULUS: usize = 2048 / 8;

/// Why a set of keys is unusable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// The document is not a set of keys.
    #[error("not a JSON object with an array of keys")]
    Form,
    /// The set has too many keys.
    #[error("{found} keys found, at most 100 are allowed")]
    TooMany {
        /// The number of keys.
        found: usize,
    },
    /// No key in the set is usable.
    #[error(
        "none of the {found} keys can be used; supported keys for signatures: RSA of 2048 bits or more, EC on P-256 or P-384, Ed25519"
    )]
    NoUsableKey {
        /// The number of keys.
        found: usize,
    },
}

#[derive(Debug)]
struct Key {
    kid: Option<String>,
    /// The key's only algorithm, if declared.
    algorithm: Option<Algorithm>,
    public: Public,
}

#[derive(Debug)]
enum Public {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    /// A key on a curve, with the curve's only algorithm.
    Curve(Algorithm, Vec<u8>),
}

/// An issuer's public keys for the verification of signatures.
#[derive(Debug)]
pub struct Keys(Vec<Key>);

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    r#use: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Keys {
    /// Parses a JWK set (RFC 7517). Keys for other purposes are skipped.
    ///
    /// # Errors
    /// The document is not a JWK set, is too large, or has no usable signature key.
    pub fn read(document: &[u8]) -> Result<Self, KeySetError> {
        let set: Set = serde_json::from_slice(document).map_err(|_| KeySetError::Form)?;
        let found = set.keys.len();
        if found > MAX_KEYS {
            return Err(KeySetError::TooMany { found });
        }
        let keys = set.keys.into_iter().map(serde_json::from_value);
        let keys: Vec<_> = keys.flatten().filter_map(Key::from_jwk).collect();
        if keys.is_empty() {
            return Err(KeySetError::NoUsableKey { found });
        }
        Ok(Self(keys))
    }

    /// Verifies a token against these keys, this issuer and this audience, and returns the claims.
    ///
    /// # Errors
    /// The reason of the rejection.
    pub fn verify(
        &self,
        token: &str,
        issuer: &str,
        audience: &str,
        now: SystemTime,
    ) -> Result<Claims, Rejection> {
        let token = Parts::parse(token)?;
        self.check(&token)?;
        token.claims_for(issuer, audience, now)
    }

    /// Checks a token's signature. Exactly one key must match the token's key id and algorithm.
    pub(crate) fn check(&self, token: &Parts<'_>) -> Result<(), Rejection> {
        let mut fitting = self.0.iter().filter(|key| {
            let is_named = token.kid.is_none() || token.kid == key.kid;
            is_named && key.is_for(token.algorithm)
        });
        let (Some(key), None) = (fitting.next(), fitting.next()) else {
            let kid = token.kid.clone();
            return Err(Rejection::Key { kid });
        };
        key.public.check(token)
    }
}

impl Key {
    fn from_jwk(jwk: Jwk) -> Option<Self> {
        if jwk.r#use.is_some_and(|for_what| for_what != "sig") {
            return None;
        }
        let algorithm = match &jwk.alg {
            Some(name) => Some(Algorithm::named(name)?),
            None => None,
        };
        let bytes = |field: &Option<String>| {
            let text = field.as_ref()?;
            URL_SAFE_NO_PAD.decode(text).ok()
        };
        let public = match (&*jwk.kty, jwk.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (number(&bytes(&jwk.n)?), number(&bytes(&jwk.e)?));
                if n.len() < SHORTEST_MODULUS {
                    return None;
                }
                Public::Rsa(RsaPublicKeyComponents { n, e })
            }
            ("EC", Some(curve)) => {
                let (algorithm, width) = match curve {
                    "P-256" => (Algorithm::Es256, 32),
                    "P-384" => (Algorithm::Es384, 48),
                    _ => return None,
                };
                let (x, y) = (bytes(&jwk.x)?, bytes(&jwk.y)?);
                if x.len() != width || y.len() != width {
                    return None;
                }
                // The uncompressed form of a point (SEC 1).
                Public::Curve(algorithm, [&[4], &*x, &*y].concat())
            }
            ("OKP", Some("Ed25519")) => {
                let x = bytes(&jwk.x).filter(|x| x.len() == 32)?;
                Public::Curve(Algorithm::EdDsa, x)
            }
            _ => return None,
        };
        let key = Self {
            kid: jwk.kid,
            algorithm,
            public,
        };
        // Reject a key whose `alg` does not fit its type.
        algorithm.is_none_or(|it| key.is_for(it)).then_some(key)
    }

    fn is_for(&self, algorithm: Algorithm) -> bool {
        let can = match &self.public {
            Public::Rsa(_) => algorithm.of_rsa().is_some(),
            Public::Curve(only, _) => *only == algorithm,
        };
        can && self.algorithm.is_none_or(|only| only == algorithm)
    }
}

impl Public {
    fn check(&self, token: &Parts<'_>) -> Result<(), Rejection> {
        let (signed, signature) = (token.signed, &token.signature);
        let checked = match self {
            Self::Rsa(key) => {
                let how = token.algorithm.of_rsa();
                how.map(|how| key.verify(how, signed, signature))
            }
            Self::Curve(_, point) => {
                let how = token.algorithm.of_curve();
                how.map(|how| UnparsedPublicKey::new(how, point).verify(signed, signature))
            }
        };
        match checked {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => Err(Rejection::Signature),
        }
    }
}

/// Strips leading zeros; some issuers write one.
fn number(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes[zeros..].to_vec()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Keys and a token for each algorithm, generated by another implementation (Node's OpenSSL).
    fn vectors() -> Value {
        serde_json::from_str(include_str!("vectors.json")).unwrap()
    }

    fn read(set: &Value) -> Result<Keys, KeySetError> {
        Keys::read(set.to_string().as_bytes())
    }

    #[test]
    fn tokens_of_another_implementation_are_verified() {
        let vectors = vectors();
        let keys = read(&vectors).unwrap();
        let tokens = vectors["tokens"].as_object().unwrap();
        assert_eq!(tokens.len(), 9);
        for (algorithm, token) in tokens {
            let token = token.as_str().unwrap();
            let parts = Parts::parse(token).unwrap();
            assert_eq!(keys.check(&parts), Ok(()), "{algorithm}");
            let mut wrong = Parts::parse(token).unwrap();
            wrong.signature[7] ^= 1;
            assert_eq!(keys.check(&wrong), Err(Rejection::Signature), "{algorithm}");
            let without_kid = Parts {
                kid: None,
                ..Parts::parse(token).unwrap()
            };
            assert_eq!(keys.check(&without_kid), Ok(()), "{algorithm}");
        }
    }

    #[test]
    fn a_key_is_limited_to_the_algorithms_of_kty_and_alg() {
        let mut vectors = vectors();
        for key in vectors["keys"].as_array_mut().unwrap() {
            key["kid"] = json!("same");
            if key["kty"] == "RSA" {
                key["alg"] = json!("RS256");
            }
        }
        let keys = read(&vectors).unwrap();
        let found = |algorithm| {
            let parts = Parts {
                algorithm,
                kid: Some("same".to_owned()),
                signed: b"",
                signature: vec![0; 64],
                claims: Vec::new(),
            };
            keys.check(&parts) == Err(Rejection::Signature)
        };
        for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] {
            assert!(found(algorithm), "{algorithm:?}");
        }
        for algorithm in [Algorithm::Rs384, Algorithm::Ps256] {
            assert!(!found(algorithm), "{algorithm:?}");
        }
    }

    #[test]
    fn unusable_keys_are_skipped() {
        let good = vectors()["keys"][1].clone();
        let with = |field: &str, value: Value| {
            let mut key = good.clone();
            key[field] = value;
            key
        };
        let short = json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB" });
        let bad = [
            with("use", json!("enc")),
            with("alg", json!("RS256")),
            with("alg", json!("HS256")),
            with("crv", json!("P-521")),
            with("x", json!("AQAB")),
            with("x", json!("!")),
            json!({ "kty": "oct", "k": "c2VjcmV0" }),
            json!({ "kty": "OKP", "crv": "Ed25519", "x": "AQAB" }),
            short,
            json!(7),
        ];
        let found = bad.len();
        assert_eq!(
            read(&json!({ "keys": bad })).unwrap_err(),
            KeySetError::NoUsableKey { found }
        );
        let all = [&bad[..], std::slice::from_ref(&good)].concat();
        assert_eq!(read(&json!({ "keys": all })).unwrap().0.len(), 1);
        let many = json!({ "keys": vec![good; 101] });
        assert_eq!(
            read(&many).unwrap_err(),
            KeySetError::TooMany { found: 101 }
        );
        for strange in [json!([]), json!({}), json!({ "keys": {} })] {
            assert_eq!(read(&strange).unwrap_err(), KeySetError::Form);
        }
    }
}
