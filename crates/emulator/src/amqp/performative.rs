//! The AMQP performatives: reads the fields relevant to the hub, and writes the fields set by the
//! hub.

use bytes::BytesMut;

use super::address::Node;
use super::decode::{DecodeError, Reader};
use super::encode::{self, Items};
use super::outcome::AmqpError;

pub(crate) const OPEN: u64 = 0x10;
pub(crate) const BEGIN: u64 = 0x11;
pub(crate) const ATTACH: u64 = 0x12;
pub(crate) const FLOW: u64 = 0x13;
pub(crate) const TRANSFER: u64 = 0x14;
pub(crate) const DISPOSITION: u64 = 0x15;
pub(crate) const DETACH: u64 = 0x16;
pub(crate) const END: u64 = 0x17;
pub(crate) const CLOSE: u64 = 0x18;

const SOURCE: u64 = 0x28;
const TARGET: u64 = 0x29;

/// The largest frame the hub accepts, as announced by the hub's first gateways.
pub(crate) const MAX_FRAME_SIZE: u32 = 65_536;
/// The highest channel the hub accepts.
pub(crate) const CHANNEL_MAX: u16 = 1_024;
/// The highest handle the hub accepts.
pub(crate) const HANDLE_MAX: u32 = 262_143;
/// The number of transfers a session accepts before the next flow.
pub(crate) const INCOMING_WINDOW: u32 = 5_000;
/// The largest message of any link.
pub(crate) const MAX_MESSAGE_SIZE: u64 = 1_048_576;
/// The time after which the hub closes a silent connection.
pub(crate) const IDLE_TIME_OUT_MS: u32 = 240_000;

/// The content of a peer's open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) container_id: String,
    pub(crate) max_frame_size: u32,
    pub(crate) idle_time_out_ms: Option<u32>,
}

impl Open {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut fields = reader.list()?;
        let container_id = fields.get(Reader::text)?.unwrap_or_default().to_owned();
        fields.skip(1)?;
        let max_frame_size = fields.get(Reader::u32)?.unwrap_or(u32::MAX);
        fields.skip(1)?;
        let idle_time_out_ms = fields.get(Reader::u32)?.filter(|ms| *ms > 0);
        Ok(Self {
            container_id,
            max_frame_size,
            idle_time_out_ms,
        })
    }
}

/// Writes the hub's open.
pub(crate) fn write_open(out: &mut BytesMut, container_id: &str) {
    encode::frame(out, encode::FRAME_AMQP, 0, |out| {
        encode::described(out, 0x10, |items| {
            items
                .text(container_id)
                .text("localhost")
                .u32(MAX_FRAME_SIZE)
                .u16(CHANNEL_MAX)
                .u32(IDLE_TIME_OUT_MS);
        });
    });
}

/// The content of a peer's begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Begin {
    pub(crate) next_outgoing_id: u32,
    pub(crate) incoming_window: u32,
}

impl Begin {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut fields = reader.list()?;
        fields.skip(1)?;
        Ok(Self {
            next_outgoing_id: fields.get(Reader::u32)?.unwrap_or(0),
            incoming_window: fields.get(Reader::u32)?.unwrap_or(0),
        })
    }
}

/// Writes the hub's begin, in answer to the peer's begin on `channel`.
pub(crate) fn write_begin(out: &mut BytesMut, channel: u16, next_outgoing_id: u32) {
    encode::frame(out, encode::FRAME_AMQP, channel, |out| {
        encode::described(out, 0x11, |items| {
            items
                .u16(channel)
                .u32(next_outgoing_id)
                .u32(INCOMING_WINDOW)
                .u32(u32::MAX)
                .u32(HANDLE_MAX);
        });
    });
}

/// The content of a peer's attach; source and target also in the received encoding.
#[derive(Debug, Clone)]
pub(crate) struct Attach {
    pub(crate) name: String,
    pub(crate) handle: u32,
    /// Whether the peer receives.
    pub(crate) peer_receives: bool,
    pub(crate) snd_settle_mode: Option<u8>,
    pub(crate) rcv_settle_mode: Option<u8>,
    pub(crate) source: Option<Vec<u8>>,
    pub(crate) target: Option<Vec<u8>>,
    pub(crate) source_address: Option<String>,
    pub(crate) target_address: Option<String>,
    pub(crate) initial_delivery_count: u32,
}

impl Attach {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut fields = reader.list()?;
        let name = fields.get(Reader::text)?.unwrap_or_default().to_owned();
        let handle = fields.get(Reader::u32)?.unwrap_or(0);
        let peer_receives = fields.get(Reader::bool)?.unwrap_or(false);
        let mut settle_mode = || {
            let mode = fields.get(Reader::u64)?;
            Ok::<_, DecodeError>(mode.and_then(|mode| u8::try_from(mode).ok()))
        };
        let snd_settle_mode = settle_mode()?;
        let rcv_settle_mode = settle_mode()?;
        let source = fields.raw()?;
        let target = fields.raw()?;
        fields.skip(2)?;
        let initial_delivery_count = fields.get(Reader::u32)?.unwrap_or(0);
        Ok(Self {
            name,
            handle,
            peer_receives,
            snd_settle_mode,
            rcv_settle_mode,
            source_address: terminus_address(source, SOURCE)?,
            target_address: terminus_address(target, TARGET)?,
            source: source.map(<[u8]>::to_vec),
            target: target.map(<[u8]>::to_vec),
            initial_delivery_count,
        })
    }

    /// Returns the address of the hub's side: the source if the peer receives, otherwise the
    /// target. The address at the other end is the fallback.
    pub(crate) fn node_address(&self) -> Option<&str> {
        let (first, second) = if self.peer_receives {
            (&self.source_address, &self.target_address)
        } else {
            (&self.target_address, &self.source_address)
        };
        first
            .as_deref()
            .filter(|address| !address.is_empty())
            .or(second.as_deref())
    }
}

fn terminus_address(raw: Option<&[u8]>, descriptor: u64) -> Result<Option<String>, DecodeError> {
    let Some(raw) = raw else { return Ok(None) };
    let mut reader = Reader::new(raw);
    if reader.descriptor()? != descriptor {
        return Ok(None);
    }
    Ok(reader.list()?.get(Reader::text)?.map(str::to_owned))
}

/// Writes the hub's attach in answer to `request`. Without a node, the link is refused: the hub's
/// side has no terminus, and the detach follows.
pub(crate) fn write_attach(out: &mut BytesMut, channel: u16, request: &Attach, node: Option<Node>) {
    let (mut source, mut target) = (request.source.as_deref(), request.target.as_deref());
    if node.is_none() {
        if request.peer_receives {
            source = None;
        } else {
            target = None;
        }
    }
    encode::frame(out, encode::FRAME_AMQP, channel, |out| {
        encode::described(out, 0x12, |items| {
            items
                .text(&request.name)
                .u32(request.handle)
                .bool(!request.peer_receives);
            items.u8(request.snd_settle_mode.unwrap_or(2));
            // Settle first by default: the hub forgets an answered delivery. For messages to
            // devices, the device chooses the mode.
            let second =
                node.is_some_and(Node::may_settle_second) && request.rcv_settle_mode == Some(1);
            items.u8(u8::from(second));
            items.raw(source).raw(target).null().bool(false);
            if request.peer_receives {
                items.u32(0)
            } else {
                items.null()
            };
            items.u64(MAX_MESSAGE_SIZE);
        });
    });
}

/// The content of a peer's flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) next_incoming_id: Option<u32>,
    pub(crate) incoming_window: u32,
    pub(crate) handle: Option<u32>,
    pub(crate) delivery_count: Option<u32>,
    pub(crate) link_credit: Option<u32>,
    pub(crate) drain: bool,
    pub(crate) echo: bool,
}

impl Flow {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut fields = reader.list()?;
        let next_incoming_id = fields.get(Reader::u32)?;
        let incoming_window = fields.get(Reader::u32)?.unwrap_or(0);
        fields.skip(2)?;
        let handle = fields.get(Reader::u32)?;
        let delivery_count = fields.get(Reader::u32)?;
        let link_credit = fields.get(Reader::u32)?;
        fields.skip(1)?;
        let drain = fields.get(Reader::bool)?.unwrap_or(false);
        let echo = fields.get(Reader::bool)?.unwrap_or(false);
        Ok(Self {
            next_incoming_id,
            incoming_window,
            handle,
            delivery_count,
            link_credit,
            drain,
            echo,
        })
    }
}

/// The hub's flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowOut {
    /// `None` under the fault `flow_without_next_incoming_id`, which imitates gateways without this
    /// field.
    pub(crate) next_incoming_id: Option<u32>,
    pub(crate) next_outgoing_id: u32,
    /// Handle, delivery count and credit, for the flow of a link.
    pub(crate) link: Option<(u32, u32, u32)>,
    pub(crate) drain: bool,
}

/// Writes a flow.
pub(crate) fn write_flow(out: &mut BytesMut, channel: u16, flow: FlowOut) {
    encode::frame(out, encode::FRAME_AMQP, channel, |out| {
        encode::described(out, 0x13, |items| {
            match flow.next_incoming_id {
                Some(id) => items.u32(id),
                None => items.null(),
            };
            items
                .u32(INCOMING_WINDOW)
                .u32(flow.next_outgoing_id)
                .u32(u32::MAX);
            if let Some((handle, delivery_count, credit)) = flow.link {
                items.u32(handle).u32(delivery_count).u32(credit);
                if flow.drain {
                    items.null().bool(true);
                }
            }
        });
    });
}

/// The content of a peer's transfer, without the payload that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) handle: u32,
    pub(crate) delivery_id: Option<u32>,
    pub(crate) settled: bool,
    pub(crate) more: bool,
    pub(crate) aborted: bool,
}

impl Transfer {
    #[inline]
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut fields = reader.list()?;
        let handle = fields.get(Reader::u32)?.unwrap_or(0);
        let delivery_id = fields.get(Reader::u32)?;
        fields.skip(2)?;
        let settled = fields.get(Reader::bool)?.unwrap_or(false);
        let more = fields.get(Reader::bool)?.unwrap_or(false);
        fields.skip(3)?;
        let aborted = fields.get(Reader::bool)?.unwrap_or(false);
        Ok(Self {
            handle,
            delivery_id,
            settled,
            more,
            aborted,
        })
    }
}

/// Writes one message of the hub as a single transfer, or as several if larger than a frame.
/// Returns the number of transfers.
pub(crate) fn write_transfers(
    out: &mut BytesMut,
    channel: u16,
    frame_max: usize,
    transfer: &TransferOut<'_>,
    payload: &[u8],
) -> u32 {
    // The upper bound of a transfer without payload.
    const OVERHEAD: usize = 128;
    let chunk = frame_max.saturating_sub(OVERHEAD).max(256);
    let mut parts = payload.chunks(chunk).peekable();
    let mut count = 0;
    while let Some(part) = parts.next() {
        let more = parts.peek().is_some();
        encode::frame(out, encode::FRAME_AMQP, channel, |out| {
            encode::described(out, 0x14, |items| {
                items
                    .u32(transfer.handle)
                    .u32(transfer.delivery_id)
                    .binary(transfer.delivery_tag);
                items.u32(0).bool(transfer.settled).bool(more);
            });
            out.extend_from_slice(part);
        });
        count += 1;
    }
    count
}

/// The header of a transfer sent by the hub.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransferOut<'a> {
    pub(crate) handle: u32,
    pub(crate) delivery_id: u32,
    pub(crate) delivery_tag: &'a [u8],
    pub(crate) settled: bool,
}

/// The peer's answer to a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerState {
    None,
    Received,
    Accepted,
    Rejected,
    Released,
    Modified,
}

/// The content of a peer's disposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disposition {
    /// Whether the disposition covers deliveries sent by the hub.
    pub(crate) peer_receives: bool,
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) settled: bool,
    pub(crate) state: PeerState,
}

impl Disposition {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut fields = reader.list()?;
        let peer_receives = fields.get(Reader::bool)?.unwrap_or(false);
        let first = fields.get(Reader::u32)?.unwrap_or(0);
        let last = fields.get(Reader::u32)?.unwrap_or(first);
        let settled = fields.get(Reader::bool)?.unwrap_or(false);
        let state = match fields.raw()? {
            None => PeerState::None,
            Some(raw) => match Reader::new(raw).descriptor()? {
                0x23 => PeerState::Received,
                0x24 => PeerState::Accepted,
                0x25 => PeerState::Rejected,
                0x26 => PeerState::Released,
                0x27 => PeerState::Modified,
                _ => PeerState::None,
            },
        };
        Ok(Self {
            peer_receives,
            first,
            last,
            settled,
            state,
        })
    }
}

/// Writes a settling disposition with a state written by `state`.
pub(crate) fn write_disposition(
    out: &mut BytesMut,
    channel: u16,
    hub_receives: bool,
    range: (u32, u32),
    state: impl FnOnce(&mut BytesMut),
) {
    encode::frame(out, encode::FRAME_AMQP, channel, |out| {
        encode::described(out, 0x15, |items| {
            items
                .bool(hub_receives)
                .u32(range.0)
                .u32(range.1)
                .bool(true)
                .with(state);
        });
    });
}

/// The content of a peer's detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Detach {
    pub(crate) handle: u32,
    pub(crate) closed: bool,
}

impl Detach {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut fields = reader.list()?;
        let handle = fields.get(Reader::u32)?.unwrap_or(0);
        let closed = fields.get(Reader::bool)?.unwrap_or(false);
        Ok(Self { handle, closed })
    }
}

/// Writes a detach.
pub(crate) fn write_detach(
    out: &mut BytesMut,
    channel: u16,
    handle: u32,
    closed: bool,
    error: Option<&AmqpError>,
) {
    encode::frame(out, encode::FRAME_AMQP, channel, |out| {
        encode::described(out, 0x16, |items| {
            items.u32(handle).bool(closed);
            optional_error(items, error);
        });
    });
}

/// Writes an end.
pub(crate) fn write_end(out: &mut BytesMut, channel: u16, error: Option<&AmqpError>) {
    encode::frame(out, encode::FRAME_AMQP, channel, |out| {
        encode::described(out, 0x17, |items| optional_error(items, error));
    });
}

/// Writes a close.
pub(crate) fn write_close(out: &mut BytesMut, error: Option<&AmqpError>) {
    encode::frame(out, encode::FRAME_AMQP, 0, |out| {
        encode::described(out, 0x18, |items| optional_error(items, error));
    });
}

fn optional_error(items: &mut Items<'_>, error: Option<&AmqpError>) {
    if let Some(error) = error {
        items.with(|out| error.write(out));
    }
}
