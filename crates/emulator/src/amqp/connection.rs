//! One connection: a state machine turning input bytes into output bytes, and the loop feeding it.
//!
//! The state machine never waits. All answers of the hub collect in one output buffer, so that one
//! write answers a batch of frames read together, and one disposition covers consecutive
//! acceptances.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::device::Devices;
use super::encode;
use super::link::{LinkState, Unsettled};
use super::outcome::{AmqpError, Verdict};
use super::performative::{self, Attach, IDLE_TIME_OUT_MS};
use super::registration::Registrations;
use super::session::Session;
use super::timer::Timer;
use crate::entra::Action;
use crate::faults::CutRules;
use crate::hub::{ClientCertificate, Cut, FeedbackSettlement, Hub, MessageSettlement};
use crate::sas::Grant;

/// The number of bytes to read at once; a TLS record has at most a quarter of this.
const READ_BYTES: usize = 64 * 1024;
/// The number of bytes waiting to be written above which reading pauses.
const WRITE_BACKLOG_MAX: usize = 1 << 20;
/// The time the hub waits for the peer's close after the hub's close.
const LINGER: Duration = Duration::from_secs(2);
/// The time allowed for a peer to open the connection.
const OPEN_TIME_OUT: Duration = Duration::from_secs(30);
/// The interval between checks of tokens, locks and heartbeats.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// The phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before any protocol header.
    Header,
    /// In the SASL layer.
    SaslInit,
    /// After the SASL layer, before the second header.
    HeaderAfterSasl,
    /// Before the peer's open.
    Open,
    Running,
    /// The hub has closed, and waits only for the peer's close.
    Closing,
    /// Both sides have closed, or the hub drops the connection.
    Closed,
}

/// An action with a due time.
#[derive(Debug)]
pub(crate) enum DelayedAction {
    /// A message waiting for a permit.
    Send {
        key: LinkKey,
        delivery_id: u32,
        settled: bool,
        payload: Bytes,
    },
    /// A delayed answer.
    Answer {
        key: LinkKey,
        delivery_id: u32,
        verdict: Verdict,
    },
    /// A link waiting for a permit.
    Attach { key: LinkKey, attach: Box<Attach> },
}

/// One link of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkKey {
    pub(crate) channel: u16,
    pub(crate) handle: u32,
    pub(crate) serial: u64,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) hub: Arc<Hub>,
    pub(crate) out: BytesMut,
    pub(crate) phase: Phase,
    pub(crate) sessions: Vec<Option<Session>>,
    pub(crate) grants: Vec<Grant>,
    /// The rights came with the SASL layer and end with the connection.
    pub(crate) sasl_authenticated: bool,
    pub(crate) devices: Devices,
    pub(crate) registrations: Registrations,
    /// Answers to tokens, waiting for credit.
    pub(crate) replies: VecDeque<Vec<u8>>,
    pub(crate) delayed: Timer<DelayedAction>,
    pub(crate) rules: CutRules,
    pub(crate) peer_frame_max: usize,
    pub(crate) peer_idle: Option<Duration>,
    pub(crate) transfers: u64,
    pub(crate) serials: u64,
    /// Accepted deliveries without a written disposition: channel, first and last delivery id.
    pub(crate) accepted: Option<(u16, u32, u32)>,
    opened_at: Instant,
    closing_since: Option<Instant>,
    last_read: Instant,
    last_write: Instant,
}

impl Connection {
    pub(crate) fn new(hub: Arc<Hub>, certificate: Option<ClientCertificate>) -> Self {
        let now = Instant::now();
        Self {
            hub,
            out: BytesMut::with_capacity(8 * 1024),
            phase: Phase::Header,
            sessions: Vec::new(),
            grants: Vec::new(),
            sasl_authenticated: false,
            devices: Devices::new(certificate),
            registrations: Registrations::default(),
            replies: VecDeque::new(),
            delayed: Timer::new(),
            rules: CutRules::default(),
            peer_frame_max: 512,
            peer_idle: None,
            transfers: 0,
            serials: 0,
            accepted: None,
            opened_at: now,
            closing_since: None,
            last_read: now,
            last_write: now,
        }
    }

    pub(crate) fn session(&mut self, channel: u16) -> Option<&mut Session> {
        self.sessions.get_mut(usize::from(channel))?.as_mut()
    }

    /// Whether a token of the connection allows `action` on `path`.
    pub(crate) fn may(&self, path: &str, action: Action) -> bool {
        let now_s = self.hub.now_s();
        self.grants
            .iter()
            .any(|grant| grant.covers(path, action, now_s))
    }

    /// Closes the connection with an error.
    pub(crate) fn close(&mut self, error: &AmqpError) {
        if matches!(self.phase, Phase::Closing | Phase::Closed) {
            return;
        }
        self.flush_accepted();
        if matches!(self.phase, Phase::Running | Phase::Open) {
            if self.phase == Phase::Open {
                // A close is allowed only after an open.
                performative::write_open(&mut self.out, "DeviceGateway");
            }
            performative::write_close(&mut self.out, Some(error));
            self.phase = Phase::Closing;
            self.closing_since = Some(Instant::now());
        } else {
            self.phase = Phase::Closed;
        }
        self.release_everything();
    }

    /// Returns all held deliveries to the queues, disconnects all devices, and drops all delayed
    /// actions.
    pub(crate) fn release_everything(&mut self) {
        let sessions = std::mem::take(&mut self.sessions);
        for session in sessions.into_iter().flatten() {
            self.give_back(session.unsettled.into_values());
        }
        self.devices.clear();
        let waiting = self
            .delayed
            .drain()
            .filter(|delayed| !matches!(delayed, DelayedAction::Attach { .. }))
            .count();
        for _ in 0..waiting {
            self.hub.counters.unanswered.down();
        }
    }

    /// Returns feedback and messages to the queues.
    pub(crate) fn give_back(&self, deliveries: impl IntoIterator<Item = Unsettled>) {
        for delivery in deliveries {
            match delivery {
                Unsettled::Feedback { batch, .. } => {
                    self.hub
                        .settle_taken_feedback(batch, FeedbackSettlement::Abandoned);
                }
                Unsettled::Message { device, number, .. } => {
                    self.devices
                        .settle(device, number, MessageSettlement::Abandoned);
                }
                Unsettled::Reply { .. } => {}
            }
        }
    }

    /// Handles everything due: permits, delayed answers, heartbeats, expired tokens and locks.
    pub(crate) fn on_time(&mut self, now: Instant) {
        self.rules = self.hub.faults.cut_rules();
        while let Some(delayed) = self.delayed.pop_due(now) {
            self.run_delayed(delayed);
        }
        self.flush_accepted();
        self.check_deadlines(now);
        if self.phase == Phase::Running {
            self.check_tokens();
            self.check_devices();
            self.check_locks(now);
            self.pump_feedback();
        }
    }

    fn check_deadlines(&mut self, now: Instant) {
        let closing_too_long = self
            .closing_since
            .is_some_and(|since| now - since >= LINGER);
        let opening = matches!(
            self.phase,
            Phase::Header | Phase::SaslInit | Phase::HeaderAfterSasl | Phase::Open
        );
        if closing_too_long || (opening && now - self.opened_at >= OPEN_TIME_OUT) {
            self.phase = Phase::Closed;
            return;
        }
        let silent = now - self.last_read >= Duration::from_millis(u64::from(IDLE_TIME_OUT_MS));
        let fault = self
            .rules
            .idle_close
            .is_some_and(|after| now - self.opened_at >= after);
        if self.phase == Phase::Running && (silent || fault) {
            self.hub.counters.cut_connections.add(u64::from(fault));
            let text = format!(
                "The connection was inactive for more than the allowed {IDLE_TIME_OUT_MS} milliseconds and is closed by container 'DeviceGateway'."
            );
            self.close(&AmqpError::plain("amqp:connection:forced", text));
        }
        let quiet = self
            .peer_idle
            .is_some_and(|idle| now - self.last_write >= idle / 2);
        if quiet && self.out.is_empty() && self.phase == Phase::Running {
            encode::heartbeat(&mut self.out);
        }
    }

    /// Removes expired tokens. A link without a valid token is detached; a connection authenticated
    /// in the SASL layer is closed.
    fn check_tokens(&mut self) {
        let now_s = self.hub.now_s();
        let before = self.grants.len();
        self.grants.retain(|grant| grant.expires_s > now_s);
        if self.grants.len() == before {
            return;
        }
        let error = AmqpError::plain("amqp:unauthorized-access", "The token has expired.");
        if self.sasl_authenticated {
            self.close(&error);
        } else {
            self.detach_unauthorized(&error);
        }
    }

    fn check_locks(&mut self, now: Instant) {
        let lock = self.hub.config.feedback_lock;
        let mut overdue = Vec::new();
        for session in self.sessions.iter_mut().flatten() {
            let late = session.unsettled.extract_if(
                ..,
                |_, held| matches!(held, Unsettled::Feedback { since, .. } if now - *since >= lock),
            );
            overdue.extend(late.map(|(_, held)| held));
        }
        self.give_back(overdue);
    }

    /// Applies a cut of all connections. Returns whether to drop the socket at once.
    fn on_cut(&mut self, cut: Cut) -> bool {
        self.hub
            .counters
            .cut_connections
            .add(u64::from(cut != Cut::Detach));
        match cut {
            Cut::Drop => return true,
            Cut::Close => {
                let text =
                    "The connection was closed by container 'DeviceGateway': the service moves.";
                self.close(&AmqpError::plain("amqp:connection:forced", text));
            }
            Cut::Detach => {
                let error = AmqpError::plain(
                    "amqp:link:detach-forced",
                    "The link is detached: server busy.",
                );
                self.detach_where(&error, |link| link.state == LinkState::Open);
            }
        }
        false
    }

    /// Returns the time of the next action due without input.
    fn next_wake(&self, now: Instant) -> Instant {
        let mut wake = now + HOUSEKEEPING;
        if let Some(idle) = self.peer_idle {
            wake = wake.min(now + (idle / 4).max(Duration::from_millis(5)));
        }
        if let Some(idle) = self.rules.idle_close {
            wake = wake.min((self.opened_at + idle).max(now + Duration::from_millis(5)));
        }
        self.delayed.next_at().map_or(wake, |at| wake.min(at))
    }
}

/// Serves one connection until either side closes. `input` holds the bytes already read from the
/// connection, and `certificate` is the client's certificate from the TLS handshake.
pub(crate) async fn serve<S>(
    stream: S,
    mut input: BytesMut,
    hub: Arc<Hub>,
    certificate: Option<ClientCertificate>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection::new(Arc::clone(&hub), certificate);
    hub.counters.connections.one();
    hub.counters.open_connections.up();
    run(stream, &mut connection, &mut input, stop).await;
    connection.release_everything();
    hub.counters.open_connections.down();
}

async fn run<S>(
    stream: S,
    connection: &mut Connection,
    input: &mut BytesMut,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut feedback = connection.hub.watch_feedback();
    let mut cuts = connection.hub.watch_cuts();
    let devices = Arc::clone(&connection.devices.wake);
    let mut unflushed = false;
    let mut stopping = false;
    let sleep = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(sleep);
    if connection.on_input(input).is_drop() {
        return;
    }
    loop {
        let nothing_to_write = connection.out.is_empty() && !unflushed;
        if connection.phase == Phase::Closed && nothing_to_write {
            // A best effort: the peer may be gone.
            let _ = tokio::time::timeout(LINGER, writer.shutdown()).await;
            return;
        }
        let wake = connection.next_wake(Instant::now());
        if sleep.deadline().into_std() > wake || sleep.is_elapsed() {
            sleep.as_mut().reset(wake.into());
        }
        input.reserve(READ_BYTES);
        // Each arm is cancel-safe: `read_buf` and `write_out` move bytes only on completion.
        tokio::select! {
            read = reader.read_buf(input), if connection.out.len() < WRITE_BACKLOG_MAX && connection.phase != Phase::Closed => {
                match read {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {
                        connection.last_read = Instant::now();
                        if connection.on_input(input).is_drop() {
                            return;
                        }
                    }
                }
            }
            written = write_out(&mut writer, &mut connection.out, &mut unflushed), if !nothing_to_write => {
                connection.last_write = Instant::now();
                if written.is_err() {
                    return;
                }
            }
            () = sleep.as_mut() => connection.on_time(Instant::now()),
            Ok(()) = feedback.changed() => {
                feedback.mark_unchanged();
                connection.pump_feedback();
            }
            () = devices.notified() => connection.pump_devices(),
            Ok(()) = cuts.changed() => {
                let (_, cut) = *cuts.borrow_and_update();
                if connection.on_cut(cut) {
                    return;
                }
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                let error = AmqpError::plain("amqp:connection:forced", "The hub is shutting down.");
                connection.close(&error);
            }
        }
    }
}

/// Writes part of `out`, or flushes when `out` is empty.
///
/// # Cancel safety
///
/// Cancel-safe: `unflushed` records a pending flush.
async fn write_out<W>(
    writer: &mut W,
    out: &mut BytesMut,
    unflushed: &mut bool,
) -> std::io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    if out.is_empty() {
        writer.flush().await?;
        *unflushed = false;
    } else {
        *unflushed = true;
        writer.write_buf(out).await?;
    }
    Ok(())
}

/// The next step for the socket after some input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterInput {
    Continue,
    /// Drop the socket without a close frame.
    Drop,
}

impl AfterInput {
    fn is_drop(self) -> bool {
        self == Self::Drop
    }
}
