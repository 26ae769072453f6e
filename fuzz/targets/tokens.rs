//! Signed tokens, their claims, and the keys of issuers.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use twincast_fuzz::split_mode;
use twincast_oidc::Keys;
use twincast_oidc::fuzzing::{check, claims};

static VECTORS: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("../../crates/oidc/src/vectors.json");
    serde_json::from_str(text).expect("the vectors are JSON")
});
static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let keys = VECTORS.to_string();
    Keys::read(keys.as_bytes()).expect("the keys can be used")
});

twincast_fuzz::bytes!(|input| {
    let (mode, rest) = split_mode(input);
    let text = std::str::from_utf8(rest);
    match mode % 3 {
        0 => {
            let Ok(text) = text else { return };
            if check(&KEYS, text).is_ok() {
                let vectors = VECTORS["tokens"].as_object().expect("tokens by algorithm");
                let is_one = vectors.values().any(|token| token == text);
                assert!(is_one, "{text} was never signed");
            }
        }
        1 => {
            let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            if let Ok(claims) = claims(rest, now) {
                assert_eq!(claims.text("iss"), Some("https://i"));
                _ = claims.texts("realm_access.roles");
            }
        }
        _ => match Keys::read(rest) {
            Ok(keys) => assert!(check(&keys, "e30.e30.e30").is_err()),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
    }
});
