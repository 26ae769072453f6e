//! A session: its two windows, its links and the hub's unsettled deliveries.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::address::Node;
use super::connection::Place;
use super::link::{Link, LinkState, Unsettled};
use super::performative::{self, Begin, Flow, FlowOut, HANDLE_MAX, INCOMING_WINDOW, TransferOut};

/// One session. Both ends use the same channel number, as they may.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) channel: u16,
    next_incoming_id: u32,
    /// How many transfers the peer may still send.
    incoming_window: u32,
    next_outgoing_id: u32,
    /// How many transfers the hub may still send.
    remote_window: u32,
    next_delivery_id: u32,
    links: Vec<Option<Box<Link>>>,
    pub(crate) unsettled: BTreeMap<u32, Unsettled>,
    /// Leave `next-incoming-id` out of flows.
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

    /// All links with their handles.
    pub(crate) fn links(&mut self) -> impl Iterator<Item = (u32, &mut Link)> {
        (0u32..)
            .zip(self.links.iter_mut())
            .filter_map(|(handle, link)| Some((handle, link.as_deref_mut()?)))
    }

    /// Puts a link; false if the handle is out of bounds or in use.
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

    /// Forgets a link and returns the deliveries it leaves behind.
    pub(crate) fn remove(&mut self, handle: u32) -> Vec<Unsettled> {
        if let Some(link) = self.links.get_mut(handle as usize) {
            *link = None;
        }
        self.take_unsettled_of(handle)
    }

    /// The links that are open, and the deliveries that are left, of a session that ends.
    pub(crate) fn into_parts(mut self) -> (Vec<(Place, Node)>, Vec<Unsettled>) {
        let channel = self.channel;
        let open = self
            .links()
            .filter(|(_, link)| link.state == LinkState::Open);
        let open = open.map(|(handle, link)| {
            let serial = link.serial;
            let place = Place {
                channel,
                handle,
                serial,
            };
            (place, link.node)
        });
        let open = open.collect();
        (open, self.unsettled.into_values().collect())
    }

    /// The deliveries of one link, which are no longer the peer's.
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

    /// Counts a transfer of the peer; false if it had no room for one.
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

    /// Whether the peer's room is half used up.
    pub(crate) fn needs_flow(&self) -> bool {
        self.incoming_window < INCOMING_WINDOW / 2
    }

    /// Takes over what a peer's flow says of the session.
    pub(crate) fn apply_flow(&mut self, flow: &Flow) {
        // A peer that has not seen the begin yet counts from the hub's initial id.
        let next_incoming = flow.next_incoming_id.unwrap_or(1);
        self.remote_window = next_incoming
            .wrapping_add(flow.incoming_window)
            .wrapping_sub(self.next_outgoing_id);
        if self.remote_window > u32::MAX / 2 {
            self.remote_window = 0;
        }
    }

    /// Whether the hub may send.
    pub(crate) fn can_send(&self) -> bool {
        self.remote_window > 0
    }

    /// Writes a flow about the session, or about one of its links.
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

    /// Writes an answer on a link that has credit, and remembers it until the peer has settled it.
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

    /// Writes one message and returns its delivery id.
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
