//! Azure's own Node service SDK against the emulator.
//!
//! Install the SDK first: `npm ci` in `tests/node-sdk`. Without the SDK, the test fails instead of
//! skipping, since a skipped check would go unnoticed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use twincast_emulator::{Fleet, HubConfig, start};

const FLEET: &str = r#"
groups:
  - count: 300
    id: "fridge-{index:03}"
    tags: { kind: fridge }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_sdk_accepts_the_emulator() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/node-sdk");
    assert!(
        folder.join("node_modules/azure-iothub").is_dir(),
        "azure-iothub is not installed: run `npm ci` in {}",
        folder.display()
    );
    let config = HubConfig {
        unlimited: true,
        feedback_interval: Duration::from_millis(500),
        ..HubConfig::with_fleet(Fleet::from_yaml(FLEET).unwrap())
    };
    let hub = start(config).await.unwrap();
    let home = std::env::temp_dir().join(format!("twincast-node-sdk-{}", std::process::id()));
    std::fs::create_dir_all(&home).unwrap();
    let ca = home.join("ca.pem");
    std::fs::write(&ca, hub.ca_pem()).unwrap();
    let mut command = Command::new("node");
    command
        .arg("drive.mjs")
        .arg(hub.connection_string())
        .arg("fridge-")
        .current_dir(&folder)
        .env("NODE_EXTRA_CA_CERTS", &ca);
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap();
    std::fs::remove_dir_all(&home).unwrap();
    let output = output.unwrap_or_else(|error| panic!("failed to run node: {error}"));
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{}\n{stdout}\n{stderr}",
        output.status
    );
    let summary = hub.hub().summary();
    assert_eq!(summary.accepted, 2508, "{summary:?}");
    // The SDK has kept a single connection throughout.
    assert_eq!(summary.connections, 1, "{summary:?}");
    assert_eq!(summary.feedback_completed, 2, "{summary:?}");
    hub.shutdown().await;
}
