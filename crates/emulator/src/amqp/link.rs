//! A link and its credit.

use std::time::Instant;

use bytes::BytesMut;

use super::address::Node;
use super::performative::Attach;
use crate::hub::FeedbackBatch;

/// How many messages the hub lets a sender have in flight, as its device-side links do.
pub(crate) const CREDIT: u32 = 1_000;
/// After how many transfers the credit is filled up again.
pub(crate) const CREDIT_STEP: u32 = 100;
/// How many unanswered messages a link may have before its credit is no longer filled up. It bounds what a
/// connection holds while sends are shaped or answers are held back.
pub(crate) const BACKLOG_MAX: u32 = 5_000;

/// What a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// Its attach waits for the throttle.
    Opening,
    /// In use.
    Open,
    /// Detached by the hub; the peer's detach is still to come.
    Detached,
}

/// One link.
#[derive(Debug)]
pub(crate) struct Link {
    /// Tells this link from an earlier one with the same handle.
    pub(crate) serial: u64,
    pub(crate) state: LinkState,
    pub(crate) node: Node,
    pub(crate) peer_receives: bool,
    /// The peer wants everything settled in advance.
    pub(crate) presettled: bool,
    pub(crate) delivery_count: u32,
    pub(crate) credit: u32,
    /// Transfers received.
    pub(crate) transfers: u64,
    /// Messages received and not answered yet.
    pub(crate) backlog: u32,
    /// A message of which more is to come.
    pub(crate) partial: Option<Partial>,
}

/// The beginning of a message.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) delivery_id: u32,
    pub(crate) settled: bool,
    pub(crate) data: BytesMut,
}

/// A delivery of the hub that the peer has not settled.
#[derive(Debug)]
pub(crate) enum Unsettled {
    /// An answer, a call or a change; nothing depends on it.
    Reply { handle: u32 },
    /// A message of a device, by its place in the connection and its number.
    Message {
        handle: u32,
        device: usize,
        number: u32,
    },
    /// A feedback batch, locked since then.
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

    /// Whether this is an open link on which the hub sends for `node`.
    pub(crate) fn sends_for(&self, node: Node) -> bool {
        self.state == LinkState::Open && self.peer_receives && self.node == node
    }
}
