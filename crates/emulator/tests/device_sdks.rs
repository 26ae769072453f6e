//! Azure's own Node device SDKs against the emulator, over all of their transports.
//!
//! The SDKs have fixed ports (443, 5671, 8883). The hub uses these ports on a dedicated loopback
//! address. Install the SDKs first: `npm ci` in `tests/node-sdk`. Without the SDKs, the test fails
//! instead of skipping, since a skipped check would go unnoticed.

#![expect(
    clippy::print_stdout,
    reason = "the table is what people look for in the log of a check"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Map, Value, json};
use twincast_emulator::{Directory, Enrollments, HubConfig, RunningHub, start};

const TRANSPORTS: [&str; 5] = ["mqtt", "mqtt-ws", "amqp", "amqp-ws", "http"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_device_sdks_accept_the_emulator() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/node-sdk");
    assert!(
        folder.join("node_modules/azure-iot-device").is_dir(),
        "the SDKs are not installed: run `npm ci` in {}",
        folder.display()
    );
    let certificates = Certificates::make();
    let hub = start_on_own_address(&certificates).await;
    let host = hub.amqp_addr().ip().to_string();
    let home = Home::new();
    let ca = home.0.join("ca.pem");
    std::fs::write(&ca, hub.ca_pem()).unwrap();
    let group = hub.enrollments().group_keys().next();
    let client = hub
        .directory()
        .and_then(|directory| directory.clients().next());
    let settings = json!({
        "host": host,
        "connectionString": hub.connection_string(),
        "idScope": hub.enrollments().id_scope(),
        "individual": { "key": INDIVIDUAL_KEY },
        "groupKey": group.map(|(_, key)| key),
        "certificates": certificates.leaves,
        "entra": {
            "authority": format!("https://{host}"),
            "tenant": hub.directory().map(Directory::tenant_id),
            "client": client.map(|(id, _)| id),
            "secret": client.and_then(|(_, secret)| secret),
        },
    });
    let mut command = Command::new("node");
    command
        .arg("devices.mjs")
        .current_dir(&folder)
        .env("DEVICES", settings.to_string())
        .env("NODE_EXTRA_CA_CERTS", &ca);
    if let Ok(only) = std::env::var("TRANSPORTS") {
        command.args(only.split(','));
    }
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap();
    let output = output.unwrap_or_else(|error| panic!("failed to run node: {error}"));
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    println!("{stdout}");
    assert!(output.status.success(), "{}\n{stderr}", output.status);
    hub.shutdown().await;
}

/// A temporary folder, removed at the end of the test.
struct Home(PathBuf);

impl Home {
    fn new() -> Self {
        let name = format!("twincast-device-sdks-{}", uuid::Uuid::new_v4().as_simple());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts a hub on the standard ports of an unused loopback address.
async fn start_on_own_address(certificates: &Certificates) -> RunningHub {
    let mut last = None;
    for _ in 0..20 {
        let [a, b, c, ..] = *uuid::Uuid::new_v4().as_bytes();
        let address = Ipv4Addr::new(127, a.clamp(1, 254), b, c.clamp(1, 254));
        let enrollments = enrollments(certificates).to_string();
        let config = HubConfig {
            host_name: address.to_string(),
            bind: IpAddr::V4(address),
            amqp_port: 5671,
            https_port: 443,
            mqtt_port: 8883,
            unlimited: true,
            feedback_interval: Duration::from_millis(200),
            device_ca_pem: vec![certificates.ca_pem.clone()],
            directory: Some(Directory::of_one(0)),
            enrollments: Some(Enrollments::read(&enrollments, 0).unwrap()),
            ..HubConfig::default()
        };
        match start(config).await {
            Ok(hub) => return hub,
            Err(error) => last = Some(error),
        }
    }
    panic!("the standard ports are not available: {last:?}");
}

const INDIVIDUAL_KEY: &str = "aW5kaXZpZHVhbCBrZXkgb2YgdGhlIHRlc3QhISEhIQ==";

fn enrollments(certificates: &Certificates) -> Value {
    let of_key = TRANSPORTS.map(|transport| {
        let id = format!("individual-{transport}");
        json!({
            "registrationId": id,
            "deviceId": format!("device-of-{id}"),
            "attestation": { "type": "symmetricKey", "symmetricKey": { "primaryKey": INDIVIDUAL_KEY } },
        })
    });
    let of_certificate = TRANSPORTS.map(|transport| {
        let id = format!("individual-x509-{transport}");
        let certificate = &certificates.leaves[&id]["cert"];
        json!({
            "registrationId": id,
            "attestation": { "type": "x509", "x509": { "clientCertificates": { "primary": { "certificate": certificate } } } },
        })
    });
    let individuals = [of_key, of_certificate].concat();
    let signing = json!({ "primary": { "certificate": certificates.ca_pem } });
    json!({
        "idScope": "0ne00TEST",
        "enrollments": individuals,
        "enrollmentGroups": [
            {
                "enrollmentGroupId": "keys",
                "attestation": { "type": "symmetricKey" },
                "initialTwin": { "tags": { "from": "group" }, "properties": { "desired": { "interval": 60 } } },
            },
            { "enrollmentGroupId": "certificates", "attestation": { "type": "x509", "x509": { "signingCertificates": signing } } },
        ],
    })
}

/// An authority, and certificates signed by the authority or self-signed.
struct Certificates {
    ca_pem: String,
    /// By name: `{name, cert, key, thumbprint}`.
    leaves: Map<String, Value>,
}

impl Certificates {
    fn make() -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name
            .push(DnType::CommonName, "authority of devices");
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);
        let mut leaves = Map::new();
        for transport in TRANSPORTS {
            for (kind, signed) in [
                ("own", false),
                ("signed", true),
                ("individual-x509", false),
                ("grouped-x509", true),
            ] {
                let name = format!("{kind}-{transport}");
                let leaf = leaf(&name, signed.then_some(&issuer));
                leaves.insert(name, leaf);
            }
        }
        Self { ca_pem, leaves }
    }
}

fn leaf(name: &str, issuer: Option<&Issuer<'_, KeyPair>>) -> Value {
    use sha2::Digest as _;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, issuer),
        None => params.self_signed(&key),
    };
    let certificate = certificate.unwrap();
    let thumbprint = sha2::Sha256::digest(certificate.der());
    let thumbprint: String = thumbprint
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    json!({ "name": name, "cert": certificate.pem(), "key": key.serialize_pem(), "thumbprint": thumbprint })
}
