//! What happens on links: opening and closing them, messages in and out, and their answers.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::address::{Node, node};
use super::connection::{Connection, Later, Place};
use super::frames::Fault;
use super::link::{BACKLOG_MAX, CREDIT, CREDIT_STEP, Link, LinkState, Partial, Unsettled};
use super::outcome::{ErrorText, Verdict};
use super::performative::{
    self, Attach, Detach, Disposition, Flow, MAX_MESSAGE_SIZE, PeerState, Transfer,
};
use super::{cbs, command, feedback};
use crate::hub::{Admission, Operation, Refusal};

/// How many tokens one connection may hold.
const GRANTS_MAX: usize = 100;
/// How many answers to tokens may wait for credit.
const REPLIES_MAX: usize = 1_000;

impl Node {
    /// The path that a token must cover for this node; none if it needs no token.
    fn guarded_path(self) -> Option<&'static str> {
        match self {
            Self::Cbs => None,
            Self::Commands => Some("/messages/devicebound"),
            Self::Feedback => Some("/messages/servicebound/feedback"),
        }
    }
}

// === opening and closing ===

impl Connection {
    pub(crate) fn on_attach(&mut self, channel: u16, attach: Attach) -> Result<(), Fault> {
        let handle = attach.handle;
        let Some(node) = attach.node_address().and_then(node) else {
            let address = attach.node_address().unwrap_or_default().to_owned();
            return self.refuse_link(channel, &attach, &Refusal::address_not_found(&address));
        };
        let wrong_way = match node {
            Node::Cbs => false,
            Node::Commands => attach.peer_receives,
            Node::Feedback => !attach.peer_receives,
        };
        if wrong_way {
            let refusal = Refusal::bad_operation("this node works in the other direction only");
            return self.refuse_link(channel, &attach, &refusal);
        }
        if node.guarded_path().is_some_and(|path| !self.may_use(path)) {
            let refusal =
                Refusal::unauthorized("no token on this connection gives ServiceConnect here");
            return self.refuse_link(channel, &attach, &refusal);
        }
        let admission = if node == Node::Cbs {
            Admission::Now
        } else {
            self.hub.admit(Operation::LinkOpen, 1)
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
        performative::write_attach(&mut self.out, channel, attach, true);
        performative::write_detach(
            &mut self.out,
            channel,
            attach.handle,
            true,
            Some(&refusal.into()),
        );
        Ok(())
    }

    fn open_link(&mut self, place: Place, attach: &Attach) {
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
        if node != Node::Cbs {
            self.hub.tallies.link_opens.one();
        }
        performative::write_attach(&mut self.out, channel, attach, false);
        if !peer_receives {
            self.write_flow(channel, Some((handle, delivery_count, CREDIT)), false);
        }
    }

    fn live_link(&mut self, place: Place) -> Option<&mut Link> {
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
        let state = link.state;
        let left = session.remove(detach.handle);
        self.give_back(left);
        // A link that the hub detached itself needs no second detach.
        if state != LinkState::Detached {
            performative::write_detach(&mut self.out, channel, detach.handle, detach.closed, None);
        }
    }

    /// Detaches the links that `which` picks.
    pub(crate) fn detach_where(&mut self, error: &ErrorText, which: impl Fn(&Link) -> bool) {
        self.flush_accepted();
        let mut left = Vec::new();
        for session in self.sessions.iter_mut().flatten() {
            let picked: Vec<u32> = session
                .links()
                .filter(|(_, link)| which(link))
                .map(|(handle, _)| handle)
                .collect();
            for handle in picked {
                if let Some(link) = session.link(handle) {
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
    }

    /// Detaches the links for which there is no token any more.
    pub(crate) fn detach_unauthorized(&mut self, error: &ErrorText) {
        let [commands, feedback] = [Node::Commands, Node::Feedback]
            .map(|node| node.guarded_path().is_none_or(|path| self.may_use(path)));
        self.detach_where(error, |link| {
            link.state == LinkState::Open
                && match link.node {
                    Node::Cbs => false,
                    Node::Commands => !commands,
                    Node::Feedback => !feedback,
                }
        });
    }
}

// === messages in ===

impl Connection {
    pub(crate) fn on_transfer(
        &mut self,
        channel: u16,
        transfer: &Transfer,
        payload: &[u8],
    ) -> Result<(), Fault> {
        let no_session = || {
            Fault::protocol(
                "amqp:not-allowed",
                format!("there is no session on channel {channel}"),
            )
        };
        let session = self.session(channel).ok_or_else(no_session)?;
        if !session.count_incoming() {
            return Err(Fault::protocol(
                "amqp:session:window-violation",
                "more transfers than the window holds",
            ));
        }
        let no_link = || {
            Fault::protocol(
                "amqp:session:unattached-handle",
                "a transfer on an unknown handle",
            )
        };
        let link = session.link(transfer.handle).ok_or_else(no_link)?;
        if link.state != LinkState::Open || link.peer_receives {
            // Sent before the peer knew of the detach: not enqueued and never answered.
            return Ok(());
        }
        let (node, serial) = (link.node, link.serial);
        let place = Place {
            channel,
            handle: transfer.handle,
            serial,
        };
        // The usual case, a message in one transfer, is not copied.
        if link.partial.is_none() && !transfer.more && !transfer.aborted {
            let delivery_id = transfer.delivery_id.unwrap_or(0);
            return self.on_message(place, node, delivery_id, transfer.settled, payload);
        }
        let partial = link.partial.get_or_insert_with(|| Partial {
            delivery_id: transfer.delivery_id.unwrap_or(0),
            settled: false,
            data: BytesMut::new(),
        });
        partial.settled |= transfer.settled;
        partial.data.extend_from_slice(payload);
        if partial.data.len() as u64 > MAX_MESSAGE_SIZE {
            let refusal = Refusal::too_large(partial.data.len(), MAX_MESSAGE_SIZE as usize);
            self.detach_where(&(&refusal).into(), |link| link.serial == serial);
            return Ok(());
        }
        if transfer.aborted {
            link.partial = None;
            return self.count_delivery(place);
        }
        match link.partial.take() {
            Some(whole) if !transfer.more => {
                self.on_message(place, node, whole.delivery_id, whole.settled, &whole.data)
            }
            partial => {
                link.partial = partial;
                if session.needs_flow() {
                    self.write_flow(channel, None, false);
                }
                Ok(())
            }
        }
    }

    fn on_message(
        &mut self,
        place: Place,
        node: Node,
        delivery_id: u32,
        settled: bool,
        payload: &[u8],
    ) -> Result<(), Fault> {
        match node {
            Node::Cbs => self.on_token(place, delivery_id, settled, payload),
            Node::Commands => self.on_command(place, delivery_id, settled, payload)?,
            Node::Feedback => {}
        }
        self.count_delivery(place)
    }

    /// Counts a delivery against the link's credit and fills the credit up when it is time.
    fn count_delivery(&mut self, place: Place) -> Result<(), Fault> {
        let Some(link) = self.live_link(place) else {
            return Ok(());
        };
        link.delivery_count = link.delivery_count.wrapping_add(1);
        let Some(credit) = link.credit.checked_sub(1) else {
            let text = "a message without credit";
            return Err(Fault::protocol("amqp:link:transfer-limit-exceeded", text));
        };
        link.credit = credit;
        if link.state == LinkState::Open
            && credit + CREDIT_STEP <= CREDIT
            && link.backlog < BACKLOG_MAX
        {
            link.credit = CREDIT;
            let delivery_count = link.delivery_count;
            self.write_flow(
                place.channel,
                Some((place.handle, delivery_count, CREDIT)),
                false,
            );
        }
        Ok(())
    }

    fn write_flow(&mut self, channel: u16, link: Option<(u32, u32, u32)>, drain: bool) {
        let omit = self.rules.omit_next_incoming_id;
        if let Some(session) = self
            .sessions
            .get_mut(usize::from(channel))
            .and_then(Option::as_mut)
        {
            session.omit_next_incoming_id = omit;
            session.write_flow(&mut self.out, link, drain);
        }
    }

    fn on_token(&mut self, place: Place, delivery_id: u32, settled: bool, payload: &[u8]) {
        let mut reply = cbs::handle(payload, &self.hub);
        if let Some(grant) = reply.grant.take() {
            self.grants
                .retain(|old| (&old.scope, &old.policy) != (&grant.scope, &grant.policy));
            if self.grants.len() >= GRANTS_MAX {
                self.grants.remove(0);
            }
            self.grants.push(grant);
        }
        if !settled {
            self.answer(place, delivery_id, &Verdict::Accepted);
        }
        if self.replies.len() < REPLIES_MAX {
            self.replies.push_back(reply.encode());
        }
        self.flush_accepted();
        self.pump_replies();
    }

    fn on_command(
        &mut self,
        place: Place,
        delivery_id: u32,
        settled: bool,
        payload: &[u8],
    ) -> Result<(), Fault> {
        self.hub.tallies.transfers.one();
        self.transfers += 1;
        if self
            .rules
            .drop_after
            .is_some_and(|after| self.transfers > after)
        {
            return Err(Fault::Drop);
        }
        if self
            .rules
            .close_after
            .is_some_and(|after| self.transfers > after)
        {
            self.hub.tallies.cut_connections.one();
            let text = "The connection was closed by container 'DeviceGateway': the service moves.";
            return Err(Fault::protocol("amqp:connection:forced", text));
        }
        let detach_after = self.rules.detach_after;
        let Some(link) = self.live_link(place) else {
            return Ok(());
        };
        link.transfers += 1;
        if detach_after.is_some_and(|after| link.transfers > after) {
            let error = ErrorText::plain(
                "amqp:link:detach-forced",
                "The link is detached: server busy.",
            );
            self.detach_where(&error, |link| link.serial == place.serial);
            return Ok(());
        }
        match self.hub.admit(Operation::Send, 1) {
            Admission::Now => {
                let verdict = command::send(&self.hub, payload, self.rules.any_send_fault);
                self.answer_in_time(place, delivery_id, settled, verdict);
            }
            Admission::After(wait) => {
                self.hub.tallies.shaped.one();
                let payload = Bytes::copy_from_slice(payload);
                let later = Later::Send {
                    place,
                    delivery_id,
                    settled,
                    payload,
                };
                self.put_off(place, Instant::now() + wait, later);
            }
            Admission::Refused => {
                let verdict =
                    command::refuse(&self.hub, Refusal::throttled(Operation::Send.name()));
                self.answer_in_time(place, delivery_id, settled, verdict);
            }
        }
        Ok(())
    }
}

// === answers ===

impl Connection {
    fn put_off(&mut self, place: Place, at: Instant, later: Later) {
        self.hub.tallies.unanswered.up();
        if let Some(link) = self.live_link(place) {
            link.backlog += 1;
        }
        self.later.push(at, later);
    }

    /// Does what was put off.
    pub(crate) fn do_later(&mut self, later: Later) {
        match later {
            Later::Attach { place, attach } => self.open_link(place, &attach),
            Later::Send {
                place,
                delivery_id,
                settled,
                payload,
            } => {
                self.no_longer_waiting(place);
                // A link that is gone takes its backlog along: the peer knows these as unanswered.
                if self
                    .live_link(place)
                    .is_some_and(|link| link.state == LinkState::Open)
                {
                    let verdict = command::send(&self.hub, &payload, self.rules.any_send_fault);
                    self.answer_in_time(place, delivery_id, settled, verdict);
                }
            }
            Later::Answer {
                place,
                delivery_id,
                verdict,
            } => {
                self.no_longer_waiting(place);
                if self
                    .live_link(place)
                    .is_some_and(|link| link.state == LinkState::Open)
                {
                    self.answer(place, delivery_id, &verdict);
                }
            }
        }
    }

    fn no_longer_waiting(&mut self, place: Place) {
        self.hub.tallies.unanswered.down();
        let Some(link) = self.live_link(place) else {
            return;
        };
        link.backlog = link.backlog.saturating_sub(1);
        // The credit was not filled up while the backlog was too long.
        if link.state == LinkState::Open
            && link.credit + CREDIT_STEP <= CREDIT
            && link.backlog < BACKLOG_MAX
        {
            link.credit = CREDIT;
            let delivery_count = link.delivery_count;
            self.write_flow(
                place.channel,
                Some((place.handle, delivery_count, CREDIT)),
                false,
            );
        }
    }

    fn answer_in_time(&mut self, place: Place, delivery_id: u32, settled: bool, verdict: Verdict) {
        if settled || verdict == Verdict::Silent {
            return;
        }
        let delay = self.rules.disposition_delay;
        if delay.is_zero() {
            self.answer(place, delivery_id, &verdict);
        } else {
            self.put_off(
                place,
                Instant::now() + delay,
                Later::Answer {
                    place,
                    delivery_id,
                    verdict,
                },
            );
        }
    }

    /// Answers a delivery. Consecutive acceptances are gathered into one disposition.
    fn answer(&mut self, place: Place, delivery_id: u32, verdict: &Verdict) {
        if *verdict == Verdict::Accepted {
            match &mut self.accepted {
                Some((channel, _, last))
                    if *channel == place.channel && last.wrapping_add(1) == delivery_id =>
                {
                    *last = delivery_id;
                }
                _ => {
                    self.flush_accepted();
                    self.accepted = Some((place.channel, delivery_id, delivery_id));
                }
            }
            return;
        }
        self.flush_accepted();
        let range = (delivery_id, delivery_id);
        performative::write_disposition(&mut self.out, place.channel, true, range, |out| {
            verdict.write(out);
        });
    }

    /// Writes the acceptances gathered so far.
    #[inline]
    pub(crate) fn flush_accepted(&mut self) {
        if let Some((channel, first, last)) = self.accepted.take() {
            let verdict = Verdict::Accepted;
            performative::write_disposition(&mut self.out, channel, true, (first, last), |out| {
                verdict.write(out);
            });
        }
    }
}

// === messages out ===

impl Connection {
    pub(crate) fn on_flow(&mut self, channel: u16, flow: &Flow) {
        let Some(session) = self.session(channel) else {
            return;
        };
        session.apply_flow(flow);
        let mut about = None;
        if let Some(handle) = flow.handle
            && let Some(link) = session
                .link(handle)
                .filter(|link| link.state == LinkState::Open)
        {
            if link.peer_receives {
                let count = flow.delivery_count.unwrap_or(0);
                let limit = count.wrapping_add(flow.link_credit.unwrap_or(0));
                link.credit = limit.wrapping_sub(link.delivery_count);
                if link.credit > u32::MAX / 2 {
                    link.credit = 0;
                }
            }
            about = Some((handle, link.delivery_count, link.credit));
        }
        self.pump_replies();
        self.pump_feedback();
        if flow.drain {
            self.drain(channel, flow.handle);
        } else if flow.echo {
            self.write_flow(channel, about, false);
        }
    }

    /// Uses the rest of a link's credit up without sending anything.
    fn drain(&mut self, channel: u16, handle: Option<u32>) {
        let Some(session) = self.session(channel) else {
            return;
        };
        let Some(handle) = handle else { return };
        let Some(link) = session.link(handle).filter(|link| link.peer_receives) else {
            return;
        };
        link.delivery_count = link
            .delivery_count
            .wrapping_add(std::mem::take(&mut link.credit));
        let about = Some((handle, link.delivery_count, 0));
        self.write_flow(channel, about, true);
    }

    /// Sends waiting answers to tokens as far as credit allows.
    fn pump_replies(&mut self) {
        let frame_max = self.peer_frame_max;
        for session in self.sessions.iter_mut().flatten() {
            while !self.replies.is_empty() && session.can_send() {
                let found = session
                    .links()
                    .find(|(_, link)| link.sends_for(Node::Cbs) && link.credit > 0);
                let Some((handle, link)) = found else { break };
                link.credit -= 1;
                link.delivery_count = link.delivery_count.wrapping_add(1);
                let presettled = link.presettled;
                let Some(reply) = self.replies.pop_front() else {
                    break;
                };
                let tag = uuid::Uuid::new_v4();
                let id = session.write_message(
                    &mut self.out,
                    frame_max,
                    handle,
                    tag.as_bytes(),
                    presettled,
                    &reply,
                );
                if !presettled {
                    session.unsettled.insert(id, Unsettled::Reply { handle });
                }
            }
        }
    }

    /// Sends feedback as far as there is any and credit allows.
    pub(crate) fn pump_feedback(&mut self) {
        let frame_max = self.peer_frame_max;
        let host = self.hub.config.host_name.clone();
        for session in self.sessions.iter_mut().flatten() {
            while session.can_send() {
                let found = session
                    .links()
                    .find(|(_, link)| link.sends_for(Node::Feedback) && link.credit > 0);
                let Some((handle, link)) = found else { break };
                let Some(batch) = self.hub.take_feedback() else {
                    return;
                };
                let json = self.hub.feedback_json(&batch);
                if json == b"[]" {
                    // All its devices are gone, and their feedback with them.
                    self.hub.state().feedback.reject(&batch);
                    continue;
                }
                link.credit -= 1;
                link.delivery_count = link.delivery_count.wrapping_add(1);
                let presettled = link.presettled;
                let message = feedback::encode_message(&host, batch.made_ms, &json);
                let tag = uuid::Uuid::new_v4();
                let id = session.write_message(
                    &mut self.out,
                    frame_max,
                    handle,
                    tag.as_bytes(),
                    presettled,
                    &message,
                );
                if presettled {
                    self.hub.state().feedback.complete(&batch);
                } else {
                    let since = Instant::now();
                    session.unsettled.insert(
                        id,
                        Unsettled::Feedback {
                            handle,
                            batch,
                            since,
                        },
                    );
                }
            }
        }
    }

    pub(crate) fn on_disposition(&mut self, channel: u16, disposition: &Disposition) {
        // About deliveries of the peer itself there is nothing to learn: the hub has settled them.
        if !disposition.peer_receives || disposition.state == PeerState::Received {
            return;
        }
        let Some(session) = self.session(channel) else {
            return;
        };
        if disposition.first > disposition.last {
            return;
        }
        let held: Vec<_> = session
            .unsettled
            .extract_if(disposition.first..=disposition.last, |_, _| true)
            .collect();
        for (_, delivery) in held {
            let Unsettled::Feedback { batch, .. } = delivery else {
                continue;
            };
            match disposition.state {
                PeerState::Accepted => self.hub.state().feedback.complete(&batch),
                PeerState::Rejected => self.hub.state().feedback.reject(&batch),
                _ => self.hub.give_back_feedback(batch),
            }
        }
        if !disposition.settled {
            let range = (disposition.first, disposition.last);
            let verdict = match disposition.state {
                PeerState::Released => Verdict::Released,
                PeerState::Modified => Verdict::Modified,
                _ => Verdict::Accepted,
            };
            performative::write_disposition(&mut self.out, channel, false, range, |out| {
                verdict.write(out);
            });
        }
    }
}
