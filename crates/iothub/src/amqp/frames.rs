//! Cuts the bytes of a connection into frames, and refuses what is not AMQP 1.0.
//!
//! ```text
//! protocol header (SASL) ─▶ SASL frames ─▶ protocol header (AMQP) ─▶ OPEN ─▶ frames
//!            └───────────────────────────▶ protocol header (AMQP)
//! ```

use thiserror::Error;

use super::encoding::{DESCRIBED, Descriptor, described, entries, length};

/// The frame size that hubs announce themselves, and that is announced to them.
pub(crate) const LARGEST_FRAME: usize = 65_536;

/// A protocol header and a frame header have the same length.
pub(crate) const HEADER: usize = 8;

/// A frame without a body: it only tells that the peer is there.
pub(crate) const EMPTY: [u8; HEADER] = [0, 0, 0, 8, 2, 0, 0, 0];

const AMQP: u8 = 0;
const SASL: u8 = 1;

/// The hub sent what AMQP 1.0 does not allow. Nothing after it can be read.
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

/// Where things are in an AMQP frame whose header has eight bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) performative: Performative,
    pub(crate) channel: u16,
    /// Where the performative's list starts.
    pub(crate) list: usize,
}

impl Head {
    /// Reads the start of a frame. `None` if it holds no performative.
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

/// Where in the life of a connection the incoming bytes are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Start,
    Sasl,
    Header,
    Open,
}

/// The incoming direction: whole frames, each checked.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    held: Vec<u8>,
    phase: Phase,
}

impl Incoming {
    /// Takes bytes of the hub. Every whole AMQP frame with a body goes through `mend`, which may change it; what the
    /// library shall see is appended to `out`.
    pub(crate) fn take(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
        mut mend: impl FnMut(Head, Vec<u8>, &mut Vec<u8>) -> Result<(), Malformed>,
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
                self.whole(frame, out, &mut mend)?;
            }
        }
        Ok(())
    }

    /// The size of a frame or protocol header.
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
            _ if size > LARGEST_FRAME => malformed(format!(
                "a frame of {size} bytes, {LARGEST_FRAME} are allowed"
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
        mend: &mut impl FnMut(Head, Vec<u8>, &mut Vec<u8>) -> Result<(), Malformed>,
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
            // The library reads sizes wherever it is led, and takes memory for them.
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
        mend(head, frame, out)
    }
}

/// Removes what a frame's header has beyond eight bytes: its meaning is not defined, and the library refuses it.
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

/// Bytes of an outgoing frame that are looked at: enough for the descriptor and the first fields of BEGIN and TRANSFER.
const LOOKED_AT: usize = 64;

/// The outgoing direction: the library's frames, of which only the starts are looked at.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    held: Vec<u8>,
    /// Bytes of the current frame that pass without a look.
    passing: usize,
}

impl Outgoing {
    /// Sees bytes that the library writes; `saw` gets the start of every frame with a performative.
    pub(crate) fn take(&mut self, mut input: &[u8], mut saw: impl FnMut(Head, &[u8])) {
        while !input.is_empty() {
            let passing = self.passing.min(input.len());
            self.passing -= passing;
            input = &input[passing..];
            let wanted = match self.held.first_chunk::<HEADER>() {
                Some(header) => size_of_own(header).min(LOOKED_AT),
                None => HEADER,
            };
            let now = wanted.saturating_sub(self.held.len()).min(input.len());
            self.held.extend_from_slice(&input[..now]);
            input = &input[now..];
            let Some(header) = self.held.first_chunk::<HEADER>() else {
                continue;
            };
            let size = size_of_own(header);
            if self.held.len() < size.min(LOOKED_AT) {
                continue;
            }
            if let Some(head) = Head::read(&self.held) {
                saw(head, &self.held);
            }
            self.passing = size.saturating_sub(self.held.len());
            self.held.clear();
        }
    }
}

/// The size of a frame of our own, or of a protocol header.
fn size_of_own(header: &[u8; HEADER]) -> usize {
    if header.starts_with(b"AMQP") {
        return HEADER;
    }
    let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    size.max(HEADER)
}
