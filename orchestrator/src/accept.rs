//! Accepting a rollout.

use twincast_core::ids::Version;
use twincast_core::json::Json;
use twincast_core::ports::{Created, Store, StoreError};
use twincast_core::rollout::{Phase, PlanId, Rollout, history};
use twincast_core::spec::difference;

use crate::groups::{self, NotAdmitted};

/// The result of submitting a rollout.
#[derive(Debug, Clone, PartialEq)]
pub enum SubmitResult {
    /// The rollout was stored as a new rollout.
    New(Box<Rollout>),
    /// A stored rollout of the same name is identical.
    Same(Box<Rollout>),
    /// A stored rollout of the same name differs.
    Conflict {
        /// The stored rollout.
        existing: Box<Rollout>,
        /// The differences, one line per field.
        difference: Vec<String>,
    },
    /// The concurrency group does not admit the rollout. Nothing was stored.
    NotAdmitted(NotAdmitted),
}

/// Stores a [newly made](Rollout::accepted) rollout. Idempotent: submitting the same rollout again
/// changes nothing.
///
/// A rollout that failed during planning has sent nothing, so the next submission under the same
/// name replaces the rollout, with an identical spec or another. The history of the failed rollout
/// is kept, because some of its events may not be published yet.
///
/// # Errors
/// When the store fails.
pub async fn accept(store: &dyn Store, rollout: Rollout) -> Result<SubmitResult, StoreError> {
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
        return Ok(SubmitResult::NotAdmitted(refused));
    }
    match store.create(&rollout).await? {
        Created::New => Ok(SubmitResult::New(Box::new(rollout))),
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
            Ok(SubmitResult::New(Box::new(next)))
        }
        Created::Existing(existing) => {
            let difference = differences(&existing, &rollout);
            if difference.is_empty() {
                Ok(SubmitResult::Same(existing))
            } else {
                Ok(SubmitResult::Conflict {
                    existing,
                    difference,
                })
            }
        }
    }
}

/// Lists the differences between two rollouts of the same name, in spec and file contents.
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
