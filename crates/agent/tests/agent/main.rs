//! The agent as devices run it: real processes, real sockets, real kills; the hub is the emulator.

mod device;
mod ends;
mod files;
mod ftp;
mod gate;
mod hub;
mod kills;
mod network;

use std::time::Duration;

/// How long a condition may take: much longer than it does, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Waits for a condition.
async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            match condition().await {
                Some(value) => return value,
                None => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}
