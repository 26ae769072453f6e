//! A filter between a hub and `fe2o3-amqp`, which passes only input safe for the library.
//!
//! The library panics on malformed frames, ends the connection over one undecodable answer, and
//! iterates over ranges of any width named by the peer. So every incoming frame is held until
//! complete, then checked and handled by kind:
//!
//! * **Bytes other than AMQP 1.0** end the stream with [`Malformed`]: a connection loss like any
//!   other.
//! * **FLOW without `next-incoming-id`** (sent by newer gateways of IoT Hub). The library then
//!   computes the session window from the *first* id of the session, as the specification's formula
//!   says, and stalls for ever after one window of transfers. The missing field is filled with the
//!   session's next outgoing id as counted on the wire, so the remote window becomes the flow's own
//!   `incoming-window`: the reading of the .NET client, which never stalls.
//! * **OPEN with `idle-time-out`**. The library sends its empty frames once per time-out of the
//!   peer. The specification asks for half of the time-out at most, and a hub closes a connection
//!   after a full time-out of silence. The value is divided by three before the library sees it,
//!   and is at least [`MIN_IDLE_MS`].
//! * **DISPOSITION** is cut to deliveries possibly in flight. An undecodable state is replaced by a
//!   decodable one, see [`sanitize`].
//! * **TRANSFER** is held until its message is complete. A malformed message is replaced by an
//!   empty one: the delivery is answered like any other unreadable delivery.
//! * **DETACH, END, CLOSE** with an undecodable error get a decodable one.
//! * **BEGIN** is only read, to map the peer's channels to the client's channels.
//!
//! All other frames pass unchanged. Pure: no I/O, and any split of the input gives the same output
//! (tested at every position). Memory is bounded by [`MAX_FRAME_BYTES`] and [`MAX_HELD_BYTES`].
//!
//! Rejected alternatives: recycling the session every few thousand transfers costs a link open each
//! time, which the hub throttles; patching the library means carrying a fork.

use std::io::Read as _;
use std::mem;
use std::ops::Range;

use fe2o3_amqp_types::performatives;
use serde::Deserialize as _;
use serde_amqp::de::Deserializer;
use serde_amqp::read::IoReader;

use super::encoding::{
    FALSE, NULL, TRUE, entries, integer, is_true, length, uint, write_described, write_list,
    write_uint,
};
use super::frames::{
    EMPTY, HEADER, Head, Incoming, MAX_FRAME_BYTES, Malformed, Outgoing, Performative, set_size,
};
use super::sanitize;
use crate::options::MAX_IN_FLIGHT_LIMIT;

/// The library's empty frames are due after this fraction of the peer's idle time-out.
const IDLE_PARTS: u32 = 3;

/// The shortest interval between two of the library's empty frames, in milliseconds, for any
/// time-out of the peer.
const MIN_IDLE_MS: u32 = 50;

/// The most ids covered by a disposition: deliveries in flight, and as many again past their
/// deadline.
const MAX_DISPOSITION_IDS: u64 = 2 * MAX_IN_FLIGHT_LIMIT as u64;

/// The most bytes of incomplete incoming messages held at a time. A hub's feedback message has at
/// most 64 records of a few hundred bytes.
const MAX_HELD_BYTES: usize = 1024 * 1024;

/// The descriptor of a disposition as hubs write it. The library refuses the code in any other
/// integer type.
const DISPOSITION: &[u8] = &[0x00, 0x53, Performative::Disposition as u8];

/// `accepted` as hubs write it.
const ACCEPTED: [&[u8]; 2] = [&[0x00, 0x53, 0x24, 0x45], &[0x00, 0x53, 0x24, 0xc0, 1, 0]];

/// Both directions of one connection.
#[derive(Debug, Default)]
pub(crate) struct FrameFilter {
    incoming: Incoming,
    outgoing: Outgoing,
    sanitizer: Sanitizer,
}

/// The state of a connection's sessions and links.
#[derive(Debug, Default)]
struct Sanitizer {
    sessions: Vec<Session>,
    partial: Vec<Partial>,
    repaired_flows: u64,
    has_ended: bool,
}

/// One session of the client. A connection has one or two, so a linear search suffices.
#[derive(Debug)]
struct Session {
    our_channel: u16,
    peer_channel: Option<u16>,
    next_outgoing_id: u32,
    /// One more than the last delivery id sent.
    next_delivery: u64,
}

/// The transfers of an incomplete message.
#[derive(Debug)]
struct Partial {
    channel: u16,
    handle: u32,
    transfers: Vec<TransferFrame>,
}

/// A TRANSFER frame and the start of its payload.
#[derive(Debug)]
struct TransferFrame {
    frame: Vec<u8>,
    payload: usize,
}

impl FrameFilter {
    /// Takes bytes from the hub and appends the bytes for the library to `out`. Must not be called
    /// again after an error.
    pub(crate) fn incoming(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        let Self {
            incoming,
            sanitizer,
            ..
        } = self;
        incoming.take(input, out, |head, frame, out| {
            sanitizer.sanitize(head, frame, out)
        })
    }

    /// Observes bytes written by the library; they go out unchanged.
    pub(crate) fn outgoing(&mut self, input: &[u8]) {
        let Self {
            outgoing,
            sanitizer,
            ..
        } = self;
        outgoing.take(input, |head, frame| sanitizer.observe_outgoing(head, frame));
    }

    /// The number of repaired FLOW frames.
    pub(crate) fn repaired_flows(&self) -> u64 {
        self.sanitizer.repaired_flows
    }

    /// Whether the library has ended the session or the connection: no more useful frames will
    /// come.
    pub(crate) fn has_ended(&self) -> bool {
        self.sanitizer.has_ended
    }
}

impl Sanitizer {
    /// Tracks sessions in an outgoing frame.
    fn observe_outgoing(&mut self, head: Head, frame: &[u8]) {
        let mut fields = fields(frame, head.list);
        match head.performative {
            Performative::Begin => {
                self.sessions
                    .retain(|session| session.our_channel != head.channel);
                let next_outgoing_id = fields.nth(1).and_then(|field| uint(&frame[field]));
                self.sessions.push(Session {
                    our_channel: head.channel,
                    peer_channel: None,
                    next_outgoing_id: next_outgoing_id.unwrap_or(0),
                    next_delivery: 0,
                });
            }
            Performative::Transfer => {
                let channel = head.channel;
                let mut sessions = self.sessions.iter_mut();
                if let Some(session) = sessions.find(|s| s.our_channel == channel) {
                    session.next_outgoing_id = session.next_outgoing_id.wrapping_add(1);
                    if let Some(id) = fields.nth(1).and_then(|field| uint(&frame[field])) {
                        session.next_delivery = u64::from(id) + 1;
                    }
                }
            }
            Performative::End | Performative::Close => self.has_ended = true,
            _ => {}
        }
    }

    /// Passes an incoming frame on in a form accepted by the library.
    fn sanitize(
        &mut self,
        head: Head,
        mut frame: Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        if head.performative != Performative::Transfer {
            drop_payload(head, &mut frame);
        }
        match head.performative {
            Performative::Open => shorten_idle_timeout(head, &mut frame),
            Performative::Begin => self.learn_peer_channel(head, &frame),
            Performative::Flow => {
                self.repaired_flows += u64::from(self.repair_flow(head, &mut frame));
            }
            Performative::Transfer => return self.transfer(head, frame, out),
            Performative::Disposition if !self.cut_disposition(head, &mut frame) => {
                out.extend(EMPTY);
                return Ok(());
            }
            _ => {}
        }
        let end = frame.len();
        make_decodable(head, &mut frame, end)?;
        out.extend(frame);
        Ok(())
    }

    fn session(&self, peer_channel: u16) -> Option<&Session> {
        let mut sessions = self.sessions.iter();
        sessions.find(|session| session.peer_channel == Some(peer_channel))
    }

    fn learn_peer_channel(&mut self, head: Head, frame: &[u8]) {
        let ours = fields(frame, head.list).next();
        let ours = ours.and_then(|field| integer(&frame[field]));
        let mut sessions = self.sessions.iter_mut();
        if let Some(session) = sessions.find(|s| Some(s.our_channel.into()) == ours) {
            session.peer_channel = Some(head.channel);
        }
    }

    /// Fills in a missing `next-incoming-id`; returns whether the id was missing.
    fn repair_flow(&self, head: Head, frame: &mut Vec<u8>) -> bool {
        let first = fields(frame, head.list).next();
        let is_missing = first.is_some_and(|field| frame[field] == [NULL]);
        let Some(session) = self.session(head.channel).filter(|_| is_missing) else {
            return false;
        };
        edit(head, frame, |fields| {
            fields[0] = write_uint(session.next_outgoing_id);
        });
        true
    }

    /// Cuts a disposition to ids possibly in flight. Returns `false` if none remain.
    fn cut_disposition(&self, head: Head, frame: &mut Vec<u8>) -> bool {
        let (by_receiver, first, last) = {
            let mut fields = fields(frame, head.list).map(|field| &frame[field]);
            let by_receiver = fields.next().is_some_and(is_true);
            let mut id = || -> Option<u64> { fields.next().and_then(uint).map(u64::from) };
            let Some(first) = id() else {
                // An undecodable frame; `make_decodable` reports the error.
                return true;
            };
            (by_receiver, first, id().unwrap_or(first))
        };
        let possible = match self.session(head.channel).filter(|_| by_receiver) {
            Some(Session { next_delivery, .. }) => {
                next_delivery.saturating_sub(MAX_DISPOSITION_IDS)..*next_delivery
            }
            None => first..first + MAX_DISPOSITION_IDS,
        };
        let cut = first.max(possible.start)..(last + 1).min(possible.end);
        if cut.is_empty() {
            return false;
        }
        if cut != (first..last + 1) {
            let id = |id: u64| write_uint(u32::try_from(id).expect("between two ids"));
            edit(head, frame, |fields| {
                (fields[1], fields[2]) = (id(cut.start), id(cut.end - 1));
            });
        }
        true
    }

    /// Holds a transfer until its message is complete, then passes all transfers on, with an empty
    /// message in place of a malformed one.
    fn transfer(
        &mut self,
        head: Head,
        mut frame: Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        let list = length(&frame[head.list..]).unwrap_or_default();
        let payload = make_decodable(head, &mut frame, head.list + list)?;
        let flag = |number| {
            let field = fields(&frame, head.list).nth(number);
            field.is_some_and(|field| is_true(&frame[field]))
        };
        let handle = fields(&frame, head.list).next();
        let handle = handle
            .and_then(|field| uint(&frame[field]))
            .unwrap_or_default();
        let (more, aborted) = (flag(5), flag(9));
        let is_it = |partial: &Partial| (partial.channel, partial.handle) == (head.channel, handle);
        let held = self.partial.iter().position(is_it);
        let mut partial = match held {
            Some(index) => self.partial.swap_remove(index),
            None => Partial {
                channel: head.channel,
                handle,
                transfers: Vec::new(),
            },
        };
        if aborted && !partial.transfers.is_empty() {
            // The library never saw the message's earlier transfers.
            out.extend(EMPTY);
            return Ok(());
        }
        partial.transfers.push(TransferFrame { frame, payload });
        if more && !aborted {
            self.partial.push(partial);
            let held = self.partial.iter().flat_map(|partial| &partial.transfers);
            let held: usize = held.map(|transfer| transfer.frame.len()).sum();
            if held > MAX_HELD_BYTES {
                let what = format!("a message of more than {MAX_HELD_BYTES} bytes");
                return Err(Malformed::new(what));
            }
            out.extend(EMPTY);
            return Ok(());
        }
        if !aborted {
            partial.check();
        }
        out.extend(
            partial
                .transfers
                .into_iter()
                .flat_map(|transfer| transfer.frame),
        );
        Ok(())
    }
}

impl Partial {
    /// Replaces a malformed message by an empty one.
    fn check(&mut self) {
        let payload = |transfer: &TransferFrame| transfer.frame[transfer.payload..].to_vec();
        let message: Vec<u8> = match &*self.transfers {
            [only] if is_message(&only.frame[only.payload..]) => return,
            [_] => Vec::new(),
            several => several.iter().flat_map(payload).collect(),
        };
        if is_message(&message) {
            return;
        }
        for transfer in &mut self.transfers {
            transfer.frame.truncate(transfer.payload);
        }
        if let Some(last) = self.transfers.last_mut() {
            // An `amqp-value` section with null.
            last.frame.extend(write_described(0x77, vec![NULL]));
        }
        for transfer in &mut self.transfers {
            set_size(&mut transfer.frame);
        }
    }
}

/// Whether a message is a sequence of at least one described value.
pub(crate) fn is_message(mut bytes: &[u8]) -> bool {
    let is_empty = bytes.is_empty();
    while let [0x00, ..] = bytes {
        let Some(length) = length(bytes) else {
            return false;
        };
        bytes = &bytes[length..];
    }
    !is_empty && bytes.is_empty()
}

/// Iterates over the fields of a performative.
fn fields(frame: &[u8], list: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    entries(frame, list).into_iter().flatten()
}

/// Changes the fields of a performative. Missing fields are null.
fn edit(head: Head, frame: &mut Vec<u8>, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
    /// The most fields of any performative.
    const MAX_FIELDS: usize = 14;
    let Some(list) = length(&frame[head.list..]) else {
        return;
    };
    let mut values: Vec<_> = fields(frame, head.list)
        .map(|field| frame[field].to_vec())
        .collect();
    let count = values.len();
    values.resize(count.max(MAX_FIELDS), vec![NULL]);
    change(&mut values);
    let used = values.iter().rposition(|value| *value != [NULL]);
    values.truncate(count.max(used.map_or(0, |last| last + 1)));
    frame.splice(head.list..head.list + list, write_list(&values));
    set_size(frame);
}

fn shorten_idle_timeout(head: Head, frame: &mut Vec<u8>) {
    let idle = fields(frame, head.list).nth(4);
    let Some(idle) = idle.and_then(|field| uint(&frame[field])) else {
        return;
    };
    let shorter = match idle {
        // Equivalent to no time-out. The library's task for empty frames would panic on zero.
        0 => vec![NULL],
        _ => write_uint((idle / IDLE_PARTS).max(MIN_IDLE_MS)),
    };
    edit(head, frame, |fields| fields[4] = shorter);
}

/// Ensures a decodable performative. `end` is the performative's end in the frame; returns the new
/// end.
fn make_decodable(head: Head, frame: &mut Vec<u8>, end: usize) -> Result<usize, Malformed> {
    if decodes(head, &frame[..end]) {
        return Ok(end);
    }
    let after = frame.len() - end;
    let sanitize_field = |field: &mut Vec<u8>, sanitized: fn(&[u8]) -> Vec<u8>| {
        *field = sanitized(&mem::take(field));
    };
    edit(head, frame, |fields| match head.performative {
        Performative::Disposition => {
            // Settled: no better state will follow.
            fields[3] = vec![TRUE];
            sanitize_field(&mut fields[4], sanitize::outcome);
        }
        Performative::Transfer => fields[7] = vec![NULL],
        Performative::Detach => sanitize_field(&mut fields[2], sanitize::error),
        Performative::End | Performative::Close => sanitize_field(&mut fields[0], sanitize::error),
        _ => {}
    });
    let end = frame.len() - after;
    if decodes(head, &frame[..end]) {
        return Ok(end);
    }
    let what = format!("{:?} frame that cannot be decoded", head.performative);
    Err(Malformed::new(what))
}

/// Removes bytes after a performative. Only a transfer has a payload. When the last field has a
/// wrong type, the library reads on into the bytes after it.
fn drop_payload(head: Head, frame: &mut Vec<u8>) {
    let list = length(&frame[head.list..]).unwrap_or_default();
    if head.list + list < frame.len() {
        frame.truncate(head.list + list);
        set_size(frame);
    }
}

/// Whether the library decodes a performative without reading beyond its end.
fn decodes(head: Head, performative: &[u8]) -> bool {
    /// One byte: too short for a size.
    const AFTER: &[u8] = &[NULL];
    if is_plain(head, performative) {
        return true;
    }
    let mut bytes = performative[HEADER..].chain(AFTER);
    let mut deserializer = Deserializer::new(IoReader::new(&mut bytes));
    let is_one = performatives::Performative::deserialize(&mut deserializer).is_ok();
    let mut left = Vec::new();
    is_one && bytes.read_to_end(&mut left).is_ok() && left == AFTER
}

/// Whether a frame is a plain accepting disposition. Nearly all frames of a hub are, so decoding
/// them twice would be waste.
fn is_plain(head: Head, performative: &[u8]) -> bool {
    if !performative[HEADER..].starts_with(DISPOSITION) {
        return false;
    }
    let mut fields = fields(performative, head.list).map(|field| &performative[field]);
    let mut next = || fields.next().unwrap_or(&[NULL]);
    let (role, first, last, settled, state) = (next(), next(), next(), next(), next());
    is_bool(role)
        && uint(first).is_some()
        && (last == [NULL] || uint(last).is_some())
        && is_bool(settled)
        && ACCEPTED.contains(&state)
        && fields.next().is_none_or(is_bool)
}

fn is_bool(value: &[u8]) -> bool {
    matches!(value, [TRUE | FALSE])
}

const _: () = assert!(MAX_HELD_BYTES > MAX_FRAME_BYTES);
#[cfg(test)]
mod tests;
