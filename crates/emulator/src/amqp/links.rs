//! Opening and closing links: the authorization of an attach, and the cleanup after a detach.

use std::time::Instant;

use super::address::{Node, device_node, node, not_emulated, registration_node};
use super::connection::{Connection, DelayedAction, LinkKey};
use super::frames::ConnectionError;
use super::link::{CREDIT, Link, LinkState};
use super::outcome::AmqpError;
use super::performative::{self, Attach, Detach};
use crate::entra::Action;
use crate::hub::{Admission, Operation, Refusal};
use crate::sas::TokenHolder;

impl Node {
    /// Returns the path and the action a token must allow for this node, or `None` if the node
    /// needs no token.
    fn required_permission(self) -> Option<(&'static str, Action)> {
        match self {
            // Devices and registrations authenticate by other means.
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
    /// Whether a token of the connection allows the node. A node without a required permission is
    /// allowed.
    fn may_use(&self, node: Node) -> bool {
        node.required_permission()
            .is_none_or(|(path, action)| self.may(path, action))
    }

    /// Returns the text of the refusal of a node.
    fn refusal_text(&self, node: Node) -> String {
        let path = node.required_permission().map_or("", |(path, _)| path);
        let principal = self.grants.iter().find_map(|grant| match &grant.holder {
            TokenHolder::Principal(principal) => Some(&principal.object_id),
            TokenHolder::Policy { .. } => None,
        });
        match principal {
            Some(id) => format!(
                "Principal {id} is not authorized for POST on {path} due to no assigned permissions"
            ),
            None => "no token on this connection grants ServiceConnect for this node".to_owned(),
        }
    }

    pub(crate) fn on_attach(
        &mut self,
        channel: u16,
        attach: Attach,
    ) -> Result<(), ConnectionError> {
        let handle = attach.handle;
        let node = match self.find_node(&attach) {
            Ok(node) => node,
            Err(refusal) => return self.refuse_link(channel, &attach, &refusal),
        };
        if !self.may_use(node) {
            let refusal = Refusal::unauthorized(self.refusal_text(node));
            return self.refuse_link(channel, &attach, &refusal);
        }
        let admission = if node.required_permission().is_some() {
            self.hub.admit(Operation::LinkOpen, 1)
        } else {
            Admission::Now
        };
        if admission == Admission::Refused {
            self.hub.counters.link_opens_throttled.one();
            let refusal = Refusal::throttled(Operation::LinkOpen.name());
            return self.refuse_link(channel, &attach, &refusal);
        }
        let key = self.put_link(channel, node, &attach, LinkState::Opening)?;
        match admission {
            Admission::After(wait) => {
                let attach = Box::new(attach);
                self.delayed
                    .push(Instant::now() + wait, DelayedAction::Attach { key, attach });
            }
            _ => self.open_link(key, &attach),
        }
        tracing::debug!(channel, handle, ?node, "link attached");
        Ok(())
    }

    /// Returns the node of a link, if the node allows the link's direction. A device or a
    /// registration gets a slot.
    fn find_node(&mut self, attach: &Attach) -> Result<Node, Refusal> {
        let address = attach.node_address().unwrap_or_default();
        let device = device_node(address);
        let registration = registration_node(address);
        let node = match (node(address), &device, registration) {
            (Some(node), ..) => node,
            (None, Some((_, endpoint)), _) => Node::Device(0, *endpoint),
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
            let text = "this node does not allow the direction of the link";
            return Err(Refusal::bad_operation(text));
        }
        match (node, device, registration) {
            (Node::Device(_, endpoint), Some((id, _)), _) => {
                Ok(Node::Device(self.admit_device(&id)?, endpoint))
            }
            (Node::Registration(_), _, Some((id_scope, id))) => {
                let slot = self.admit_registration(id_scope, id)?;
                Ok(Node::Registration(slot))
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
    ) -> Result<LinkKey, ConnectionError> {
        self.serials += 1;
        let key = LinkKey {
            channel,
            handle: attach.handle,
            serial: self.serials,
        };
        let no_session = || {
            ConnectionError::protocol(
                "amqp:not-allowed",
                format!("there is no session on channel {channel}"),
            )
        };
        let session = self.session(channel).ok_or_else(no_session)?;
        if !session.insert(attach.handle, Link::new(key.serial, node, attach, state)) {
            let text = format!("handle {} is in use or above the limit", attach.handle);
            return Err(ConnectionError::protocol(
                "amqp:session:handle-in-use",
                text,
            ));
        }
        Ok(key)
    }

    fn refuse_link(
        &mut self,
        channel: u16,
        attach: &Attach,
        refusal: &Refusal,
    ) -> Result<(), ConnectionError> {
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

    pub(crate) fn open_link(&mut self, key: LinkKey, attach: &Attach) {
        let LinkKey {
            channel, handle, ..
        } = key;
        let Some(link) = self.live_link(key) else {
            return;
        };
        link.state = LinkState::Open;
        let (node, peer_receives, delivery_count) =
            (link.node, link.peer_receives, link.delivery_count);
        if !peer_receives {
            link.credit = CREDIT;
        }
        if node.required_permission().is_some() {
            self.hub.counters.link_opens.one();
        }
        performative::write_attach(&mut self.out, channel, attach, Some(node));
        if !peer_receives {
            self.write_flow(channel, Some((handle, delivery_count, CREDIT)), false);
        }
        match node {
            Node::Device(slot, endpoint) => self.device_link_opened(key, slot, endpoint),
            Node::Registration(slot) => self.registration_link_opened(key, slot),
            _ => {}
        }
    }

    /// Informs the devices and registrations of closed links.
    pub(crate) fn links_closed(&mut self, closed: impl IntoIterator<Item = (LinkKey, Node)>) {
        for (key, node) in closed {
            match node {
                Node::Device(slot, endpoint) => self.device_link_closed(key, slot, endpoint),
                Node::Registration(slot) => self.registration_link_closed(key, slot),
                _ => {}
            }
        }
    }

    pub(crate) fn live_link(&mut self, key: LinkKey) -> Option<&mut Link> {
        self.session(key.channel)?
            .link(key.handle)
            .filter(|link| link.serial == key.serial)
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
        let key = LinkKey {
            channel,
            handle: detach.handle,
            serial: link.serial,
        };
        let left = session.remove(detach.handle);
        self.give_back(left);
        if state == LinkState::Open {
            self.links_closed([(key, node)]);
        }
        // A link detached by the hub needs no second detach.
        if state != LinkState::Detached {
            performative::write_detach(&mut self.out, channel, detach.handle, detach.closed, None);
        }
    }

    /// Detaches the links picked by `which`.
    pub(crate) fn detach_where(&mut self, error: &AmqpError, which: impl Fn(&Link) -> bool) {
        self.flush_accepted();
        let (mut left, mut closed) = (Vec::new(), Vec::new());
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
                        let key = LinkKey {
                            channel,
                            handle,
                            serial,
                        };
                        closed.push((key, link.node));
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
                self.hub.counters.cut_links.one();
            }
        }
        self.give_back(left);
        self.links_closed(closed);
    }

    /// Detaches the links without a valid token.
    pub(crate) fn detach_unauthorized(&mut self, error: &AmqpError) {
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
