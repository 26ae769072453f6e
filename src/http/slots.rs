//! The connection slots of a server: limits, and the choice of connections to evict.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// A machine.
    Machine(IpAddr),
    /// A user of this machine; `None` if the system does not name the user.
    User(Option<u32>),
}

/// Limits on the number of connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// In total.
    pub(crate) total: usize,
    /// Per peer.
    pub(crate) per_peer: usize,
}

/// The activity of a connection, in the order of eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Activity {
    /// No request is running.
    Idle,
    /// An answer is being sent.
    Sending,
    /// A request is being answered.
    Answering,
}

/// The state of a connection.
#[derive(Debug)]
struct ConnectionState {
    peer: Peer,
    activity: Activity,
    /// The start of the current activity, as a rising number.
    since: u64,
    had_request: bool,
    eviction: CancellationToken,
}

#[derive(Debug, Default)]
struct Held {
    connections: HashMap<u64, ConnectionState>,
    /// The number of slots per peer.
    of_peers: HashMap<Peer, usize>,
    /// A logical clock, advanced by every event.
    now: u64,
}

impl Held {
    fn add(&mut self, number: u64, connection: ConnectionState) {
        *self.of_peers.entry(connection.peer).or_default() += 1;
        self.connections.insert(number, connection);
    }

    fn remove(&mut self, number: u64) -> Option<ConnectionState> {
        let removed = self.connections.remove(&number)?;
        if let Some(slots) = self.of_peers.get_mut(&removed.peer) {
            *slots -= 1;
            if *slots == 0 {
                self.of_peers.remove(&removed.peer);
            }
        }
        Some(removed)
    }
}

/// The connection slots of a server.
#[derive(Debug)]
pub(super) struct ConnectionSlots {
    limits: ConnectionLimits,
    held: Mutex<Held>,
}

/// A connection slot, held until dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    of: Arc<ConnectionSlots>,
    number: u64,
    eviction: CancellationToken,
}

impl ConnectionSlots {
    pub(super) fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            held: Mutex::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a slot for a new connection; evicts another connection if a limit is reached. Returns
    /// `None` if all candidates for eviction have a running request.
    pub(super) fn take(self: &Arc<Self>, peer: Peer) -> Option<ConnectionSlot> {
        let peer = counting_unit(peer);
        let mut held = self.held();
        if let Some(crowded) = peer_to_evict(&held, peer, self.limits) {
            let leaving = held.connections.iter().filter(|(_, it)| it.peer == crowded);
            let leaving = leaving.filter(|(_, it)| it.activity != Activity::Answering);
            let leaving = leaving.min_by_key(|(_, it)| (it.activity, it.since));
            let number = leaving.map(|(number, _)| *number)?;
            if let Some(removed) = held.remove(number) {
                removed.eviction.cancel();
            }
        }
        held.now += 1;
        let number = held.now;
        let eviction = CancellationToken::new();
        let connection = ConnectionState {
            peer,
            activity: Activity::Idle,
            since: number,
            had_request: false,
            eviction: eviction.clone(),
        };
        held.add(number, connection);
        Some(ConnectionSlot {
            of: Arc::clone(self),
            number,
            eviction,
        })
    }
}

/// Returns the peer to lose a connection before `peer` gets a slot; `None` below the limits.
fn peer_to_evict(held: &Held, peer: Peer, limits: ConnectionLimits) -> Option<Peer> {
    let own = held.of_peers.get(&peer);
    if own.is_some_and(|own| *own >= limits.per_peer) {
        return Some(peer);
    }
    if held.connections.len() < limits.total {
        return None;
    }
    let largest = held.of_peers.iter().max_by_key(|(_, slots)| **slots);
    largest.map(|(peer, _)| *peer)
}

/// Returns the unit of counting for a peer. A user of an IPv6 network has any number of addresses,
/// so the network (/64) counts as a single peer.
fn counting_unit(peer: Peer) -> Peer {
    match peer {
        Peer::Machine(IpAddr::V6(address)) => {
            let network = address.to_bits() >> 64 << 64;
            Peer::Machine(Ipv6Addr::from_bits(network).into())
        }
        other => other,
    }
}

impl ConnectionSlot {
    /// Records the new activity of the connection.
    pub(super) fn set_activity(&self, activity: Activity) {
        let mut held = self.of.held();
        held.now += 1;
        let since = held.now;
        if let Some(connection) = held.connections.get_mut(&self.number) {
            connection.activity = activity;
            connection.since = since;
            connection.had_request |= activity == Activity::Answering;
        }
    }

    /// Returns true if the connection has ever carried a request.
    pub(super) fn had_request(&self) -> bool {
        let held = self.of.held();
        let connection = held.connections.get(&self.number);
        connection.is_some_and(|connection| connection.had_request)
    }

    /// Waits until the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.eviction.cancelled().await;
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.of.held().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        total: 4,
        per_peer: 3,
    };

    fn machine(address: &str) -> Peer {
        Peer::Machine(address.parse().unwrap())
    }

    fn is_gone(slot: &ConnectionSlot) -> bool {
        slot.eviction.is_cancelled()
    }

    #[test]
    fn idle_connections_are_evicted_and_answering_are_kept() {
        let slots = ConnectionSlots::new(LIMITS);
        let take = |address| slots.take(machine(address)).expect("a slot");
        let connections = ["10.0.0.1"; 3].map(take);
        connections[0].set_activity(Activity::Answering);
        connections[0].set_activity(Activity::Idle);
        connections[1].set_activity(Activity::Answering);
        // A further connection of a peer at the limit evicts the longest-waiting connection of the
        // same peer.
        let fourth = take("10.0.0.1");
        assert_eq!(connections.each_ref().map(is_gone), [false, false, true]);
        // Another peer gets a free slot, then a slot of the peer with the most connections.
        let other = take("10.0.0.2");
        assert!(!is_gone(&connections[0]));
        let third = take("10.0.0.3");
        assert_eq!(connections.each_ref().map(is_gone), [true, false, true]);
        connections[1].set_activity(Activity::Sending);
        fourth.set_activity(Activity::Answering);
        let fifth = take("10.0.0.4");
        assert!(
            is_gone(&connections[1]),
            "a sending connection is evicted, if none is idle"
        );
        drop(other);
        for slot in [&fourth, &third, &fifth] {
            slot.set_activity(Activity::Answering);
        }
        let last = take("10.0.0.5");
        last.set_activity(Activity::Answering);
        assert!(slots.take(machine("10.0.0.6")).is_none());
        assert!(![fourth, third, fifth, last].iter().any(is_gone));
    }

    #[test]
    fn peers_are_counted_by_network_and_user() {
        let network = |address| counting_unit(machine(address));
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
        let (ann, bob) = (Peer::User(Some(1)), Peer::User(Some(2)));
        assert_ne!(counting_unit(ann), counting_unit(bob));
    }

    #[test]
    fn a_slot_is_freed_when_the_connection_ends() {
        let slots = ConnectionSlots::new(LIMITS);
        drop(["10.0.0.1"; 3].map(|address| slots.take(machine(address))));
        assert!(slots.held().connections.is_empty());
        assert!(slots.held().of_peers.is_empty());
    }
}
