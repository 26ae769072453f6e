//! Runs work with panics turned into ordinary failures.
//!
//! A hub's bytes pass through a protocol library. A defect in the library, or in a caller's hook,
//! must cost one connection, but neither the task running the work nor the process.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;

use crate::c2d::ConnectionFailure;
use crate::hub_message::cut;

/// Runs `work`, and turns a panic into a transient failure of `stage`. State borrowed by `work`
/// must not be used after a failure: connections are dropped.
pub(crate) async fn supervised<T>(
    stage: &'static str,
    work: impl Future<Output = Result<T, ConnectionFailure>>,
) -> Result<T, ConnectionFailure> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => Err(ConnectionFailure::Broken {
            stage,
            detail: cut(&format!("internal error: {}", panic_message(&*panic))),
        }),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
