//! One connection that is kept up: the handle, and the supervisor behind it.
//!
//! ```text
//!             ┌──────────── lost, after a delay ◀───────────┐
//!             ▼                                             │
//!   Reconnecting ──open, declare topology──▶ Connected ◀──▶ Blocked
//! ```
//!
//! The supervisor is the only one who connects. It publishes the current [`Link`]; consumers and
//! the publisher take it from there, and set themselves up anew on each. What is in flight on a
//! link when it is lost fails; nobody waits for a link to come back that is gone.

use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use lapin::Event;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};
use twincast_core::error::in_words;

use crate::error::{AmqpError, BrokerSaid, ConnectError};
use crate::link::{Link, State, Wires};
use crate::publisher;
use crate::settings::{BrokerUrl, Settings};
use crate::tasks::Tasks;
use crate::topology::{self, Names};
use crate::transport::{self, Trust};

/// How often the supervisor looks at the connection itself. The library tells of losses; a signal
/// that is missed once must not leave us without a connection for ever.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Publishes that wait to be taken up; more wait in their callers.
const REQUESTS: usize = 64;

/// The broker, for one process: a connection that is kept up until [`close`](Amqp::close), or
/// until the last clone is dropped. Cheap to clone.
///
/// Publishers and consumers of a connection share its fate when the broker runs low on memory or
/// disk: once it has blocked a connection that published, acks on it wait too. So let consumers
/// that drain the queues, the workers, be processes that hardly publish.
#[derive(Clone)]
pub struct Amqp {
    pub(crate) wires: Arc<Wires>,
    /// Ends all tasks when the last handle goes. The tasks have none.
    _open: Arc<DropGuard>,
}

impl Amqp {
    /// Connects, declares the topology, and keeps the connection up from then on.
    ///
    /// # Errors
    /// When the first attempt fails. Cancel-safe: if dropped, there is no connection.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(settings: Settings) -> Result<Self, ConnectError> {
        settings.check()?;
        let names = Names::new(&settings.prefix, settings.dispatch_limit);
        let mut turn = first_turn();
        let link = open(&settings, &names, &mut turn).await?;
        Ok(Self::supervised(settings, names, turn, Some(link)))
    }

    /// As [`connect`](Self::connect), but does not wait for the broker, which may be away:
    /// [`state`](Self::state) tells when it is there.
    ///
    /// # Errors
    /// The settings are not valid, or a file with addresses or authorities cannot be read. A file that becomes unreadable
    /// later is waited for, as is the broker.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(settings: Settings) -> Result<Self, ConnectError> {
        settings.check()?;
        Trust::load(&settings, &settings.read_urls()?)?;
        let names = Names::new(&settings.prefix, settings.dispatch_limit);
        Ok(Self::supervised(settings, names, first_turn(), None))
    }

    fn supervised(settings: Settings, names: Names, turn: usize, first: Option<Link>) -> Self {
        let first = first.map(Arc::new);
        let (link_out, link) = watch::channel(first.clone());
        let (state_out, state) = watch::channel(match first {
            Some(_) => State::Connected,
            None => reconnecting(None),
        });
        let (requests, requested) = mpsc::channel(REQUESTS);
        let closing = CancellationToken::new();
        let wires = Arc::new(Wires {
            settings,
            names,
            link,
            state,
            closing: closing.clone(),
            tasks: Tasks::new(),
            requests,
        });
        let supervisor = Supervisor {
            wires: Arc::clone(&wires),
            link: link_out,
            state: state_out,
        };
        wires.tasks.spawn(supervisor.run(turn, first));
        wires
            .tasks
            .spawn(publisher::run(Arc::clone(&wires), requested));
        Self {
            wires,
            _open: Arc::new(closing.drop_guard()),
        }
    }

    /// How the connection is, now and as it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.wires.state.clone()
    }

    /// Closes it for good: consumers hand back what they hold, everything else fails from now on.
    /// Returns when all tasks have ended, some seconds at most. Cancel-safe.
    pub async fn close(&self) {
        self.wires.closing.cancel();
        self.wires.tasks.ended().await;
    }
}

impl fmt::Debug for Amqp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Amqp")
            .field("settings", &self.wires.settings)
            .field("state", &*self.wires.state.borrow())
            .finish_non_exhaustive()
    }
}

/// The first turn of a process: a random number, so that processes are spread over a cluster's nodes.
fn first_turn() -> usize {
    RandomState::new().build_hasher().finish() as usize
}

/// One attempt to connect: at one address after the other, until an address can be used. The next attempt begins with the
/// address after the last tried one, because the node behind the latter may be the reason for the attempt.
async fn open(settings: &Settings, names: &Names, turn: &mut usize) -> Result<Link, ConnectError> {
    let urls = settings.read_urls()?;
    let trust = Trust::load(settings, &urls)?;
    let mut tried = Vec::new();
    for url in urls.in_turn(*turn) {
        *turn = turn.wrapping_add(1);
        match open_at(url, settings, &trust, names).await {
            Ok(link) => return Ok(link),
            Err(error) => tried.push(error),
        }
    }
    // After a whole round the turn is that of the first address again.
    *turn = turn.wrapping_add(1);
    Err(match tried.pop() {
        Some(only) if tried.is_empty() => only,
        last => {
            tried.extend(last);
            ConnectError::NoAddress { tried }
        }
    })
}

/// A connection to one address with the topology in place.
async fn open_at(
    url: &BrokerUrl,
    settings: &Settings,
    trust: &Trust,
    names: &Names,
) -> Result<Link, ConnectError> {
    let deadline = Instant::now() + settings.connect_timeout;
    let line = transport::connect(settings, url, trust, deadline).await?;
    let link = Link {
        line,
        declared: tokio::sync::Mutex::default(),
        lost: CancellationToken::new(),
    };
    let declared = timeout_at(deadline, declare(&link, names)).await;
    let declared = declared.unwrap_or(Err(AmqpError::TimedOut {
        after: settings.connect_timeout,
    }));
    match declared {
        Ok(()) => Ok(link),
        Err(source) => {
            link.line.hang_up().await;
            Err(ConnectError::Topology {
                broker: url.address(),
                source,
            })
        }
    }
}

async fn declare(link: &Link, names: &Names) -> Result<(), AmqpError> {
    let channel = link.line.connection.create_channel().await;
    let channel = channel.map_err(|error| AmqpError::broker("open a channel", error))?;
    topology::declare(names, &channel).await?;
    let mut declared = link.declared.lock().await;
    declared.extend([names.commands_name(), names.dead_name()]);
    // Nobody is interested in why a channel without work did not close.
    channel.close(200, "declared".into()).await.ok();
    Ok(())
}

fn reconnecting(last_error: Option<String>) -> State {
    State::Reconnecting {
        since: Instant::now(),
        last_error,
    }
}

/// The one who connects.
struct Supervisor {
    wires: Arc<Wires>,
    link: watch::Sender<Option<Arc<Link>>>,
    state: watch::Sender<State>,
}

impl Supervisor {
    async fn run(self, mut turn: usize, first: Option<Arc<Link>>) {
        let closing = self.wires.closing.clone();
        let reconnect = &self.wires.settings.reconnect;
        let mut delays = reconnect.delays();
        let mut first = first;
        loop {
            let opened = match first.take() {
                Some(link) => Ok(link),
                None => tokio::select! {
                    () = closing.cancelled() => break,
                    opened = open(&self.wires.settings, &self.wires.names, &mut turn) => {
                        opened.map(Arc::new)
                    }
                },
            };
            match opened {
                Ok(link) => {
                    let since = Instant::now();
                    self.serve(link).await;
                    // One that is lost again at once counts as an attempt that failed.
                    if since.elapsed() > reconnect.max() {
                        delays.reset();
                    }
                }
                Err(error) => self.failed(in_words(&error)),
            }
            let delay = delays.next_delay().unwrap_or_else(|| reconnect.max());
            tokio::select! {
                () = closing.cancelled() => break,
                () = tokio::time::sleep(delay) => {}
            }
        }
        self.state.send_replace(State::Closed);
    }

    /// Hands a link out until it is lost, or closes it when we close.
    async fn serve(&self, link: Arc<Link>) {
        let broker = &link.line.url;
        info!(%broker, "connected to the broker");
        self.link.send_replace(Some(Arc::clone(&link)));
        self.state.send_replace(State::Connected);
        let lost = tokio::select! {
            () = self.wires.closing.cancelled() => None,
            lost = self.watch(&link) => Some(lost),
        };
        self.link.send_replace(None);
        let Some(why) = lost else {
            link.lost.cancel();
            link.line.hang_up().await;
            info!(%broker, "disconnected from the broker");
            return;
        };
        link.lost.cancel();
        warn!(%broker, why, "connection to the broker lost");
        self.state.send_replace(reconnecting(Some(why)));
    }

    /// Keeps the state up to date until the link is lost; says why.
    async fn watch(&self, link: &Link) -> String {
        let mut events = std::pin::pin!(link.line.connection.events_listener());
        let mut look = tokio::time::interval(LOOK_EVERY);
        // Notices from before we listened are lost.
        if link.line.connection.status().blocked() {
            self.blocked("as it has been since we connected".into());
        }
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = look.tick() => None,
            };
            match event {
                Some(Event::ConnectionBlocked(reason)) => self.blocked(reason),
                Some(Event::ConnectionUnblocked) => {
                    info!("broker takes messages again");
                    self.state.send_replace(State::Connected);
                }
                // Errors of channels come here too; those are for who has the channel.
                Some(Event::Error(error)) if !link.is_up() => {
                    return BrokerSaid::from(error).to_string();
                }
                _ if !link.is_up() => return "it was closed".into(),
                _ => {}
            }
        }
    }

    fn blocked(&self, reason: String) {
        warn!(reason, "broker takes no messages for now");
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

    /// All twenty begin with the same of two addresses once in 500,000 runs.
    #[test]
    fn processes_are_spread_over_the_addresses() {
        let turns: Vec<_> = (0..20).map(|_| first_turn() % 2).collect();
        assert!(turns.contains(&0) && turns.contains(&1), "{turns:?}");
    }
}
