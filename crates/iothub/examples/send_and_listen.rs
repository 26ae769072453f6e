//! Sends one message to one device and prints the message's feedback.
//!
//! ```text
//! IOTHUB_CONNECTION_STRING='HostName=…' cargo run -p twincast-iothub --example send_and_listen -- DEVICE TEXT
//! ```
//!
//! `IOTHUB_CA_FILE` may name a PEM file with an additional certificate authority, e.g. the
//! emulator's.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::time::Duration;

use twincast_iothub::{
    Ack, C2dMessage, C2dSender, C2dTemplate, Client, ClientOptions, ConnectionString, Expiry,
    FeedbackReceiver, Roots,
};

/// Longest wait for the device.
const TIMEOUT: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(device), Some(text)) = (arguments.next(), arguments.next()) else {
        return Err("usage: send_and_listen DEVICE TEXT".into());
    };
    let connection = ConnectionString::from_env("IOTHUB_CONNECTION_STRING")?;
    let mut options = ClientOptions::default();
    if let Ok(path) = std::env::var("IOTHUB_CA_FILE") {
        options.roots = Roots::SystemAnd(std::fs::read_to_string(path)?);
    }
    let client = Client::new(&connection, options)?;
    let mut feedback = FeedbackReceiver::connect(&client).await?;
    let sender = C2dSender::connect(&client).await?;

    let template = C2dTemplate::builder(text)
        .content_type("text/plain")
        .ack(Ack::Full)
        .expiry(Expiry::After(TIMEOUT))
        .build()?;
    let id = uuid::Uuid::new_v4().to_string();
    let outcome = sender
        .send(C2dMessage::new(device, id.clone(), template)?)
        .await;
    println!("message {id}: {outcome}");
    sender.close().await;

    let listening = async {
        loop {
            let batch = feedback.next().await?;
            let ours = batch
                .records
                .iter()
                .find(|record| record.original_message_id == id)
                .cloned();
            match ours {
                Some(record) => {
                    println!(
                        "{}: {} {}",
                        record.device_id, record.status, record.description
                    );
                    batch.complete().await?;
                    return Ok::<(), Box<dyn Error>>(());
                }
                // Another application's record: release the batch for that application.
                None => batch.release().await?,
            }
        }
    };
    if outcome.is_accepted() {
        tokio::time::timeout(TIMEOUT, listening).await??;
    }
    Ok(())
}
