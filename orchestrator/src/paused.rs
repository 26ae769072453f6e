//! Receives the results of devices while a rollout is paused or halted.
//!
//! A pause stops the sends only. Devices with the message continue: the hub returns feedback, and
//! devices install and answer.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use twincast_core::error::describe;
use twincast_core::evidence::unanswered_devices;
use twincast_core::message::Ack;
use twincast_core::outcome::Tally;
use twincast_core::ports::{Disposition, StoreError};
use twincast_core::rollout::Rollout;

use crate::answers::{AnswerMemory, AnswerUpdate, note_query_result};
use crate::dispatching::{DispatchLog, LISTENER_CHECK_INTERVAL};
use crate::driver::Driver;
use crate::planner;

/// The delay before the next try after a store error.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// The delay before the next try after a hub has refused a query.
const REFUSED_DELAY: Duration = Duration::from_secs(600);
/// The interval between two checks for listeners while no feedback is missing.
const SETTLED_INTERVAL: Duration = Duration::from_secs(60);

/// Keeps receiving feedback and answers about a rollout without pending work, until dropped. Store
/// errors are logged, and the work is repeated. Waits forever if the name of a hub now refers to
/// another hub than at planning: the other hub has no results of the rollout.
pub(crate) async fn keep_receiving(driver: &Driver, rollout: &Rollout) -> Infallible {
    if planner::check_hosts(rollout, &driver.hubs).is_err() {
        return pending().await;
    }
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
            let woken = dispatcher.wake_listeners(rollout, &tallies, &mut log);
            woken.await?;
            Ok(unanswered_devices(&Tally::sum(&tallies)))
        };
        let interval = match woken.await {
            Ok(0) => SETTLED_INTERVAL,
            Ok(_) => LISTENER_CHECK_INTERVAL,
            Err(error) => {
                log_error(rollout, &error);
                RETRY_DELAY
            }
        };
        tokio::time::sleep(interval).await;
    }
}

/// Keeps counting the answers in the devices' twins.
async fn keep_counting_answers(driver: &Driver, rollout: &Rollout) -> Infallible {
    let (mut rollout, mut memory) = (rollout.clone(), AnswerMemory::default());
    let on = (&driver.store, &driver.hubs);
    loop {
        match memory.next_update(&rollout, on, &*driver.clock).await {
            Ok(AnswerUpdate::Noted {
                rollout: noted,
                changed,
                missing,
            }) => {
                rollout = *noted;
                note_query_result(&mut rollout, missing.as_deref());
                if changed {
                    save_notes(driver, &rollout).await;
                }
            }
            // The gate decides after a resume.
            Ok(AnswerUpdate::Recorded { .. } | AnswerUpdate::Undecided(_)) => {
                let name = &rollout.spec.name;
                tracing::warn!(rollout = %name, "a hub refuses the queries for answers");
                tokio::time::sleep(REFUSED_DELAY).await;
            }
            Err(error) => {
                log_error(&rollout, &error);
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
}

/// Saves the notes, until the store has accepted or refused them. A refusal means that the record
/// has changed.
async fn save_notes(driver: &Driver, rollout: &Rollout) {
    while let Err(error) = driver.store.save_notes(rollout).await {
        log_error(rollout, &error);
        if error.disposition() == Disposition::Superseded {
            return;
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

fn log_error(rollout: &Rollout, error: &StoreError) {
    let name = &rollout.spec.name;
    tracing::debug!(rollout = %name, error = describe(error), "results not received yet");
}
