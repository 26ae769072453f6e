//! The task behind a [`C2dSender`](super::C2dSender): it owns the link and everything in flight.
//!
//! ```text
//!            ┌────────────── lost (jittered wait) ◀───────────────┐
//!            ▼                                                    │
//!      Reconnecting ── opened ──▶ Connected: take, hand over, ────┤
//!            │                    settle, sweep                   │
//!            ▼                                                    ▼
//!    Failed (credentials, certificate)                  Closed (handle dropped)
//! ```
//!
//! A command is in one of four places, and leaves each exactly once: the channel; `waiting` (taken, not handed over,
//! oldest first); the head (being handed over, waiting for credit); `flights` (handed over). Handed over counts as
//! *left*: its fate is unknown when the connection goes. Everything before may be tried on the next connection.
//!
//! Deadlines need no timer per message: all sends have the same time-out, so `waiting` is in deadline order, and a
//! sweep a few times per time-out looks at the rest.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use fe2o3_amqp::link::SendError;
use fe2o3_amqp_types::messaging::Outcome;
use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, info, warn};

use crate::amqp::connection::HubConnection;
use crate::amqp::reconnects::Reconnects;
use crate::amqp::supervise::supervised;
use crate::client::ClientInner;

use super::link::{Delivery, Link, Prepared, detach_failure, read_answer, read_refused_handover};
use super::message::C2dMessage;
use super::outcome::{ConnectionFailure, Lost, NotSent, SendOutcome};
use super::sender::{LinkState, SendReport};

/// Deadlines are looked at this often per send time-out, so a send is at most 5 % late.
const SWEEPS_PER_TIMEOUT: u32 = 20;

/// The slowest sweep: the stall watchdog should not be later than this.
const SLOWEST_SWEEP: Duration = Duration::from_millis(250);

/// Answers that are taken in a row before new messages are looked at, so that neither starves the other.
const SETTLE_AT_ONCE: usize = 64;

/// One message and where its outcome goes.
pub(crate) struct Command {
    pub(crate) message: C2dMessage,
    /// When it is to have left.
    pub(crate) leave_by: Instant,
    /// When it is to be answered.
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<SendReport>,
}

/// See the module's documentation.
pub(crate) struct Engine {
    client: Arc<ClientInner>,
    commands: mpsc::Receiver<Command>,
    state: watch::Sender<LinkState>,
    waiting: VecDeque<Command>,
    /// The handle is gone: nothing more will come.
    closing: bool,
    prepared: Prepared,
    reconnects: Reconnects,
}

/// Why a connection was left.
enum End {
    Closed,
    Lost(Arc<ConnectionFailure>),
}

impl End {
    fn lost(failure: ConnectionFailure) -> Self {
        Self::Lost(Arc::new(failure))
    }
}

/// A delivery that has left, until the hub answers.
struct Flight {
    delivery: Delivery,
    /// Taken when the outcome is told; a flight without it only waits to be forgotten.
    waiter: Option<Waiter>,
}

struct Waiter {
    reply: oneshot::Sender<SendReport>,
    left_at: Instant,
    deadline: Instant,
}

impl Future for Flight {
    type Output = (Result<Outcome, SendError>, Option<Waiter>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.delivery)
            .poll(cx)
            .map(|answer| (answer, self.waiter.take()))
    }
}

/// What is known of one connection while it lasts.
struct Drive {
    flights: FuturesUnordered<Flight>,
    /// Flights whose waiter was told "unknown" because no answer came in time.
    forgotten: usize,
    /// When the hub last did something for us: an answer, or credit that was waited for. Or when it was first owed
    /// something.
    progress: Instant,
}

impl Engine {
    pub(crate) fn new(
        client: Arc<ClientInner>,
        commands: mpsc::Receiver<Command>,
        state: watch::Sender<LinkState>,
    ) -> Self {
        Self {
            reconnects: Reconnects::new(&client.options.reconnect),
            client,
            commands,
            state,
            waiting: VecDeque::new(),
            closing: false,
            prepared: Prepared::default(),
        }
    }

    /// Lives as long as the handle, unless the hub refuses us for good.
    pub(crate) async fn run(mut self, mut link: Option<Link>) {
        let mut since = SystemTime::now();
        let mut last_error = None;
        loop {
            let connected = match link.take() {
                Some(link) => Some(link),
                None => match self.reconnect(since, last_error.take()).await {
                    Ok(link) => link,
                    Err(failure) => return self.fail(&Arc::new(failure)),
                },
            };
            let Some(connected) = connected else { break };
            self.state.send_replace(LinkState::Connected);
            let connected_at = Instant::now();
            // What was in flight when a defect was met is told as closed by its reply's end.
            let driven = supervised("sending", async { Ok(self.drive(connected).await) });
            match driven.await.unwrap_or_else(End::lost) {
                End::Closed => break,
                End::Lost(failure) => {
                    warn!(hub = %self.client.host_name, error = %failure, "c2d link lost");
                    self.reconnects.lost(connected_at.elapsed());
                    if self.reconnects.gives_up(&failure, &self.client.credentials) {
                        return self.fail(&failure);
                    }
                    since = SystemTime::now();
                    last_error = Some(failure);
                }
            }
        }
        for command in self.waiting.drain(..) {
            let _ = command.reply.send(SendReport::not_sent(NotSent::Closed));
        }
        self.state.send_replace(LinkState::Closed);
    }

    /// Tries until there is a link (`Some`), the handle is gone and nobody waits (`None`), or trying is of no use.
    async fn reconnect(
        &mut self,
        since: SystemTime,
        mut last_error: Option<Arc<ConnectionFailure>>,
    ) -> Result<Option<Link>, ConnectionFailure> {
        // The first attempt ever is made at once; after a loss even the first one is jittered, so that a crowd that
        // was thrown out together does not return together.
        let mut wait = last_error
            .as_ref()
            .map(|_| self.reconnects.next_wait())
            .unwrap_or_default();
        let mut attempts = 0;
        loop {
            let shown = last_error.clone();
            self.state.send_replace(LinkState::Reconnecting {
                since,
                attempts,
                last_error: shown,
            });
            let resume_at = Instant::now() + wait;
            if !self.wait_while(sleep_until(resume_at), &last_error).await.1 {
                return Ok(None);
            }
            let client = Arc::clone(&self.client);
            let opening = async move { Link::open(&client).await };
            let (opened, alive) = self.wait_while(opening, &last_error).await;
            match opened {
                None => return Ok(None),
                Some(Ok(link)) if alive => {
                    info!(hub = %self.client.host_name, attempts, "c2d link attached");
                    return Ok(Some(link));
                }
                Some(Ok(_)) => return Ok(None),
                Some(Err(failure))
                    if self.reconnects.gives_up(&failure, &self.client.credentials) =>
                {
                    return Err(failure);
                }
                Some(Err(failure)) => {
                    debug!(hub = %self.client.host_name, error = %failure, attempts, "c2d link not attached");
                    attempts += 1;
                    last_error = Some(Arc::new(failure));
                }
            }
            wait = self.reconnects.next_wait();
        }
    }

    /// Waits for `what` while taking commands in and telling those whose time is up. `None` and `false` when the handle
    /// is gone and nobody waits any more.
    async fn wait_while<T>(
        &mut self,
        what: impl Future<Output = T>,
        last_error: &Option<Arc<ConnectionFailure>>,
    ) -> (Option<T>, bool) {
        let mut what = pin!(what);
        let most = self.client.options.max_in_flight;
        let mut sweep = self.sweeps();
        loop {
            if self.closing && self.waiting.is_empty() {
                return (None, false);
            }
            tokio::select! {
                done = &mut what => return (Some(done), true),
                command = self.commands.recv(), if !self.closing && self.waiting.len() < most => {
                    match command {
                        Some(command) => self.waiting.push_back(command),
                        None => self.closing = true,
                    }
                }
                _ = sweep.tick() => self.sweep_waiting(Instant::now(), last_error),
            }
        }
    }

    fn sweeps(&self) -> tokio::time::Interval {
        let period = self
            .client
            .options
            .send_timeout
            .min(self.client.options.stall_timeout)
            .min(self.client.options.leave_timeout)
            / SWEEPS_PER_TIMEOUT;
        let mut sweep = interval(period.clamp(Duration::from_millis(1), SLOWEST_SWEEP));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        sweep
    }

    fn sweep_waiting(&mut self, now: Instant, last_error: &Option<Arc<ConnectionFailure>>) {
        while self
            .waiting
            .front()
            .is_some_and(|command| command.leave_by <= now)
        {
            let Some(command) = self.waiting.pop_front() else {
                break;
            };
            let connection = last_error.clone();
            let _ = command
                .reply
                .send(SendReport::not_sent(NotSent::Timeout { connection }));
        }
    }

    /// Tells everyone, now and in the channel, that there is no use.
    fn fail(mut self, failure: &Arc<ConnectionFailure>) {
        warn!(hub = %self.client.host_name, error = %failure, "c2d link failed for good");
        self.state
            .send_replace(LinkState::Failed(Arc::clone(failure)));
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            self.waiting.push_back(command);
        }
        for command in self.waiting.drain(..) {
            let _ = command
                .reply
                .send(SendReport::not_sent(NotSent::Failed(Arc::clone(failure))));
        }
    }

    /// Sends over `link` until it is lost or everything is done.
    async fn drive(&mut self, mut link: Link) -> End {
        let mut drive = Drive {
            flights: FuturesUnordered::new(),
            forgotten: 0,
            progress: Instant::now(),
        };
        let end = match self.drive_link(&mut link, &mut drive).await {
            End::Lost(failure) => match Arc::try_unwrap(failure) {
                Ok(failure) => End::lost(link.connection.explained(failure)),
                Err(shared) => End::Lost(shared),
            },
            closed => closed,
        };
        drive.abandon(&end);
        if matches!(end, End::Closed) {
            let Link { sender, connection } = link;
            drop(sender);
            connection.farewell();
        }
        end
    }

    async fn drive_link(&mut self, link: &mut Link, drive: &mut Drive) -> End {
        let most = self.client.options.max_in_flight;
        let mut sweep = self.sweeps();
        loop {
            // What is ready is done without waiting for anything, some of each kind in turn.
            for _ in 0..SETTLE_AT_ONCE {
                match drive.flights.next().now_or_never() {
                    Some(Some((answer, waiter))) => self.settle(link, drive, answer, waiter),
                    _ => break,
                }
            }
            while drive.in_flight() < most
                && let Some(command) = self.take()
            {
                if let Err(end) = self.hand_over(link, drive, &mut sweep, command).await {
                    return end;
                }
            }
            if self.closing && self.waiting.is_empty() && drive.in_flight() == 0 {
                return End::Closed;
            }
            tokio::select! {
                Some((answer, waiter)) = drive.flights.next(), if !drive.flights.is_empty() => {
                    self.settle(link, drive, answer, waiter);
                }
                command = self.commands.recv(), if !self.closing && drive.in_flight() < most => {
                    match command {
                        // Commands are put behind those that wait since before the connection.
                        Some(command) => self.waiting.push_back(command),
                        None => self.closing = true,
                    }
                }
                _ = sweep.tick() => {
                    if let Err(end) = self.sweep(drive, Instant::now(), false) {
                        return end;
                    }
                }
                error = link.sender.on_detach() => return End::lost(detach_failure(&error)),
                failure = link.connection.ended() => return End::lost(failure),
            }
        }
    }

    fn take(&mut self) -> Option<Command> {
        self.waiting
            .pop_front()
            .or_else(|| self.commands.try_recv().ok())
    }

    /// Waits for credit and hands one message over, while everything else goes on.
    async fn hand_over(
        &mut self,
        link: &mut Link,
        drive: &mut Drive,
        sweep: &mut tokio::time::Interval,
        command: Command,
    ) -> Result<(), End> {
        if command.reply.is_closed() {
            return Ok(());
        }
        let too_late = || SendReport::not_sent(NotSent::Timeout { connection: None });
        if Instant::now() >= command.leave_by {
            // It grew old in the channel, behind a head that waited for credit.
            let _ = command.reply.send(too_late());
            return Ok(());
        }
        if drive.in_flight() == 0 {
            drive.progress = Instant::now();
        }
        let mut prepared = std::mem::take(&mut self.prepared);
        let (result, waited) = {
            let hub_now = self.client.clock.hub_time(SystemTime::now());
            let sendable = prepared.get(&command.message, hub_now);
            let handing = pin!(link.sender.send_batchable_ref(sendable));
            self.until_handed_over(
                handing,
                &mut link.connection,
                drive,
                sweep,
                command.leave_by,
            )
            .await
        };
        self.prepared = prepared;
        let report = match result {
            Ok(Ok(delivery)) => {
                let left_at = Instant::now();
                if waited {
                    // The hub has given credit. To write, on the other hand, is no sign of the hub.
                    drive.progress = left_at;
                }
                let waiter = Some(Waiter {
                    reply: command.reply,
                    left_at,
                    deadline: command.deadline,
                });
                drive.flights.push(Flight { delivery, waiter });
                return Ok(());
            }
            Ok(Err(error)) => {
                let refused = read_refused_handover(&error);
                refused.map(SendReport::not_sent).map_err(End::lost)
            }
            // Its own time is up; the link is fine.
            Err(End::Closed) => Ok(too_late()),
            Err(lost) => Err(lost),
        };
        match report {
            Ok(report) => {
                let _ = command.reply.send(report);
                Ok(())
            }
            Err(end) => {
                // It had not left: the next connection may have it.
                self.waiting.push_front(command);
                Err(end)
            }
        }
    }

    /// Waits until a link takes a message, while everything else goes on. [`End::Closed`] when the message has waited until
    /// `leave_by`. Also tells whether it has waited for credit.
    async fn until_handed_over<T>(
        &mut self,
        mut handing: Pin<&mut impl Future<Output = T>>,
        connection: &mut HubConnection,
        drive: &mut Drive,
        sweep: &mut tokio::time::Interval,
        leave_by: Instant,
    ) -> (Result<T, End>, bool) {
        let mut waited = false;
        loop {
            tokio::select! {
                biased;
                handed = &mut handing => return (Ok(handed), waited),
                failure = connection.ended() => return (Err(End::lost(failure)), waited),
                Some((answer, waiter)) = drive.flights.next(), if !drive.flights.is_empty() => {
                    self.settle_answer(&connection.renew, drive, answer, waiter);
                }
                _ = sweep.tick() => {
                    waited = true;
                    let now = Instant::now();
                    if let Err(end) = self.sweep(drive, now, true) {
                        return (Err(end), waited);
                    }
                    if now >= leave_by {
                        return (Err(End::Closed), waited);
                    }
                }
            }
        }
    }

    fn settle(
        &mut self,
        link: &Link,
        drive: &mut Drive,
        answer: Result<Outcome, SendError>,
        waiter: Option<Waiter>,
    ) {
        self.settle_answer(&link.connection.renew, drive, answer, waiter);
    }

    fn settle_answer(
        &mut self,
        renew: &tokio::sync::Notify,
        drive: &mut Drive,
        answer: Result<Outcome, SendError>,
        waiter: Option<Waiter>,
    ) {
        let answered = answer.is_ok();
        let now = Instant::now();
        if answered {
            drive.progress = now;
            self.reconnects.served();
        }
        let Some(waiter) = waiter else {
            drive.forgotten -= 1;
            return;
        };
        let outcome = match read_answer(answer) {
            SendOutcome::Accepted => {
                self.reconnects.token_accepted();
                SendOutcome::Accepted
            }
            // The first refusal of our token is answered by a new one; if that is refused too, it is the hub's word.
            SendOutcome::Refused(refusal)
                if refusal.is_unauthorised() && self.reconnects.forgives_token() =>
            {
                renew.notify_one();
                SendOutcome::NotSent(NotSent::TokenRefused(refusal))
            }
            outcome => outcome,
        };
        let hub_latency = answered.then(|| now - waiter.left_at);
        let _ = waiter.reply.send(SendReport {
            outcome,
            hub_latency,
        });
    }

    /// Tells those whose time is up; gives the connection up when nothing moves.
    fn sweep(&mut self, drive: &mut Drive, now: Instant, head_waits: bool) -> Result<(), End> {
        self.sweep_waiting(now, &None);
        drive.forget_late(now);
        let stall = self.client.options.stall_timeout;
        let busy = head_waits || drive.in_flight() > 0;
        if !busy {
            drive.progress = now;
        } else if now - drive.progress >= stall {
            return Err(End::lost(ConnectionFailure::Stalled(stall)));
        }
        // So many lost answers are the connection's fault, and each still holds memory in the library.
        if drive.forgotten > self.client.options.max_in_flight {
            return Err(End::lost(ConnectionFailure::Stalled(stall)));
        }
        Ok(())
    }
}

impl Drive {
    fn in_flight(&self) -> usize {
        self.flights.len() - self.forgotten
    }

    fn forget_late(&mut self, now: Instant) {
        for flight in &mut self.flights {
            if let Some(waiter) = flight.waiter.take_if(|waiter| waiter.deadline <= now) {
                self.forgotten += 1;
                let outcome = SendOutcome::Unknown(Lost::Timeout);
                let _ = waiter.reply.send(SendReport {
                    outcome,
                    hub_latency: None,
                });
            }
        }
    }

    /// Tells everyone in flight what is known: the answers that are already there, unknown for the rest.
    fn abandon(&mut self, end: &End) {
        let lost = match end {
            End::Closed => Lost::Closed,
            End::Lost(failure) => Lost::Disconnected(Arc::clone(failure)),
        };
        while let Some(Some((answer, waiter))) = self.flights.next().now_or_never() {
            let Some(waiter) = waiter else { continue };
            let hub_latency = answer.is_ok().then(|| waiter.left_at.elapsed());
            let _ = waiter.reply.send(SendReport {
                outcome: read_answer(answer),
                hub_latency,
            });
        }
        for flight in &mut self.flights {
            if let Some(waiter) = flight.waiter.take() {
                let outcome = SendOutcome::Unknown(lost.clone());
                let _ = waiter.reply.send(SendReport {
                    outcome,
                    hub_latency: None,
                });
            }
        }
    }
}
