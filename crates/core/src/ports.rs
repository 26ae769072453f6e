//! The ports: the traits between the engine and the outside world. `twincast-testkit` has one
//! conformance suite per port, and every implementation passes it.

mod batches;
mod clock;
mod disposition;
mod group_queues;
mod hub;
mod limiter;
mod metric_source;
mod presence;
mod queue;
mod rollout_registry;
mod rollouts;
mod store;
mod store_error;

pub use batches::{
    BatchWork, Batches, BudgetEntry, Change, Committed, KnownDevice, Leased, Loaded, Operation,
    Part,
};
pub use clock::Clock;
pub use disposition::Disposition;
pub use group_queues::GroupQueues;
pub use hub::{
    DevicePage, DeviceQuery, DeviceRow, Feedback, FeedbackBatch, FeedbackRecord, FeedbackTicket,
    Hub, HubError, HubObstacle, HubTrouble, MalformedRow, NotSent, SendResult,
};
pub use limiter::Limiter;
pub use metric_source::{MetricSource, MetricSourceError};
pub use presence::Presence;
pub use queue::{Deliveries, Delivery, Depth, Dispatch, Queue, QueueError, Ticket};
pub use rollout_registry::{Halt, RegistryEntry, RegistrySnapshot, RolloutRegistry};
pub use rollouts::{Created, Rollouts};
pub use store::Store;
pub use store_error::StoreError;

pub use crate::batch::{LeaseReply, LeaseRequest, Report, Skip};
pub use crate::outcome::Tally;
