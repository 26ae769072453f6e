//! No key and no token appears in any log at the level `trace`, from this crate or from its
//! dependencies.

use std::io::Write;
use std::sync::{Arc, Mutex};

use twincast_emulator::Faults;
use twincast_iothub::{C2dSender, ConnectionString, FeedbackReceiver};

use crate::common::entra::{entra_client, entra_hub};
use crate::common::{client, hub, message, template};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_key_nor_token_shows_at_the_level_trace() {
    let log = Log::default();
    let writer = log.clone();
    // Also captures records of the `log` crate.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let hub = hub(10, Faults::default()).await;
    let client = client(&hub);
    let sender = C2dSender::connect(&client).await.unwrap();
    assert!(sender.send(message(&template(), 1, 1)).await.is_accepted());
    client.count(None).await.unwrap();
    client.twin("nobody").await.unwrap_err();
    let feedback = FeedbackReceiver::connect(&client).await.unwrap();
    feedback.close();
    sender.close().await;
    hub.hub().set_faults(Faults {
        refuse_cbs: true,
        ..Faults::default()
    });
    let refused = C2dSender::connect(&client).await.unwrap_err();
    let of_entra = entra_hub(3_600, "IoT Hub Data Contributor").await;
    let client = entra_client(&of_entra);
    client.count(None).await.unwrap();
    C2dSender::connect(&client).await.unwrap().close().await;

    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(text.contains("TRACE"), "the log is empty");
    let connection: ConnectionString = hub.connection_string().parse().unwrap();
    let shown = format!("{text}{refused:?}{refused}{client:?}");
    for secret in [
        connection.key().expose(),
        "sig=",
        "SharedAccessSignature sr",
        "s3cr3t",
        // The first characters of every JWT: `{"` in base64.
        "eyJ",
    ] {
        let at = shown.find(secret);
        let near = at.map(|at| shown.get(at.saturating_sub(200)..at).unwrap_or_default());
        assert_eq!(at, None, "a secret shows after: {near:?}");
    }
}
