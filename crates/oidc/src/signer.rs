//! Signs tokens like an issuer: for emulated issuers.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

/// An issuer's private key, generated anew in each process. Signs with ES256.
pub struct TokenSigner {
    kid: String,
    key: EcdsaKeyPair,
}

impl TokenSigner {
    /// Generates a key with this id.
    #[must_use]
    pub fn new(kid: &str) -> Self {
        let (curve, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(curve, &random).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(curve, pkcs8.as_ref(), &random).expect("its own key");
        let kid = kid.to_owned();
        Self { kid, key }
    }

    /// Returns the public key as an entry of a key set.
    #[must_use]
    pub fn jwk(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = (encode(&point[1..33]), encode(&point[33..]));
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "kid": self.kid, "x": x, "y": y })
    }

    /// Signs a well-formed token with these claims.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": self.kid });
        self.sign_with(&header, claims)
    }

    /// Signs a token with this header, valid or not; the signature is correct.
    #[must_use]
    pub fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let signed = format!(
            "{}.{}",
            encode(header.to_string().as_bytes()),
            encode(claims.to_string().as_bytes())
        );
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        format!(
            "{signed}.{}",
            encode(signature.expect("a signature").as_ref())
        )
    }

    /// Returns a set of the public parts of these keys.
    #[must_use]
    pub fn key_set(signers: &[&Self]) -> Value {
        let keys: Vec<_> = signers.iter().map(|signer| signer.jwk()).collect();
        json!({ "keys": keys })
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
