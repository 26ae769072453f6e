//! Being asked to stop.

use tokio::signal::unix::{SignalKind, signal};

/// Resolves at Ctrl-C, or at the polite request of a service manager (SIGTERM).
pub(crate) async fn asked_to_stop() {
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => terminate.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate => {}
    }
}
