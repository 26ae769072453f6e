//! The state of the hubs.

use serde::{Deserialize, Serialize};
use twincast_core::evidence::{ListenerStatus, Watermark};
use twincast_core::hub::HubLimits;
use twincast_core::ids::HubName;
use twincast_core::link::{LinkObstacle, LinkState, LinkStatus};
use twincast_core::permits::LimiterState;
use twincast_core::ports::{Depth, Store, StoreError};
use twincast_core::time::{Timestamp, ms};
use utoipa::ToSchema;

use super::Stopped;

/// The configured hubs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HubList {
    /// The hubs, by name.
    pub hubs: Vec<HubView>,
    /// The stop of all rollouts, if in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// A hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HubView {
    /// The hub's name.
    pub name: String,
    /// The quota of messages per minute; null for a hub without limits.
    pub messages_per_minute: Option<f64>,
    /// The quota of messages per day; null for a hub without limits.
    pub messages_per_day: Option<u64>,
    /// Batches on the hub's dispatch queue not taken by a worker; null when the broker gives no
    /// number.
    pub dispatches_waiting: Option<u64>,
    /// Workers that consume the hub's batches; null when the broker gives no number.
    pub workers: Option<u64>,
    /// Whether workers can send through the hub.
    #[serde(default)]
    pub links: LinksView,
    /// The current state of the hub's limiter.
    pub permits: PermitsView,
    /// The state of the hub's feedback.
    pub feedback: FeedbackView,
}

/// Whether workers can send through a hub, as reported by the workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinksView {
    /// Workers with an open link for messages.
    pub open: u64,
    /// Workers that cannot send.
    pub hindered: u64,
    /// The trouble of the worker hindered for longest, for people. The text follows "the hub".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The start of this trouble.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub since: Option<Timestamp>,
}

impl LinksView {
    fn of(links: &[LinkStatus], now: Timestamp) -> Self {
        let is_open = |link: &&LinkStatus| link.is_present() && link.state == LinkState::Open;
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let longest = LinkObstacle::longest(links);
        let longest = longest.as_ref();
        Self {
            open: count(links.iter().filter(is_open).count()),
            hindered: count(longest.map_or(0, |(_, _, hindered)| *hindered)),
            since: longest.map(|(_, lasting, _)| now.minus(*lasting)),
            trouble: longest.map(|(obstacle, ..)| obstacle.to_string()),
        }
    }
}

/// The state of a hub's feedback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FeedbackView {
    /// The time up to which all of the hub's feedback is recorded. None while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub heard_until: Option<Timestamp>,
    /// The obstacle to more feedback, for people. None without an obstacle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

/// The current state of a hub's limiter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PermitsView {
    /// The permits per minute: the quota, or less for a while after refused sends. Null for a hub
    /// without limits.
    pub per_minute: Option<f64>,
    /// The time ahead of now for which sends are reserved, in milliseconds; a second or more when
    /// all possible permits are given.
    pub reserved_ms: u64,
    /// The end of a time without permits, caused by refused sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub paused_until: Option<Timestamp>,
    /// The rollouts that ask for permits now.
    pub rollouts: Vec<String>,
}

impl HubView {
    /// Reads the state of a hub at `now`. `depth` is the depth of the hub's dispatch queue, if
    /// known.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read(
        store: &dyn Store,
        name: &HubName,
        limits: HubLimits,
        depth: Option<Depth>,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let limiter = store.limiter(name).await?;
        let listeners = store.listeners(name).await?;
        let links = store.links(name).await?;
        Ok(Self {
            links: LinksView::of(&links, now),
            ..Self::of(name, limits, depth, &limiter, &listeners, now)
        })
    }

    fn of(
        name: &HubName,
        limits: HubLimits,
        depth: Option<Depth>,
        limiter: &LimiterState,
        listeners: &[ListenerStatus],
        now: Timestamp,
    ) -> Self {
        let watermark = Watermark::of(listeners, now);
        // Where no rollout has asked for feedback, no listener is needed.
        let obstacle = watermark.obstacle.filter(|_| !listeners.is_empty());
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let quota = limits.sends_per_minute;
        let paused_for = quota.and_then(|quota| limiter.paused_for(quota));
        Self {
            name: name.to_string(),
            messages_per_minute: quota,
            messages_per_day: limits.messages_per_day,
            dispatches_waiting: depth.map(|depth| count(depth.waiting)),
            workers: depth.map(|depth| count(depth.consumers)),
            links: LinksView::default(),
            permits: PermitsView {
                per_minute: quota.map(|quota| quota * limiter.factor),
                reserved_ms: ms(limiter.ahead),
                paused_until: paused_for.map(|time| now.plus(time)),
                rollouts: limiter.asking.iter().map(ToString::to_string).collect(),
            },
            feedback: FeedbackView {
                heard_until: watermark.heard_until,
                obstacle: obstacle.map(|obstacle| obstacle.to_string()),
            },
        }
    }
}
