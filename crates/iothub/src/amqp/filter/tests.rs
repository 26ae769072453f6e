use proptest::prelude::*;

use super::super::encoding::{write_map, write_string, write_symbol};
use super::*;

const OPEN: u8 = 0x10;
const BEGIN: u8 = 0x11;
const FLOW: u8 = 0x13;
const TRANSFER: u8 = 0x14;
const DISPOSITION: u8 = 0x15;
const DETACH: u8 = 0x16;
const CLOSE: u8 = 0x18;
const USHORT: u8 = 0x60;

const SASL_HEADER: &[u8] = b"AMQP\x03\x01\x00\x00";
const AMQP_HEADER: &[u8] = b"AMQP\x00\x01\x00\x00";
const SASL_OUTCOME: &[u8] = &[
    0, 0, 0, 16, 2, 1, 0, 0, 0x00, 0x53, 0x44, 0xc0, 3, 1, 0x50, 0,
];
const ACCEPTED: [u8; 4] = [0x00, 0x53, 0x24, 0x45];

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

fn long_list(code: u8, items: &[Vec<u8>]) -> Vec<u8> {
    write_described(code, write_list(items))
}

fn open(idle: u32) -> Vec<u8> {
    let mut items = vec![
        0xa1, 2, b'i', b'd', NULL, 0x70, 0, 1, 0, 0, 0x60, 3, 0xff, 0x70,
    ];
    items.extend(idle.to_be_bytes());
    frame(0, &list(OPEN, 5, &items))
}

/// The library's view of [`open`].
fn open_repaired(idle: u32) -> Vec<u8> {
    open_with(write_uint(idle))
}

fn open_with(idle: Vec<u8>) -> Vec<u8> {
    let items = [
        vec![0xa1, 2, b'i', b'd'],
        vec![NULL],
        vec![0x70, 0, 1, 0, 0],
        vec![0x60, 3, 0xff],
        idle,
    ];
    frame(0, &long_list(OPEN, &items))
}

fn begin() -> Vec<u8> {
    let items = [USHORT, 0, 3, 0x52, 1, 0x52, 9, 0x52, 9];
    frame(5, &list(BEGIN, 4, &items))
}

fn disposition(role: u8, first: u32, last: u32, settled: u8, state: &[u8]) -> Vec<u8> {
    let items = [
        vec![role],
        write_uint(first),
        write_uint(last),
        vec![settled],
        state.to_vec(),
    ];
    frame(5, &long_list(DISPOSITION, &items))
}

fn transfer(handle: u8, more: u8, payload: &[u8]) -> Vec<u8> {
    let items = [0x52, handle, 0x52, 0, 0xa0, 1, b't', 0x43, FALSE, more];
    let mut body = list(TRANSFER, 6, &items);
    body.extend(payload);
    frame(5, &body)
}

const MESSAGE: &[u8] = &[0x00, 0x53, 0x75, 0xa0, 2, b'h', b'i'];
const EMPTY_MESSAGE: &[u8] = &[0x00, 0x53, 0x77, NULL];

const BROKEN_FLOW: &[u8] = &[
    NULL, 0x70, 0, 0, 0x13, 0x88, 0x52, 1, 0x70, 0xff, 0xff, 0xff, 0xff,
];

fn repaired_flow() -> Vec<u8> {
    let items = [
        write_uint(9),
        vec![0x70, 0, 0, 0x13, 0x88],
        vec![0x52, 1],
        vec![0x70, 0xff, 0xff, 0xff, 0xff],
    ];
    frame(5, &long_list(FLOW, &items))
}

/// A hub's bytes up to an open session.
fn opening() -> Vec<u8> {
    [
        SASL_HEADER,
        SASL_OUTCOME,
        AMQP_HEADER,
        &open(240_000),
        &begin(),
    ]
    .concat()
}

/// Begins the client's channel 3 at id 7 and sends two transfers.
fn filter_after_two_transfers() -> FrameFilter {
    let mut filter = FrameFilter::default();
    filter.outgoing(AMQP_HEADER);
    filter.outgoing(&frame(
        3,
        &list(BEGIN, 4, &[NULL, 0x52, 7, 0x52, 99, 0x52, 99]),
    ));
    for (id, payload) in [(0, &b"hello"[..]), (1, &[0; 300])] {
        let mut body = list(TRANSFER, 2, &[0x43, 0x52, id]);
        body.extend(payload);
        filter.outgoing(&frame(3, &body));
    }
    filter
}

/// The state after the session has begun, with the peer on its channel 5.
fn session_filter() -> FrameFilter {
    let mut filter = filter_after_two_transfers();
    filtered(&mut filter, &opening()).unwrap();
    filter
}

fn filtered(filter: &mut FrameFilter, input: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::new();
    filter.incoming(input, &mut out).map(|()| out)
}

/// A conversation with every kind of frame from a peer, and the bytes expected by the library.
fn conversation() -> (Vec<u8>, Vec<u8>) {
    let mut input = opening();
    let mut output = [
        SASL_HEADER,
        SASL_OUTCOME,
        AMQP_HEADER,
        &open_repaired(80_000),
        &begin(),
    ]
    .concat();
    for unchanged in [
        frame(0, &[]),
        disposition(TRUE, 0, 1, TRUE, &ACCEPTED),
        frame(5, &list(FLOW, 4, &[0x43, 0x52, 9, 0x52, 9, 0x52, 9])),
        transfer(0, FALSE, MESSAGE),
        // A FLOW of a foreign session.
        frame(6, &list(FLOW, 4, BROKEN_FLOW)),
    ] {
        input.extend(&unchanged);
        output.extend(&unchanged);
    }
    input.extend(frame(5, &list(FLOW, 4, BROKEN_FLOW)));
    output.extend(repaired_flow());
    // A header with an extension, which has no meaning.
    let mut extended = frame(5, &[]);
    extended.extend([1, 2, 3, 4]);
    extended.extend(list(FLOW, 4, BROKEN_FLOW));
    extended[4] = 3;
    set_size(&mut extended);
    input.extend(extended);
    output.extend(repaired_flow());
    // A message in two parts is passed when complete.
    let parts = [
        transfer(1, TRUE, &MESSAGE[..3]),
        transfer(1, FALSE, &MESSAGE[3..]),
    ];
    input.extend(parts.concat());
    output.extend([&EMPTY[..], &parts.concat()].concat());
    (input, output)
}

#[test]
fn a_split_at_every_position_gives_the_same_frames() {
    let (input, expected) = conversation();
    for split in 0..=input.len() {
        let mut filter = filter_after_two_transfers();
        let mut out = filtered(&mut filter, &input[..split]).unwrap();
        out.extend(filtered(&mut filter, &input[split..]).unwrap());
        assert_eq!(out, expected, "split at {split}");
        assert_eq!(filter.repaired_flows(), 2);
    }
}

#[test]
fn byte_by_byte_gives_the_same_frames_and_counts() {
    let (input, expected) = conversation();
    let mut filter = filter_after_two_transfers();
    let mut out = Vec::new();
    for byte in input {
        filter.incoming(&[byte], &mut out).unwrap();
    }
    assert_eq!(out, expected);
    let mut filter = FrameFilter::default();
    let mut sent = frame(3, &list(BEGIN, 4, &[NULL, 0x43, 0x52, 99, 0x52, 99]));
    for id in 0..5 {
        sent.extend(frame(3, &list(TRANSFER, 2, &[0x43, 0x52, id])));
        // A further transfer of the same delivery, and a transfer of another session.
        sent.extend(frame(3, &list(TRANSFER, 2, &[0x43, NULL])));
        sent.extend(frame(4, &list(TRANSFER, 2, &[0x43, 0x43])));
    }
    sent.iter().for_each(|byte| filter.outgoing(&[*byte]));
    let session = &filter.sanitizer.sessions[0];
    assert_eq!((session.next_outgoing_id, session.next_delivery), (10, 5));
    assert!(!filter.has_ended());
    filter.outgoing(&frame(0, &list(CLOSE, 0, &[])));
    assert!(filter.has_ended());
}

#[test]
fn idle_time_outs_are_shortened_within_reason() {
    for (requested, repaired) in [(240_000, 80_000), (150, 50), (1, MIN_IDLE_MS)] {
        let mut filter = FrameFilter::default();
        let out = filtered(&mut filter, &[AMQP_HEADER, &open(requested)].concat()).unwrap();
        assert_eq!(out[8..], open_repaired(repaired), "{requested}");
    }
    // Zero means no time-out, but the library takes zero for a period.
    let zero = [AMQP_HEADER, &open(0)].concat();
    let out = filtered(&mut FrameFilter::default(), &zero).unwrap();
    assert_eq!(out[8..], open_with(vec![NULL]));
}

/// Bytes invalid in each phase of a connection.
#[test]
fn invalid_amqp_ends_the_stream_in_every_phase() {
    let phases: [(&str, Vec<u8>); 6] = [
        ("start", Vec::new()),
        ("SASL", SASL_HEADER.to_vec()),
        ("header", [SASL_HEADER, SASL_OUTCOME].concat()),
        ("open", [SASL_HEADER, SASL_OUTCOME, AMQP_HEADER].concat()),
        ("plain open", AMQP_HEADER.to_vec()),
        ("opened", opening()),
    ];
    let mut oversize = vec![0, 1, 0, 1];
    oversize.extend([2, 0, 0, 0]);
    let malformed: [(&str, Vec<u8>); 12] = [
        ("shorter than its header", vec![0, 0, 0, 4, 2, 0, 0, 0]),
        ("of no size", vec![0; 8]),
        ("too large", oversize),
        ("four gigabytes", vec![0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0]),
        ("header too short", vec![0, 0, 0, 8, 1, 0, 0, 0]),
        ("header beyond the frame", vec![0, 0, 0, 8, 3, 0, 0, 0]),
        ("unknown type", vec![0, 0, 0, 8, 2, 7, 0, 0]),
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("garbage", frame(0, &[0xff; 20])),
        ("no such performative", frame(0, &list(0x7f, 0, &[]))),
        (
            "a list without a size",
            frame(0, &[0x00, 0x53, OPEN, 0xc0, 0, 0]),
        ),
        ("deep", frame(0, &[0; 1000])),
    ];
    for (phase, so_far) in &phases {
        for (what, bytes) in &malformed {
            let mut filter = filter_after_two_transfers();
            filtered(&mut filter, so_far).unwrap();
            assert!(
                filtered(&mut filter, bytes).is_err(),
                "{what} in phase {phase}"
            );
        }
    }
    for before_open in [
        frame(0, &[]),
        begin(),
        disposition(TRUE, 0, 1, TRUE, &ACCEPTED),
    ] {
        let mut filter = filter_after_two_transfers();
        let out = filtered(&mut filter, &[AMQP_HEADER, &before_open].concat());
        assert!(out.is_err(), "{before_open:x?}");
    }
    let error = filtered(&mut FrameFilter::default(), b"HTTP/1.1").unwrap_err();
    assert!(error.to_string().contains("protocol header"), "{error}");
}

#[test]
fn symbolic_performatives_are_sanitized() {
    let mut wide = vec![0x00];
    wide.extend(write_symbol("amqp:disposition:list"));
    wide.extend(&disposition(TRUE, 0, u32::MAX, TRUE, &ACCEPTED)[HEADER + 3..]);
    let out = filtered(&mut session_filter(), &frame(5, &wide)).unwrap();
    let cut = &disposition(TRUE, 0, 1, TRUE, &ACCEPTED)[HEADER + 3..];
    assert!(out.ends_with(cut), "{out:x?}");
}

/// The library accepts a descriptor's code only as a `ulong`.
#[test]
fn a_code_of_another_integer_type_is_malformed() {
    let accepted = disposition(TRUE, 0, 0, TRUE, &ACCEPTED);
    for constructor in [0x50, 0x52, 0x54, 0x55] {
        let mut odd = accepted.clone();
        odd[9] = constructor;
        let mut filter = filter_after_two_transfers();
        let mut out = Vec::new();
        filter.incoming(&opening(), &mut out).unwrap();
        let malformed = filter.incoming(&odd, &mut out).unwrap_err();
        let expected = "Disposition frame that cannot be decoded";
        assert!(malformed.to_string().ends_with(expected), "{malformed}");
    }
}

/// The library takes a code for the start of a described value, and reads on behind it.
#[test]
fn bytes_after_a_performative_are_dropped() {
    let after = [0x00, 0x53, 0x17, 0xd0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let mut odd = disposition(TRUE, 0, 0, TRUE, &[0x53, 0x25]);
    odd.extend(after);
    set_size(&mut odd);
    let settled = disposition(TRUE, 0, 0, TRUE, &sanitize::outcome(&[0x53, 0x25]));
    assert_eq!(filtered(&mut session_filter(), &odd).unwrap(), settled);
    let mut good = disposition(TRUE, 0, 0, TRUE, &ACCEPTED);
    let expected = good.clone();
    good.extend(after);
    set_size(&mut good);
    assert_eq!(filtered(&mut session_filter(), &good).unwrap(), expected);
}

/// In any other body the library reads sizes and allocates as much memory.
#[test]
fn a_sasl_body_must_be_a_single_described_value() {
    let outcome = &SASL_OUTCOME[HEADER..];
    let huge = [0x00, 0xb3, 0xff, 0xff, 0xff, 0xff];
    for body in [
        [&[0x53, 0x44][..], &huge].concat(),
        [outcome, &huge].concat(),
        [&[0x00, 0x53, 0x44], &huge[1..]].concat(),
        list(0x44, 1, &huge[1..]),
        vec![0x00, 0x53],
        Vec::new(),
    ] {
        let mut sasl = frame(0, &body);
        sasl[5] = 1;
        let out = filtered(&mut FrameFilter::default(), &[SASL_HEADER, &sasl].concat());
        assert!(out.is_err(), "{body:x?}");
    }
}

#[test]
fn dispositions_are_limited_to_deliveries_in_flight() {
    let widest = u32::try_from(MAX_DISPOSITION_IDS).unwrap();
    let table = [
        (TRUE, (0, u32::MAX), Some((0, 1))),
        (TRUE, (1, u32::MAX), Some((1, 1))),
        (TRUE, (2, u32::MAX), None),
        (TRUE, (u32::MAX, u32::MAX), None),
        (TRUE, (1, 0), None),
        (FALSE, (7, u32::MAX), Some((7, 6 + widest))),
        (FALSE, (7, 9), Some((7, 9))),
    ];
    for (role, (first, last), cut) in table {
        for settled in [TRUE, FALSE] {
            let sent = disposition(role, first, last, settled, &ACCEPTED);
            let expected = match cut {
                Some((first, last)) => disposition(role, first, last, settled, &ACCEPTED),
                None => EMPTY.to_vec(),
            };
            assert_eq!(
                filtered(&mut session_filter(), &sent).unwrap(),
                expected,
                "{role:x} {first} {last}"
            );
        }
    }
    // The oldest ids possibly in flight rise with the ids sent.
    let mut filter = session_filter();
    let far = [write_uint(0), write_uint(49_999)].concat();
    filter.outgoing(&frame(3, &list(TRANSFER, 2, &far)));
    let out = filtered(
        &mut filter,
        &disposition(TRUE, 0, u32::MAX, TRUE, &ACCEPTED),
    )
    .unwrap();
    assert_eq!(
        out,
        disposition(TRUE, 50_000 - widest, 49_999, TRUE, &ACCEPTED)
    );
}

#[test]
fn undecodable_states_and_errors_are_repaired() {
    let unknown = long_list(0x7f, &[]);
    let odd_info = write_map(&[vec![0x54, 1], vec![0x74, 1, 2, 3, 4]]);
    let error = |info: Vec<u8>| {
        long_list(
            0x1d,
            &[write_symbol("amqp:not-found"), write_string("gone"), info],
        )
    };
    for (state, mended) in [
        (unknown, sanitize::outcome(&[NULL])),
        (
            long_list(0x25, &[error(odd_info.clone())]),
            long_list(0x25, &[error(write_map(&[]))]),
        ),
    ] {
        for settled in [TRUE, FALSE] {
            let out = filtered(
                &mut session_filter(),
                &disposition(TRUE, 0, 0, settled, &state),
            );
            assert_eq!(out.unwrap(), disposition(TRUE, 0, 0, TRUE, &mended));
        }
    }
    let detach = |error: Vec<u8>| frame(5, &long_list(DETACH, &[vec![0x43], vec![TRUE], error]));
    let close = |error: Vec<u8>| frame(0, &long_list(CLOSE, &[error]));
    for ends in [detach, close] {
        let out = filtered(&mut session_filter(), &ends(error(odd_info.clone()))).unwrap();
        assert_eq!(out, ends(error(write_map(&[]))));
    }
    // A disposition without delivery ids.
    let items = [
        vec![TRUE],
        vec![NULL],
        vec![NULL],
        vec![TRUE],
        ACCEPTED.to_vec(),
    ];
    let nobody = frame(5, &long_list(DISPOSITION, &items));
    assert!(filtered(&mut session_filter(), &nobody).is_err());
}

#[test]
fn malformed_messages_become_empty_messages() {
    for payload in [
        &[0xff; 9][..],
        &[0; 9000],
        &[],
        &[0x00, 0x53, 0x75],
        b"text",
    ] {
        let out = filtered(&mut session_filter(), &transfer(0, FALSE, payload)).unwrap();
        assert_eq!(out, transfer(0, FALSE, EMPTY_MESSAGE), "{payload:x?}");
    }
    let mut filter = session_filter();
    // Two links in turn; one message is deeply nested across both of its parts.
    let parts = [
        transfer(0, TRUE, &[0; 9000]),
        transfer(1, TRUE, &MESSAGE[..4]),
        transfer(0, FALSE, &[0; 9000]),
        transfer(1, FALSE, &MESSAGE[4..]),
    ];
    let out = filtered(&mut filter, &parts.concat()).unwrap();
    let expected = [
        &EMPTY[..],
        &EMPTY,
        &transfer(0, TRUE, &[]),
        &transfer(0, FALSE, EMPTY_MESSAGE),
        &parts[1],
        &parts[3],
    ];
    assert_eq!(out, expected.concat());
    assert!(filter.sanitizer.partial.is_empty());
}

#[test]
fn endless_messages_take_bounded_memory() {
    for payload in [&[0; 60_000][..], &[]] {
        let mut filter = session_filter();
        let mut sent = 0;
        let error = loop {
            // A new handle each time, so that no link holds much.
            let part = transfer((sent % 250) as u8, TRUE, payload);
            sent += part.len();
            match filtered(&mut filter, &part) {
                Ok(_) => assert!(sent <= MAX_HELD_BYTES),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("message"), "{error}");
    }
}

#[test]
fn an_aborted_message_is_forgotten() {
    let mut filter = session_filter();
    filtered(&mut filter, &transfer(0, TRUE, MESSAGE)).unwrap();
    let items = [
        0x43, 0x43, 0xa0, 1, b't', 0x43, FALSE, FALSE, NULL, NULL, FALSE, TRUE,
    ];
    let aborted = frame(5, &list(TRANSFER, 10, &items));
    assert_eq!(filtered(&mut filter, &aborted).unwrap(), EMPTY);
    assert!(filter.sanitizer.partial.is_empty());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        input in proptest::collection::vec(any::<u8>(), 0..400),
        split in 0_usize..400,
    ) {
        let mut filter = session_filter();
        let split = split.min(input.len());
        let mut out = Vec::new();
        if filter.incoming(&input[..split], &mut out).is_ok() {
            let _ = filter.incoming(&input[split..], &mut out);
        }
        let mut filter = FrameFilter::default();
        let _ = filter.incoming(&input, &mut Vec::new());
        filter.outgoing(&input);
    }

    /// With any byte of a conversation changed, the library can decode everything passed on.
    #[test]
    fn mangled_frames_never_panic_and_output_decodes(at in 0_usize..2000, byte: u8) {
        let (mut input, _) = conversation();
        let at = at % input.len();
        input[at] = byte;
        let mut filter = filter_after_two_transfers();
        let mut out = Vec::new();
        let _ = filter.incoming(&input, &mut out);
        let mut rest = &out[..];
        while !rest.is_empty() {
            let size = match rest.strip_prefix(b"AMQP") {
                Some(_) => HEADER,
                None => u32::from_be_bytes(*rest.first_chunk().unwrap()) as usize,
            };
            let frame = &rest[..size];
            rest = &rest[size..];
            let is_performative = size > HEADER && frame[5] == 0;
            prop_assert!(
                !is_performative
                    || serde_amqp::from_slice::<performatives::Performative>(&frame[HEADER..]).is_ok()
            );
        }
        filter.outgoing(&input);
    }
}
