//! Being asked to stop.

use std::sync::LazyLock;

use tokio::signal::unix::{SignalKind, signal};

/// Resolves at Ctrl-C, at the polite request of a service manager (SIGTERM), or when the terminal goes away (SIGHUP),
/// unless that is to be ignored, as under `nohup`.
pub(crate) async fn asked_to_stop() {
    let hung_up = async {
        match ignores_hang_ups() {
            true => std::future::pending().await,
            false => heard(SignalKind::hangup()).await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = heard(SignalKind::terminate()) => {}
        () = hung_up => {}
    }
}

async fn heard(kind: SignalKind) {
    match signal(kind) {
        Ok(mut signal) => _ = signal.recv().await,
        Err(_) => std::future::pending().await,
    }
}

/// Whether this process was started to outlive its terminal. It is asked before the signal is listened to, which would
/// change it.
fn ignores_hang_ups() -> bool {
    static IGNORED: LazyLock<bool> = LazyLock::new(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        is_hang_up_ignored(&status)
    });
    *IGNORED
}

/// `SigIgn` of a process's status is a mask in hexadecimal, of which the lowest bit is SIGHUP.
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
