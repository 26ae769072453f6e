//! What the hubs have to give.

use serde::{Deserialize, Serialize};
use twincast_core::evidence::{ListenerStatus, Watermark};
use twincast_core::hub::HubLimits;
use twincast_core::ids::HubName;
use twincast_core::link::{Impasse, LinkState, LinkStatus};
use twincast_core::permits::LimiterState;
use twincast_core::ports::{Depth, Store, StoreError};
use twincast_core::time::{Timestamp, ms};
use utoipa::ToSchema;

use super::Stopped;

/// The configured hubs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HubList {
    /// By name.
    pub hubs: Vec<HubView>,
    /// That nothing is sent through any of them, if that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// A hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HubView {
    /// Its name.
    pub name: String,
    /// What may be sent through it in a minute; null for a hub without limits.
    pub messages_per_minute: Option<f64>,
    /// What may be sent through it in a day; null for a hub without limits.
    pub messages_per_day: Option<u64>,
    /// Batches on its dispatch queue that no worker has taken; null when the broker does not say.
    pub dispatches_waiting: Option<u64>,
    /// Workers that take its batches; null when the broker does not say.
    pub workers: Option<u64>,
    /// Whether workers can send through it.
    #[serde(default)]
    pub links: LinksView,
    /// What its limiter does now.
    pub permits: PermitsView,
    /// How far its feedback was heard.
    pub feedback: FeedbackView,
}

/// Whether workers can send through a hub, as they report it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinksView {
    /// Workers with a link that messages can leave over.
    pub open: u64,
    /// Workers that can send nothing.
    pub hindered: u64,
    /// Why they cannot, of the one for which that has lasted longest, for people: words that follow "the hub".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Since when it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub since: Option<Timestamp>,
}

impl LinksView {
    fn of(links: &[LinkStatus], now: Timestamp) -> Self {
        let is_open = |link: &&LinkStatus| link.is_present() && link.state == LinkState::Open;
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let partly = Impasse::partly(links);
        let partly = partly.as_ref();
        Self {
            open: count(links.iter().filter(is_open).count()),
            hindered: count(partly.map_or(0, |(_, _, hindered)| *hindered)),
            since: partly.map(|(_, lasting, _)| now.minus(*lasting)),
            trouble: partly.map(|(impasse, ..)| impasse.to_string()),
        }
    }
}

/// How far a hub's feedback was heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FeedbackView {
    /// All that the hub had told by this moment is recorded. None while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub heard_until: Option<Timestamp>,
    /// Why more is not heard, for people. None while nothing is in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_the_way: Option<String>,
}

/// What a hub's limiter does now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PermitsView {
    /// What is given in a minute: the quota, or less for a while after the hub has refused sends. Null for a hub without
    /// limits.
    pub per_minute: Option<f64>,
    /// How many milliseconds ahead of now sends are reserved; a second or more when all is given that can be.
    pub reserved_ms: u64,
    /// Until when nothing is given, because the hub has refused sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub shut_until: Option<Timestamp>,
    /// The rollouts that want some now.
    pub rollouts: Vec<String>,
}

impl HubView {
    /// A hub as it is at `now`. `depth` is of its dispatch queue, if that is known.
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
        // Where no rollout has asked for answers, nobody need listen.
        let obstacle = watermark.obstacle.filter(|_| !listeners.is_empty());
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let quota = limits.sends_per_minute;
        let shut_for = quota.and_then(|quota| limiter.shut_for(quota));
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
                shut_until: shut_for.map(|time| now.plus(time)),
                rollouts: limiter.asking.iter().map(ToString::to_string).collect(),
            },
            feedback: FeedbackView {
                heard_until: watermark.heard_until,
                in_the_way: obstacle.map(|obstacle| obstacle.to_string()),
            },
        }
    }
}
