//! Authentication to the hub: tokens of Microsoft Entra ID, and changing keys.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::time::{Instant, timeout};
use twincast_emulator::{Cut, Faults, RunningHub};
use twincast_iothub::{
    C2dSender, Client, ConnectionFailure, ConnectionString, Credentials, FeedbackReceiver,
    LinkState, RestError, SharedAccess,
};
use twincast_secret::SecretSource;

use crate::common::entra::{entra_client, entra_hub};
use crate::common::{client, config, message, options, template};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_has_full_access_while_keys_are_disabled() {
    let hub = entra_hub(3_600, "IoT Hub Data Contributor").await;
    let with_key = client(&hub);
    let client = entra_client(&hub);
    assert_eq!(client.count(None).await.unwrap(), 10);
    assert_eq!(client.statistics().await.unwrap().total_device_count, 10);
    client.twin("d-1").await.unwrap();
    let sender = C2dSender::connect(&client).await.unwrap();
    let sent = sender.send(message(&template(), 1, 1)).await;
    assert!(sent.is_accepted(), "{sent}");
    let feedback = FeedbackReceiver::connect(&client).await.unwrap();
    feedback.close();
    sender.close().await;
    let error = C2dSender::connect(&with_key).await.unwrap_err();
    assert!(matches!(
        error,
        ConnectionFailure::Unauthorised { status: 401, .. }
    ));
    assert!(
        error.to_string().contains("disabled for this hub"),
        "{error}"
    );
    let RestError::Api(error) = with_key.count(None).await.unwrap_err() else {
        panic!("the error is not an answer of the hub");
    };
    assert!(error.message.contains("disabled for this hub"), "{error}");
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_missing_role() {
    let hub = entra_hub(3_600, "IoT Hub Data Reader").await;
    let client = entra_client(&hub);
    assert_eq!(client.count(None).await.unwrap(), 10);
    let error = C2dSender::connect(&client).await.unwrap_err().to_string();
    for part in [
        "due to no assigned permissions",
        "client secret (client c, tenant t)",
        "IoT Hub Data Contributor",
        "Microsoft.Devices/IotHubs/cloudToDeviceMessages/send/action",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = FeedbackReceiver::connect(&client).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("cloudToDeviceMessages/feedback/action"),
        "{error}"
    );
    assert!(hub.hub().set_roles("c", &["IoT Hub Twin Contributor"]));
    let RestError::Api(error) = client.statistics().await.unwrap_err() else {
        panic!("the error is not an answer of the hub");
    };
    assert!(error.message.contains("statistics/read"), "{error}");
    assert!(hub.hub().set_roles("c", &["IoT Hub Data Contributor"]));
    let sender = C2dSender::connect(&client).await.unwrap();
    sender.close().await;
    hub.shutdown().await;
}

/// Sends for longer than the life of a token.
async fn sends_across_a_renewal(life: Duration) -> Result<(), String> {
    let hub = entra_hub(life.as_secs(), "IoT Hub Data Contributor").await;
    let client = entra_client(&hub);
    let sender = C2dSender::connect(&client)
        .await
        .map_err(|error| error.to_string())?;
    let (template, until) = (template(), Instant::now() + life + Duration::from_secs(1));
    let mut sent = 0;
    while Instant::now() < until {
        let outcome = sender.send(message(&template, sent % 10, sent)).await;
        if !outcome.is_accepted() {
            return Err(outcome.to_string());
        }
        sent += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let summary = hub.hub().summary();
    let is_connected = matches!(*sender.state().borrow(), LinkState::Connected);
    if summary.tokens_accepted < 2 || summary.cut_links > 0 || !is_connected {
        return Err(format!("{is_connected} {summary:?}"));
    }
    sender.close().await;
    hub.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_on_the_open_connection() {
    // On a busy machine, a renewal may come too late for a token with a short life.
    if sends_across_a_renewal(Duration::from_secs(8))
        .await
        .is_err()
    {
        let renewed = sends_across_a_renewal(Duration::from_secs(40)).await;
        assert_eq!(renewed, Ok(()));
    }
}

/// Connection strings of the policy `iothubowner` in two files.
struct Rotated {
    folder: tempfile::TempDir,
    hub: RunningHub,
}

impl Rotated {
    async fn start() -> Self {
        let hub = twincast_emulator::start(config(10, Faults::default()))
            .await
            .unwrap();
        let rotated = Self {
            folder: tempfile::tempdir().unwrap(),
            hub,
        };
        rotated.regenerate(b"first-1", b"second-1");
        rotated.write("first", b"first-1");
        rotated.write("second", b"second-1");
        rotated
    }

    fn regenerate(&self, first: &[u8], second: &[u8]) {
        let hub = self.hub.hub();
        assert!(hub.set_keys("iothubowner", first.to_vec(), second.to_vec()));
    }

    fn write(&self, name: &str, key: &[u8]) {
        let given: ConnectionString = self.hub.connection_string().parse().unwrap();
        let port = given.port().unwrap();
        let text = format!(
            "HostName=localhost:{port};SharedAccessKeyName=iothubowner;SharedAccessKey={}\n",
            STANDARD.encode(key)
        );
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn client(&self) -> Client {
        let source = |name: &str| SecretSource::File {
            setting: name.to_owned(),
            path: self.folder.path().join(name),
        };
        let keys = SharedAccess::read_from(source("first"), Some(source("second")));
        let address = keys.connection_strings().unwrap()[0].address().clone();
        let credentials = Credentials::SharedAccess(keys);
        Client::with_credentials(&address, credentials, options(&self.hub)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_in_turn_under_an_open_link() {
    let rotated = Rotated::start().await;
    let client = rotated.client();
    let sender = C2dSender::connect(&client).await.unwrap();
    let (template, mut sent) = (template(), 0);
    let mut send = async |what: &str| {
        // The hub cuts the connection, so that the current keys count.
        rotated.hub.hub().cut_connections(Cut::Drop);
        sent += 1;
        let mut id = 0;
        let delivered = async {
            loop {
                id += 1;
                let outcome = sender.send(message(&template, sent, 100 * sent + id)).await;
                if outcome.is_accepted() {
                    return;
                }
                assert!(
                    !matches!(*sender.state().borrow(), LinkState::Failed(_)),
                    "{what}: {outcome}"
                );
            }
        };
        timeout(TEST_TIMEOUT, delivered).await.expect(what);
        client.count(None).await.expect(what);
    };
    send("both keys are good").await;
    rotated.regenerate(b"first-2", b"second-1");
    send("the first key is new, the files are not").await;
    rotated.write("first", b"first-2");
    rotated.regenerate(b"first-2", b"second-2");
    send("the second key is new, the first file is, too").await;
    rotated.write("second", b"second-2");
    rotated.regenerate(b"first-3", b"second-2");
    send("the first key is new again").await;
    sender.close().await;
    rotated.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_fails_until_the_key_file_is_updated() {
    let rotated = Rotated::start().await;
    let client = rotated.client();
    rotated.regenerate(b"first-2", b"second-2");
    let error = C2dSender::connect(&client).await.unwrap_err();
    assert!(
        matches!(error, ConnectionFailure::Unauthorised { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("policy \"iothubowner\""),
        "{error}"
    );
    rotated.write("second", b"second-2");
    let sender = C2dSender::connect(&client).await.unwrap();
    sender.close().await;
    rotated.hub.shutdown().await;
}
