//! Where rollouts are to be seen: in a store, or through a server that has one. Commands look through it, and need not
//! know which. A process that works on a state folder is such a server.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use twincast_core::ids::{DeviceId, RolloutName};
use twincast_core::ports::{Clock as _, StoreError};
use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;
use twincast_embedded::SystemClock;
use twincast_orchestrator::view::devices::{Format, Wanted, written};
use twincast_orchestrator::view::explain::{self, Explanation, Unexplained};
use twincast_orchestrator::view::hubs::{HubList, HubView};
use twincast_orchestrator::view::{RolloutRow, RolloutView, Stopped, no_such_rollout};

use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::server::Server;
use crate::stores::{self, AnyStore, Reached};
use crate::summary::{self, Summary};

/// Where rollouts are to be seen.
pub(crate) enum Place {
    Store(AnyStore),
    Server(Server),
}

/// The rollouts that have not ended, and the newest others.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) rows: Vec<RolloutRow>,
    /// How many others there are; all of them have ended.
    pub(crate) older: usize,
    /// Those that a newer release has written.
    pub(crate) newer: Vec<RolloutName>,
    /// Those whose records are damaged.
    pub(crate) damaged: Vec<RolloutName>,
    /// That all rollouts are stopped, if that is so.
    pub(crate) stopped: Option<Stopped>,
}

impl Listing {
    /// The same with `most` at the most; those that have not ended are always there.
    fn cut_to(mut self, most: usize) -> Self {
        let stands = |row: &RolloutRow| (row.state.is_ended(), row.created_at);
        self.older = cut_to(&mut self.rows, most, stands);
        self
    }
}

/// Sorts what `stands` says has ended, and when it began, for a list: what has not ended first, and the newest first. Cuts
/// it to `most`, or to all that have not ended if those are more; gives how many were cut off.
fn cut_to<T>(list: &mut Vec<T>, most: usize, stands: impl Fn(&T) -> (bool, Timestamp)) -> usize {
    list.sort_by_key(|it| {
        let (is_ended, began) = stands(it);
        (is_ended, std::cmp::Reverse(began))
    });
    let active = list.partition_point(|it| !stands(it).0);
    let cut = list.len().saturating_sub(most.max(active));
    list.truncate(list.len() - cut);
    cut
}

impl Place {
    /// The configured server, else the configured store.
    pub(crate) async fn open(settings: &Settings) -> Result<Self, Failure> {
        match Server::configured(settings)? {
            Some(server) => Ok(Self::Server(server)),
            None => Ok(match stores::look(settings).await? {
                Reached::Store(store) => Self::Store(store),
                Reached::AtWork(server) => Self::Server(server),
            }),
        }
    }

    /// A state folder that nobody works on: what is there stays as it is.
    pub(crate) fn is_still(&self) -> bool {
        matches!(self, Self::Store(AnyStore::Folder(_)))
    }

    /// A process that works on a state folder. When it does not answer any more, the folder is to be opened.
    pub(crate) fn is_at_work(&self) -> bool {
        matches!(self, Self::Server(server) if server.is_of_folder())
    }

    /// Lets go of it.
    pub(crate) async fn close(&self) {
        if let Self::Store(store) = self {
            store.close().await;
        }
    }

    /// How often it may be asked for one thing.
    pub(crate) fn pace(&self) -> Duration {
        match self {
            Self::Store(_) => Duration::from_millis(500),
            Self::Server(_) => Duration::from_secs(1),
        }
    }

    /// The rollouts that have not ended, and the newest others: `most` at the most, unless more have not ended.
    pub(crate) async fn newest(&self, most: usize) -> Result<Listing, Failure> {
        match self {
            Self::Store(store) => newest_of(store, most).await.map_err(engine::store_failure),
            Self::Server(server) => Ok(server.rollouts().await?.cut_to(most)),
        }
    }

    /// A rollout as it is now.
    pub(crate) async fn rollout(&self, name: &str) -> Result<RolloutView, Failure> {
        let name = rollout_name(name)?;
        match self {
            Self::Store(store) => {
                let rollout = record(store, &name).await?;
                let tallies = store.tallies(&name).await;
                let tallies = tallies.map_err(engine::store_failure)?;
                Ok(RolloutView::of(&rollout, &tallies, now()))
            }
            Self::Server(server) => server.rollout(&name).await,
        }
    }

    /// A rollout, and what became of its devices.
    pub(crate) async fn summary(&self, name: &str) -> Result<Summary, Failure> {
        let name = rollout_name(name)?;
        match self {
            Self::Store(store) => {
                let rollout = record(store, &name).await?;
                let summary = summary::read(&**store, &rollout).await;
                summary.map_err(engine::store_failure)
            }
            Self::Server(server) => Ok(Summary {
                rollout: server.rollout(&name).await?,
                outcomes: server.outcomes(&name).await?,
            }),
        }
    }

    /// Where a device is in a rollout, why, and what it waits for.
    pub(crate) async fn explain(
        &self,
        name: &str,
        device: &DeviceId,
    ) -> Result<Explanation, Failure> {
        let name = rollout_name(name)?;
        match self {
            Self::Store(store) => {
                let rollout = record(store, &name).await?;
                let explained = explain::read(&**store, &rollout, device, now()).await;
                explained.map_err(unexplained)
            }
            Self::Server(server) => server.explain(&name, device).await,
        }
    }

    /// The devices of a rollout that are wanted, as text in pieces.
    pub(crate) async fn devices(
        &self,
        name: &str,
        wanted: &Wanted,
        format: Format,
    ) -> Result<BoxStream<'static, Result<bytes::Bytes, Failure>>, Failure> {
        let name = rollout_name(name)?;
        match self {
            Self::Store(store) => {
                let rollout = record(store, &name).await?;
                let pieces = written(store.shared(), rollout, wanted, format);
                Ok(pieces
                    .map(|piece| piece.map_err(engine::store_failure))
                    .boxed())
            }
            Self::Server(server) => server.devices(&name, wanted, format).await,
        }
    }

    /// The configured hubs, with what they have to give. Only a server knows of their queues.
    pub(crate) async fn hubs(&self, settings: &Settings) -> Result<HubList, Failure> {
        let store = match self {
            Self::Store(store) => store,
            Self::Server(server) => return server.hubs().await,
        };
        let mut hubs = Vec::new();
        for (name, hub) in &settings.hubs {
            let hub = HubView::read(&**store, name, hub.limits(), None, now()).await;
            hubs.push(hub.map_err(engine::store_failure)?);
        }
        let stopped = store.stopped().await.map_err(engine::store_failure)?;
        Ok(HubList { hubs, stopped })
    }
}

fn now() -> Timestamp {
    SystemClock::start().now()
}

/// A rollout's name, as a user gave it.
fn rollout_name(name: &str) -> Result<RolloutName, Failure> {
    RolloutName::new(name).map_err(|error| Failure::new(ExitCode::Refused, error))
}

async fn record(store: &AnyStore, name: &RolloutName) -> Result<Rollout, Failure> {
    let found = store.rollout(name).await.map_err(engine::store_failure)?;
    if let Some(rollout) = found {
        return Ok(rollout);
    }
    let message = no_such_rollout(&**store, name).await;
    let message = message.map_err(engine::store_failure)?;
    Err(Failure::message(ExitCode::Refused, message))
}

/// Only of the newest are the tallies read.
async fn newest_of(store: &AnyStore, most: usize) -> Result<Listing, StoreError> {
    let mut rollouts = Vec::new();
    let mut listing = Listing {
        stopped: store.stopped().await?,
        ..Listing::default()
    };
    for name in store.rollouts().await? {
        match store.rollout(&name).await {
            Ok(rollout) => rollouts.extend(rollout),
            Err(StoreError::Newer { .. }) => listing.newer.push(name),
            // It must not keep the others from being seen.
            Err(StoreError::Corrupt { .. }) => listing.damaged.push(name),
            Err(error) => return Err(error),
        }
    }
    let stands = |rollout: &Rollout| (rollout.phase.is_ended(), rollout.created_at);
    listing.older = cut_to(&mut rollouts, most, stands);
    for rollout in &rollouts {
        let name = &rollout.spec.name;
        match store.tallies(name).await {
            Ok(tallies) => listing.rows.push(RolloutRow::of(rollout, &tallies, now())),
            Err(StoreError::Corrupt { .. }) => listing.damaged.push(name.clone()),
            Err(error) => return Err(error),
        }
    }
    Ok(listing)
}

fn unexplained(error: Unexplained) -> Failure {
    match error {
        Unexplained::Absent(absence) => {
            let message = [vec![absence.error], absence.possible].concat();
            let failure = Failure::message(ExitCode::Refused, message.join("\n    "));
            engine::with_hint(failure, absence.hint.as_deref())
        }
        Unexplained::Store(error) => engine::store_failure(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_ended_is_never_cut_off() {
        // Name, whether it has ended, when it began.
        let all = [
            ("a", false, 1),
            ("b", true, 5),
            ("c", true, 9),
            ("d", false, 3),
        ];
        for (most, kept, cut) in [(9, "dacb", 0), (3, "dac", 1), (2, "da", 2), (1, "da", 2)] {
            let mut list = all.to_vec();
            let stands = |(_, is_ended, began): &(&str, bool, u64)| (*is_ended, Timestamp(*began));
            assert_eq!(cut_to(&mut list, most, stands), cut, "{most}");
            let names: String = list.iter().map(|(name, ..)| *name).collect();
            assert_eq!(names, kept, "{most}");
        }
    }
}
