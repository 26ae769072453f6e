//! Splits the bytes of a connection into frames, and refuses bytes other than AMQP 1.0.
//!
//! ```text
//! protocol header (SASL) ─▶ SASL frames ─▶ protocol header (AMQP) ─▶ OPEN ─▶ frames
//!            └───────────────────────────▶ protocol header (AMQP)
//! ```

use thiserror::Error;

use super::encoding::{DESCRIBED, Descriptor, described, entries, length};

/// The frame size announced by hubs and to hubs.
pub(crate) const MAX_FRAME_BYTES: usize = 65_536;

/// A protocol header and a frame header have the same length.
pub(crate) const HEADER: usize = 8;

/// A frame without a body, sent only as a sign of life.
pub(crate) const EMPTY: [u8; HEADER] = [0, 0, 0, 8, 2, 0, 0, 0];

const AMQP: u8 = 0;
const SASL: u8 = 1;

/// The hub violated AMQP 1.0. All later bytes are unreadable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("hub sent bytes that are not AMQP 1.0: {0}")]
pub(crate) struct Malformed(String);

impl Malformed {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// The bodies of AMQP frames, by their code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Performative {
    Open = 0x10,
    Begin = 0x11,
    Attach = 0x12,
    Flow = 0x13,
    Transfer = 0x14,
    Disposition = 0x15,
    Detach = 0x16,
    End = 0x17,
    Close = 0x18,
}

/// Code and name of every performative (AMQP 1.0, part 2, section 2.7).
const PERFORMATIVES: [(Performative, &str); 9] = [
    (Performative::Open, "amqp:open:list"),
    (Performative::Begin, "amqp:begin:list"),
    (Performative::Attach, "amqp:attach:list"),
    (Performative::Flow, "amqp:flow:list"),
    (Performative::Transfer, "amqp:transfer:list"),
    (Performative::Disposition, "amqp:disposition:list"),
    (Performative::Detach, "amqp:detach:list"),
    (Performative::End, "amqp:end:list"),
    (Performative::Close, "amqp:close:list"),
];

/// Positions in an AMQP frame with an eight-byte header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) performative: Performative,
    pub(crate) channel: u16,
    /// The start of the performative's list.
    pub(crate) list: usize,
}

impl Head {
    /// Parses the start of a frame. `None` for a frame without a performative.
    pub(crate) fn read(frame: &[u8]) -> Option<Self> {
        let (descriptor, list) = described(frame, HEADER)?;
        let is_it = |(performative, name): &&(Performative, &str)| match descriptor {
            Descriptor::Code(code) => code == *performative as i128,
            Descriptor::Name(text) => text == *name,
        };
        let (performative, _) = PERFORMATIVES.iter().find(is_it)?;
        entries(frame, list)?;
        Some(Self {
            performative: *performative,
            channel: u16::from_be_bytes([frame[6], frame[7]]),
            list,
        })
    }
}

/// The connection's phase, as seen in the incoming bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Start,
    Sasl,
    Header,
    Open,
}

/// The incoming direction: splits and checks whole frames.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    held: Vec<u8>,
    phase: Phase,
}

impl Incoming {
    /// Takes bytes of the hub. Every whole AMQP frame with a body goes through `sanitize`, which
    /// may change the frame. The bytes for the library are appended to `out`.
    pub(crate) fn take(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
        mut sanitize: impl FnMut(Head, Vec<u8>, &mut Vec<u8>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        while !input.is_empty() {
            let size = match self.held.first_chunk() {
                Some(header) => self.size(header)?,
                None => HEADER,
            };
            let now = (size - self.held.len()).min(input.len());
            self.held.extend_from_slice(&input[..now]);
            input = &input[now..];
            let whole = match self.held.first_chunk() {
                Some(header) => self.size(header)? == self.held.len(),
                None => false,
            };
            if whole {
                let frame = std::mem::take(&mut self.held);
                self.whole(frame, out, &mut sanitize)?;
            }
        }
        Ok(())
    }

    /// Returns the size of a frame or protocol header.
    fn size(&self, header: &[u8; HEADER]) -> Result<usize, Malformed> {
        if header.starts_with(b"AMQP") && self.phase != Phase::Open {
            return Ok(HEADER);
        }
        let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let data = usize::from(header[4]) * 4;
        let malformed = |what: String| Err(Malformed::new(what));
        match self.phase {
            Phase::Start => malformed(format!("{header:02x?} instead of a protocol header")),
            _ if size < HEADER => malformed(format!("a frame of {size} bytes")),
            _ if size > MAX_FRAME_BYTES => malformed(format!(
                "a frame of {size} bytes; at most {MAX_FRAME_BYTES} are allowed"
            )),
            _ if data < HEADER || data > size => malformed(format!(
                "a frame of {size} bytes with its data at byte {data}"
            )),
            phase => match (phase, header[5]) {
                (Phase::Sasl, SASL) | (Phase::Header | Phase::Open, AMQP) => Ok(size),
                (_, other) => malformed(format!("a frame of type {other}")),
            },
        }
    }

    fn whole(
        &mut self,
        mut frame: Vec<u8>,
        out: &mut Vec<u8>,
        sanitize: &mut impl FnMut(Head, Vec<u8>, &mut Vec<u8>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if frame.starts_with(b"AMQP") && self.phase != Phase::Open {
            self.phase = match (self.phase, frame[4]) {
                (Phase::Start, 3) => Phase::Sasl,
                (Phase::Start | Phase::Sasl, 0) => Phase::Header,
                (_, protocol) => {
                    let what = format!("a protocol header for protocol {protocol}");
                    return Err(Malformed::new(what));
                }
            };
            out.extend(frame);
            return Ok(());
        }
        drop_extended_header(&mut frame);
        if self.phase == Phase::Sasl {
            // The library trusts every size inside and allocates memory accordingly.
            let body = &frame[HEADER..];
            if !body.starts_with(&[DESCRIBED]) || length(body) != Some(body.len()) {
                return Err(Malformed::new("a SASL frame without a well-formed body"));
            }
            out.extend(frame);
            return Ok(());
        }
        let is_first = self.phase == Phase::Header;
        if frame.len() == HEADER && !is_first {
            out.extend(frame);
            return Ok(());
        }
        let head = length(&frame[HEADER..]).and_then(|_| Head::read(&frame));
        let head =
            head.ok_or_else(|| Malformed::new("a frame without a well-formed performative"))?;
        let opens = matches!(head.performative, Performative::Open | Performative::Close);
        if is_first && !opens {
            let what = format!("{:?} before OPEN", head.performative);
            return Err(Malformed::new(what));
        }
        self.phase = Phase::Open;
        sanitize(head, frame, out)
    }
}

/// Removes the part of a frame's header beyond eight bytes: its meaning is undefined, and the
/// library refuses it.
fn drop_extended_header(frame: &mut Vec<u8>) {
    let data = usize::from(frame[4]) * 4;
    frame.drain(HEADER..data);
    frame[4] = 2;
    set_size(frame);
}

/// Writes a frame's size into its header.
pub(crate) fn set_size(frame: &mut [u8]) {
    let size = u32::try_from(frame.len()).expect("a frame is far below 4 GiB");
    frame[..4].copy_from_slice(&size.to_be_bytes());
}

/// Bytes inspected in an outgoing frame: enough for the descriptor and the first fields of BEGIN
/// and TRANSFER.
const INSPECTED_BYTES: usize = 64;

/// The outgoing direction: the library's frames, inspected only at the start.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    held: Vec<u8>,
    /// Remaining bytes of the current frame, passed without inspection.
    skip: usize,
}

impl Outgoing {
    /// Observes bytes written by the library; `on_frame` receives the start of every frame with a
    /// performative.
    pub(crate) fn take(&mut self, mut input: &[u8], mut on_frame: impl FnMut(Head, &[u8])) {
        while !input.is_empty() {
            let skip = self.skip.min(input.len());
            self.skip -= skip;
            input = &input[skip..];
            let target_len = match self.held.first_chunk::<HEADER>() {
                Some(header) => size_of_own(header).min(INSPECTED_BYTES),
                None => HEADER,
            };
            let now = target_len.saturating_sub(self.held.len()).min(input.len());
            self.held.extend_from_slice(&input[..now]);
            input = &input[now..];
            let Some(header) = self.held.first_chunk::<HEADER>() else {
                continue;
            };
            let size = size_of_own(header);
            if self.held.len() < size.min(INSPECTED_BYTES) {
                continue;
            }
            if let Some(head) = Head::read(&self.held) {
                on_frame(head, &self.held);
            }
            self.skip = size.saturating_sub(self.held.len());
            self.held.clear();
        }
    }
}

/// Returns the size of an outgoing frame or protocol header.
fn size_of_own(header: &[u8; HEADER]) -> usize {
    if header.starts_with(b"AMQP") {
        return HEADER;
    }
    let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    size.max(HEADER)
}
