//! Outgoing messages: answers to tokens, and feedback.

use std::time::Instant;

use super::address::Node;
use super::connection::Connection;
use super::feedback;
use super::link::{LinkState, Unsettled};
use super::outcome::Verdict;
use super::performative::{self, Disposition, Flow, PeerState};
use crate::hub::{FeedbackSettlement, MessageSettlement};

impl Connection {
    pub(crate) fn on_flow(&mut self, channel: u16, flow: &Flow) {
        let Some(session) = self.session(channel) else {
            return;
        };
        session.apply_flow(flow);
        let mut about = None;
        let mut pauses_feedback = false;
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
                pauses_feedback = link.sends_for(Node::Feedback) && link.credit == 0;
            }
            about = Some((handle, link.delivery_count, link.credit));
        }
        if pauses_feedback {
            self.hub.counters.feedback_pauses.one();
        }
        self.pump_replies();
        self.pump_feedback();
        self.pump_devices();
        self.pump_registrations();
        if flow.drain {
            self.drain(channel, flow.handle);
        } else if flow.echo {
            self.write_flow(channel, about, false);
        }
    }

    /// Uses up the rest of a link's credit without sending.
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

    /// Sends waiting answers to tokens, as far as credit allows.
    pub(crate) fn pump_replies(&mut self) {
        let frame_max = self.peer_frame_max;
        for session in self.sessions.iter_mut().flatten() {
            while !self.replies.is_empty() && session.can_send() {
                let found = session
                    .links()
                    .find(|(_, link)| link.sends_for(Node::Cbs) && link.credit > 0);
                let Some((handle, _)) = found else { break };
                let Some(reply) = self.replies.pop_front() else {
                    break;
                };
                session.write_reply(&mut self.out, frame_max, handle, &reply);
            }
        }
    }

    /// Sends waiting feedback, as far as credit allows.
    pub(crate) fn pump_feedback(&mut self) {
        let frame_max = self.peer_frame_max;
        let host = self.hub.config.host_name.clone();
        for session in self.sessions.iter_mut().flatten() {
            while session.can_send() {
                let found = session
                    .links()
                    .find(|(_, link)| link.sends_for(Node::Feedback) && link.credit > 0);
                let Some((handle, link)) = found else { break };
                let Some((batch, body)) = self.hub.take_feedback() else {
                    return;
                };
                link.credit -= 1;
                link.delivery_count = link.delivery_count.wrapping_add(1);
                let presettled = link.presettled;
                let message = feedback::encode_message(&host, body.made_ms, &body.json);
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
                    self.hub
                        .settle_taken_feedback(batch, FeedbackSettlement::Completed);
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
        // Ignore dispositions of the peer's own deliveries: the hub has settled these.
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
            match delivery {
                Unsettled::Feedback { batch, .. } => {
                    let settlement = match disposition.state {
                        PeerState::Accepted => FeedbackSettlement::Completed,
                        PeerState::Rejected => FeedbackSettlement::Rejected,
                        _ => FeedbackSettlement::Abandoned,
                    };
                    self.hub.settle_taken_feedback(batch, settlement);
                }
                Unsettled::Message { device, number, .. } => {
                    let settlement = match disposition.state {
                        PeerState::Accepted => MessageSettlement::Completed,
                        PeerState::Rejected => MessageSettlement::Rejected,
                        _ => MessageSettlement::Abandoned,
                    };
                    self.devices.settle(device, number, settlement);
                    self.pump_device(device);
                }
                Unsettled::Reply { .. } => {}
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
