//! Splits input bytes into frames, and dispatches each frame.

use bytes::{Buf as _, BytesMut};

use super::connection::{AfterInput, Connection, Phase};
use super::decode::{DecodeError, Reader};
use super::outcome::AmqpError;
use super::performative::{
    self, Begin, CHANNEL_MAX, Detach, Disposition, Flow, MAX_FRAME_SIZE, Open, Transfer,
};
use super::session::Session;
use super::{AMQP_HEADER, SASL_HEADER, sasl};

/// The reason why a connection cannot continue.
#[derive(Debug)]
pub(crate) enum ConnectionError {
    /// The bytes cannot be decoded.
    Decode(DecodeError),
    /// The input is valid AMQP and not allowed.
    Protocol(AmqpError),
    /// The hub drops the connection.
    Drop,
}

impl From<DecodeError> for ConnectionError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl ConnectionError {
    pub(crate) fn protocol(condition: &'static str, text: impl Into<String>) -> Self {
        Self::Protocol(AmqpError::plain(condition, text))
    }
}

impl Connection {
    /// Consumes all whole frames of `input`.
    pub(crate) fn on_input(&mut self, input: &mut BytesMut) -> AfterInput {
        self.rules = self.hub.faults.cut_rules();
        let mut used = 0;
        let result = loop {
            match self.step(&input[used..]) {
                Ok(0) => break Ok(()),
                Ok(step) => used += step,
                Err(error) => break Err(error),
            }
        };
        input.advance(used);
        match result {
            Ok(()) => self.flush_accepted(),
            Err(ConnectionError::Drop) => {
                self.hub.counters.cut_connections.one();
                return AfterInput::Drop;
            }
            Err(ConnectionError::Decode(error)) => {
                input.clear();
                self.close(&AmqpError::plain("amqp:decode-error", error.to_string()));
            }
            Err(ConnectionError::Protocol(error)) => {
                input.clear();
                self.close(&error);
            }
        }
        AfterInput::Continue
    }

    /// Consumes one header or frame. Returns the length, or 0 if the input is incomplete.
    fn step(&mut self, input: &[u8]) -> Result<usize, ConnectionError> {
        match self.phase {
            Phase::Header | Phase::HeaderAfterSasl => {
                let Some(header) = input.first_chunk::<8>() else {
                    return Ok(0);
                };
                self.on_header(*header)?;
                return Ok(8);
            }
            // Input after the end is discarded.
            Phase::Closed => return Ok(input.len()),
            Phase::SaslInit | Phase::Open | Phase::Running | Phase::Closing => {}
        }
        let Some(head) = input.first_chunk::<8>() else {
            return Ok(0);
        };
        let size = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let start = usize::from(head[4]) * 4;
        if size > MAX_FRAME_SIZE || (size as usize) < start || start < 8 {
            let text = format!("a frame of {size} bytes with its body at {start}");
            return Err(ConnectionError::protocol(
                "amqp:connection:framing-error",
                text,
            ));
        }
        let size = size as usize;
        let Some(frame) = input.get(..size) else {
            return Ok(0);
        };
        let channel = u16::from_be_bytes([head[6], head[7]]);
        self.on_frame(channel, &frame[start..])?;
        Ok(size)
    }

    fn on_header(&mut self, header: [u8; 8]) -> Result<(), ConnectionError> {
        match (self.phase, header) {
            (Phase::Header, SASL_HEADER) => {
                self.out.extend_from_slice(&SASL_HEADER);
                sasl::write_mechanisms(&mut self.out);
                self.phase = Phase::SaslInit;
            }
            (_, AMQP_HEADER) => {
                self.out.extend_from_slice(&AMQP_HEADER);
                self.phase = Phase::Open;
            }
            _ => {
                // A wrong header is answered by the right header, and the connection ends.
                self.out.extend_from_slice(&AMQP_HEADER);
                self.phase = Phase::Closed;
            }
        }
        Ok(())
    }

    fn on_frame(&mut self, channel: u16, body: &[u8]) -> Result<(), ConnectionError> {
        if body.is_empty() {
            return Ok(());
        }
        if self.phase == Phase::SaslInit {
            return self.on_sasl(body);
        }
        let mut reader = Reader::new(body);
        let performative = reader.descriptor()?;
        if self.phase == Phase::Closing {
            if performative == performative::CLOSE {
                self.phase = Phase::Closed;
            }
            return Ok(());
        }
        match (self.phase, performative) {
            (Phase::Open, performative::OPEN) => self.on_open(&Open::read(&mut reader)?),
            (Phase::Open, _) | (_, performative::OPEN) => {
                return Err(ConnectionError::protocol(
                    "amqp:not-allowed",
                    "open must be the first performative, and must not be repeated",
                ));
            }
            (_, performative::TRANSFER) => {
                let transfer = Transfer::read(&mut reader)?;
                return self.on_transfer(channel, &transfer, reader.rest());
            }
            (_, performative::DISPOSITION) => {
                self.on_disposition(channel, &Disposition::read(&mut reader)?);
            }
            (_, performative::FLOW) => self.on_flow(channel, &Flow::read(&mut reader)?),
            (_, performative::BEGIN) => return self.on_begin(channel, &Begin::read(&mut reader)?),
            (_, performative::ATTACH) => {
                return self.on_attach(channel, performative::Attach::read(&mut reader)?);
            }
            (_, performative::DETACH) => self.on_detach(channel, Detach::read(&mut reader)?),
            (_, performative::END) => self.on_end(channel),
            (_, performative::CLOSE) => self.on_close(),
            (_, other) => {
                return Err(ConnectionError::protocol(
                    "amqp:not-implemented",
                    format!("performative {other:#x}"),
                ));
            }
        }
        Ok(())
    }

    fn on_sasl(&mut self, body: &[u8]) -> Result<(), ConnectionError> {
        match sasl::enter(body, &self.hub, self.devices.certificate().is_some())? {
            sasl::Entry::Refused => {
                sasl::write_outcome(&mut self.out, false);
                self.phase = Phase::Closed;
                return Ok(());
            }
            sasl::Entry::Anonymous => {}
            sasl::Entry::Registers(token) => self.registrations.token = Some(token),
            sasl::Entry::Granted(grant) => {
                self.grants.push(*grant);
                self.sasl_authenticated = true;
            }
        }
        sasl::write_outcome(&mut self.out, true);
        self.phase = Phase::HeaderAfterSasl;
        Ok(())
    }

    fn on_open(&mut self, open: &Open) {
        // At least the protocol's minimum, at most the hub's own limit.
        self.peer_frame_max = open.max_frame_size.clamp(512, MAX_FRAME_SIZE) as usize;
        self.peer_idle = open
            .idle_time_out_ms
            .map(|ms| std::time::Duration::from_millis(u64::from(ms)));
        let container = format!("DeviceGateway_{}", uuid::Uuid::new_v4().as_simple());
        tracing::debug!(peer = open.container_id, container, "connection opened");
        performative::write_open(&mut self.out, &container);
        self.phase = Phase::Running;
    }

    fn on_begin(&mut self, channel: u16, begin: &Begin) -> Result<(), ConnectionError> {
        if channel > CHANNEL_MAX || self.session(channel).is_some() {
            let text = format!("channel {channel} is in use or above {CHANNEL_MAX}");
            return Err(ConnectionError::protocol("amqp:not-allowed", text));
        }
        let at = usize::from(channel);
        if self.sessions.len() <= at {
            self.sessions.resize_with(at + 1, || None);
        }
        let session = Session::new(channel, begin);
        performative::write_begin(&mut self.out, channel, session.next_outgoing_id());
        self.sessions[at] = Some(session);
        Ok(())
    }

    fn on_end(&mut self, channel: u16) {
        self.flush_accepted();
        if let Some(session) = self
            .sessions
            .get_mut(usize::from(channel))
            .and_then(Option::take)
        {
            let (closed, unsettled) = session.into_parts();
            self.give_back(unsettled);
            self.links_closed(closed);
        }
        performative::write_end(&mut self.out, channel, None);
    }

    fn on_close(&mut self) {
        self.flush_accepted();
        performative::write_close(&mut self.out, None);
        self.phase = Phase::Closed;
        self.release_everything();
    }
}
