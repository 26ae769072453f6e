//! The four ports. Each has one conformance suite in `twincast-testkit`, which every
//! implementation passes.

mod clock;
mod hub;
mod queue;
mod store;

pub use clock::Clock;
pub use hub::{DeviceQuery, DeviceRow, Hindrance, Hub, HubError, HubTrouble, NotSent, SendResult};
pub use queue::{Deliveries, Delivery, Dispatch, Queue, QueueError, Ticket};
pub use store::{
    BatchWork, Created, LeaseReply, LeaseRequest, PermitRequest, Report, Store, StoreError, Tally,
};
