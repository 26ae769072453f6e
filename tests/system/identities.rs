//! Hubs without keys: Microsoft Entra ID knows the identities with the right to roll out.

use std::time::Duration;

use serde_json::json;
use twincast_oidc::TokenSigner;

use crate::harness::{Fleet, Hub, Room, Running, assert_report_matches, eventually};

const DEVICES: u64 = 3_000;
const TENANT: &str = "11111111-2222-3333-4444-555555555555";
const CLUSTER: &str = "https://oidc.cluster.example";
const SUBJECT: &str = "system:serviceaccount:twincast:worker";

/// A hub without local authentication, and a folder to reach the hub from, as in a pod of
/// Kubernetes.
struct Cluster {
    hub: Hub,
    room: Room,
    signer: TokenSigner,
}

impl Cluster {
    /// Starts the hub. The hub's tokens live for `token_lifetime_s` seconds.
    fn start(token_lifetime_s: u64, roles: &[&str]) -> Self {
        let signer = TokenSigner::new("cluster");
        let principals = json!({
            "tenantId": TENANT,
            "tokenLifetimeSeconds": token_lifetime_s,
            "principals": [
                { "clientId": "worker", "roles": roles, "managedIdentity": true, "federatedCredentials": [
                    { "issuer": CLUSTER, "subject": SUBJECT, "keys": TokenSigner::key_set(&[&signer]) },
                ] },
            ],
        });
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("principals.json");
        std::fs::write(&file, principals.to_string()).expect("the folder is writable");
        let file = file.to_str().expect("a path");
        let flags = ["--unlimited", "--no-local-auth", "--entra-file", file];
        let hub = Hub::start(&Fleet::of(DEVICES), &flags);
        let cluster = Self {
            room: Room::configured(""),
            hub,
            signer,
        };
        cluster.configure("workload_identity");
        cluster.mount(SUBJECT);
        cluster
    }

    fn configure(&self, auth: &str) {
        let toml = format!(
            "[hubs.emulator]\nhost = \"localhost\"\nauth = \"{auth}\"\nca_file = \"{}\"\n\
             address = \"127.0.0.1\"\namqp_port = {}\nhttps_port = {}\nunlimited = true\nquery_lag = \"0s\"\n",
            self.hub.ca().display(),
            self.hub.amqp_port(),
            self.hub.https_port(),
        );
        self.room.write("twincast.toml", &toml);
    }

    /// Writes the service account's token, as the kubelet does.
    fn mount(&self, subject: &str) {
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
        let token = self.signer.sign(&json!({
            "iss": CLUSTER,
            "sub": subject,
            "aud": "api://AzureADTokenExchange",
            "exp": now.as_secs() + 3_600,
        }));
        self.room.write("token", &token);
    }

    /// Sets the variables of a pod, as the webhook of workload identity does.
    fn in_pod(mut self) -> Self {
        let token = self.room.path().join("token").display().to_string();
        let authority = format!("https://localhost:{}/", self.hub.https_port());
        for (variable, value) in [
            ("AZURE_TENANT_ID", TENANT),
            ("AZURE_CLIENT_ID", "worker"),
            ("AZURE_FEDERATED_TOKEN_FILE", &token),
            ("AZURE_AUTHORITY_HOST", &authority),
            ("NO_PROXY", "localhost,127.0.0.1"),
        ] {
            self.room.set_for_all(variable, value);
        }
        self
    }

    fn set_roles(&self, roles: &[&str]) {
        self.hub
            .put("/principals/worker/roles", &json!(roles).to_string());
    }

    fn until_accepted(&self, run: &mut Running, messages: u64) {
        eventually("sends", || {
            assert!(!run.is_over(), "the run ended early: {}", run.stderr());
            (self.hub.summary().accepted >= messages).then_some(())
        });
    }
}

#[test]
fn a_workload_identity_survives_token_expiry_and_a_kill() {
    let cluster = Cluster::start(8, &["IoT Hub Data Contributor"]).in_pod();
    let spec = cluster.room.rollout("entra", "rate: 10000/min");
    let mut run = cluster.room.start(&["run", &spec]);
    cluster.until_accepted(&mut run, DEVICES / 10);
    run.kill();
    let tokens_of_first_run = cluster.hub.summary().tokens_accepted;
    cluster.room.run(&["run", &spec]).expect(0);
    let seen = cluster.hub.summary();
    assert!(seen.accepted >= DEVICES, "{seen:?}");
    // Sends in flight at the kill may be repeated: a window per batch.
    assert!(seen.repeats_by_device <= 16 * 256, "{seen:?}");
    // The second run alone outlives a token.
    assert!(
        seen.tokens_accepted >= tokens_of_first_run + 2,
        "the tokens are renewed: {seen:?}"
    );
    let report = cluster.room.run(&["--json", "report", "entra"]).expect(0);
    let report = report.json();
    let rows: Vec<_> = serde_json::from_value(report["devices_list"].clone()).expect("rows");
    assert_report_matches(&rows, &cluster.hub.message_log());
}

#[test]
fn a_missing_role_is_named_and_granting_resumes_the_rollout() {
    let cluster = Cluster::start(3_600, &["IoT Hub Data Reader"]).in_pod();
    let spec = cluster.room.rollout("roles", "rate: 24000/min");
    let ended = cluster.room.run(&["run", &spec]);
    ended.expect(6).says(&[
        "workload identity (client worker",
        "IoT Hub Data Contributor",
        "cloudToDeviceMessages/send/action",
    ]);
    cluster.set_roles(&["IoT Hub Data Contributor"]);
    cluster.room.run(&["run", &spec]).expect(0);
    assert_eq!(cluster.hub.summary().accepted, DEVICES);
    let plan = cluster.room.rollout("later", "");
    cluster.set_roles(&["IoT Hub Registry Contributor"]);
    cluster.room.run(&["plan", &plan]).says(&["twins/read"]);
}

#[test]
fn an_unfederated_account_is_refused_with_the_entra_error() {
    let cluster = Cluster::start(3_600, &["IoT Hub Data Contributor"]).in_pod();
    cluster.mount("system:serviceaccount:other:worker");
    let spec = cluster.room.rollout("stranger", "");
    let ended = cluster.room.run(&["plan", &spec]);
    ended.says(&["AADSTS700213", "workload identity (client worker"]);
}

#[test]
fn a_managed_identity_needs_no_credentials() {
    let mut cluster = Cluster::start(3_600, &["IoT Hub Data Contributor"]);
    cluster.configure("managed_identity");
    let control = cluster.hub.control_url();
    cluster
        .room
        .set_for_all("AZURE_POD_IDENTITY_AUTHORITY_HOST", &control);
    let spec = cluster.room.rollout("managed", "");
    cluster.room.run(&["run", &spec]).expect(0);
    assert_eq!(cluster.hub.summary().accepted, DEVICES);
}

#[test]
fn the_emulator_config_has_an_identity_with_keys_disabled() {
    let flags = ["--unlimited", "--entra", "--no-local-auth"];
    let hub = Hub::start(&Fleet::of(10), &flags);
    let room = Room::with(&hub);
    let ended = room.run(&["check"]).expect(0);
    assert!(ended.stdout.contains("messages can be sent"), "{ended}");
    let shown = room.run(&["--print-config", "check"]).expect(0);
    assert!(shown.stdout.contains("client_secret"), "{shown}");
    let config = std::fs::read_to_string(hub.config()).expect("the hub wrote the file");
    let secret = config.split("client_secret = \"").nth(1).expect("a secret");
    let secret = secret.split('"').next().expect("a secret");
    assert!(!shown.stdout.contains(secret), "{shown}");
}

#[test]
fn missing_identity_settings_are_named_before_connecting() {
    let room =
        Room::configured("[hubs.eu]\nhost = \"hub.example\"\nauth = \"workload_identity\"\n");
    let spec = room.rollout("lacks", "");
    let began = std::time::Instant::now();
    room.run(&["plan", &spec])
        .expect(3)
        .says(&["hubs.eu.auth", "tenant_id", "AZURE_TENANT_ID"]);
    assert!(began.elapsed() < Duration::from_secs(60));
    for (toml, says) in [
        ("host = \"hub.example\"\n", "host and auth together"),
        ("auth = \"managed_identity\"\n", "exactly one of"),
        (
            "host = \"hub.example\"\nauth = \"kerberos\"\n",
            "hubs.eu.auth",
        ),
        (
            "host = \"hub.example\"\nauth = { method = \"managed_identity\", tenant_id = \"t\" }\n",
            "hubs.eu.auth.tenant_id",
        ),
        (
            "host = \"hub.example\"\nauth = { method = \"client_secret\", client_secrt = \"s3cr3t\" }\n",
            "client_secrt",
        ),
        (
            "host = \"https://hub.example\"\nauth = \"managed_identity\"\n",
            "not a bare host name",
        ),
    ] {
        room.write("twincast.toml", &format!("[hubs.eu]\n{toml}"));
        let ended = room.run(&["plan", &spec]).expect(3).says(&[says]);
        assert!(!ended.stderr.contains("s3cr3t"), "{ended}");
    }
}
