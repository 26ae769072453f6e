//! Work in which a panic is a failure like any other.
//!
//! A hub's bytes go through a protocol library. A defect in it, or in a hook of the caller's, must cost a connection and
//! no more: neither the task that the work runs in, nor the process.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;

use crate::c2d::ConnectionFailure;
use crate::hub_message::cut;

/// Runs `work`, and makes a panic in it a failure of `stage` that passes. What `work` had borrowed must not be relied on
/// after a failure: connections are dropped.
pub(crate) async fn supervised<T>(
    stage: &'static str,
    work: impl Future<Output = Result<T, ConnectionFailure>>,
) -> Result<T, ConnectionFailure> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => Err(ConnectionFailure::Broken {
            stage,
            detail: cut(&format!("a defect was met: {}", words(&*panic))),
        }),
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
