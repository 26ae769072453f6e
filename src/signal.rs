//! Signals to stop the process.

use std::future::poll_fn;
use std::sync::LazyLock;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Resolves at the next signal to stop.
pub(crate) async fn stop_signal() {
    StopSignals::new().next().await;
}

/// Signals to stop: Ctrl-C, SIGTERM from a service manager, and SIGHUP from a closed terminal,
/// unless SIGHUP is ignored, as under `nohup`.
pub(crate) struct StopSignals(Vec<Signal>);

impl StopSignals {
    /// Begins to receive signals.
    pub(crate) fn new() -> Self {
        let hang_up = (!ignores_hang_ups()).then(SignalKind::hangup);
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        let kinds = kinds.into_iter().chain(hang_up);
        Self(kinds.filter_map(|kind| signal(kind).ok()).collect())
    }

    /// Waits for the next signal. A signal between two calls counts. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        poll_fn(|context| {
            let mut signals = self.0.iter_mut();
            match signals.any(|signal| signal.poll_recv(context).is_ready()) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

/// Returns true if the process was started to outlive the terminal. The state is read before the
/// handler of the signal is installed, because the handler changes the state.
fn ignores_hang_ups() -> bool {
    static IGNORED: LazyLock<bool> = LazyLock::new(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        is_hang_up_ignored(&status)
    });
    *IGNORED
}

/// Parses `SigIgn` of a process's status: a hexadecimal mask with SIGHUP as the lowest bit.
fn is_hang_up_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_seen() {
        let status = |mask: &str| format!("Name:\tx\nSigBlk:\t01\nSigIgn:\t{mask}\nSigCgt:\t00\n");
        assert!(is_hang_up_ignored(&status("0000000000001001")));
        assert!(!is_hang_up_ignored(&status("0000000000001000")));
        assert!(!is_hang_up_ignored(""));
    }
}
