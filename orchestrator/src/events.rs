//! What is told to the world: a CloudEvent for each transition of a rollout.
//!
//! A transition is told after it was stored, at least once. Its event's id is the rollout's name
//! and version, so whoever gets it twice can tell.

use async_trait::async_trait;
use serde_json::{Value, json};
use twincast_core::ids::{RolloutName, Version};
use twincast_core::outcome::Ends;
use twincast_core::ports::{QueueError, Roster, Store, StoreError};
use twincast_core::rollout::{Event, HistoryEntry, Rollout};
use twincast_core::trace::TRACEPARENT;

/// Where events go.
#[async_trait]
pub trait Events: Send + Sync + 'static {
    /// Publishes an event under a topic like `rollout.running`. `Ok` means that the broker has it.
    async fn publish(&self, topic: &str, event: &Value) -> Result<(), QueueError>;
}

/// Why events were not told. They are told later.
#[derive(Debug, thiserror::Error)]
pub enum NotTold {
    /// The store fails.
    #[error("cannot find out what is to be told")]
    Store(#[from] StoreError),
    /// The broker fails.
    #[error("cannot publish an event")]
    Queue(#[from] QueueError),
}

/// Tells what was not told yet of a rollout. Gives the version up to which all is told.
///
/// # Errors
/// When store or broker fail; some may have been told.
pub async fn tell(
    name: &RolloutName,
    store: &dyn Store,
    roster: &dyn Roster,
    events: &dyn Events,
) -> Result<Version, NotTold> {
    let told = roster.announced(name).await?;
    let Some(revision) = store.revision(name).await? else {
        return Ok(told);
    };
    if revision.version <= told {
        return Ok(told);
    }
    let Some(rollout) = store.rollout(name).await? else {
        return Ok(told);
    };
    for entry in rollout.history.iter().filter(|entry| entry.version > told) {
        let topic = format!("rollout.{}", entry.phase);
        events
            .publish(&topic, &cloud_event(&rollout, entry))
            .await?;
    }
    roster
        .set_announced(name, rollout.id, rollout.version)
        .await?;
    Ok(rollout.version)
}

/// The CloudEvent (1.0) of a transition.
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
            "happened": entry.event,
        },
    });
    if let Event::AllSettled { counts } = &entry.event {
        event["data"]["ends"] = json!(Ends::of(counts, rollout.spec.message.answers()));
    }
    // The extension for distributed tracing.
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
        let event = cloud_event(&ended, ended.happened().unwrap());
        let ends = &event["data"]["ends"];
        assert_eq!((&ends["sent"], &ends["not_sent"]), (&json!(1), &json!(1)));
        assert_eq!(event["data"]["happened"]["counts"]["refused"], 1);
    }

    #[test]
    fn an_event_says_what_happened_and_can_be_told_apart() {
        let rollout = build::after(&build::accepted("r"), Event::PlanningStarted);
        let events: Vec<_> = rollout
            .history
            .iter()
            .map(|entry| cloud_event(&rollout, entry))
            .collect();
        let ids: Vec<_> = events.iter().map(|event| event["id"].clone()).collect();
        assert_eq!(ids, ["r/1", "r/2"]);
        assert_eq!(events[1]["type"], "io.twincast.rollout.planning");
        assert_eq!(events[1]["data"]["happened"]["event"], "planning_started");
        assert!(events[0]["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(events[0]["traceparent"], Value::Null);
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let traced = rollout.traced_to(parent.parse().unwrap());
        let event = cloud_event(&traced, &traced.history[0]);
        assert_eq!(event["traceparent"], parent);
    }
}
