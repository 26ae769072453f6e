//! Accepting a rollout.

use twincast_core::ids::Version;
use twincast_core::json::Json;
use twincast_core::ports::{Created, Store, StoreError};
use twincast_core::rollout::{Phase, PlanId, Rollout, history};
use twincast_core::spec::difference;

use crate::groups::{self, NotAdmitted};

/// What became of a rollout that was handed in.
#[derive(Debug, Clone, PartialEq)]
pub enum Accepted {
    /// It is new.
    New(Box<Rollout>),
    /// It is the rollout that was handed in before under its name.
    Same(Box<Rollout>),
    /// Its name is taken by a rollout that asked for something else.
    Conflict {
        /// The one that has the name.
        existing: Box<Rollout>,
        /// What differs, one line a field.
        difference: Vec<String>,
    },
    /// Another one of its group is active. Nothing was stored.
    NotAdmitted(NotAdmitted),
}

/// Stores a rollout that was [just made](Rollout::accepted), once: handing it in again changes nothing.
///
/// A rollout that failed while it was planned has sent nothing. It does not keep its name: what
/// is handed in next takes its place, be it the same again or something else. What happened before
/// stays in the history: it may not have been told to the world yet.
///
/// # Errors
/// When the store fails.
pub async fn accept(store: &dyn Store, rollout: Rollout) -> Result<Accepted, StoreError> {
    let (spec, now) = (&rollout.spec, rollout.created_at);
    let before = store.rollout(&spec.name).await?;
    let version = match &before {
        None => Some(Version(1)),
        Some(failed) if matches!(failed.phase, Phase::Failed { .. }) => {
            Some(Version(failed.version.0 + 1))
        }
        Some(_) => None,
    };
    if let Some(version) = version
        && let Err(refused) = groups::join_for(store, spec, version, now).await?
    {
        return Ok(Accepted::NotAdmitted(refused));
    }
    match store.create(&rollout).await? {
        Created::New => Ok(Accepted::New(Box::new(rollout))),
        Created::Existing(existing) if matches!(existing.phase, Phase::Failed { .. }) => {
            let from = existing.revision();
            let version = Version(existing.version.0 + 1);
            let mut next = Rollout {
                version,
                plan_id: PlanId(existing.plan_id.0 + 1),
                ..rollout
            };
            for entry in &mut next.history {
                entry.version = version;
            }
            next.history.splice(..0, existing.history);
            history::bound(&mut next.history);
            store.save(&next, from).await?;
            Ok(Accepted::New(Box::new(next)))
        }
        Created::Existing(existing) => {
            let difference = differences(&existing, &rollout);
            if difference.is_empty() {
                Ok(Accepted::Same(existing))
            } else {
                Ok(Accepted::Conflict {
                    existing,
                    difference,
                })
            }
        }
    }
}

/// What two rollouts of one name ask for differently.
fn differences(old: &Rollout, new: &Rollout) -> Vec<String> {
    let json = |spec| Json::of(spec).expect("a spec is plain data");
    let mut lines = difference(&json(&old.spec), &json(&new.spec));
    let changed = |path: &&String| {
        new.files
            .get(*path)
            .is_some_and(|digest| *digest != old.files[*path])
    };
    lines.extend(
        old.files
            .keys()
            .filter(changed)
            .map(|path| format!("the contents of {path} changed")),
    );
    lines
}
