//! Publishes a CloudEvent for each transition of a rollout.
//!
//! A transition is published after it is stored, at least once. The event's id consists of the
//! rollout's name and version, so consumers recognize duplicates.

use async_trait::async_trait;
use serde_json::{Value, json};
use twincast_core::ids::{RolloutName, Version};
use twincast_core::outcome::ClassCounts;
use twincast_core::ports::{QueueError, RolloutRegistry, Store, StoreError};
use twincast_core::rollout::{Event, HistoryEntry, Rollout};
use twincast_core::trace::TRACEPARENT;

/// The destination of events.
#[async_trait]
pub trait Events: Send + Sync + 'static {
    /// Publishes an event under a topic such as `rollout.running`. `Ok` means that the broker has
    /// the event.
    async fn publish(&self, topic: &str, event: &Value) -> Result<(), QueueError>;
}

/// Why events were not published. Publishing is repeated later.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The store fails.
    #[error("cannot read the unpublished events")]
    Store(#[from] StoreError),
    /// The broker fails.
    #[error("cannot publish an event")]
    Queue(#[from] QueueError),
}

/// Publishes the unpublished transitions of a rollout. Returns the version up to which all
/// transitions are published.
///
/// # Errors
/// When the store or the broker fails; some transitions may be published by then.
pub async fn publish_new(
    name: &RolloutName,
    store: &dyn Store,
    registry: &dyn RolloutRegistry,
    destination: &dyn Events,
) -> Result<Version, PublishError> {
    let published = registry.published(name).await?;
    let Some(revision) = store.revision(name).await? else {
        return Ok(published);
    };
    if revision.version <= published {
        return Ok(published);
    }
    let Some(rollout) = store.rollout(name).await? else {
        return Ok(published);
    };
    for entry in rollout
        .history
        .iter()
        .filter(|entry| entry.version > published)
    {
        let topic = format!("rollout.{}", entry.phase);
        destination
            .publish(&topic, &cloud_event(&rollout, entry))
            .await?;
    }
    registry
        .set_published(name, rollout.id, rollout.version)
        .await?;
    Ok(rollout.version)
}

/// Builds the CloudEvent (1.0) of a transition.
#[must_use]
pub fn cloud_event(rollout: &Rollout, entry: &HistoryEntry) -> Value {
    let name = &rollout.spec.name;
    let mut event = json!({
        "specversion": "1.0",
        "id": format!("{name}/{}", entry.version),
        "source": format!("/twincast/rollouts/{name}"),
        "type": format!("io.twincast.rollout.{}", entry.phase),
        "subject": name,
        "time": entry.at,
        "datacontenttype": "application/json",
        "data": {
            "rollout": name,
            "version": entry.version,
            "phase": entry.phase,
            "transition": entry.event,
        },
    });
    if let Event::AllSettled { counts } = &entry.event {
        event["data"]["by_class"] = json!(ClassCounts::of(
            counts,
            rollout.spec.message.wants_feedback()
        ));
    }
    // The CloudEvents extension for distributed tracing.
    if let Some(trace) = rollout.trace {
        event[TRACEPARENT] = json!(trace);
    }
    event
}

#[cfg(test)]
mod tests {
    use twincast_core::outcome::{Counts, Outcome};
    use twincast_testkit::build;

    use super::*;

    #[test]
    fn the_last_event_has_devices_by_class() {
        let rollout = build::after(&build::accepted("r"), Event::PlanningStarted);
        let rollout = build::after(&rollout, build::plan_completed(2));
        let mut counts = Counts::default();
        counts.count(Outcome::Enqueued);
        counts.count(Outcome::Refused);
        let ended = build::after(&rollout, Event::AllSettled { counts });
        let event = cloud_event(&ended, ended.change_entry().unwrap());
        let by_class = &event["data"]["by_class"];
        assert_eq!(
            (&by_class["sent"], &by_class["not_sent"]),
            (&json!(1), &json!(1))
        );
        assert_eq!(event["data"]["transition"]["counts"]["refused"], 1);
    }

    #[test]
    fn events_have_the_transition_and_different_ids() {
        let rollout = build::after(&build::accepted("r"), Event::PlanningStarted);
        let events: Vec<_> = rollout
            .history
            .iter()
            .map(|entry| cloud_event(&rollout, entry))
            .collect();
        let ids: Vec<_> = events.iter().map(|event| event["id"].clone()).collect();
        assert_eq!(ids, ["r/1", "r/2"]);
        assert_eq!(events[1]["type"], "io.twincast.rollout.planning");
        assert_eq!(events[1]["data"]["transition"]["event"], "planning_started");
        assert!(events[0]["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(events[0]["traceparent"], Value::Null);
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let traced = rollout.with_trace(parent.parse().unwrap());
        let event = cloud_event(&traced, &traced.history[0]);
        assert_eq!(event["traceparent"], parent);
    }
}
