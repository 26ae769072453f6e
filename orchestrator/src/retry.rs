//! New attempts at devices that do not have the message.
//!
//! A retry is requested, which is one change of the rollout's record. Whoever drives the rollout then
//! prepares it: batch by batch, the chosen devices become pending again. Only when all of them are is
//! anything sent, and any gate asked.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::batch::Reopened;
use twincast_core::ids::{BatchId, StageIndex, StageName};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{StoreError, Tally};
use twincast_core::rollout::{Event, Retry, Rollout};

use crate::command::{Command, Refusal};
use crate::driver::{DriveError, Driver};
use crate::intake::{cannot, must_have};

/// Batches that are looked at at once.
const PAGE: usize = 256;

impl Driver {
    /// Makes the chosen devices pending again, once the workers have let go, and notes that. May be done
    /// again at any point: what was done is left as it is.
    pub(crate) async fn prepare_retry(
        &self,
        rollout: &Rollout,
        stop: &CancellationToken,
    ) -> Result<(), DriveError> {
        let Some(retry) = &rollout.retry else {
            return Ok(());
        };
        let name = &rollout.spec.name;
        let store_error = |source| DriveError::Store {
            rollout: name.clone(),
            source,
        };
        let mut devices = 0;
        let durable_after = self.store.durable_after();
        // Since when no batch needs to be reopened, as far as the store has lost none of it.
        let mut clean_since: Option<Instant> = None;
        loop {
            let began = Instant::now();
            let Some(pass) = self
                .reopen_all(rollout, retry, stop)
                .await
                .map_err(store_error)?
            else {
                return Ok(());
            };
            devices += pass.devices;
            let is_clean = !pass.held && (pass.devices == 0 || durable_after.is_zero());
            let clean_for = clean_since.map(|since| began.saturating_duration_since(since));
            if is_clean && (durable_after.is_zero() || clean_for >= Some(durable_after)) {
                break;
            }
            let wait = if is_clean {
                durable_after
            } else {
                self.config.pass
            };
            clean_since = is_clean.then(|| clean_since.unwrap_or_else(Instant::now));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
        let attempt = retry.attempt;
        tracing::info!(rollout = %name, %attempt, devices, "devices are to be sent to again");
        self.apply(rollout, Event::RetryPrepared).await?;
        Ok(())
    }

    /// Reopens what is to be reopened in all batches. `None` after `stop`.
    async fn reopen_all(
        &self,
        rollout: &Rollout,
        retry: &Retry,
        stop: &CancellationToken,
    ) -> Result<Option<Page>, StoreError> {
        let mut all = Page::default();
        loop {
            let page = self.reopen_page(rollout, retry, all.last).await?;
            all.devices += page.devices;
            all.held |= page.held;
            all.last = page.last;
            if all.last.is_none() {
                return Ok(Some(all));
            }
            if stop.is_cancelled() {
                return Ok(None);
            }
        }
    }

    async fn reopen_page(
        &self,
        rollout: &Rollout,
        retry: &Retry,
        after: Option<BatchId>,
    ) -> Result<Page, StoreError> {
        let name = &rollout.spec.name;
        let batches = self.store.batches(name, after, PAGE).await?;
        let mut page = Page {
            last: batches.last().map(|batch| batch.header.id),
            devices: 0,
            held: false,
        };
        for batch in &batches {
            if !concerns(retry.stage.as_ref(), rollout, batch.header.stage) {
                continue;
            }
            if batch.held.is_some() {
                // What its holder has in flight may be a failure yet.
                page.held = true;
            } else if chosen(&retry.outcomes, &batch.counts) > 0 {
                let (id, attempt) = (batch.header.id, retry.attempt);
                let reopened = self
                    .store
                    .reopen(name, id, attempt, &retry.outcomes)
                    .await?;
                match reopened {
                    Reopened::Devices(devices) => page.devices += u64::from(devices),
                    Reopened::Held(_) => page.held = true,
                }
            }
        }
        Ok(page)
    }
}

/// What became of a page of batches.
#[derive(Default)]
struct Page {
    /// The last of them; none, if there are no more.
    last: Option<BatchId>,
    devices: u64,
    held: bool,
}

/// What a command to retry means for a rollout as it is.
///
/// # Errors
/// [`Refusal`] when it names a stage that the rollout does not have, or an outcome at which there is no
/// new attempt.
pub(crate) fn requested(rollout: &Rollout, command: &Command) -> Result<Event, Refusal> {
    let event = |outcomes| Event::RetryRequested {
        outcomes,
        stage: command.stage.clone(),
        word: command.word(),
    };
    if let Some(stage) = &command.stage {
        must_have(rollout, stage, &event(Vec::new()))?;
    }
    let can: Vec<_> = Outcome::ALL
        .into_iter()
        .filter(|outcome| outcome.can_be_retried())
        .collect();
    if let Some(outcome) = command.outcomes.iter().find(|it| !it.can_be_retried()) {
        let can = in_a_row(&can);
        let found = format!(
            "devices that are {outcome} are not sent to again; those may be that are {can}"
        );
        return Err(cannot(rollout, &event(Vec::new()), found));
    }
    let mut outcomes: Vec<_> = if command.outcomes.is_empty() {
        can.into_iter().filter(|it| it.is_failure()).collect()
    } else {
        command.outcomes.clone()
    };
    outcomes.sort_unstable();
    outcomes.dedup();
    Ok(event(outcomes))
}

/// Why a retry that may be made would change nothing, if it would not.
pub(crate) fn pointless(event: &Event, rollout: &Rollout, tallies: &[Tally]) -> Option<String> {
    let Event::RetryRequested {
        outcomes, stage, ..
    } = event
    else {
        return None;
    };
    let concerned = tallies
        .iter()
        .filter(|tally| concerns(stage.as_ref(), rollout, tally.stage));
    if concerned
        .map(|tally| chosen(outcomes, &tally.counts))
        .sum::<u64>()
        > 0
    {
        return None;
    }
    let of = match stage {
        Some(stage) => format!("of stage {stage} "),
        None => String::new(),
    };
    Some(format!("no device {of}is {}", in_a_row(outcomes)))
}

/// How many of the counted devices have one of `outcomes`.
fn chosen(outcomes: &[Outcome], counts: &Counts) -> u64 {
    counts.sum_of(|outcome| outcomes.contains(&outcome))
}

/// Whether a retry of `stage`, or of all there are, is about the stage at `index`.
fn concerns(stage: Option<&StageName>, rollout: &Rollout, index: StageIndex) -> bool {
    let at = rollout.stages.get(usize::from(index.0));
    stage.is_none_or(|stage| at.is_some_and(|at| at.name == *stage))
}

fn in_a_row(outcomes: &[Outcome]) -> String {
    let words: Vec<_> = outcomes.iter().map(|outcome| outcome.as_str()).collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}
