//! A connection kept up: the handle, and the supervisor behind the handle.
//!
//! ```text
//!             ┌──────────── lost, after a delay ◀───────────┐
//!             ▼                                             │
//!   Reconnecting ──open, declare topology──▶ Connected ◀──▶ Blocked
//! ```
//!
//! Only the supervisor connects. The supervisor publishes the current [`Link`]; consumers and the
//! publisher set up channels on each new link. Operations in flight on a lost link fail; no
//! operation waits for a lost link to come back.

use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use lapin::Event;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};
use twincast_core::error::describe;

use crate::error::{AmqpError, BrokerError, ConnectError};
use crate::link::{Link, Shared, State};
use crate::publisher;
use crate::settings::{BrokerUrl, Settings};
use crate::tasks::Tasks;
use crate::topology::{self, Names};
use crate::transport::{self, Trust};

/// The interval at which the supervisor checks the connection itself. The library signals losses; a
/// missed signal must not leave the process without a connection for ever.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit for the library to report why a connection was lost.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);
/// The most publishes in the queue to the publisher; further publishes wait in the callers.
const MAX_REQUESTS: usize = 64;

/// The broker, for a process: a connection kept up until [`close`](Amqp::close), or until the last
/// clone is dropped. Cheap to clone.
///
/// When the broker runs low on memory or disk, publishers and consumers of a connection are
/// affected together: once the broker has blocked a connection with publishes, acks on the
/// connection wait too. So consumers that drain the queues, the workers, should run in processes
/// that hardly publish.
#[derive(Clone)]
pub struct Amqp {
    pub(crate) shared: Arc<Shared>,
    /// Ends all tasks when the last handle is dropped. The tasks hold no handle.
    _open: Arc<DropGuard>,
}

impl Amqp {
    /// Connects, declares the topology, and keeps the connection up afterwards.
    ///
    /// # Errors
    /// When the first attempt fails. Cancel-safe: if dropped, there is no connection.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(settings: Settings) -> Result<Self, ConnectError> {
        settings.check()?;
        let names = Names::new(&settings.prefix, settings.dispatch_limit);
        let mut next_address = first_address();
        let link = open(&settings, &names, &mut next_address).await?;
        Ok(Self::supervised(settings, names, next_address, Some(link)))
    }

    /// Like [`connect`](Self::connect), but does not wait for the broker, which may be unavailable:
    /// [`state`](Self::state) shows when the connection is open.
    ///
    /// # Errors
    /// The settings are not valid, or a file with addresses or authorities cannot be read. If a
    /// file becomes unreadable later, the supervisor waits for the file, as for the broker.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(settings: Settings) -> Result<Self, ConnectError> {
        settings.check()?;
        Trust::load(&settings, &settings.read_urls()?)?;
        let names = Names::new(&settings.prefix, settings.dispatch_limit);
        Ok(Self::supervised(settings, names, first_address(), None))
    }

    fn supervised(
        settings: Settings,
        names: Names,
        next_address: usize,
        first: Option<Link>,
    ) -> Self {
        let first = first.map(Arc::new);
        let (link_out, link) = watch::channel(first.clone());
        let (state_out, state) = watch::channel(match first {
            Some(_) => State::Connected,
            None => reconnecting(None),
        });
        let (requests, requested) = mpsc::channel(MAX_REQUESTS);
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            settings,
            names,
            link,
            state,
            closing: closing.clone(),
            tasks: Tasks::new(),
            requests,
        });
        let supervisor = Supervisor {
            shared: Arc::clone(&shared),
            link: link_out,
            state: state_out,
        };
        shared.tasks.spawn(supervisor.run(next_address, first));
        shared
            .tasks
            .spawn(publisher::run(Arc::clone(&shared), requested));
        Self {
            shared,
            _open: Arc::new(closing.drop_guard()),
        }
    }

    /// Returns the state of the connection, now and as the state changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.shared.state.clone()
    }

    /// Closes the connection permanently: consumers return unanswered messages, and all other
    /// operations fail from now on. Returns when all tasks have ended, some seconds at most.
    /// Cancel-safe.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.tasks.ended().await;
    }
}

impl fmt::Debug for Amqp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Amqp")
            .field("settings", &self.shared.settings)
            .field("state", &*self.shared.state.borrow())
            .finish_non_exhaustive()
    }
}

/// Returns the index of a process's first address: a random number, so that processes are spread
/// over the nodes of a cluster.
fn first_address() -> usize {
    RandomState::new().build_hasher().finish() as usize
}

/// Makes an attempt to connect: tries the addresses in turn, until an address can be used. The next
/// attempt begins with the address after the last tried address, because the node behind the latter
/// may be the reason for the attempt.
async fn open(
    settings: &Settings,
    names: &Names,
    next_address: &mut usize,
) -> Result<Link, ConnectError> {
    let urls = settings.read_urls()?;
    let trust = Trust::load(settings, &urls)?;
    let mut tried = Vec::new();
    for url in urls.starting_at(*next_address) {
        *next_address = next_address.wrapping_add(1);
        match open_at(url, settings, &trust, names).await {
            Ok(link) => return Ok(link),
            Err(error) => tried.push(error),
        }
    }
    // After a whole round, the index is back at the first address of the round.
    *next_address = next_address.wrapping_add(1);
    Err(match tried.pop() {
        Some(only) if tried.is_empty() => only,
        last => {
            tried.extend(last);
            ConnectError::NoAddress { tried }
        }
    })
}

/// Opens a connection to an address, and declares the topology.
async fn open_at(
    url: &BrokerUrl,
    settings: &Settings,
    trust: &Trust,
    names: &Names,
) -> Result<Link, ConnectError> {
    let deadline = Instant::now() + settings.connect_timeout;
    let transport = transport::connect(settings, url, trust, deadline).await?;
    let link = Link {
        transport,
        declared: Mutex::default(),
        lost: CancellationToken::new(),
    };
    let declared = timeout_at(deadline, declare(&link, names)).await;
    let declared = declared.unwrap_or(Err(AmqpError::TimedOut {
        after: settings.connect_timeout,
    }));
    match declared {
        Ok(()) => Ok(link),
        Err(source) => {
            link.transport.close().await;
            Err(ConnectError::Topology {
                broker: url.address(),
                source,
            })
        }
    }
}

async fn declare(link: &Link, names: &Names) -> Result<(), AmqpError> {
    let channel = link.transport.connection.create_channel().await;
    let channel = channel.map_err(|error| AmqpError::broker("open a channel", error))?;
    topology::declare(names, &channel).await?;
    link.note_declared([names.commands_name(), names.dead_name()]);
    // An error while closing a channel without work does not matter.
    channel.close(200, "declared".into()).await.ok();
    Ok(())
}

/// Returns the reason of a lost connection, which the library may report a moment after the loss.
async fn loss_reason(events: impl Stream<Item = Event>) -> String {
    let errors = events.filter_map(async |event| match event {
        Event::Error(error) => Some(BrokerError::from(error).to_string()),
        _ => None,
    });
    let mut errors = std::pin::pin!(errors);
    let reported = tokio::time::timeout(REASON_TIMEOUT, errors.next()).await;
    let reason = reported.ok().flatten();
    reason.unwrap_or_else(|| "connection closed".into())
}

fn reconnecting(last_error: Option<String>) -> State {
    State::Reconnecting {
        since: Instant::now(),
        last_error,
    }
}

/// Opens and watches the connection.
struct Supervisor {
    shared: Arc<Shared>,
    link: watch::Sender<Option<Arc<Link>>>,
    state: watch::Sender<State>,
}

impl Supervisor {
    async fn run(self, mut next_address: usize, first: Option<Arc<Link>>) {
        let closing = self.shared.closing.clone();
        let reconnect = &self.shared.settings.reconnect;
        let mut delays = reconnect.delays();
        let mut first = first;
        loop {
            let opened = match first.take() {
                Some(link) => Ok(link),
                None => tokio::select! {
                    () = closing.cancelled() => break,
                    opened = open(&self.shared.settings, &self.shared.names, &mut next_address) => {
                        opened.map(Arc::new)
                    }
                },
            };
            match opened {
                Ok(link) => {
                    let since = Instant::now();
                    self.serve(link).await;
                    // A connection lost again at once counts as a failed attempt.
                    if since.elapsed() > reconnect.max() {
                        delays.reset();
                    }
                }
                Err(error) => self.failed(describe(&error)),
            }
            let delay = delays.next_delay().unwrap_or_else(|| reconnect.max());
            tokio::select! {
                () = closing.cancelled() => break,
                () = tokio::time::sleep(delay) => {}
            }
        }
        self.state.send_replace(State::Closed);
    }

    /// Publishes a link until the link is lost, or closes the connection when asked to.
    async fn serve(&self, link: Arc<Link>) {
        let broker = &link.transport.url;
        info!(%broker, "connected to the broker");
        self.link.send_replace(Some(Arc::clone(&link)));
        self.state.send_replace(State::Connected);
        let lost = tokio::select! {
            () = self.shared.closing.cancelled() => None,
            lost = self.watch(&link) => Some(lost),
        };
        self.link.send_replace(None);
        let Some(why) = lost else {
            link.lost.cancel();
            link.transport.close().await;
            info!(%broker, "disconnected from the broker");
            return;
        };
        link.lost.cancel();
        warn!(%broker, why, "connection to the broker lost");
        self.state.send_replace(reconnecting(Some(why)));
    }

    /// Keeps the state up to date until the link is lost. Returns the reason of the loss.
    async fn watch(&self, link: &Link) -> String {
        let mut events = std::pin::pin!(link.transport.connection.events_listener());
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        // Notices from before the listener are lost.
        if link.transport.connection.status().blocked() {
            self.blocked("blocked since the connection was opened".into());
        }
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                _ = check.tick() => None,
            };
            match event {
                Some(Event::ConnectionBlocked(reason)) => self.blocked(reason),
                Some(Event::ConnectionUnblocked) => {
                    info!("broker accepts messages again");
                    self.state.send_replace(State::Connected);
                }
                // Errors of channels arrive here, too; the users of the channels handle these
                // errors.
                Some(Event::Error(error)) if !link.is_up() => {
                    return BrokerError::from(error).to_string();
                }
                _ if !link.is_up() => {
                    link.lost.cancel();
                    return loss_reason(events).await;
                }
                _ => {}
            }
        }
    }

    fn blocked(&self, reason: String) {
        warn!(reason, "broker accepts no messages for now");
        self.state.send_replace(State::Blocked { reason });
    }

    fn failed(&self, why: String) {
        warn!(why, "cannot connect to the broker");
        self.state.send_modify(|state| match state {
            State::Reconnecting { last_error, .. } => *last_error = Some(why),
            state => *state = reconnecting(Some(why)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 20 begin with the same of two addresses once in 500,000 runs.
    #[test]
    fn processes_are_spread_over_the_addresses() {
        let addresses: Vec<_> = (0..20).map(|_| first_address() % 2).collect();
        assert!(
            addresses.contains(&0) && addresses.contains(&1),
            "{addresses:?}"
        );
    }
}
