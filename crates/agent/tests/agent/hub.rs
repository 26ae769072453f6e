//! An emulated hub with the service side, as used by a back end.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use twincast_agent::report::Progress;
use twincast_emulator::{Fleet, HubConfig, RunningHub};
use twincast_iothub::{
    C2dMessage, C2dSender, C2dTemplate, Client, ClientOptions, ConnectionString, Expiry, Roots,
    sign,
};

use crate::until;

pub(crate) struct Hub {
    pub(crate) running: RunningHub,
    sender: C2dSender,
    http: reqwest::Client,
}

impl Hub {
    /// Starts a hub with the devices `dev-0` ... `dev-39`.
    pub(crate) async fn start() -> Self {
        Self::start_with(HubConfig::default()).await
    }

    pub(crate) async fn start_with(config: HubConfig) -> Self {
        let fleet = "seed: 1\ngroups:\n  - name: devices\n    count: 40\n    id: \"dev-{index}\"\n";
        let config = HubConfig {
            fleet: Fleet::from_yaml(fleet).unwrap(),
            unlimited: true,
            ..config
        };
        let running = twincast_emulator::start(config).await.unwrap();
        let mut options = ClientOptions::default();
        options.roots = Roots::Only(running.ca_pem().to_owned());
        let client = Client::new(&running.connection_string().parse().unwrap(), options).unwrap();
        let sender = C2dSender::connect(&client).await.unwrap();
        let ca = reqwest::Certificate::from_pem(running.ca_pem().as_bytes()).unwrap();
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .tls_certs_only([ca])
            .build()
            .unwrap();
        Self {
            running,
            sender,
            http,
        }
    }

    /// Sends an update's message.
    pub(crate) async fn send(&self, device: &str, id: &str, body: &[u8]) {
        self.send_kind(device, id, "update", body).await;
    }

    pub(crate) async fn send_kind(&self, device: &str, id: &str, kind: &str, body: &[u8]) {
        let template = C2dTemplate::builder(body.to_vec())
            .property("kind", kind)
            .expiry(Expiry::After(Duration::from_secs(3600)))
            .build()
            .unwrap();
        let outcome = self
            .sender
            .send(C2dMessage::new(device, id, template).unwrap())
            .await;
        assert!(outcome.is_accepted(), "{outcome}");
    }

    pub(crate) async fn request(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let answer = self.answer(method, path, body).await;
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.json().await.unwrap_or_default()
    }

    async fn answer(&self, method: Method, path: &str, body: Option<Value>) -> reqwest::Response {
        let port = self.running.https_addr().port();
        let connection: ConnectionString = self.running.connection_string().parse().unwrap();
        let key = STANDARD.decode(connection.key().expose()).unwrap();
        // Far in the future, for any clock of the hub.
        let expiry = UNIX_EPOCH.elapsed().unwrap().as_secs() * 2;
        let token = sign("localhost", connection.key_name(), &key, expiry);
        let mut request = self
            .http
            .request(
                method,
                format!("https://localhost:{port}{path}?api-version=2021-04-12"),
            )
            .header("Authorization", token.expose());
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.unwrap()
    }

    /// Returns the twin of a device, or none if the device does not exist yet.
    pub(crate) async fn find_twin(&self, device: &str) -> Option<Value> {
        let answer = self
            .answer(Method::GET, &format!("/twins/{device}"), None)
            .await;
        match answer.status().is_success() {
            true => answer.json().await.ok(),
            false => None,
        }
    }

    pub(crate) async fn twin(&self, device: &str) -> Value {
        self.request(Method::GET, &format!("/twins/{device}"), None)
            .await
    }

    pub(crate) async fn set_desired(&self, device: &str, desired: Value) {
        let patch = json!({ "properties": { "desired": desired } });
        self.request(Method::PATCH, &format!("/twins/{device}"), Some(patch))
            .await;
    }

    /// Returns the reported property `update`, and the number of writes of reported properties.
    pub(crate) async fn reported(&self, device: &str) -> (Value, i64) {
        let twin = self.twin(device).await;
        let reported = &twin["properties"]["reported"];
        (
            reported["update"].clone(),
            reported["$version"].as_i64().unwrap_or_default(),
        )
    }

    /// Waits until an update reaches a state.
    pub(crate) async fn wait_for(&self, device: &str, id: &str, progress: Progress) -> Value {
        let progress = json!(progress);
        let mut last = Value::Null;
        let waiting = until("", async || {
            last = self.reported(device).await.0;
            (last["id"] == id && last["state"] == progress).then(|| last.clone())
        });
        match tokio::time::timeout(crate::TIMEOUT - Duration::from_secs(1), waiting).await {
            Ok(report) => report,
            Err(_) => panic!("update {id} did not reach {progress}; last report: {last}"),
        }
    }

    /// Waits for any end of an update.
    pub(crate) async fn end_of(&self, device: &str, id: &str) -> Value {
        until(&format!("the end of {id}"), async || {
            let (report, _) = self.reported(device).await;
            let progress: Option<Progress> = serde_json::from_value(report["state"].clone()).ok();
            (report["id"] == id && progress.is_some_and(Progress::is_end)).then_some(report)
        })
        .await
    }
}
