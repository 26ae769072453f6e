//! Updates as received by devices: the envelope, the signatures, the manifest.

#![no_main]

use std::sync::LazyLock;

use twincast_agent::envelope::{PublicKey, SecretKey, open, seal};
use twincast_agent::manifest::Manifest;

static KEY: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::new().expect("a key").0);

twincast_fuzz::bytes!(|bytes| {
    let keys: [PublicKey; 1] = [KEY.public()];
    assert!(open(bytes, &keys).is_err(), "nobody has signed it");
    let sealed = seal(bytes, std::slice::from_ref(&*KEY));
    let sealed = serde_json::to_vec(&sealed).expect("plain data");
    assert_eq!(open(&sealed, &keys).expect("it is signed"), bytes);
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
        let again = serde_json::to_vec(&manifest).expect("plain data");
        let read: Manifest = serde_json::from_slice(&again).expect("what was written");
        assert_eq!(manifest.check_form().is_ok(), read.check_form().is_ok());
    }
});
