//! Who may stay connected, when there are more than there is room for.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// A machine.
    Machine(IpAddr),
    /// A user of this machine, as far as the system knows which.
    User(Option<u32>),
}

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// In all.
    pub(crate) most: usize,
    /// With one peer.
    pub(crate) most_of_one: usize,
}

/// What a connection is doing: the first of these gives way first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doing {
    /// Nothing is asked.
    Waiting,
    /// An answer is on its way.
    Sending,
    /// A request is being answered.
    Answering,
}

/// A connection, as it is known here.
#[derive(Debug)]
struct Sitting {
    peer: Peer,
    doing: Doing,
    /// Since when, as a number that only rises.
    since: u64,
    was_asked: bool,
    leave: CancellationToken,
}

#[derive(Debug, Default)]
struct Held {
    sitting: HashMap<u64, Sitting>,
    /// How many seats each peer has.
    of_peers: HashMap<Peer, usize>,
    /// Rises with whatever happens.
    now: u64,
}

impl Held {
    fn add(&mut self, number: u64, sitting: Sitting) {
        *self.of_peers.entry(sitting.peer).or_default() += 1;
        self.sitting.insert(number, sitting);
    }

    fn remove(&mut self, number: u64) -> Option<Sitting> {
        let gone = self.sitting.remove(&number)?;
        if let Some(seats) = self.of_peers.get_mut(&gone.peer) {
            *seats -= 1;
            if *seats == 0 {
                self.of_peers.remove(&gone.peer);
            }
        }
        Some(gone)
    }
}

/// The seats of a server.
#[derive(Debug)]
pub(super) struct Seats {
    bounds: Bounds,
    held: Mutex<Held>,
}

/// A seat, until dropped.
#[derive(Debug)]
pub(super) struct Seat {
    of: Arc<Seats>,
    number: u64,
    leave: CancellationToken,
}

impl Seats {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            held: Mutex::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for a new connection. `None` when all are taken by those who do not give way.
    pub(super) fn take(self: &Arc<Self>, peer: Peer) -> Option<Seat> {
        let peer = neighbourhood(peer);
        let mut held = self.held();
        if let Some(crowd) = crowd(&held, peer, self.bounds) {
            let leaving = held.sitting.iter().filter(|(_, it)| it.peer == crowd);
            let leaving = leaving.filter(|(_, it)| it.doing != Doing::Answering);
            let leaving = leaving.min_by_key(|(_, it)| (it.doing, it.since));
            let number = leaving.map(|(number, _)| *number)?;
            if let Some(gone) = held.remove(number) {
                gone.leave.cancel();
            }
        }
        held.now += 1;
        let number = held.now;
        let leave = CancellationToken::new();
        let sitting = Sitting {
            peer,
            doing: Doing::Waiting,
            since: number,
            was_asked: false,
            leave: leave.clone(),
        };
        held.add(number, sitting);
        Some(Seat {
            of: Arc::clone(self),
            number,
            leave,
        })
    }
}

/// Whose seats one must be taken from before `peer` can have one, if that is so.
fn crowd(held: &Held, peer: Peer, bounds: Bounds) -> Option<Peer> {
    let own = held.of_peers.get(&peer);
    if own.is_some_and(|own| *own >= bounds.most_of_one) {
        return Some(peer);
    }
    if held.sitting.len() < bounds.most {
        return None;
    }
    let largest = held.of_peers.iter().max_by_key(|(_, seats)| **seats);
    largest.map(|(peer, _)| *peer)
}

/// Who is taken for one peer: of IPv6 addresses everybody has as many as they like, out of one network.
fn neighbourhood(peer: Peer) -> Peer {
    match peer {
        Peer::Machine(IpAddr::V6(address)) => {
            let network = address.to_bits() >> 64 << 64;
            Peer::Machine(Ipv6Addr::from_bits(network).into())
        }
        other => other,
    }
}

impl Seat {
    /// Notes what the connection is doing from now on.
    pub(super) fn does(&self, doing: Doing) {
        let mut held = self.of.held();
        held.now += 1;
        let since = held.now;
        if let Some(sitting) = held.sitting.get_mut(&self.number) {
            sitting.doing = doing;
            sitting.since = since;
            sitting.was_asked |= doing == Doing::Answering;
        }
    }

    /// Something was asked over the connection.
    pub(super) fn was_asked(&self) -> bool {
        let held = self.of.held();
        let sitting = held.sitting.get(&self.number);
        sitting.is_some_and(|sitting| sitting.was_asked)
    }

    /// Waits until the seat is another's.
    pub(super) async fn given_up(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.of.held().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        most: 4,
        most_of_one: 3,
    };

    fn machine(address: &str) -> Peer {
        Peer::Machine(address.parse().unwrap())
    }

    fn is_gone(seat: &Seat) -> bool {
        seat.leave.is_cancelled()
    }

    #[test]
    fn who_waits_longest_gives_way_and_who_is_being_answered_never() {
        let seats = Seats::new(BOUNDS);
        let take = |address| seats.take(machine(address)).expect("a seat");
        let crowd = ["10.0.0.1"; 3].map(take);
        crowd[0].does(Doing::Answering);
        crowd[0].does(Doing::Waiting);
        crowd[1].does(Doing::Answering);
        // One more of those who have all that one may have: their own that waits longest.
        let fourth = take("10.0.0.1");
        assert_eq!(crowd.each_ref().map(is_gone), [false, false, true]);
        // Others get a seat, and then one of those who have most.
        let other = take("10.0.0.2");
        assert!(!is_gone(&crowd[0]));
        let third = take("10.0.0.3");
        assert_eq!(crowd.each_ref().map(is_gone), [true, false, true]);
        crowd[1].does(Doing::Sending);
        fourth.does(Doing::Answering);
        let fifth = take("10.0.0.4");
        assert!(
            is_gone(&crowd[1]),
            "an answer on its way gives way, if nobody waits"
        );
        drop(other);
        for seat in [&fourth, &third, &fifth] {
            seat.does(Doing::Answering);
        }
        let last = take("10.0.0.5");
        last.does(Doing::Answering);
        assert!(seats.take(machine("10.0.0.6")).is_none());
        assert!(![fourth, third, fifth, last].iter().any(is_gone));
    }

    #[test]
    fn one_network_is_one_peer_and_users_are_told_apart() {
        let network = |address| neighbourhood(machine(address));
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
        let (ann, bob) = (Peer::User(Some(1)), Peer::User(Some(2)));
        assert_ne!(neighbourhood(ann), neighbourhood(bob));
    }

    #[test]
    fn a_seat_is_free_when_its_connection_is_over() {
        let seats = Seats::new(BOUNDS);
        drop(["10.0.0.1"; 3].map(|address| seats.take(machine(address))));
        assert!(seats.held().sitting.is_empty());
        assert!(seats.held().of_peers.is_empty());
    }
}
