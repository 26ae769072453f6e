//! The agent as run on devices: real processes, real sockets, real kills; the hub is the emulator.

mod device;
mod ends;
mod files;
mod ftp;
mod hub;
mod kills;
mod network;
mod relay;

use std::time::Duration;

/// The time limit of a condition: far longer than needed, also on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Waits for a condition and returns its value.
async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            match condition().await {
                Some(value) => return value,
                None => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
    };
    let waited = tokio::time::timeout(TIMEOUT, waiting).await;
    waited.unwrap_or_else(|_| panic!("condition not met within {TIMEOUT:?}: {what}"))
}
