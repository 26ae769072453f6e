//! A hub's bytes through the filter of the client, and the passed bytes through the protocol
//! library's decoders.

#![no_main]

use std::sync::LazyLock;

use bytes::BytesMut;
use fe2o3_amqp::frames::{amqp, sasl};
use fe2o3_amqp_types::definitions::Handle;
use fe2o3_amqp_types::performatives::{Begin, Performative, Transfer};
use tokio_util::codec::Decoder as _;
use twincast_fuzz::amqp::{AMQP, SASL, frame, frame_bodies, performative, split_frames};
use twincast_fuzz::split_mode;
use twincast_iothub::MAX_IN_FLIGHT_LIMIT;
use twincast_iothub::fuzzing::{FrameFilter, message};

const RAW: u8 = 1;
const WITH_SASL: u8 = 2;
const UNOPENED: u8 = 4;
/// The position of the remaining bits of the mode: the size of the pieces passed to the filter,
/// minus 1.
const PIECE: u8 = 3;

twincast_fuzz::bytes!(|input| {
    let (mode, rest) = split_mode(input);
    let stream = stream(mode, rest);
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    let verdict = filter().received(&stream, &mut whole);
    let mut filter = filter();
    let mut chunks = stream.chunks(usize::from(mode >> PIECE) + 1);
    let in_pieces = chunks.try_for_each(|chunk| filter.received(chunk, &mut pieces));
    assert_eq!(verdict, in_pieces, "the verdict depends on the pieces");
    assert_eq!(whole, pieces, "the bytes depend on the pieces");
    decode(&whole);
});

fn stream(mode: u8, rest: &[u8]) -> Vec<u8> {
    if mode & RAW != 0 {
        return rest.to_vec();
    }
    let mut stream = Vec::new();
    let mut rest = frame_bodies(rest);
    if mode & WITH_SASL != 0 {
        stream.extend(SASL);
        for (_, body) in rest.by_ref().take(2) {
            stream.extend(frame(1, 0, body));
        }
    }
    stream.extend(AMQP);
    if mode & UNOPENED == 0 {
        stream.extend(frame(0, 0, &[0, 0x53, 0x10, 0xc0, 4, 1, 0xa1, 1, b'h']));
        for channel in 0..2 {
            // The answer to the client's session of the same channel.
            let fields = [4, 0x60, 0, channel, 0x43, 0x52, 1, 0x52, 1];
            let mut body = vec![0, 0x53, 0x11, 0xc0, 9];
            body.extend(fields);
            stream.extend(frame(0, channel, &body));
        }
    }
    for (channel, body) in rest {
        stream.extend(frame(0, channel, body));
    }
    stream
}

/// The bytes written by the client: two sessions, the first with deliveries under way.
static SENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let begin = |channel| {
        let begin = Begin {
            remote_channel: None,
            next_outgoing_id: 7,
            incoming_window: 2048,
            outgoing_window: 2048,
            handle_max: Handle(7),
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        };
        performative(channel, &Performative::Begin(begin), &[])
    };
    let mut sent = [&AMQP[..], &begin(0), &begin(1)].concat();
    for id in 0..4 {
        let transfer = Transfer {
            handle: Handle(0),
            delivery_id: Some(id),
            delivery_tag: Some(vec![0; 4].into()),
            message_format: Some(0),
            settled: Some(false),
            more: false,
            rcv_settle_mode: None,
            state: None,
            resume: false,
            aborted: false,
            batchable: false,
        };
        let transfer = Performative::Transfer(transfer);
        sent.extend(performative(0, &transfer, b"\x00\x53\x77\x40"));
    }
    sent
});

fn filter() -> FrameFilter {
    let mut filter = FrameFilter::default();
    filter.sent(&SENT);
    filter
}

/// Asserts that all passed frames decode, and concern no more deliveries than can be under way.
fn decode(passed: &[u8]) {
    let mut message_bytes = Vec::new();
    for (kind, body) in split_frames(passed) {
        // The form left by the library's codec for lengths.
        let with_header = |kind| {
            let mut bytes = BytesMut::from(&[2, kind, 0, 0][..]);
            bytes.extend_from_slice(body);
            bytes
        };
        match kind {
            None => continue,
            Some(1) => {
                // Undecodable SASL frames end the connection before the AMQP part begins.
                _ = sasl::FrameCodec {}.decode(&mut with_header(1));
                continue;
            }
            Some(_) => {}
        }
        let decoded = amqp::FrameDecoder {}.decode(&mut with_header(0));
        let frame = decoded.expect("a frame that passed decodes");
        match frame.expect("it is whole").body {
            amqp::FrameBody::Disposition(disposition) => {
                let last = disposition.last.unwrap_or(disposition.first);
                let ids = u64::from(last) + 1 - u64::from(disposition.first);
                assert!(ids <= 2 * MAX_IN_FLIGHT_LIMIT as u64, "{ids} deliveries");
            }
            amqp::FrameBody::Transfer {
                performative,
                payload,
            } => {
                // The transfers of a message pass in a row.
                message_bytes.extend_from_slice(&payload);
                if performative.aborted {
                    message_bytes.clear();
                } else if !performative.more {
                    let bytes = std::mem::take(&mut message_bytes);
                    _ = message(&bytes).expect("a message that passed is well-formed");
                }
            }
            _ => {}
        }
    }
}
