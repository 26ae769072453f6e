//! A link and its credit.

use std::time::Instant;

use bytes::BytesMut;

use super::address::Node;
use super::performative::Attach;
use crate::hub::FeedbackBatch;

/// The number of messages a sender may have in flight, as on the hub's device-side links.
pub(crate) const CREDIT: u32 = 1_000;
/// The number of transfers between refills of the credit.
pub(crate) const CREDIT_STEP: u32 = 100;
/// The number of unanswered messages of a link above which the credit is not refilled. The bound
/// limits the memory of a connection while sends are delayed or answers are held back.
pub(crate) const BACKLOG_MAX: u32 = 5_000;

/// The state of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// The attach waits for the throttle.
    Opening,
    /// Attached.
    Open,
    /// Detached by the hub, waiting for the peer's detach.
    Detached,
}

/// One link.
#[derive(Debug)]
pub(crate) struct Link {
    /// Distinguishes this link from an earlier link with the same handle.
    pub(crate) serial: u64,
    pub(crate) state: LinkState,
    pub(crate) node: Node,
    pub(crate) peer_receives: bool,
    /// The peer asks for settled deliveries.
    pub(crate) presettled: bool,
    pub(crate) delivery_count: u32,
    pub(crate) credit: u32,
    /// Transfers received.
    pub(crate) transfers: u64,
    /// The number of messages received and not yet answered.
    pub(crate) backlog: u32,
    /// The beginning of an incomplete message.
    pub(crate) partial: Option<Partial>,
}

/// The beginning of a message sent in several transfers.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) delivery_id: u32,
    pub(crate) settled: bool,
    pub(crate) data: BytesMut,
}

/// A delivery of the hub not yet settled by the peer.
#[derive(Debug)]
pub(crate) enum Unsettled {
    /// An answer, a call or a change; the settlement has no effect.
    Reply { handle: u32 },
    /// A message to a device, by the device's slot in the connection and the message's number.
    Message {
        handle: u32,
        device: usize,
        number: u32,
    },
    /// A feedback batch, locked since `since`.
    Feedback {
        handle: u32,
        batch: FeedbackBatch,
        since: Instant,
    },
}

impl Unsettled {
    pub(crate) fn handle(&self) -> u32 {
        match self {
            Self::Reply { handle }
            | Self::Message { handle, .. }
            | Self::Feedback { handle, .. } => *handle,
        }
    }
}

impl Link {
    pub(crate) fn new(serial: u64, node: Node, attach: &Attach, state: LinkState) -> Self {
        Self {
            serial,
            state,
            node,
            peer_receives: attach.peer_receives,
            presettled: attach.snd_settle_mode == Some(1),
            delivery_count: if attach.peer_receives {
                0
            } else {
                attach.initial_delivery_count
            },
            credit: 0,
            transfers: 0,
            backlog: 0,
            partial: None,
        }
    }

    /// Whether the link is open and the hub sends on it for `node`.
    pub(crate) fn sends_for(&self, node: Node) -> bool {
        self.state == LinkState::Open && self.peer_receives && self.node == node
    }
}
