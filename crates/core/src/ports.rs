//! The ports. Each has one conformance suite in `twincast-testkit`, which every
//! implementation passes.

mod clock;
mod hub;
mod metric_source;
mod queue;
mod roster;
mod store;

pub use clock::Clock;
pub use hub::{
    DevicePage, DeviceQuery, DeviceRow, Feedback, FeedbackBatch, FeedbackRecord, FeedbackTicket,
    Hindrance, Hub, HubError, HubTrouble, NotSent, OddRow, SendResult,
};
pub use metric_source::{MetricSource, MetricSourceError};
pub use queue::{Deliveries, Delivery, Depth, Dispatch, Queue, QueueError, Ticket};
pub use roster::{Halt, Roster};
pub use store::{
    BatchWork, Created, LeaseReply, LeaseRequest, Report, Skip, Store, StoreError, Tally,
};
