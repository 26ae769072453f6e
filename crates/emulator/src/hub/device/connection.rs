//! The hub's end of one device connection: events queued for the device until the connection takes
//! them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::{Notify, oneshot};

use super::method::MethodAnswer;
use crate::lock;

/// The largest number of changes of desired properties queued for a device. A device further behind
/// is disconnected, and has to read the twin anew.
const DESIRED_MAX: usize = 64;
/// The largest number of method calls waiting for the answer of one device.
const CALLS_MAX: usize = 100;

/// The reason for the end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndReason {
    /// The hub's error code is 400027.
    #[error("the device has connected anew")]
    Replaced,
    #[error("the device was disabled")]
    Disabled,
    #[error("the device was deleted")]
    Deleted,
    #[error("the device does not read")]
    TooSlow,
    #[error("all devices were disconnected on request")]
    Cut,
}

/// An optional subscription of a connected device, besides messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Interest {
    Methods = 1,
    Desired = 2,
}

/// A direct method for the device to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MethodCall {
    /// The id to repeat in the answer, unique within the connection.
    pub(crate) id: u64,
    pub(crate) name: String,
    /// JSON.
    pub(crate) payload: Bytes,
}

/// A change of the desired properties.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DesiredPush {
    /// The version after the change.
    pub(crate) version: u64,
    pub(crate) patch: Map<String, Value>,
}

/// An event for the connection to handle.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum DeviceEvent {
    /// The connection has ended. No event follows.
    Ended(EndReason),
    Method(MethodCall),
    Desired(DesiredPush),
}

#[derive(Debug, Default)]
struct PendingEvents {
    ended: Option<EndReason>,
    methods: VecDeque<MethodCall>,
    desired: VecDeque<DesiredPush>,
    calls: HashMap<u64, oneshot::Sender<MethodAnswer>>,
    called: u64,
}

/// The hub's end of a connection.
#[derive(Debug)]
pub(crate) struct DeviceConnection {
    /// The serial number of the connection, unique across all devices.
    pub(super) serial: u64,
    wake: Arc<Notify>,
    interests: AtomicU8,
    /// The time of the device's last activity, in milliseconds since 1970.
    activity_ms: AtomicU64,
    pending: Mutex<PendingEvents>,
}

impl DeviceConnection {
    pub(super) fn new(serial: u64, wake: Arc<Notify>, now_ms: u64) -> Self {
        Self {
            serial,
            wake,
            interests: AtomicU8::new(0),
            activity_ms: AtomicU64::new(now_ms),
            pending: Mutex::default(),
        }
    }

    fn pending(&self) -> MutexGuard<'_, PendingEvents> {
        lock(&self.pending)
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(super) fn touch(&self, now_ms: u64) {
        self.activity_ms.store(now_ms, Ordering::Relaxed);
    }

    pub(super) fn activity_ms(&self) -> u64 {
        self.activity_ms.load(Ordering::Relaxed)
    }

    pub(super) fn set_interest(&self, interest: Interest, on: bool) {
        if on {
            self.interests.fetch_or(interest as u8, Ordering::Release);
        } else {
            self.interests
                .fetch_and(!(interest as u8), Ordering::Release);
        }
    }

    pub(super) fn wants(&self, interest: Interest) -> bool {
        self.interests.load(Ordering::Acquire) & interest as u8 != 0
    }

    /// Ends the connection. The first reason stays. Pending calls end without an answer.
    pub(super) fn end(&self, reason: EndReason) {
        let mut pending = self.pending();
        pending.ended.get_or_insert(reason);
        pending.calls.clear();
        drop(pending);
        self.wake();
    }

    pub(super) fn push_desired(&self, push: DesiredPush) {
        if !self.wants(Interest::Desired) {
            return;
        }
        let mut pending = self.pending();
        let is_full = pending.desired.len() >= DESIRED_MAX;
        if !is_full {
            pending.desired.push_back(push);
        }
        drop(pending);
        if is_full {
            self.end(EndReason::TooSlow);
        } else {
            self.wake();
        }
    }

    /// Hands a call to the connection. Returns `None` if the connection has ended, accepts no
    /// calls, or has [`CALLS_MAX`] calls pending.
    pub(super) fn call(
        &self,
        name: &str,
        payload: Bytes,
    ) -> Option<(u64, oneshot::Receiver<MethodAnswer>)> {
        if !self.wants(Interest::Methods) {
            return None;
        }
        let mut pending = self.pending();
        if pending.ended.is_some() || pending.calls.len() >= CALLS_MAX {
            return None;
        }
        pending.called += 1;
        let id = pending.called;
        let (sender, answer) = oneshot::channel();
        pending.calls.insert(id, sender);
        pending.methods.push_back(MethodCall {
            id,
            name: name.to_owned(),
            payload,
        });
        drop(pending);
        self.wake();
        Some((id, answer))
    }

    /// Forgets a call after the caller has gone. The device may already have received the call, and
    /// may still answer.
    pub(super) fn forget_call(&self, id: u64) {
        let mut pending = self.pending();
        pending.calls.remove(&id);
        pending.methods.retain(|call| call.id != id);
    }

    /// Passes an answer to the caller. Returns `false` if no caller waits.
    pub(super) fn answer(&self, id: u64, answer: MethodAnswer) -> bool {
        let caller = self.pending().calls.remove(&id);
        caller.is_some_and(|caller| caller.send(answer).is_ok())
    }

    pub(super) fn next_event(&self) -> Option<DeviceEvent> {
        let mut pending = self.pending();
        if let Some(reason) = pending.ended {
            return Some(DeviceEvent::Ended(reason));
        }
        if let Some(call) = pending.methods.pop_front() {
            return Some(DeviceEvent::Method(call));
        }
        pending.desired.pop_front().map(DeviceEvent::Desired)
    }
}
