//! Signals to stop the process.

use std::sync::LazyLock;

use tokio::signal::unix::{SignalKind, signal};

/// Resolves at Ctrl-C, at SIGTERM from a service manager, or at SIGHUP from a closed terminal,
/// unless SIGHUP is ignored, as under `nohup`.
pub(crate) async fn stop_signal() {
    let hung_up = async {
        match ignores_hang_ups() {
            true => std::future::pending().await,
            false => wait_for(SignalKind::hangup()).await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = wait_for(SignalKind::terminate()) => {}
        () = hung_up => {}
    }
}

async fn wait_for(kind: SignalKind) {
    match signal(kind) {
        Ok(mut signal) => _ = signal.recv().await,
        Err(_) => std::future::pending().await,
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
