//! Opening and closing links: who may attach where, and what a detach leaves behind.

use std::time::Instant;

use super::address::{Node, device_node, node, not_emulated, registration_node};
use super::connection::{Connection, Later, Place};
use super::frames::Fault;
use super::link::{CREDIT, Link, LinkState};
use super::outcome::ErrorText;
use super::performative::{self, Attach, Detach};
use crate::entra::Action;
use crate::hub::{Admission, Operation, Refusal};
use crate::sas::Holder;

impl Node {
    /// The path that a token must cover for this node; none if it needs no token.
    fn guarded(self) -> Option<(&'static str, Action)> {
        match self {
            // Devices and registrations have proofs of their own.
            Self::Cbs | Self::Device(..) | Self::Registration(_) => None,
            Self::Commands => Some(("/messages/devicebound", Action::SendToDevices)),
            Self::Feedback => Some(("/messages/servicebound/feedback", Action::ReceiveFeedback)),
            Self::FileNotifications => Some((
                "/messages/servicebound/filenotifications",
                Action::ReceiveFileNotifications,
            )),
        }
    }
}

impl Connection {
    /// Whether some token of the connection allows the node, if it needs one.
    fn may_use(&self, node: Node) -> bool {
        node.guarded()
            .is_none_or(|(path, action)| self.may(path, action))
    }

    /// Why the node may not be used.
    fn lacks(&self, node: Node) -> String {
        let path = node.guarded().map_or("", |(path, _)| path);
        let principal = self.grants.iter().find_map(|grant| match &grant.holder {
            Holder::Principal(principal) => Some(&principal.object_id),
            Holder::Policy { .. } => None,
        });
        match principal {
            Some(id) => format!(
                "Principal {id} is not authorized for POST on {path} due to no assigned permissions"
            ),
            None => "no token on this connection gives ServiceConnect here".to_owned(),
        }
    }

    pub(crate) fn on_attach(&mut self, channel: u16, attach: Attach) -> Result<(), Fault> {
        let handle = attach.handle;
        let node = match self.find_node(&attach) {
            Ok(node) => node,
            Err(refusal) => return self.refuse_link(channel, &attach, &refusal),
        };
        if !self.may_use(node) {
            let refusal = Refusal::unauthorized(self.lacks(node));
            return self.refuse_link(channel, &attach, &refusal);
        }
        let admission = if node.guarded().is_some() {
            self.hub.admit(Operation::LinkOpen, 1)
        } else {
            Admission::Now
        };
        if admission == Admission::Refused {
            self.hub.tallies.link_opens_throttled.one();
            let refusal = Refusal::throttled(Operation::LinkOpen.name());
            return self.refuse_link(channel, &attach, &refusal);
        }
        let place = self.put_link(channel, node, &attach, LinkState::Opening)?;
        match admission {
            Admission::After(wait) => {
                let attach = Box::new(attach);
                self.later
                    .push(Instant::now() + wait, Later::Attach { place, attach });
            }
            _ => self.open_link(place, &attach),
        }
        tracing::debug!(channel, handle, ?node, "link attached");
        Ok(())
    }

    /// The node that a link is for, if it may be in that direction; a device or a registration gets its place.
    fn find_node(&mut self, attach: &Attach) -> Result<Node, Refusal> {
        let address = attach.node_address().unwrap_or_default();
        let device = device_node(address);
        let registration = registration_node(address);
        let node = match (node(address), &device, registration) {
            (Some(node), ..) => node,
            (None, Some((_, end)), _) => Node::Device(0, *end),
            (None, None, Some(_)) => Node::Registration(0),
            (None, None, None) => {
                return Err(not_emulated(address).map_or_else(
                    || Refusal::address_not_found(address),
                    Refusal::not_emulated,
                ));
            }
        };
        let (may_receive, may_send) = node.directions();
        if !(if attach.peer_receives {
            may_receive
        } else {
            may_send
        }) {
            let text = "this node works in the other direction only";
            return Err(Refusal::bad_operation(text));
        }
        match (node, device, registration) {
            (Node::Device(_, end), Some((id, _)), _) => {
                Ok(Node::Device(self.admit_device(&id)?, end))
            }
            (Node::Registration(_), _, Some((id_scope, id))) => {
                let place = self.admit_registration(id_scope, id)?;
                Ok(Node::Registration(place))
            }
            (node, ..) => Ok(node),
        }
    }

    fn put_link(
        &mut self,
        channel: u16,
        node: Node,
        attach: &Attach,
        state: LinkState,
    ) -> Result<Place, Fault> {
        self.serials += 1;
        let place = Place {
            channel,
            handle: attach.handle,
            serial: self.serials,
        };
        let no_session = || {
            Fault::protocol(
                "amqp:not-allowed",
                format!("there is no session on channel {channel}"),
            )
        };
        let session = self.session(channel).ok_or_else(no_session)?;
        if !session.insert(attach.handle, Link::new(place.serial, node, attach, state)) {
            let text = format!("handle {} is in use or too high", attach.handle);
            return Err(Fault::protocol("amqp:session:handle-in-use", text));
        }
        Ok(place)
    }

    fn refuse_link(
        &mut self,
        channel: u16,
        attach: &Attach,
        refusal: &Refusal,
    ) -> Result<(), Fault> {
        tracing::debug!(
            channel,
            handle = attach.handle,
            reason = refusal.text,
            "link refused"
        );
        self.put_link(channel, Node::Cbs, attach, LinkState::Detached)?;
        performative::write_attach(&mut self.out, channel, attach, None);
        performative::write_detach(
            &mut self.out,
            channel,
            attach.handle,
            true,
            Some(&refusal.into()),
        );
        Ok(())
    }

    pub(crate) fn open_link(&mut self, place: Place, attach: &Attach) {
        let Place {
            channel, handle, ..
        } = place;
        let Some(link) = self.live_link(place) else {
            return;
        };
        link.state = LinkState::Open;
        let (node, peer_receives, delivery_count) =
            (link.node, link.peer_receives, link.delivery_count);
        if !peer_receives {
            link.credit = CREDIT;
        }
        if node.guarded().is_some() {
            self.hub.tallies.link_opens.one();
        }
        performative::write_attach(&mut self.out, channel, attach, Some(node));
        if !peer_receives {
            self.write_flow(channel, Some((handle, delivery_count, CREDIT)), false);
        }
        match node {
            Node::Device(at, end) => self.device_link_opened(place, at, end),
            Node::Registration(at) => self.registration_link_opened(place, at),
            _ => {}
        }
    }

    /// Tells those who count on links that some are no more.
    pub(crate) fn links_gone(&mut self, gone: impl IntoIterator<Item = (Place, Node)>) {
        for (place, node) in gone {
            match node {
                Node::Device(at, end) => self.device_link_gone(place, at, end),
                Node::Registration(at) => self.registration_link_gone(place, at),
                _ => {}
            }
        }
    }

    pub(crate) fn live_link(&mut self, place: Place) -> Option<&mut Link> {
        self.session(place.channel)?
            .link(place.handle)
            .filter(|link| link.serial == place.serial)
    }

    pub(crate) fn on_detach(&mut self, channel: u16, detach: Detach) {
        self.flush_accepted();
        let Some(session) = self.session(channel) else {
            return;
        };
        let Some(link) = session.link(detach.handle) else {
            return;
        };
        let (state, node) = (link.state, link.node);
        let place = Place {
            channel,
            handle: detach.handle,
            serial: link.serial,
        };
        let left = session.remove(detach.handle);
        self.give_back(left);
        if state == LinkState::Open {
            self.links_gone([(place, node)]);
        }
        // A link that the hub detached itself needs no second detach.
        if state != LinkState::Detached {
            performative::write_detach(&mut self.out, channel, detach.handle, detach.closed, None);
        }
    }

    /// Detaches the links that `which` picks.
    pub(crate) fn detach_where(&mut self, error: &ErrorText, which: impl Fn(&Link) -> bool) {
        self.flush_accepted();
        let (mut left, mut gone) = (Vec::new(), Vec::new());
        for session in self.sessions.iter_mut().flatten() {
            let picked: Vec<u32> = session
                .links()
                .filter(|(_, link)| which(link))
                .map(|(handle, _)| handle)
                .collect();
            for handle in picked {
                let channel = session.channel;
                if let Some(link) = session.link(handle) {
                    if link.state == LinkState::Open {
                        let serial = link.serial;
                        let place = Place {
                            channel,
                            handle,
                            serial,
                        };
                        gone.push((place, link.node));
                    }
                    link.state = LinkState::Detached;
                    link.partial = None;
                }
                left.extend(session.take_unsettled_of(handle));
                performative::write_detach(
                    &mut self.out,
                    session.channel,
                    handle,
                    true,
                    Some(error),
                );
                self.hub.tallies.cut_links.one();
            }
        }
        self.give_back(left);
        self.links_gone(gone);
    }

    /// Detaches the links for which there is no token any more.
    pub(crate) fn detach_unauthorized(&mut self, error: &ErrorText) {
        let nodes = [Node::Commands, Node::Feedback, Node::FileNotifications];
        let lost = nodes.map(|node| {
            let may = self.may_use(node);
            (!may).then_some(node)
        });
        self.detach_where(error, |link| {
            link.state == LinkState::Open && lost.contains(&Some(link.node))
        });
    }
}
