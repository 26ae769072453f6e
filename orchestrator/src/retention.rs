//! Deletes rollouts that ended long ago.

use std::cmp::Reverse;
use std::time::Duration;

use twincast_core::error::describe;
use twincast_core::ids::RolloutName;
use twincast_core::ports::{Disposition, StoreError};
use twincast_core::time::{Timestamp, friendly};

use crate::command::{Command, Kind};
use crate::command_executor::{CommandError, CommandExecutor};

/// The wait before the first pass, so that a restart causes no load.
const FIRST_PASS_DELAY: Duration = Duration::from_secs(60);
/// The wait between two passes.
const PASS_INTERVAL: Duration = Duration::from_secs(3600);
/// The wait between two deletions.
const DELETION_DELAY: Duration = Duration::from_millis(100);

/// The rules for keeping ended rollouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The time for which a rollout is kept after its end.
    pub keep: Duration,
    /// The number of newest ended rollouts kept in any case.
    pub keep_at_least: usize,
}

impl Retention {
    /// Returns the ended rollouts to be deleted, the oldest first. The input has the time of each
    /// rollout's end.
    fn surplus(
        &self,
        mut ended: Vec<(Timestamp, RolloutName)>,
        now: Timestamp,
    ) -> Vec<RolloutName> {
        ended.sort_by_key(|(at, _)| Reverse(*at));
        let beyond = ended.into_iter().skip(self.keep_at_least);
        let old = beyond.filter(|(at, _)| now.since(*at) > self.keep);
        let mut surplus: Vec<_> = old.map(|(_, name)| name).collect();
        surplus.reverse();
        surplus
    }

    /// Makes a pass about once an hour, until dropped. The next pass repeats failed deletions.
    pub async fn apply_repeatedly(&self, executor: &CommandExecutor) {
        let mut wait = FIRST_PASS_DELAY;
        loop {
            tokio::time::sleep(wait).await;
            wait = PASS_INTERVAL;
            if let Err(error) = self.apply_once(executor, DELETION_DELAY).await {
                tracing::warn!(
                    error = describe(&error),
                    "cannot delete expired rollouts now"
                );
            }
        }
    }

    /// Deletes the surplus rollouts one after the other, with a `pause` after each, and returns the
    /// number of deleted rollouts. Leaves out rollouts that cannot be read or deleted.
    ///
    /// Several processes may do this at once. Cancel safety: may be dropped at any time.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn apply_once(
        &self,
        executor: &CommandExecutor,
        pause: Duration,
    ) -> Result<usize, StoreError> {
        let mut ended = Vec::new();
        for name in executor.store.rollouts().await? {
            match executor.store.rollout(&name).await {
                Ok(Some(rollout)) if rollout.phase.is_ended() => {
                    ended.push((rollout.changed_at, name));
                }
                Err(error) if error.disposition() != Disposition::Fatal => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let mut deleted = 0;
        for name in self.surplus(ended, executor.clock.now()) {
            let command = Command {
                by: Some("retention".to_owned()),
                reason: Some(format!("ended more than {} ago", friendly(self.keep))),
                ..Command::about(Kind::Delete, Some(name.clone()))
            };
            match executor.attempt(&command).await {
                Ok(_) => deleted += 1,
                Err(CommandError::Refused(refusal)) => {
                    tracing::info!(rollout = %name, why = refusal.error, "rollout not deleted now");
                }
                Err(CommandError::Store(error)) => return Err(error),
            }
            tokio::time::sleep(pause).await;
        }
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_rollouts_are_deleted_but_for_the_newest() {
        const DAY: u64 = 86_400_000;
        let ended = |days: &[u64]| -> Vec<_> {
            let name = |day: &u64| RolloutName::new(format!("d{day}")).unwrap();
            days.iter()
                .map(|day| (Timestamp(day * DAY), name(day)))
                .collect()
        };
        let surplus = |keep: u64, keep_at_least, days: &[u64]| -> Vec<String> {
            let keep = Duration::from_millis(keep * DAY);
            let retention = Retention {
                keep,
                keep_at_least,
            };
            let names = retention.surplus(ended(days), Timestamp(100 * DAY));
            names.iter().map(ToString::to_string).collect()
        };
        assert_eq!(surplus(10, 0, &[]), [""; 0]);
        assert_eq!(surplus(10, 0, &[50, 95, 20, 90, 89]), ["d20", "d50", "d89"]);
        assert_eq!(surplus(10, 1, &[50, 95, 20, 90, 89]), ["d20", "d50", "d89"]);
        assert_eq!(surplus(10, 3, &[50, 95, 20, 90, 89]), ["d20", "d50"]);
        assert_eq!(surplus(10, 9, &[50, 95, 20, 90, 89]), [""; 0]);
    }
}
