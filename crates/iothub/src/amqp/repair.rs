//! Stands between a hub and `fe2o3-amqp`, and lets through only what the library can take.
//!
//! The library panics over frames that are no frames, ends the connection over one answer that it cannot decode, and
//! loops over ranges as wide as the peer likes. So every incoming frame is held until it is whole, checked, and:
//!
//! * **What is not AMQP 1.0** ends the stream with [`Malformed`]: a connection loss like any other.
//! * **FLOW without `next-incoming-id`** (newer gateways of IoT Hub send it). The library then computes the session
//!   window from the *first* id of the session, as the specification's formula says, and stalls for ever after one
//!   window of transfers. The missing field is filled with our next outgoing id as counted on the wire, so the remote
//!   window becomes the flow's own `incoming-window`: the reading of the .NET client, which never stalls.
//! * **OPEN with `idle-time-out`**. The library sends its empty frames once per time-out of the peer; the
//!   specification asks for half of it at most, and a hub closes what is silent for the whole of it. The value is
//!   divided by three before the library sees it, and is at least [`LEAST_IDLE_MS`].
//! * **DISPOSITION** is cut to deliveries that can be in flight. A state that the library cannot decode is replaced by
//!   one that it can, see [`mend`].
//! * **TRANSFER** is held until its message is whole. A message that is not well-formed is replaced by an empty one:
//!   the delivery is answered for like any other that cannot be read.
//! * **DETACH, END, CLOSE** with an explanation that cannot be decoded get one that can.
//! * **BEGIN** is only read, to know which of the peer's channels belongs to which of ours.
//!
//! Everything else passes unchanged. Pure: no I/O, any split of the input gives the same output (tested at every
//! position). Memory is bounded by [`LARGEST_FRAME`] and [`LARGEST_MESSAGE`].
//!
//! Rejected alternatives: recycling the session every few thousand transfers costs a link open each, which the hub
//! throttles; patching the library means carrying a fork.

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
    EMPTY, HEADER, Head, Incoming, LARGEST_FRAME, Malformed, Outgoing, Performative, set_size,
};
use super::mend;
use crate::options::LARGEST_MAX_IN_FLIGHT;

/// The library's empty frames are due after this part of the peer's idle time-out.
const IDLE_PARTS: u32 = 3;

/// The shortest time between two of the library's empty frames, in milliseconds, whatever the peer asks for.
const LEAST_IDLE_MS: u32 = 50;

/// The most ids that a disposition can be about: those in flight, and as many again whose time is up.
const WIDEST_DISPOSITION: u64 = 2 * LARGEST_MAX_IN_FLIGHT as u64;

/// The most bytes of incoming messages that are held until they are whole. A hub's feedback message has at most 64
/// records of a few hundred bytes.
const LARGEST_MESSAGE: usize = 1024 * 1024;

/// The descriptor of a disposition as hubs write it. The library does not take the code as an integer of other types.
const DISPOSITION: &[u8] = &[0x00, 0x53, Performative::Disposition as u8];

/// `accepted` as hubs write it.
const ACCEPTED: [&[u8]; 2] = [&[0x00, 0x53, 0x24, 0x45], &[0x00, 0x53, 0x24, 0xc0, 1, 0]];

/// Both directions of one connection.
#[derive(Debug, Default)]
pub(crate) struct Repair {
    incoming: Incoming,
    outgoing: Outgoing,
    mender: Mender,
}

/// What is known of a connection's sessions and links.
#[derive(Debug, Default)]
struct Mender {
    sessions: Vec<Session>,
    partial: Vec<Partial>,
    repaired_flows: u64,
    left: bool,
}

/// One session of ours. There are one or two in a connection, so a list is searched.
#[derive(Debug)]
struct Session {
    our_channel: u16,
    peer_channel: Option<u16>,
    next_outgoing_id: u32,
    /// One more than the last delivery id sent.
    next_delivery: u64,
}

/// The transfers of a message of which more is to come.
#[derive(Debug)]
struct Partial {
    channel: u16,
    handle: u32,
    transfers: Vec<TransferFrame>,
}

/// A TRANSFER frame and where its payload starts.
#[derive(Debug)]
struct TransferFrame {
    frame: Vec<u8>,
    payload: usize,
}

impl Repair {
    /// Takes bytes from the hub and appends what the library shall see to `out`. After an error nothing more may be
    /// taken.
    pub(crate) fn incoming(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        let Self {
            incoming, mender, ..
        } = self;
        incoming.take(input, out, |head, frame, out| mender.mend(head, frame, out))
    }

    /// Sees bytes that the library writes; they go out unchanged.
    pub(crate) fn outgoing(&mut self, input: &[u8]) {
        let Self {
            outgoing, mender, ..
        } = self;
        outgoing.take(input, |head, frame| mender.sees(head, frame));
    }

    /// How many FLOW frames were repaired.
    pub(crate) fn repaired_flows(&self) -> u64 {
        self.mender.repaired_flows
    }

    /// Whether the library has ended the session or the connection: nothing of use comes any more.
    pub(crate) fn left(&self) -> bool {
        self.mender.left
    }
}

impl Mender {
    /// Notes what an outgoing frame says of our sessions.
    fn sees(&mut self, head: Head, frame: &[u8]) {
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
            Performative::End | Performative::Close => self.left = true,
            _ => {}
        }
    }

    /// Passes an incoming frame on, as the library can take it.
    fn mend(&mut self, head: Head, mut frame: Vec<u8>, out: &mut Vec<u8>) -> Result<(), Malformed> {
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

    /// Fills a missing `next-incoming-id`; tells whether it was missing.
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

    /// Cuts a disposition to ids that can be in flight. False if there are none.
    fn cut_disposition(&self, head: Head, frame: &mut Vec<u8>) -> bool {
        let (by_receiver, first, last) = {
            let mut fields = fields(frame, head.list).map(|field| &frame[field]);
            let by_receiver = fields.next().is_some_and(is_true);
            let mut id = || -> Option<u64> { fields.next().and_then(uint).map(u64::from) };
            let Some(first) = id() else {
                // It does not decode, which is told elsewhere.
                return true;
            };
            (by_receiver, first, id().unwrap_or(first))
        };
        let possible = match self.session(head.channel).filter(|_| by_receiver) {
            Some(Session { next_delivery, .. }) => {
                next_delivery.saturating_sub(WIDEST_DISPOSITION)..*next_delivery
            }
            None => first..first + WIDEST_DISPOSITION,
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

    /// Holds a transfer until its message is whole, then passes on all of it, without its payload if that is not
    /// well-formed.
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
            // The library never saw the message.
            out.extend(EMPTY);
            return Ok(());
        }
        partial.transfers.push(TransferFrame { frame, payload });
        if more && !aborted {
            self.partial.push(partial);
            let held = self.partial.iter().flat_map(|partial| &partial.transfers);
            let held: usize = held.map(|transfer| transfer.frame.len()).sum();
            if held > LARGEST_MESSAGE {
                let what = format!("a message of more than {LARGEST_MESSAGE} bytes");
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
    /// Replaces a message that is not well-formed by an empty one.
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

/// Whether a message is a sequence of described values, at least one.
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

/// The fields of a performative.
fn fields(frame: &[u8], list: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    entries(frame, list).into_iter().flatten()
}

/// Changes the fields of a performative. Fields that are not there are null.
fn edit(head: Head, frame: &mut Vec<u8>, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
    /// No performative has more.
    const MOST_FIELDS: usize = 14;
    let Some(list) = length(&frame[head.list..]) else {
        return;
    };
    let mut values: Vec<_> = fields(frame, head.list)
        .map(|field| frame[field].to_vec())
        .collect();
    let count = values.len();
    values.resize(count.max(MOST_FIELDS), vec![NULL]);
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
        // The same as none, and the library's task for empty frames ends by a panic.
        0 => vec![NULL],
        _ => write_uint((idle / IDLE_PARTS).max(LEAST_IDLE_MS)),
    };
    edit(head, frame, |fields| fields[4] = shorter);
}

/// Makes sure that the library can decode the performative, which ends at `end`, and gives its new end.
fn make_decodable(head: Head, frame: &mut Vec<u8>, end: usize) -> Result<usize, Malformed> {
    if decodes(head, &frame[..end]) {
        return Ok(end);
    }
    let after = frame.len() - end;
    let mended = |field: &mut Vec<u8>, mend: fn(&[u8]) -> Vec<u8>| *field = mend(&mem::take(field));
    edit(head, frame, |fields| match head.performative {
        Performative::Disposition => {
            // Settled: there will be no better state.
            fields[3] = vec![TRUE];
            mended(&mut fields[4], mend::outcome);
        }
        Performative::Transfer => fields[7] = vec![NULL],
        Performative::Detach => mended(&mut fields[2], mend::error),
        Performative::End | Performative::Close => mended(&mut fields[0], mend::error),
        _ => {}
    });
    let end = frame.len() - after;
    if decodes(head, &frame[..end]) {
        return Ok(end);
    }
    let what = format!("{:?} that cannot be decoded", head.performative);
    Err(Malformed::new(what))
}

/// Removes what stands after a performative. Only a transfer has a payload, and the library reads on into it when the
/// last field is not of its type.
fn drop_payload(head: Head, frame: &mut Vec<u8>) {
    let list = length(&frame[head.list..]).unwrap_or_default();
    if head.list + list < frame.len() {
        frame.truncate(head.list + list);
        set_size(frame);
    }
}

/// Whether the library decodes a performative, and takes nothing of what comes after it.
fn decodes(head: Head, performative: &[u8]) -> bool {
    /// One byte: too few to be taken for a size.
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

/// Whether a disposition accepts, which is nearly all of what a hub says, and not worth decoding twice.
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

const _: () = assert!(LARGEST_MESSAGE > LARGEST_FRAME);
#[cfg(test)]
mod tests;
