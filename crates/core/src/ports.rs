//! The ports. Each has one conformance suite in `twincast-testkit`, which every
//! implementation passes.

mod batches;
mod clock;
mod disposition;
mod hub;
mod limiter;
mod lines;
mod metric_source;
mod presence;
mod queue;
mod rollouts;
mod roster;
mod store;
mod store_error;

pub use batches::{
    BatchWork, Batches, Begins, Change, Committed, KnownDevice, Leased, Loaded, Operation, Part,
};
pub use clock::Clock;
pub use disposition::Disposition;
pub use hub::{
    DevicePage, DeviceQuery, DeviceRow, Feedback, FeedbackBatch, FeedbackRecord, FeedbackTicket,
    Hindrance, Hub, HubError, HubTrouble, NotSent, OddRow, SendResult,
};
pub use limiter::Limiter;
pub use lines::Lines;
pub use metric_source::{MetricSource, MetricSourceError};
pub use presence::Presence;
pub use queue::{Deliveries, Delivery, Depth, Dispatch, Queue, QueueError, Ticket};
pub use rollouts::{Created, Rollouts};
pub use roster::{Halt, Listed, Roster, RosterLook};
pub use store::Store;
pub use store_error::StoreError;

pub use crate::batch::{LeaseReply, LeaseRequest, Report, Skip};
pub use crate::outcome::Tally;
