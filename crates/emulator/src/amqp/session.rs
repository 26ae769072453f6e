//! A session: the two windows, the links and the hub's unsettled deliveries.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::address::Node;
use super::connection::LinkKey;
use super::link::{Link, LinkState, Unsettled};
use super::performative::{self, Begin, Flow, FlowOut, HANDLE_MAX, INCOMING_WINDOW, TransferOut};

/// One session. Both ends use the same channel number, which AMQP allows.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) channel: u16,
    next_incoming_id: u32,
    /// The number of transfers the peer may still send.
    incoming_window: u32,
    next_outgoing_id: u32,
    /// The number of transfers the hub may still send.
    remote_window: u32,
    next_delivery_id: u32,
    links: Vec<Option<Box<Link>>>,
    pub(crate) unsettled: BTreeMap<u32, Unsettled>,
    /// Whether to leave `next-incoming-id` out of flows.
    pub(crate) omit_next_incoming_id: bool,
}

impl Session {
    pub(crate) fn new(channel: u16, begin: &Begin) -> Self {
        Self {
            channel,
            next_incoming_id: begin.next_outgoing_id,
            incoming_window: INCOMING_WINDOW,
            next_outgoing_id: 1,
            remote_window: begin.incoming_window,
            next_delivery_id: 0,
            links: Vec::new(),
            unsettled: BTreeMap::new(),
            omit_next_incoming_id: false,
        }
    }

    pub(crate) fn next_outgoing_id(&self) -> u32 {
        self.next_outgoing_id
    }

    #[inline]
    pub(crate) fn link(&mut self, handle: u32) -> Option<&mut Link> {
        self.links.get_mut(handle as usize)?.as_deref_mut()
    }

    /// Returns all links with the handles.
    pub(crate) fn links(&mut self) -> impl Iterator<Item = (u32, &mut Link)> {
        (0u32..)
            .zip(self.links.iter_mut())
            .filter_map(|(handle, link)| Some((handle, link.as_deref_mut()?)))
    }

    /// Inserts a link. Returns `false` if the handle is out of bounds or in use.
    pub(crate) fn insert(&mut self, handle: u32, link: Link) -> bool {
        if handle > HANDLE_MAX || self.link(handle).is_some() {
            return false;
        }
        let at = handle as usize;
        if self.links.len() <= at {
            self.links.resize_with(at + 1, || None);
        }
        self.links[at] = Some(Box::new(link));
        true
    }

    /// Removes a link and returns the link's unsettled deliveries.
    pub(crate) fn remove(&mut self, handle: u32) -> Vec<Unsettled> {
        if let Some(link) = self.links.get_mut(handle as usize) {
            *link = None;
        }
        self.take_unsettled_of(handle)
    }

    /// Returns the open links and the unsettled deliveries of an ending session.
    pub(crate) fn into_parts(mut self) -> (Vec<(LinkKey, Node)>, Vec<Unsettled>) {
        let channel = self.channel;
        let open = self
            .links()
            .filter(|(_, link)| link.state == LinkState::Open);
        let open = open.map(|(handle, link)| {
            let serial = link.serial;
            let key = LinkKey {
                channel,
                handle,
                serial,
            };
            (key, link.node)
        });
        let open = open.collect();
        (open, self.unsettled.into_values().collect())
    }

    /// Removes and returns the unsettled deliveries of one link.
    pub(crate) fn take_unsettled_of(&mut self, handle: u32) -> Vec<Unsettled> {
        let ids: Vec<u32> = self
            .unsettled
            .iter()
            .filter(|(_, held)| held.handle() == handle)
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter()
            .filter_map(|id| self.unsettled.remove(&id))
            .collect()
    }

    /// Counts a transfer from the peer. Returns `false` if the window was used up.
    #[inline]
    pub(crate) fn count_incoming(&mut self) -> bool {
        self.next_incoming_id = self.next_incoming_id.wrapping_add(1);
        match self.incoming_window.checked_sub(1) {
            Some(left) => {
                self.incoming_window = left;
                true
            }
            None => false,
        }
    }

    /// Whether half of the incoming window is used up.
    pub(crate) fn needs_flow(&self) -> bool {
        self.incoming_window < INCOMING_WINDOW / 2
    }

    /// Applies the session fields of a peer's flow.
    pub(crate) fn apply_flow(&mut self, flow: &Flow) {
        // A peer before the hub's begin counts from the hub's initial id.
        let next_incoming = flow.next_incoming_id.unwrap_or(1);
        self.remote_window = next_incoming
            .wrapping_add(flow.incoming_window)
            .wrapping_sub(self.next_outgoing_id);
        if self.remote_window > u32::MAX / 2 {
            self.remote_window = 0;
        }
    }

    /// Whether the hub may send a transfer.
    pub(crate) fn can_send(&self) -> bool {
        self.remote_window > 0
    }

    /// Writes a flow for the session, or for one of the links.
    pub(crate) fn write_flow(
        &mut self,
        out: &mut BytesMut,
        link: Option<(u32, u32, u32)>,
        drain: bool,
    ) {
        self.incoming_window = INCOMING_WINDOW;
        let flow = FlowOut {
            next_incoming_id: (!self.omit_next_incoming_id).then_some(self.next_incoming_id),
            next_outgoing_id: self.next_outgoing_id,
            link,
            drain,
        };
        performative::write_flow(out, self.channel, flow);
    }

    /// Writes an answer on a link with credit. The answer stays in `unsettled` until settled by the
    /// peer.
    pub(crate) fn write_reply(
        &mut self,
        out: &mut BytesMut,
        frame_max: usize,
        handle: u32,
        reply: &[u8],
    ) {
        let Some(link) = self.link(handle) else {
            return;
        };
        link.credit -= 1;
        link.delivery_count = link.delivery_count.wrapping_add(1);
        let presettled = link.presettled;
        let tag = uuid::Uuid::new_v4();
        let id = self.write_message(out, frame_max, handle, tag.as_bytes(), presettled, reply);
        if !presettled {
            self.unsettled.insert(id, Unsettled::Reply { handle });
        }
    }

    /// Writes one message and returns the delivery id.
    pub(crate) fn write_message(
        &mut self,
        out: &mut BytesMut,
        frame_max: usize,
        handle: u32,
        delivery_tag: &[u8],
        settled: bool,
        payload: &[u8],
    ) -> u32 {
        let delivery_id = self.next_delivery_id;
        self.next_delivery_id = delivery_id.wrapping_add(1);
        let transfer = TransferOut {
            handle,
            delivery_id,
            delivery_tag,
            settled,
        };
        let frames =
            performative::write_transfers(out, self.channel, frame_max, &transfer, payload);
        self.next_outgoing_id = self.next_outgoing_id.wrapping_add(frames);
        self.remote_window = self.remote_window.saturating_sub(frames);
        delivery_id
    }
}
