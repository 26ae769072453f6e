//! From the pipeline's message to the installed version: real device agents on MQTT and simulated
//! devices, a faulty build, and the fixed build.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Certificate, Client};
use serde_json::{Value, json};
use twincast_emulator::sign_token;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::engine::Engine;
use crate::harness::{Fleet, Hub, Running};
use crate::pipeline::{about, start_with};
use crate::services::{Access, wait};
use crate::waiting::{long_or, poll_until};

const WORDS: &str = "the door sensor does not answer";
const LIMIT: Duration = Duration::from_secs(300);

fn agents() -> usize {
    long_or(50, 5)
}

fn simulated() -> u64 {
    long_or(100_000, 3_000)
}

/// Returns a fleet of canaries with agents, and of simulated devices with answers.
fn fleet() -> Fleet {
    let (agents, simulated) = (agents(), simulated());
    Fleet::written(&format!(
        "seed: 5\n\
         groups:\n\
         - {{ count: {agents}, id: 'canary-{{index}}', tags: {{ type: fridge, region: lab, ring: canary }} }}\n\
         - count: {simulated}\n  id: 'd-{{index:06}}'\n  tags: {{ type: fridge, region: field, ring: main }}\n\
         \x20 reported: {{ firmware: '1.3.0' }}\n  reported_after_delivery: {{ firmware: '1.4.1' }}\n\
         \x20 behaviour: {{ latency: 20ms..200ms, answers: {{ after: 100ms..2s }} }}\n"
    ))
}

/// Returns a build, run by the device's health check.
fn build(works: bool) -> String {
    match works {
        true => "exit 0\n".to_owned(),
        false => format!("echo {WORDS}\nexit 1\n"),
    }
}

/// The parts of the test beside the engine: a file server, and a client of the hub.
struct Lab<'a> {
    engine: &'a Engine,
    files: MockServer,
    client: Client,
}

impl<'a> Lab<'a> {
    fn new(engine: &'a Engine) -> Self {
        _ = rustls::crypto::ring::default_provider().install_default();
        let hub = &engine.hubs[0].1;
        let ca = fs::read(hub.ca()).expect("the hub wrote the file");
        let ca = Certificate::from_pem(&ca).expect("a certificate");
        let files = wait(async {
            let files = MockServer::start().await;
            for (version, works) in [("1.4.0", false), ("1.4.1", true)] {
                let answer = ResponseTemplate::new(200).set_body_string(build(works));
                let mock = Mock::given(path(format!("/{version}"))).respond_with(answer);
                mock.mount(&files).await;
            }
            files
        });
        Self {
            engine,
            files,
            client: Client::builder()
                .tls_certs_only([ca])
                .build()
                .expect("a client"),
        }
    }

    /// Returns the key of a device, as known to the hub.
    fn device_key(&self, hub: &Hub, device: &str) -> String {
        let key = STANDARD.decode(hub.key()).expect("base64");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let until = now.expect("a time after 1970").as_secs() + 3_600;
        let token = sign_token("localhost", "iothubowner", &key, until);
        let port = hub.https_port();
        let url = format!("https://localhost:{port}/devices/{device}?api-version=2021-04-12");
        let request = async {
            let response = self
                .client
                .get(url)
                .header("Authorization", token)
                .send()
                .await;
            response.expect("an answer").json::<Value>().await
        };
        let identity = wait(request).expect("an identity");
        let key = &identity["authentication"]["symmetricKey"]["primaryKey"];
        key.as_str()
            .unwrap_or_else(|| panic!("{identity}"))
            .to_owned()
    }

    /// Starts the agents, and waits until all are connected.
    fn agents(&self, public_key: &str) -> Vec<Running> {
        let hub = &self.engine.hubs[0].1;
        let (mqtt, https, ca) = (hub.port("mqtt"), hub.https_port(), hub.ca());
        let agent = |number: usize| {
            let id = format!("canary-{number}");
            let folder = self.engine.room.path().join(&id);
            let slots = folder.join("slots");
            fs::create_dir_all(slots.join("a")).expect("a folder");
            fs::write(slots.join("a/artifact"), build(true)).expect("a file");
            std::os::unix::fs::symlink("a", slots.join("current")).expect("a link");
            let key = self.device_key(hub, &id);
            let health = slots.join("current/artifact");
            let config = format!(
                "state = {:?}\n[identity]\nconnection_string = \"HostName=localhost;DeviceId={id};SharedAccessKey={key}\"\n\
                 [hub]\nport = {mqtt}\nhttps_port = {https}\nca_file = {ca:?}\nreconnect_max = \"1s\"\n\
                 [update]\nname = \"fridge\"\nhardware = \"a\"\nkeys = [\"{public_key}\"]\n[firmware]\nversion = \"1.3.0\"\n\
                 [download]\njitter = \"1s\"\n[slots]\nroot = {slots:?}\n\
                 [health]\ncommand = [\"/bin/sh\", {health:?}]\nwithin = \"10s\"\nevery = \"1s\"\n",
                folder.join("state")
            );
            let file = folder.join("agent.toml");
            fs::write(&file, config).expect("a file");
            let mut command = Command::new(env!("CARGO_BIN_EXE_twincast"));
            Running::start(command.env_clear().arg("--config").arg(file).arg("agent"))
        };
        let agents: Vec<_> = (0..agents()).map(agent).collect();
        poll_until(LIMIT, "all agents to be connected", || {
            (hub.summary().connected_devices == agents.len() as u64).then_some(())
        });
        agents
    }

    /// Returns the signed message of an update.
    fn signed(&self, version: &str) -> Value {
        let room = &self.engine.room;
        let build = room.write("build", &build(version == "1.4.1"));
        let url = format!("{}/{version}", self.files.uri());
        let build = build.display().to_string();
        let update = [
            "sign",
            "update",
            "--key",
            "release.pem",
            "--name",
            "fridge",
            "--version",
            version,
            "--hardware",
            "a",
            "--url",
            &url,
            "--artifact",
            &build,
            "--out",
            "update.json",
        ];
        room.run(&update).expect(0);
        let message = fs::read(room.path().join("update.json")).expect("the file was written");
        serde_json::from_slice(&message).expect("JSON")
    }

    /// Returns the pipeline's message.
    fn start(&self, version: &str) -> Value {
        let message = json!({ "body": { "json": self.signed(version) }, "properties": { "kind": "update" }, "ttl": "10m" });
        let gate = json!({ "counts": "applied", "success_at_least": "80%", "failure_above": "20%", "min_sample": agents() });
        let stages = json!([{ "name": "canary", "tags": { "ring": "canary" }, "gate": gate }]);
        start_with(
            &format!("firmware-{version}"),
            json!({ "message": message, "stages": stages }),
        )
    }
}

#[test]
fn a_bad_build_stops_at_canaries_and_the_fix_is_installed() {
    let hub = Hub::start(&fleet(), &["--unlimited", "--mqtt-port", "0"]);
    let mut engine = Engine::new(&Access::shared(), vec![("lab", hub)]);
    engine.grow(2, 2);
    engine.until_ready();
    let mut pipeline = engine.pipeline();
    let mut events = pipeline.listen();
    let lab = Lab::new(&engine);
    let key = engine
        .room
        .run(&["--json", "sign", "key", "new", "release.pem"]);
    let key = key.expect(0).json()["public_key"].take();
    let running = lab.agents(key.as_str().expect("a text"));
    let devices = agents() as u64 + simulated();

    pipeline.command_ok(&lab.start("1.4.0"));
    let status = engine.until_phase("firmware-1.4.0", "paused", LIMIT);
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains(&format!("health_check: {WORDS}")),
        "{status}"
    );
    let paused = std::iter::from_fn(|| Some(events.next().1))
        .take(20)
        .find(|event| event["data"]["phase"] == "paused");
    let paused = paused.expect("an event of the pause");
    assert!(paused.to_string().contains(WORDS), "{paused}");
    assert_eq!(status["by_class"]["pending"], simulated(), "{status}");
    poll_until(LIMIT, "the answers of all canaries", || {
        let status = engine.status("firmware-1.4.0");
        (status["stages"][0]["answers"]["failed"] == agents()).then_some(())
    });
    let failures = &engine.status("firmware-1.4.0")["failures"];
    assert_eq!(failures[0]["error"]["text"], WORDS, "{failures}");
    assert_eq!(
        engine.accepted(),
        agents() as u64,
        "no other device received the message"
    );
    pipeline.command_ok(&about("abort", "firmware-1.4.0"));

    let began = Instant::now();
    pipeline.command_ok(&lab.start("1.4.1"));
    let done = engine.until_phase("firmware-1.4.1", "succeeded", LIMIT);
    println!("{devices} devices in {:?}", began.elapsed());
    assert_eq!(done["by_class"]["applied"], devices, "{done}");
    for number in 0..agents() {
        let current = format!("canary-{number}/slots/current/artifact");
        let installed = fs::read_to_string(engine.room.path().join(current));
        assert_eq!(installed.expect("the artefact is installed"), build(true));
    }
    drop(running);
}
