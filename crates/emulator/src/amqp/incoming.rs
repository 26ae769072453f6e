//! Incoming messages, and the answers to them.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::address::Node;
use super::connection::{Connection, DelayedAction, LinkKey};
use super::device::too_many_devices;
use super::frames::ConnectionError;
use super::link::{BACKLOG_MAX, CREDIT, CREDIT_STEP, LinkState, Partial};
use super::outcome::{AmqpError, Verdict};
use super::performative::{self, MAX_MESSAGE_SIZE, Transfer};
use super::{cbs, command};
use crate::hub::{Admission, Operation, Refusal};

/// The largest number of tokens on one connection.
const GRANTS_MAX: usize = 100;
/// The number of answers to tokens that may wait for credit.
const REPLIES_MAX: usize = 1_000;

impl Connection {
    pub(crate) fn on_transfer(
        &mut self,
        channel: u16,
        transfer: &Transfer,
        payload: &[u8],
    ) -> Result<(), ConnectionError> {
        let no_session = || {
            ConnectionError::protocol(
                "amqp:not-allowed",
                format!("there is no session on channel {channel}"),
            )
        };
        let session = self.session(channel).ok_or_else(no_session)?;
        if !session.count_incoming() {
            return Err(ConnectionError::protocol(
                "amqp:session:window-violation",
                "more transfers than the window holds",
            ));
        }
        let no_link = || {
            ConnectionError::protocol(
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
        let key = LinkKey {
            channel,
            handle: transfer.handle,
            serial,
        };
        // A message in one transfer, the usual case, is not copied.
        if link.partial.is_none() && !transfer.more && !transfer.aborted {
            let delivery_id = transfer.delivery_id.unwrap_or(0);
            return self.on_message(key, node, delivery_id, transfer.settled, payload);
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
            return self.count_delivery(key);
        }
        match link.partial.take() {
            Some(whole) if !transfer.more => {
                self.on_message(key, node, whole.delivery_id, whole.settled, &whole.data)
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
        key: LinkKey,
        node: Node,
        delivery_id: u32,
        settled: bool,
        payload: &[u8],
    ) -> Result<(), ConnectionError> {
        match node {
            Node::Cbs => self.on_token(key, delivery_id, settled, payload),
            Node::Commands => self.on_command(key, delivery_id, settled, payload)?,
            Node::Device(slot, endpoint) => {
                self.on_device_message(key, (slot, endpoint), delivery_id, settled, payload);
            }
            Node::Registration(slot) => {
                self.on_registration(key, slot, delivery_id, settled, payload);
            }
            Node::Feedback | Node::FileNotifications => {}
        }
        self.count_delivery(key)
    }

    /// Counts a delivery against the link's credit, and refills the credit after [`CREDIT_STEP`]
    /// deliveries.
    fn count_delivery(&mut self, key: LinkKey) -> Result<(), ConnectionError> {
        let Some(link) = self.live_link(key) else {
            return Ok(());
        };
        link.delivery_count = link.delivery_count.wrapping_add(1);
        let Some(credit) = link.credit.checked_sub(1) else {
            let text = "a message without credit";
            return Err(ConnectionError::protocol(
                "amqp:link:transfer-limit-exceeded",
                text,
            ));
        };
        link.credit = credit;
        if link.state == LinkState::Open
            && credit + CREDIT_STEP <= CREDIT
            && link.backlog < BACKLOG_MAX
        {
            link.credit = CREDIT;
            let delivery_count = link.delivery_count;
            self.write_flow(
                key.channel,
                Some((key.handle, delivery_count, CREDIT)),
                false,
            );
        }
        Ok(())
    }

    pub(crate) fn write_flow(&mut self, channel: u16, link: Option<(u32, u32, u32)>, drain: bool) {
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

    fn on_token(&mut self, key: LinkKey, delivery_id: u32, settled: bool, payload: &[u8]) {
        let mut reply = cbs::handle(payload, &self.hub);
        if let Some(device) = reply.device.take()
            && self.devices.put(device).is_none()
        {
            reply.refuse(&too_many_devices());
        }
        if let Some(grant) = reply.grant.take() {
            self.grants
                .retain(|old| (&old.scope, &old.holder) != (&grant.scope, &grant.holder));
            if self.grants.len() >= GRANTS_MAX {
                self.grants.remove(0);
            }
            self.grants.push(grant);
        }
        if !settled {
            self.answer(key, delivery_id, &Verdict::Accepted);
        }
        if self.replies.len() < REPLIES_MAX {
            self.replies.push_back(reply.encode());
        }
        self.flush_accepted();
        self.pump_replies();
    }

    fn on_command(
        &mut self,
        key: LinkKey,
        delivery_id: u32,
        settled: bool,
        payload: &[u8],
    ) -> Result<(), ConnectionError> {
        self.hub.counters.transfers.one();
        self.transfers += 1;
        if self
            .rules
            .drop_after
            .is_some_and(|after| self.transfers > after)
        {
            return Err(ConnectionError::Drop);
        }
        if self
            .rules
            .close_after
            .is_some_and(|after| self.transfers > after)
        {
            self.hub.counters.cut_connections.one();
            let text = "The connection was closed by container 'DeviceGateway': the service moves.";
            return Err(ConnectionError::protocol("amqp:connection:forced", text));
        }
        let detach_after = self.rules.detach_after;
        let Some(link) = self.live_link(key) else {
            return Ok(());
        };
        link.transfers += 1;
        if detach_after.is_some_and(|after| link.transfers > after) {
            let error = AmqpError::plain(
                "amqp:link:detach-forced",
                "The link is detached: server busy.",
            );
            self.detach_where(&error, |link| link.serial == key.serial);
            return Ok(());
        }
        match self.hub.admit(Operation::Send, 1) {
            Admission::Now => {
                let verdict = command::send(&self.hub, payload, self.rules.any_send_fault);
                self.answer_in_time(key, delivery_id, settled, verdict);
            }
            Admission::After(wait) => {
                self.hub.counters.shaped.one();
                let payload = Bytes::copy_from_slice(payload);
                let delayed = DelayedAction::Send {
                    key,
                    delivery_id,
                    settled,
                    payload,
                };
                self.delay(key, Instant::now() + wait, delayed);
            }
            Admission::Refused => {
                let verdict =
                    command::refuse(&self.hub, Refusal::throttled(Operation::Send.name()));
                self.answer_in_time(key, delivery_id, settled, verdict);
            }
        }
        Ok(())
    }
}

impl Connection {
    fn delay(&mut self, key: LinkKey, at: Instant, delayed: DelayedAction) {
        self.hub.counters.unanswered.up();
        if let Some(link) = self.live_link(key) {
            link.backlog += 1;
        }
        self.delayed.push(at, delayed);
    }

    /// Performs a delayed action.
    pub(crate) fn run_delayed(&mut self, delayed: DelayedAction) {
        match delayed {
            DelayedAction::Attach { key, attach } => self.open_link(key, &attach),
            DelayedAction::Send {
                key,
                delivery_id,
                settled,
                payload,
            } => {
                self.no_longer_waiting(key);
                // Deliveries of a detached link are dropped: the peer counts the deliveries as
                // unanswered.
                if self
                    .live_link(key)
                    .is_some_and(|link| link.state == LinkState::Open)
                {
                    let verdict = command::send(&self.hub, &payload, self.rules.any_send_fault);
                    self.answer_in_time(key, delivery_id, settled, verdict);
                }
            }
            DelayedAction::Answer {
                key,
                delivery_id,
                verdict,
            } => {
                self.no_longer_waiting(key);
                if self
                    .live_link(key)
                    .is_some_and(|link| link.state == LinkState::Open)
                {
                    self.answer(key, delivery_id, &verdict);
                }
            }
        }
    }

    fn no_longer_waiting(&mut self, key: LinkKey) {
        self.hub.counters.unanswered.down();
        let Some(link) = self.live_link(key) else {
            return;
        };
        link.backlog = link.backlog.saturating_sub(1);
        // The credit was not refilled while the backlog was too long.
        if link.state == LinkState::Open
            && link.credit + CREDIT_STEP <= CREDIT
            && link.backlog < BACKLOG_MAX
        {
            link.credit = CREDIT;
            let delivery_count = link.delivery_count;
            self.write_flow(
                key.channel,
                Some((key.handle, delivery_count, CREDIT)),
                false,
            );
        }
    }

    fn answer_in_time(&mut self, key: LinkKey, delivery_id: u32, settled: bool, verdict: Verdict) {
        if settled || verdict == Verdict::Silent {
            return;
        }
        let delay = self.rules.disposition_delay;
        if delay.is_zero() {
            self.answer(key, delivery_id, &verdict);
        } else {
            self.delay(
                key,
                Instant::now() + delay,
                DelayedAction::Answer {
                    key,
                    delivery_id,
                    verdict,
                },
            );
        }
    }

    /// Answers a delivery. Consecutive acceptances share one disposition.
    pub(crate) fn answer(&mut self, key: LinkKey, delivery_id: u32, verdict: &Verdict) {
        if *verdict == Verdict::Accepted {
            match &mut self.accepted {
                Some((channel, _, last))
                    if *channel == key.channel && last.wrapping_add(1) == delivery_id =>
                {
                    *last = delivery_id;
                }
                _ => {
                    self.flush_accepted();
                    self.accepted = Some((key.channel, delivery_id, delivery_id));
                }
            }
            return;
        }
        self.flush_accepted();
        let range = (delivery_id, delivery_id);
        performative::write_disposition(&mut self.out, key.channel, true, range, |out| {
            verdict.write(out);
        });
    }

    /// Writes the pending acceptances.
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
