//! Receives the results of devices while a rollout is paused or halted.
//!
//! A pause stops the sends only. Devices with the message continue: the hub returns feedback, and
//! devices install and answer.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use twincast_core::error::describe;
use twincast_core::message::Ack;
use twincast_core::ports::StoreError;
use twincast_core::rollout::Rollout;

use crate::answers::{AnswerMemory, AnswerUpdate, note_query_result};
use crate::dispatching::{DispatchLog, LISTENER_CHECK_INTERVAL};
use crate::driver::Driver;

/// The delay before the next try after a store error.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Keeps receiving feedback and answers about a rollout without pending work, until dropped. Store
/// errors are logged, and the work is repeated.
pub(crate) async fn keep_receiving(driver: &Driver, rollout: &Rollout) -> Infallible {
    tokio::select! {
        never = keep_listeners(driver, rollout) => never,
        never = keep_counting_answers(driver, rollout) => never,
    }
}

/// Keeps a worker listening to the feedback of every hub with unanswered devices. Workers started
/// during the pause get no batch of the rollout, and would not listen. A hub discards feedback
/// after an hour by default.
async fn keep_listeners(driver: &Driver, rollout: &Rollout) -> Infallible {
    if rollout.spec.message.ack == Ack::None {
        return pending().await;
    }
    let (dispatcher, mut log) = (driver.dispatcher(), DispatchLog::default());
    loop {
        let woken = async {
            let tallies = driver.store.tallies(&rollout.spec.name).await?;
            dispatcher.wake_listeners(rollout, &tallies, &mut log).await
        };
        log_failure(rollout, woken.await);
        tokio::time::sleep(LISTENER_CHECK_INTERVAL).await;
    }
}

/// Keeps counting the answers in the devices' twins.
async fn keep_counting_answers(driver: &Driver, rollout: &Rollout) -> Infallible {
    let (mut rollout, mut memory) = (rollout.clone(), AnswerMemory::default());
    let on = (&driver.store, &driver.hubs);
    loop {
        let counted = async {
            match memory.next_update(&rollout, on, &*driver.clock).await? {
                AnswerUpdate::Noted {
                    rollout: noted,
                    changed,
                    missing,
                } => {
                    rollout = *noted;
                    note_query_result(&mut rollout, missing.as_deref());
                    if changed {
                        driver.store.save_notes(&rollout).await?;
                    }
                    Ok(())
                }
                // The gate decides after a resume.
                AnswerUpdate::Recorded { .. } | AnswerUpdate::Undecided(_) => pending().await,
            }
        };
        let counted = counted.await;
        if counted.is_err() {
            log_failure(&rollout, counted);
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
}

fn log_failure(rollout: &Rollout, result: Result<(), StoreError>) {
    if let Err(error) = result {
        let name = &rollout.spec.name;
        tracing::debug!(rollout = %name, error = describe(&error), "results not received yet");
    }
}
