//! Construction and parsing of AMQP 1.0 frames.

use fe2o3_amqp_types::performatives::Performative;

/// The first bytes of a connection with AMQP alone.
pub const AMQP: &[u8; 8] = b"AMQP\x00\x01\x00\x00";
/// The first bytes of a connection beginning with SASL.
pub const SASL: &[u8; 8] = b"AMQP\x03\x01\x00\x00";

/// Returns a frame of type `kind` around a body.
#[must_use]
pub fn frame(kind: u8, channel: u8, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(8 + body.len()).expect("inputs are small");
    let mut frame = size.to_be_bytes().to_vec();
    frame.extend([2, kind, 0, channel]);
    frame.extend(body);
    frame
}

/// Returns a frame around a performative and a payload.
///
/// # Panics
/// Never: performatives can be encoded.
#[must_use]
pub fn performative(channel: u8, performative: &Performative, payload: &[u8]) -> Vec<u8> {
    let mut body = serde_amqp::to_vec(performative).expect("a performative can be encoded");
    body.extend(payload);
    frame(0, channel, &body)
}

/// Cuts an input into the bodies of frames, each with a channel. The format of a body: a byte with
/// the channel and the high bits of the length, a byte with the low bits of the length, the body.
/// Mutated inputs stay sequences of frames.
pub fn frame_bodies(mut input: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [head, low, rest @ ..] = input else {
            return None;
        };
        let length = usize::from(*head >> 2) << 8 | usize::from(*low);
        let (body, after) = rest.split_at(length.min(rest.len()));
        input = after;
        Some((head & 3, body))
    })
}

/// Splits a stream of protocol headers and frames. Each frame has a type and a body; a header has
/// no type.
///
/// # Panics
/// If the stream is anything else, or a frame is larger than agreed.
#[must_use]
pub fn split_frames(mut stream: &[u8]) -> Vec<(Option<u8>, &[u8])> {
    let mut pieces = Vec::new();
    while !stream.is_empty() {
        let header = stream.first_chunk::<8>().expect("a whole header");
        if header.starts_with(b"AMQP") {
            pieces.push((None, &stream[..8]));
            stream = &stream[8..];
            continue;
        }
        let [a, b, c, d, offset, kind, ..] = *header;
        let size = u32::from_be_bytes([a, b, c, d]) as usize;
        assert!((8..=65_536).contains(&size), "a frame of {size} bytes");
        assert_eq!(offset, 2, "the data's offset");
        pieces.push((Some(kind), &stream[8..size]));
        stream = &stream[size..];
    }
    pieces
}
