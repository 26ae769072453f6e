//! Repairs three kinds of AMQP frames on their way between a hub and `fe2o3-amqp`.
//!
//! * **FLOW without `next-incoming-id`** (newer gateways of IoT Hub send it). The library then computes the session
//!   window from the *first* id of the session, as the specification's formula says, and stalls for ever after one
//!   window of transfers. The missing field is filled with our next outgoing id as counted on the wire, so the remote
//!   window becomes the flow's own `incoming-window`: the reading of the .NET client, which never stalls.
//! * **OPEN with `idle-time-out`**. The library sends its empty frames once per time-out of the peer; the
//!   specification asks for half of it at most, and a hub closes what is silent for the whole of it. The value is
//!   divided by three before the library sees it.
//! * **BEGIN** is only read, to know which of the peer's channels belongs to which of ours.
//!
//! Everything else passes unchanged and uncopied beyond its first bytes. Pure: no I/O, any split of the input gives the
//! same output (tested at every position).
//!
//! Rejected alternatives: recycling the session every few thousand transfers costs a link open each, which the hub
//! throttles; patching the library means carrying a fork.

/// A protocol header and a frame header have the same length.
const HEADER: usize = 8;

/// Frames that are looked into are at most this long; a longer FLOW, BEGIN or OPEN passes as it is.
const LONGEST_REPAIRED: usize = 8 * 1024;

/// The library's empty frames are due after this part of the peer's idle time-out.
const IDLE_PARTS: u32 = 3;

const OPEN: u8 = 0x10;
const BEGIN: u8 = 0x11;
const FLOW: u8 = 0x13;
const TRANSFER: u8 = 0x14;
const NULL: u8 = 0x40;
const UINT: u8 = 0x70;
const SMALL_UINT: u8 = 0x52;
const USHORT: u8 = 0x60;

/// Both directions of one connection.
#[derive(Debug, Default)]
pub(crate) struct Repair {
    incoming: Scanner,
    outgoing: Scanner,
    sessions: Vec<Session>,
    repaired_flows: u64,
}

/// One session of ours. There are one or two in a connection, so a list is searched.
#[derive(Debug)]
struct Session {
    our_channel: u16,
    peer_channel: Option<u16>,
    next_outgoing_id: u32,
}

/// Cuts a stream of bytes into frames, holding only what has to be looked at.
#[derive(Debug, Default)]
struct Scanner {
    /// The start of a frame that is not decided yet, or the whole of one that is looked into.
    held: Vec<u8>,
    /// Bytes of the current frame that pass without a look.
    passing: usize,
    /// The stream is not AMQP as we know it: everything passes, the library will say what is wrong.
    gave_up: bool,
}

/// What the first bytes of a frame say.
#[derive(Debug, Clone, Copy)]
struct Head {
    code: u8,
    channel: u16,
    /// Where the performative's list starts.
    list: usize,
}

enum Step {
    More(usize),
    Pass(usize, Option<Head>),
    Whole(Head),
    GiveUp,
}

impl Repair {
    /// Takes bytes from the hub and appends what the library shall see to `out`.
    pub(crate) fn incoming(&mut self, input: &[u8], out: &mut Vec<u8>) {
        let Self {
            incoming,
            sessions,
            repaired_flows,
            ..
        } = self;
        incoming.scan(
            input,
            |bytes| out.extend_from_slice(bytes),
            |_| {},
            |head, frame| match head.code {
                OPEN => shorten_idle_timeout(head, frame),
                BEGIN => learn_peer_channel(head, frame, sessions),
                FLOW => *repaired_flows += u64::from(repair_flow(head, frame, sessions)),
                _ => {}
            },
        );
    }

    /// Sees bytes that the library writes; they go out unchanged.
    pub(crate) fn outgoing(&mut self, input: &[u8]) {
        let sessions = std::cell::RefCell::new(&mut self.sessions);
        self.outgoing.scan(
            input,
            |_| {},
            |head| {
                if head.code == TRANSFER
                    && let Some(session) = sessions
                        .borrow_mut()
                        .iter_mut()
                        .find(|s| s.our_channel == head.channel)
                {
                    session.next_outgoing_id = session.next_outgoing_id.wrapping_add(1);
                }
            },
            |head, frame| {
                if head.code == BEGIN {
                    begin_session(head, frame, &mut sessions.borrow_mut());
                }
            },
        );
    }

    /// How many FLOW frames were repaired.
    pub(crate) fn repaired_flows(&self) -> u64 {
        self.repaired_flows
    }
}

impl Scanner {
    fn scan(
        &mut self,
        mut input: &[u8],
        mut emit: impl FnMut(&[u8]),
        mut saw: impl FnMut(Head),
        mut whole: impl FnMut(Head, &mut Vec<u8>),
    ) {
        while !input.is_empty() {
            if self.gave_up {
                emit(input);
                return;
            }
            if self.passing > 0 {
                let (now, rest) = input.split_at(self.passing.min(input.len()));
                emit(now);
                self.passing -= now.len();
                input = rest;
                continue;
            }
            match step(&self.held) {
                Step::More(needed) => {
                    let missing = (needed - self.held.len()).min(input.len());
                    self.held.extend_from_slice(&input[..missing]);
                    input = &input[missing..];
                    // What was just completed is decided now, not when more bytes come.
                    self.settle(&mut emit, &mut saw, &mut whole);
                }
                _ => self.settle(&mut emit, &mut saw, &mut whole),
            }
        }
    }

    /// Decides what is held, as far as it can be decided.
    fn settle(
        &mut self,
        emit: &mut impl FnMut(&[u8]),
        saw: &mut impl FnMut(Head),
        whole: &mut impl FnMut(Head, &mut Vec<u8>),
    ) {
        match step(&self.held) {
            Step::More(_) => return,
            Step::GiveUp => self.gave_up = true,
            Step::Pass(size, head) => {
                if let Some(head) = head {
                    saw(head);
                }
                self.passing = size - self.held.len();
            }
            Step::Whole(head) => {
                saw(head);
                whole(head, &mut self.held);
            }
        }
        emit(&self.held);
        self.held.clear();
    }
}

/// What to do with a frame of which `held` is the start.
fn step(held: &[u8]) -> Step {
    let Some(header) = held.first_chunk::<HEADER>() else {
        return Step::More(HEADER);
    };
    if header.starts_with(b"AMQP") {
        return Step::Pass(HEADER, None);
    }
    let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let body = usize::from(header[4]) * 4;
    if size < HEADER || body < HEADER || body > size {
        return Step::GiveUp;
    }
    // Frames of SASL (type 1) and empty frames say nothing to us.
    if header[5] != 0 || body == size {
        return Step::Pass(size, None);
    }
    // The longest descriptor is a zero, a constructor and eight bytes.
    let prefix = size.min(body + 10);
    if held.len() < prefix {
        return Step::More(prefix);
    }
    let (code, list) = match held[body..prefix] {
        [0x00, 0x53, code, ..] => (code, body + 3),
        [0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, code] => (code, body + 10),
        _ => return Step::Pass(size, None),
    };
    let head = Head {
        code,
        channel: u16::from_be_bytes([header[6], header[7]]),
        list,
    };
    if !matches!(code, OPEN | BEGIN | FLOW) || size > LONGEST_REPAIRED {
        return Step::Pass(size, Some(head));
    }
    if held.len() < size {
        Step::More(size)
    } else {
        Step::Whole(head)
    }
}

/// Where the items of the list at `at` start, and how many there are.
fn items(frame: &[u8], at: usize) -> Option<(usize, usize)> {
    match frame.get(at)? {
        0xc0 => Some((at + 3, usize::from(*frame.get(at + 2)?))),
        0xd0 => {
            let count = frame.get(at + 5..at + 9)?.try_into().ok()?;
            Some((at + 9, u32::from_be_bytes(count) as usize))
        }
        _ => None,
    }
}

/// Where the value after the one at `at` starts.
fn skip(frame: &[u8], at: usize) -> Option<usize> {
    let length = match frame.get(at)? >> 4 {
        0x4 => 0,
        0x5 => 1,
        0x6 => 2,
        0x7 => 4,
        0x8 => 8,
        0x9 => 16,
        0xa | 0xc | 0xe => 1 + usize::from(*frame.get(at + 1)?),
        0xb | 0xd | 0xf => {
            4 + u32::from_be_bytes(frame.get(at + 1..at + 5)?.try_into().ok()?) as usize
        }
        _ => return None,
    };
    Some(at + 1 + length)
}

fn uint(frame: &[u8], at: usize) -> Option<u32> {
    match frame.get(at)? {
        0x43 => Some(0),
        &SMALL_UINT => frame.get(at + 1).map(|value| u32::from(*value)),
        &UINT => Some(u32::from_be_bytes(
            frame.get(at + 1..at + 5)?.try_into().ok()?,
        )),
        _ => None,
    }
}

fn begin_session(head: Head, frame: &[u8], sessions: &mut Vec<Session>) {
    let second = items(frame, head.list).and_then(|(first, _)| skip(frame, first));
    let next_outgoing_id = second.and_then(|at| uint(frame, at)).unwrap_or(0);
    sessions.retain(|session| session.our_channel != head.channel);
    sessions.push(Session {
        our_channel: head.channel,
        peer_channel: None,
        next_outgoing_id,
    });
}

fn learn_peer_channel(head: Head, frame: &[u8], sessions: &mut [Session]) {
    let Some((first, _)) = items(frame, head.list) else {
        return;
    };
    if let Some([USHORT, high, low]) = frame.get(first..first + 3) {
        let ours = u16::from_be_bytes([*high, *low]);
        if let Some(session) = sessions
            .iter_mut()
            .find(|session| session.our_channel == ours)
        {
            session.peer_channel = Some(head.channel);
        }
    }
}

fn shorten_idle_timeout(head: Head, frame: &mut [u8]) {
    let Some((mut at, count)) = items(frame, head.list) else {
        return;
    };
    if count < 5 {
        return;
    }
    for _ in 0..4 {
        let Some(next) = skip(frame, at) else { return };
        at = next;
    }
    let Some(shorter) = uint(frame, at).map(|value| (value / IDLE_PARTS).max(1)) else {
        return;
    };
    match frame[at] {
        UINT => frame[at + 1..at + 5].copy_from_slice(&shorter.to_be_bytes()),
        // A third of a byte's value is a byte's value.
        SMALL_UINT => frame[at + 1] = shorter as u8,
        _ => {}
    }
}

/// Fills a missing `next-incoming-id`; tells whether it was missing.
fn repair_flow(head: Head, frame: &mut Vec<u8>, sessions: &[Session]) -> bool {
    let Some((first, _)) = items(frame, head.list) else {
        return false;
    };
    if frame.get(first) != Some(&NULL) {
        return false;
    }
    let Some(session) = sessions
        .iter()
        .find(|s| s.peer_channel == Some(head.channel))
    else {
        return false;
    };
    let mut value = [UINT, 0, 0, 0, 0];
    value[1..].copy_from_slice(&session.next_outgoing_id.to_be_bytes());
    let at = head.list;
    if frame[at] == 0xc0 {
        // A short list may not have room for four more bytes: it becomes a long one.
        let (size, count) = (u32::from(frame[at + 1]), u32::from(frame[at + 2]));
        let mut list = [0xd0, 0, 0, 0, 0, 0, 0, 0, 0];
        // The size counts what follows it: the count (one byte before, four now) and the items.
        list[1..5].copy_from_slice(&(size - 1 + 4 + 4).to_be_bytes());
        list[5..].copy_from_slice(&count.to_be_bytes());
        frame.splice(first..=first, value);
        frame.splice(at..at + 3, list);
    } else {
        let Some(size) = frame.get(at + 1..at + 5).and_then(|s| s.try_into().ok()) else {
            return false;
        };
        let size = u32::from_be_bytes(size) + 4;
        frame.splice(first..=first, value);
        frame[at + 1..at + 5].copy_from_slice(&size.to_be_bytes());
    }
    let size = u32::try_from(frame.len()).expect("a repaired frame is a few KiB");
    frame[..4].copy_from_slice(&size.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(channel: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = (8 + body.len() as u32).to_be_bytes().to_vec();
        frame.extend([2, 0]);
        frame.extend(channel.to_be_bytes());
        frame.extend(body);
        frame
    }

    fn list(code: u8, count: u8, items: &[u8]) -> Vec<u8> {
        let mut body = vec![0x00, 0x53, code, 0xc0, items.len() as u8 + 1, count];
        body.extend(items);
        body
    }

    fn long_list(code: u8, count: u32, items: &[u8]) -> Vec<u8> {
        let mut body = vec![0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, code, 0xd0];
        body.extend((items.len() as u32 + 4).to_be_bytes());
        body.extend(count.to_be_bytes());
        body.extend(items);
        body
    }

    const BROKEN_ITEMS: &[u8] = &[
        NULL, 0x70, 0, 0, 0x13, 0x88, 0x52, 1, 0x70, 0xff, 0xff, 0xff, 0xff,
    ];
    const REPAIRED_ITEMS: &[u8] = &[
        0x70, 0, 0, 0, 9, 0x70, 0, 0, 0x13, 0x88, 0x52, 1, 0x70, 0xff, 0xff, 0xff, 0xff,
    ];

    /// Begins our channel 3 at id 7 and sends two transfers; the peer answers on its channel 5.
    fn repair_after_two_transfers() -> Repair {
        let mut repair = Repair::default();
        repair.outgoing(b"AMQP\x00\x01\x00\x00");
        repair.outgoing(&frame(
            3,
            &list(BEGIN, 4, &[NULL, 0x52, 7, 0x52, 99, 0x52, 99]),
        ));
        for payload in [&b"hello"[..], &[0; 300]] {
            let mut body = list(TRANSFER, 1, &[0x43]);
            body.extend(payload);
            repair.outgoing(&frame(3, &body));
        }
        let mut out = Vec::new();
        repair.incoming(
            &frame(
                5,
                &list(BEGIN, 4, &[USHORT, 0, 3, 0x52, 1, 0x52, 9, 0x52, 9]),
            ),
            &mut out,
        );
        repair
    }

    /// Everything a peer may send, with what the library shall see of it.
    fn conversation() -> (Vec<u8>, Vec<u8>) {
        let unchanged = [
            b"AMQP\x03\x01\x00\x00".to_vec(),
            vec![0, 0, 0, 12, 2, 1, 0, 0, 0x00, 0x53, 0x44, 0x45],
            b"AMQP\x00\x01\x00\x00".to_vec(),
            frame(0, &[]),
            frame(5, &list(0x15, 2, &[0x41, 0x43])),
            frame(5, &list(FLOW, 2, &[0x43, 0x52, 9])),
        ];
        let mut input = unchanged.concat();
        let mut output = input.clone();
        input.extend(frame(5, &list(FLOW, 4, BROKEN_ITEMS)));
        let mut long = vec![0x00, 0x53, FLOW, 0xd0];
        long.extend((REPAIRED_ITEMS.len() as u32 + 4).to_be_bytes());
        long.extend(4_u32.to_be_bytes());
        long.extend(REPAIRED_ITEMS);
        output.extend(frame(5, &long));
        input.extend(frame(5, &long_list(FLOW, 4, BROKEN_ITEMS)));
        output.extend(frame(5, &long_list(FLOW, 4, REPAIRED_ITEMS)));
        // A FLOW of a session that is not ours passes as it is.
        let foreign = frame(6, &list(FLOW, 4, BROKEN_ITEMS));
        input.extend(&foreign);
        output.extend(&foreign);
        let open = |idle: u32| {
            let mut items = vec![
                0xa1, 2, b'i', b'd', NULL, 0x70, 0, 1, 0, 0, 0x60, 3, 0xff, 0x70,
            ];
            items.extend(idle.to_be_bytes());
            frame(0, &list(OPEN, 5, &items))
        };
        input.extend(open(240_000));
        output.extend(open(80_000));
        (input, output)
    }

    #[test]
    fn a_split_at_every_position_gives_the_same_frames() {
        let (input, expected) = conversation();
        for split in 0..=input.len() {
            let mut repair = repair_after_two_transfers();
            let mut out = Vec::new();
            repair.incoming(&input[..split], &mut out);
            repair.incoming(&input[split..], &mut out);
            assert_eq!(out, expected, "split at {split}");
            assert_eq!(repair.repaired_flows(), 2);
        }
    }

    #[test]
    fn byte_by_byte_gives_the_same_frames_and_counts() {
        let (input, expected) = conversation();
        let mut repair = repair_after_two_transfers();
        let mut out = Vec::new();
        for byte in input {
            repair.incoming(&[byte], &mut out);
        }
        assert_eq!(out, expected);
        let mut repair = Repair::default();
        let mut sent = frame(3, &list(BEGIN, 4, &[NULL, 0x43, 0x52, 99, 0x52, 99]));
        for _ in 0..5 {
            sent.extend(frame(3, &list(TRANSFER, 1, &[0x43])));
            sent.extend(frame(4, &list(TRANSFER, 1, &[0x43])));
        }
        sent.iter().for_each(|byte| repair.outgoing(&[*byte]));
        assert_eq!(repair.sessions[0].next_outgoing_id, 5);
    }

    #[test]
    fn what_is_not_amqp_passes() {
        let mut repair = Repair::default();
        let mut out = Vec::new();
        let input = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        repair.incoming(input, &mut out);
        assert_eq!(out, input);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_made_up_and_nothing_panics(
            input in proptest::collection::vec(any::<u8>(), 0..400),
            split in 0_usize..400,
        ) {
            let mut repair = repair_after_two_transfers();
            let mut out = Vec::new();
            let split = split.min(input.len());
            repair.incoming(&input[..split], &mut out);
            repair.incoming(&input[split..], &mut out);
            prop_assert!(out.len() + repair.incoming.held.len() >= input.len());
        }

        #[test]
        fn mangled_frames_never_panic(
            at in 0_usize..200,
            byte: u8,
        ) {
            let (mut input, _) = conversation();
            let at = at % input.len();
            input[at] = byte;
            let mut repair = repair_after_two_transfers();
            repair.incoming(&input, &mut Vec::new());
            repair.outgoing(&input);
        }
    }
}
