//! The task behind a [`C2dSender`](super::C2dSender), owner of the link and of all deliveries in
//! flight.
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
//! A command passes through up to four places and leaves each exactly once: the channel; `waiting`
//! (taken from the channel, not handed over, oldest first); the head (being handed over, waiting
//! for credit); `flights` (handed over). A handed-over message counts as *left*: its fate is
//! unknown when the connection is lost. Commands in the first three places may be sent over the
//! next connection.
//!
//! Deadlines need no timer per message: all sends have the same time-out, so `waiting` is in
//! deadline order. Several sweeps per time-out check `waiting` and `flights`.

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
use crate::amqp::reconnect_backoff::ReconnectBackoff;
use crate::amqp::supervise::supervised;
use crate::client::ClientInner;

use super::link::{Delivery, Link, Prepared, detach_failure, read_answer, read_refused_handover};
use super::message::C2dMessage;
use super::outcome::{ConnectionFailure, NotSent, SendOutcome, UnknownCause};
use super::sender::{LinkState, SendReport};

/// Number of deadline sweeps per send time-out, so a send is at most 5 % late.
const SWEEPS_PER_TIMEOUT: u32 = 20;

/// Longest sweep interval, and thereby the longest delay of the stall watchdog.
const MAX_SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Answers settled in a row before new messages are taken, so that neither starves the other.
const SETTLE_AT_ONCE: usize = 64;

/// One message and the destination of the outcome.
pub(crate) struct Command {
    pub(crate) message: C2dMessage,
    /// Latest moment for the message to leave.
    pub(crate) leave_by: Instant,
    /// Latest moment for the answer.
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<SendReport>,
}

/// See the module's documentation.
pub(crate) struct Engine {
    client: Arc<ClientInner>,
    commands: mpsc::Receiver<Command>,
    state: watch::Sender<LinkState>,
    waiting: VecDeque<Command>,
    /// The handle is dropped: no more commands will arrive.
    closing: bool,
    prepared: Prepared,
    backoff: ReconnectBackoff,
}

/// Why a connection was abandoned.
enum LinkEnd {
    Closed,
    Lost(Arc<ConnectionFailure>),
}

impl LinkEnd {
    fn lost(failure: ConnectionFailure) -> Self {
        Self::Lost(Arc::new(failure))
    }
}

/// A delivery that has left and awaits the hub's answer.
struct Flight {
    delivery: Delivery,
    /// Taken when the outcome is reported; a flight without a waiter only awaits removal.
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

/// The state of one connection.
struct LinkRun {
    flights: FuturesUnordered<Flight>,
    /// Flights already reported as unknown because no answer came in time.
    timed_out: usize,
    /// Moment of the hub's latest progress (an answer, or credit after a wait), or the start of the
    /// current busy period if later.
    progress: Instant,
    swept_at: Instant,
}

impl Engine {
    pub(crate) fn new(
        client: Arc<ClientInner>,
        commands: mpsc::Receiver<Command>,
        state: watch::Sender<LinkState>,
    ) -> Self {
        Self {
            backoff: ReconnectBackoff::new(&client.options.reconnect),
            client,
            commands,
            state,
            waiting: VecDeque::new(),
            closing: false,
            prepared: Prepared::default(),
        }
    }

    /// Runs until the handle is dropped, or until a permanent failure.
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
            // A panic in `run_link` drops the reply senders of all flights, so their sends report
            // `UnknownCause::Closed`.
            let running = supervised("sending", async { Ok(self.run_link(connected).await) });
            match running.await.unwrap_or_else(LinkEnd::lost) {
                LinkEnd::Closed => break,
                LinkEnd::Lost(failure) => {
                    warn!(hub = %self.client.host_name, error = %failure, "c2d link lost");
                    self.backoff.record_loss(connected_at.elapsed());
                    if self
                        .backoff
                        .should_give_up(&failure, &self.client.credentials)
                    {
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

    /// Retries until a link is open (`Some`), until the handle is dropped and no command waits
    /// (`None`), or until a permanent failure.
    async fn reconnect(
        &mut self,
        since: SystemTime,
        mut last_error: Option<Arc<ConnectionFailure>>,
    ) -> Result<Option<Link>, ConnectionFailure> {
        // The very first attempt is immediate. After a loss even the first attempt is jittered, so
        // that clients disconnected together do not return together.
        let mut wait = last_error
            .as_ref()
            .map(|_| self.backoff.next_delay())
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
                    if self
                        .backoff
                        .should_give_up(&failure, &self.client.credentials) =>
                {
                    return Err(failure);
                }
                Some(Err(failure)) => {
                    debug!(hub = %self.client.host_name, error = %failure, attempts, "failed to attach the c2d link; retrying");
                    attempts += 1;
                    last_error = Some(Arc::new(failure));
                }
            }
            wait = self.backoff.next_delay();
        }
    }

    /// Awaits `what` while taking commands in and reporting expired commands. `None` and `false`
    /// when the handle is dropped and no command waits any more.
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
        let mut sweep = interval(period.clamp(Duration::from_millis(1), MAX_SWEEP_INTERVAL));
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

    /// Reports a permanent failure to all commands, waiting or still in the channel.
    fn fail(mut self, failure: &Arc<ConnectionFailure>) {
        warn!(hub = %self.client.host_name, error = %failure, "c2d link failed permanently");
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

    /// Sends over `link` until the link is lost, or until the handle is dropped and all commands
    /// are done.
    async fn run_link(&mut self, mut link: Link) -> LinkEnd {
        let mut run = LinkRun {
            flights: FuturesUnordered::new(),
            timed_out: 0,
            progress: Instant::now(),
            swept_at: Instant::now(),
        };
        let end = match self.run_link_inner(&mut link, &mut run).await {
            LinkEnd::Lost(failure) => match Arc::try_unwrap(failure) {
                Ok(failure) => LinkEnd::lost(link.connection.with_fault(failure)),
                Err(shared) => LinkEnd::Lost(shared),
            },
            closed => closed,
        };
        run.abandon(&end);
        if matches!(end, LinkEnd::Closed) {
            let Link { sender, connection } = link;
            drop(sender);
            connection.close_in_background();
        }
        end
    }

    async fn run_link_inner(&mut self, link: &mut Link, run: &mut LinkRun) -> LinkEnd {
        let most = self.client.options.max_in_flight;
        let mut sweep = self.sweeps();
        loop {
            // Ready work is done without waiting, answers and new messages in turn.
            for _ in 0..SETTLE_AT_ONCE {
                match run.flights.next().now_or_never() {
                    Some(Some((answer, waiter))) => self.settle(link, run, answer, waiter),
                    _ => break,
                }
            }
            while run.in_flight() < most
                && let Some(command) = self.take()
            {
                if let Err(end) = self.hand_over(link, run, &mut sweep, command).await {
                    return end;
                }
            }
            if self.closing && self.waiting.is_empty() && run.in_flight() == 0 {
                return LinkEnd::Closed;
            }
            tokio::select! {
                Some((answer, waiter)) = run.flights.next(), if !run.flights.is_empty() => {
                    self.settle(link, run, answer, waiter);
                }
                command = self.commands.recv(), if !self.closing && run.in_flight() < most => {
                    match command {
                        // Commands from the channel go behind commands waiting since before the
                        // connection.
                        Some(command) => self.waiting.push_back(command),
                        None => self.closing = true,
                    }
                }
                _ = sweep.tick() => {
                    if let Err(end) = self.sweep(run, Instant::now(), false) {
                        return end;
                    }
                }
                error = link.sender.on_detach() => return LinkEnd::lost(detach_failure(&error)),
                failure = link.connection.ended() => return LinkEnd::lost(failure),
            }
        }
    }

    fn take(&mut self) -> Option<Command> {
        self.waiting
            .pop_front()
            .or_else(|| self.commands.try_recv().ok())
    }

    /// Waits for credit and hands one message over; answers and sweeps are handled meanwhile.
    async fn hand_over(
        &mut self,
        link: &mut Link,
        run: &mut LinkRun,
        sweep: &mut tokio::time::Interval,
        command: Command,
    ) -> Result<(), LinkEnd> {
        if command.reply.is_closed() {
            return Ok(());
        }
        let too_late = || SendReport::not_sent(NotSent::Timeout { connection: None });
        if Instant::now() >= command.leave_by {
            // The command expired in the channel, behind a head waiting for credit.
            let _ = command.reply.send(too_late());
            return Ok(());
        }
        if run.in_flight() == 0 {
            run.progress = Instant::now();
        }
        let mut prepared = std::mem::take(&mut self.prepared);
        let (result, waited) = {
            let hub_now = self.client.clock.hub_time(SystemTime::now());
            let sendable = prepared.get(&command.message, hub_now);
            let handing = pin!(link.sender.send_batchable_ref(sendable));
            self.until_handed_over(handing, &mut link.connection, run, sweep, command.leave_by)
                .await
        };
        self.prepared = prepared;
        let report = match result {
            Ok(Ok(delivery)) => {
                let left_at = Instant::now();
                if waited {
                    // The hub has given credit. A mere write, on the other hand, proves no progress
                    // of the hub.
                    run.progress = left_at;
                }
                let waiter = Some(Waiter {
                    reply: command.reply,
                    left_at,
                    deadline: command.deadline,
                });
                run.flights.push(Flight { delivery, waiter });
                return Ok(());
            }
            Ok(Err(error)) => {
                let refused = read_refused_handover(&error);
                refused.map(SendReport::not_sent).map_err(LinkEnd::lost)
            }
            // Only this message's time is up; the link is fine.
            Err(LinkEnd::Closed) => Ok(too_late()),
            Err(lost) => Err(lost),
        };
        match report {
            Ok(report) => {
                let _ = command.reply.send(report);
                Ok(())
            }
            Err(end) => {
                // The message has not left: the next connection may send it.
                self.waiting.push_front(command);
                Err(end)
            }
        }
    }

    /// Waits until the link takes a message; answers and sweeps are handled meanwhile.
    /// [`LinkEnd::Closed`] when `leave_by` passes first. The flag is `true` if the handover had to
    /// wait for credit.
    async fn until_handed_over<T>(
        &mut self,
        mut handing: Pin<&mut impl Future<Output = T>>,
        connection: &mut HubConnection,
        run: &mut LinkRun,
        sweep: &mut tokio::time::Interval,
        leave_by: Instant,
    ) -> (Result<T, LinkEnd>, bool) {
        let mut waited = false;
        loop {
            tokio::select! {
                biased;
                handed = &mut handing => return (Ok(handed), waited),
                failure = connection.ended() => return (Err(LinkEnd::lost(failure)), waited),
                Some((answer, waiter)) = run.flights.next(), if !run.flights.is_empty() => {
                    self.settle_answer(&connection.renew, run, answer, waiter);
                }
                _ = sweep.tick() => {
                    waited = true;
                    let now = Instant::now();
                    if let Err(end) = self.sweep(run, now, true) {
                        return (Err(end), waited);
                    }
                    if now >= leave_by {
                        return (Err(LinkEnd::Closed), waited);
                    }
                }
            }
        }
    }

    fn settle(
        &mut self,
        link: &Link,
        run: &mut LinkRun,
        answer: Result<Outcome, SendError>,
        waiter: Option<Waiter>,
    ) {
        self.settle_answer(&link.connection.renew, run, answer, waiter);
    }

    fn settle_answer(
        &mut self,
        renew: &tokio::sync::Notify,
        run: &mut LinkRun,
        answer: Result<Outcome, SendError>,
        waiter: Option<Waiter>,
    ) {
        let answered = answer.is_ok();
        let now = Instant::now();
        if answered {
            run.progress = now;
            self.backoff.record_service();
        }
        let Some(waiter) = waiter else {
            run.timed_out -= 1;
            return;
        };
        let outcome = match read_answer(answer) {
            SendOutcome::Accepted => {
                self.backoff.token_accepted();
                SendOutcome::Accepted
            }
            // The first refusal of the token triggers a renewal. A refusal of the renewed token is
            // reported as the outcome.
            SendOutcome::Refused(refusal)
                if refusal.is_unauthorised() && self.backoff.take_token_retry() =>
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

    /// Reports expired commands and late flights; abandons the connection when the hub makes no
    /// progress. A pause of this process, for example of the virtual machine, is not the hub's.
    fn sweep(&mut self, run: &mut LinkRun, now: Instant, head_waits: bool) -> Result<(), LinkEnd> {
        self.sweep_waiting(now, &None);
        let stall = self.client.options.stall_timeout;
        let was_paused = now - run.swept_at >= stall / 2;
        run.swept_at = now;
        if was_paused {
            // After a pause of this process, answers wait to be read.
            run.progress = now;
            return Ok(());
        }
        run.expire_late(now);
        let busy = head_waits || run.in_flight() > 0;
        if !busy {
            run.progress = now;
        } else if now - run.progress >= stall {
            return Err(LinkEnd::lost(ConnectionFailure::Stalled(stall)));
        }
        // So many lost answers indicate a broken connection, and each still holds memory in the
        // library.
        if run.timed_out > self.client.options.max_in_flight {
            return Err(LinkEnd::lost(ConnectionFailure::Stalled(stall)));
        }
        Ok(())
    }
}

impl LinkRun {
    fn in_flight(&self) -> usize {
        self.flights.len() - self.timed_out
    }

    fn expire_late(&mut self, now: Instant) {
        for flight in &mut self.flights {
            if let Some(waiter) = flight.waiter.take_if(|waiter| waiter.deadline <= now) {
                self.timed_out += 1;
                let outcome = SendOutcome::Unknown(UnknownCause::Timeout);
                let _ = waiter.reply.send(SendReport {
                    outcome,
                    hub_latency: None,
                });
            }
        }
    }

    /// Reports the outcome of every flight: answers already received, unknown for the rest.
    fn abandon(&mut self, end: &LinkEnd) {
        let lost = match end {
            LinkEnd::Closed => UnknownCause::Closed,
            LinkEnd::Lost(failure) => UnknownCause::Disconnected(Arc::clone(failure)),
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
