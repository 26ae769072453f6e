//! A stream of packets over a stream of bytes.

use bytes::{Buf as _, BytesMut};
use mqtt_proto::v3::{Packet, SubscribeReturnCode};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};

/// The largest packet: a message from a device has 256 KB including properties, and a topic 64 KB.
const PACKET_BYTES_MAX: usize = 512 * 1024;
/// The number of bytes waiting to be written above which reading pauses.
const WRITE_BACKLOG_MAX: usize = 256 * 1024;
/// The number of unread bytes above which the peer is given up.
const UNREAD_BYTES_MAX: usize = 8 << 20;
/// The number of bytes to read at once. Most packets of devices are far smaller, and many devices
/// are mostly silent.
const READ_BYTES: usize = 1024;
/// A buffer above this capacity is freed once empty.
const KEPT_BYTES: usize = 4096;

/// The reason why no packet follows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the peer has closed the connection")]
    Closed,
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("not an MQTT 3.1.1 packet: {0}")]
    Malformed(#[from] mqtt_proto::Error),
    #[error("the peer does not read")]
    Unread,
    #[error("a packet of {0} bytes; at most {PACKET_BYTES_MAX} are allowed")]
    TooLarge(usize),
}

/// A stream of packets in both directions.
#[derive(Debug)]
pub(crate) struct PacketStream<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    input: BytesMut,
    out: BytesMut,
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite> PacketStream<S> {
    /// Creates a packet stream over `stream`; `input` holds the bytes already read.
    pub(crate) fn new(stream: S, input: BytesMut) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            input,
            out: BytesMut::new(),
            unflushed: false,
        }
    }

    /// Appends a packet to the output. Returns an error if more than [`UNREAD_BYTES_MAX`] bytes
    /// wait already.
    pub(crate) fn push(&mut self, packet: &Packet) -> Result<(), StreamError> {
        if self.out.len() > UNREAD_BYTES_MAX {
            return Err(StreamError::Unread);
        }
        self.out.extend_from_slice(packet.encode()?.as_ref());
        if let Packet::Suback(answer) = packet {
            // The codec writes a refusal as 3 (mqtt-proto 0.4.0), where MQTT 3.1.1, section 3.9.3,
            // requires 0x80.
            let codes = self.out.iter_mut().rev().zip(answer.topics.iter().rev());
            let refused = codes.filter(|(_, code)| **code == SubscribeReturnCode::Failure);
            refused.for_each(|(byte, _)| *byte = 0x80);
        }
        Ok(())
    }

    /// Whether output waits to be written.
    pub(crate) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Waits for the next packet. Meanwhile writes waiting output, if `may_write`.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: no read or written byte is lost.
    pub(crate) async fn next(&mut self, may_write: bool) -> Result<Packet, StreamError> {
        loop {
            if let Some(packet) = take_packet(&mut self.input)? {
                if self.input.is_empty() && self.input.capacity() > KEPT_BYTES {
                    self.input = BytesMut::new();
                }
                return Ok(packet);
            }
            self.input.reserve(READ_BYTES);
            let owes = self.unflushed || !self.out.is_empty();
            tokio::select! {
                read = self.reader.read_buf(&mut self.input), if self.out.len() < WRITE_BACKLOG_MAX => {
                    if read? == 0 {
                        return Err(StreamError::Closed);
                    }
                }
                written = write_some(&mut self.writer, &mut self.out, &mut self.unflushed), if owes && may_write => written?,
            }
        }
    }

    /// Reads and discards input until the peer has closed.
    pub(crate) async fn ignore(&mut self) {
        loop {
            self.input.clear();
            self.input.reserve(READ_BYTES);
            match self.reader.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Writes all waiting output.
    pub(crate) async fn flush(&mut self) -> Result<(), StreamError> {
        while self.unflushed || !self.out.is_empty() {
            write_some(&mut self.writer, &mut self.out, &mut self.unflushed).await?;
        }
        Ok(())
    }

    /// Writes all waiting output and closes the stream, as far as the peer allows.
    pub(crate) async fn close(&mut self) {
        // A best effort: the peer may be gone.
        if self.flush().await.is_ok() {
            let _ = self.writer.shutdown().await;
        }
    }
}

/// Writes part of `out`, or flushes when `out` is empty.
///
/// # Cancel safety
///
/// Cancel-safe: `unflushed` records a pending flush.
async fn write_some<W: AsyncWrite + Unpin>(
    writer: &mut W,
    out: &mut BytesMut,
    unflushed: &mut bool,
) -> std::io::Result<()> {
    if out.is_empty() {
        writer.flush().await?;
        *unflushed = false;
    } else {
        *unflushed = true;
        writer.write_buf(out).await?;
        if out.is_empty() && out.capacity() > 0 {
            // Free the buffer: output is rare, and thousands of connections may be open.
            *out = BytesMut::new();
        }
    }
    Ok(())
}

/// Takes the first packet of `input`, if complete.
fn take_packet(input: &mut BytesMut) -> Result<Option<Packet>, StreamError> {
    let Some(length) = packet_len(input)? else {
        return Ok(None);
    };
    if length > PACKET_BYTES_MAX {
        return Err(StreamError::TooLarge(length));
    }
    if input.len() < length {
        input.reserve(length - input.len());
        return Ok(None);
    }
    // A complete packet with too short a body is malformed.
    let packet = Packet::decode(&input[..length])?;
    input.advance(length);
    let missing = || StreamError::Malformed(mqtt_proto::Error::InvalidRemainingLength);
    packet.map(Some).ok_or_else(missing)
}

/// Returns the length of the first packet of `input`, if the length field is complete (MQTT 3.1.1,
/// section 2.2.3).
fn packet_len(input: &[u8]) -> Result<Option<usize>, StreamError> {
    let mut length = 0;
    for (at, byte) in input.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some(2 + at + length));
        }
    }
    if input.len() >= 5 {
        return Err(mqtt_proto::Error::InvalidVarByteInt.into());
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_taken_whole_and_bounded() {
        let publish = mqtt_proto::v3::Publish::new(
            mqtt_proto::QosPid::Level0,
            "a".try_into().unwrap(),
            vec![7; 300].into(),
        );
        let bytes = Packet::from(publish.clone()).encode().unwrap();
        let mut input = BytesMut::new();
        for byte in bytes.as_ref() {
            assert_eq!(take_packet(&mut input).unwrap(), None);
            input.extend_from_slice(&[*byte]);
        }
        input.extend_from_slice(&[0xc0, 0]);
        assert_eq!(take_packet(&mut input).unwrap(), Some(publish.into()));
        assert_eq!(take_packet(&mut input).unwrap(), Some(Packet::Pingreq));
        assert_eq!(take_packet(&mut input).unwrap(), None);
        for bad in [
            &[0x30, 0xff, 0xff, 0xff, 0xff, 1][..],
            &[0x30, 0xff, 0xff, 0xff, 0x7f],
            // A reserved type, wrong flags, and bodies shorter than their fields.
            &[0xf0, 0],
            &[0xc1, 0],
            &[0x30, 3, 0, 9, b'a'],
            &[0x40, 1, 0],
        ] {
            assert!(take_packet(&mut BytesMut::from(bad)).is_err(), "{bad:x?}");
        }
    }
}
