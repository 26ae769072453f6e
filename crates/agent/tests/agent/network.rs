//! Broken networks, wrong clocks, full disks, and the transports to the hub.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use twincast_agent::report::Progress;
use twincast_emulator::HubConfig;

use crate::device::{Device, Setup, artifact, content};
use crate::ftp::FtpServer;
use crate::hub::Hub;
use crate::relay::Relay;

#[tokio::test(flavor = "multi_thread")]
async fn cut_download_is_resumed_and_a_changed_file_restarted() {
    let hub = Hub::start().await;
    let device = Device::started(&hub, "dev-0").await;
    device.files.set(|files| files.cut = Some((60_000, 3)));
    hub.send("dev-0", "fw.1", &device.update("1.1.0")).await;
    hub.wait_for("dev-0", "fw.1", Progress::Applied).await;
    let ranges: Vec<_> = ["bytes=60000-", "bytes=120000-", "bytes=180000-"]
        .map(|it| Some(it.to_owned()))
        .into();
    assert_eq!(device.files.ranges(), [&[None][..], &ranges].concat());
    // After the cut, the server has another file with another tag.
    let body = device.update("1.2.0");
    device.files.put("1.2.0", &artifact("9.9.9"));
    let swap = ("/1.2.0".to_owned(), artifact("1.2.0"), "\"two\"".to_owned());
    device.files.set(|files| {
        (files.cut, files.swap, files.ranges) = (Some((60_000, 1)), Some(swap), Vec::new());
    });
    hub.send("dev-0", "fw.2", &body).await;
    hub.wait_for("dev-0", "fw.2", Progress::Applied).await;
    let ranges = [None, Some("bytes=60000-".to_owned())];
    assert_eq!(device.files.ranges(), ranges);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_download_is_restarted_up_to_the_time_limit() {
    let hub = Hub::start().await;
    let setup = Setup {
        download: "jitter = \"0s\"\nwithin = \"6s\"".to_owned(),
        low_speed_time: "1s",
        ..Setup::of(&hub)
    };
    let mut device = Device::new(&hub, "dev-0", setup).await;
    device.begin(&hub).await;
    device.files.set(|files| files.hold = Some(50));
    hub.send("dev-0", "fw.1", &device.update("1.1.0")).await;
    let report = hub.end_of("dev-0", "fw.1").await;
    assert_eq!(report["error"]["code"], "download", "{report}");
    assert!(
        report["error"]["text"]
            .as_str()
            .unwrap()
            .contains("bytes received in 1s"),
        "{report}"
    );
    assert!(device.files.ranges().len() >= 2);
    // A server accepting the request without answering.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/fw", silent.local_addr().unwrap());
    let body = device.update_with("1.2.0", |manifest| manifest.artifact.url = url);
    hub.send("dev-0", "fw.2", &body).await;
    let report = hub.end_of("dev-0", "fw.2").await;
    let text = report["error"]["text"].as_str().unwrap();
    assert!(text.contains("does not answer within 1s"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_reported() {
    let hub = Hub::start().await;
    let setup = Setup {
        download: "jitter = \"0s\"".to_owned(),
        ..Setup::of(&hub)
    };
    let mut device = Device::new(&hub, "dev-0", setup).await;
    let config = content(&device.path("agent.toml"))
        .replace("keep_free = 0", "keep_free = 1000000000000000");
    std::fs::write(device.path("agent.toml"), config).unwrap();
    device.begin(&hub).await;
    hub.send("dev-0", "fw.1", &device.update("1.1.0")).await;
    let report = hub.end_of("dev-0", "fw.1").await;
    assert_eq!(
        (&report["state"], &report["error"]["code"]),
        (&json!("failed"), &json!("disk_full"))
    );
    assert_eq!(device.log(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_clock_is_corrected_by_the_hub() {
    let hub = Hub::start_with(HubConfig {
        clock_ahead: Duration::from_secs(86_400),
        ..HubConfig::default()
    })
    .await;
    let device = Device::started(&hub, "dev-0").await;
    hub.send("dev-0", "fw.1", &device.update("1.1.0")).await;
    let report = hub.wait_for("dev-0", "fw.1", Progress::Applied).await;
    assert!(content(&device.path("agent.log")).contains("clock was wrong"));
    let at: jiff::Timestamp = report["at"].as_str().unwrap().parse().unwrap();
    assert!(at.duration_since(jiff::Timestamp::now()).as_hours() >= 23);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_and_a_cut_connection_comes_back() {
    let hub = Hub::start().await;
    let relay = Relay::to(hub.running.mqtt_addr(), false).await;
    let setup = Setup {
        mqtt_port: relay.address.port(),
        hub: "token_life = \"5s\"".to_owned(),
        ..Setup::of(&hub)
    };
    let mut device = Device::new(&hub, "dev-0", setup).await;
    device.begin(&hub).await;
    let connections = |least| {
        let passed = &relay.passed;
        async move {
            crate::until("connections", async || {
                (passed.load(Ordering::Relaxed) >= least).then_some(())
            })
            .await;
        }
    };
    connections(2).await;
    hub.send("dev-0", "fw.1", &device.update("1.1.0")).await;
    hub.wait_for("dev-0", "fw.1", Progress::Applied).await;
    relay.block();
    hub.send("dev-0", "fw.2", &device.update("1.2.0")).await;
    relay.unblock();
    hub.wait_for("dev-0", "fw.2", Progress::Applied).await;
    assert_eq!(device.count("install done 1.2.0"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_connects_over_websockets_through_a_proxy() {
    let hub = Hub::start().await;
    let relay = Relay::to(hub.running.https_addr(), true).await;
    let setup = Setup {
        mqtt_port: hub.running.https_addr().port(),
        hub: format!(
            "transport = \"websocket\"\nproxy = \"http://{}\"",
            relay.address
        ),
        ..Setup::of(&hub)
    };
    let mut device = Device::new(&hub, "dev-0", setup).await;
    device.begin(&hub).await;
    // This proxy cannot forward a download of the artefact, so the test sends an invalid update.
    // The report of the refusal goes through the proxy.
    hub.send("dev-0", "fw.1", b"not signed").await;
    hub.wait_for("dev-0", "fw.1", Progress::Refused).await;
    assert!(relay.passed.load(Ordering::Relaxed) >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ftp_is_resumed() {
    let hub = Hub::start().await;
    let device = Device::started(&hub, "dev-0").await;
    let ftp = FtpServer::start(artifact("1.1.0"), 70_000).await;
    let url = format!("ftp://user:pass@{}/fw", ftp.address);
    hub.send(
        "dev-0",
        "fw.1",
        &device.update_with("1.1.0", |manifest| manifest.artifact.url = url),
    )
    .await;
    hub.wait_for("dev-0", "fw.1", Progress::Applied).await;
    assert_eq!(*ftp.rests.lock().unwrap(), [70_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_registers_and_stores_the_assigned_hub() {
    use base64::Engine as _;
    let group = base64::engine::general_purpose::STANDARD.encode("the key of a group");
    let enrollments = format!(
        "idScope: 0ne0\nenrollmentGroups:\n  - enrollmentGroupId: fridges\n    attestation: {{ type: symmetricKey, symmetricKey: {{ primaryKey: {group}, secondaryKey: {group} }} }}\n"
    );
    let enrollments = twincast_emulator::Enrollments::read(&enrollments, 1).unwrap();
    let hub = Hub::start_with(HubConfig {
        enrollments: Some(enrollments),
        ..HubConfig::default()
    })
    .await;
    let identity = format!(
        "[identity.dps]\nhost = \"localhost\"\nport = {}\nid_scope = \"0ne0\"\nregistration_id = \"new-device\"\ngroup_key = \"{group}\"",
        hub.running.https_addr().port()
    );
    let setup = Setup {
        identity: Some(identity),
        ..Setup::of(&hub)
    };
    let mut device = Device::new(&hub, "new-device", setup).await;
    device.start();
    let registered = device.path("state/assignment.json");
    crate::until("the assignment", async || registered.exists().then_some(())).await;
    let firmware = async || {
        let twin = hub.twin("new-device").await;
        (twin["properties"]["reported"]["firmware"] == "1.0.0").then_some(())
    };
    crate::until("the first report", firmware).await;
    hub.send("new-device", "fw.1", &device.update("1.1.0"))
        .await;
    hub.wait_for("new-device", "fw.1", Progress::Applied).await;
    // The stale hub refuses the device, and the provisioning service names the right hub.
    device.kill();
    let stale = serde_json::json!({ "hub": "localhost", "device_id": "dev-0" });
    std::fs::write(&registered, stale.to_string()).unwrap();
    device.start();
    hub.send("new-device", "fw.2", &device.update("1.2.0"))
        .await;
    hub.wait_for("new-device", "fw.2", Progress::Applied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_is_accepted_with_and_without_provisioning() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut certificate = rcgen::CertificateParams::new(Vec::new()).unwrap();
    certificate
        .distinguished_name
        .push(rcgen::DnType::CommonName, "certified");
    let certificate = certificate.self_signed(&key).unwrap().pem();
    let enrollments = json!({ "idScope": "0ne0", "enrollments": [{
        "registrationId": "certified",
        "attestation": { "type": "x509", "x509": { "clientCertificates": { "primary": { "certificate": certificate } } } },
    }] });
    let enrollments = twincast_emulator::Enrollments::read(&enrollments.to_string(), 1).unwrap();
    let hub = Hub::start_with(HubConfig {
        enrollments: Some(enrollments),
        ..HubConfig::default()
    })
    .await;
    let port = hub.running.https_addr().port();
    let files = "certificate_file = \"device.pem\"\nprivate_key_file = \"device.key\"";
    for (id, identity) in [
        (
            "fw.1",
            format!(
                "[identity.dps]\nhost = \"localhost\"\nport = {port}\nid_scope = \"0ne0\"\nregistration_id = \"certified\""
            ),
        ),
        (
            "fw.2",
            "hub = \"localhost\"\ndevice_id = \"certified\"".to_owned(),
        ),
    ] {
        let setup = Setup {
            identity: Some(format!("{files}\n{identity}")),
            ..Setup::of(&hub)
        };
        let mut device = Device::new(&hub, "certified", setup).await;
        device.write("device.pem", &certificate);
        device.write("device.key", &key.serialize_pem());
        device.start();
        let first_report = async || {
            let twin = hub.find_twin("certified").await?;
            twin["properties"]["reported"]["firmware"]
                .as_str()
                .map(drop)
        };
        crate::until("the first report", first_report).await;
        hub.send("certified", id, b"not signed").await;
        hub.wait_for("certified", id, Progress::Refused).await;
    }
}
