//! The hub's end of one connection of one device: what is to be said to the device, until the connection comes for it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::{Notify, oneshot};

use super::method::MethodAnswer;
use crate::lock;

/// How many changes of desired properties wait for a device that does not read. A device that is further behind has to
/// read its twin anew, and is disconnected.
const DESIRED_MAX: usize = 64;
/// How many calls wait for the answer of one device.
const CALLS_MAX: usize = 100;

/// Why a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ended {
    /// The hub's code for it is 400027.
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

/// What a connected device may want to hear of beside messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Interest {
    Methods = 1,
    Desired = 2,
}

/// A direct method that the device is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MethodCall {
    /// What the answer must name; unique for the connection.
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

/// Something that the connection is to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum DeviceEvent {
    /// Nothing follows.
    Ended(Ended),
    Method(MethodCall),
    Desired(DesiredPush),
}

#[derive(Debug, Default)]
struct Mail {
    ended: Option<Ended>,
    methods: VecDeque<MethodCall>,
    desired: VecDeque<DesiredPush>,
    calls: HashMap<u64, oneshot::Sender<MethodAnswer>>,
    called: u64,
}

/// The hub's end.
#[derive(Debug)]
pub(crate) struct Line {
    /// Which of all connections of all devices it is.
    pub(super) serial: u64,
    wake: Arc<Notify>,
    interests: AtomicU8,
    /// When the device last did something, in milliseconds since 1970.
    activity_ms: AtomicU64,
    mail: Mutex<Mail>,
}

impl Line {
    pub(super) fn new(serial: u64, wake: Arc<Notify>, now_ms: u64) -> Self {
        Self {
            serial,
            wake,
            interests: AtomicU8::new(0),
            activity_ms: AtomicU64::new(now_ms),
            mail: Mutex::default(),
        }
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        lock(&self.mail)
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

    /// Ends the connection, for the first reason that it is told. Calls that wait are without an answer.
    pub(super) fn end(&self, reason: Ended) {
        let mut mail = self.mail();
        mail.ended.get_or_insert(reason);
        mail.calls.clear();
        drop(mail);
        self.wake();
    }

    pub(super) fn push_desired(&self, push: DesiredPush) {
        if !self.wants(Interest::Desired) {
            return;
        }
        let mut mail = self.mail();
        let is_full = mail.desired.len() >= DESIRED_MAX;
        if !is_full {
            mail.desired.push_back(push);
        }
        drop(mail);
        if is_full {
            self.end(Ended::TooSlow);
        } else {
            self.wake();
        }
    }

    /// Hands a call to the connection; none if it has ended, does not want any, or has too many.
    pub(super) fn call(
        &self,
        name: &str,
        payload: Bytes,
    ) -> Option<(u64, oneshot::Receiver<MethodAnswer>)> {
        if !self.wants(Interest::Methods) {
            return None;
        }
        let mut mail = self.mail();
        if mail.ended.is_some() || mail.calls.len() >= CALLS_MAX {
            return None;
        }
        mail.called += 1;
        let id = mail.called;
        let (sender, answer) = oneshot::channel();
        mail.calls.insert(id, sender);
        mail.methods.push_back(MethodCall {
            id,
            name: name.to_owned(),
            payload,
        });
        drop(mail);
        self.wake();
        Some((id, answer))
    }

    /// Forgets a call whose caller has gone. The device may have got it, and may still answer.
    pub(super) fn forget_call(&self, id: u64) {
        let mut mail = self.mail();
        mail.calls.remove(&id);
        mail.methods.retain(|call| call.id != id);
    }

    /// Gives an answer to its caller; false if nobody waits for it.
    pub(super) fn answer(&self, id: u64, answer: MethodAnswer) -> bool {
        let caller = self.mail().calls.remove(&id);
        caller.is_some_and(|caller| caller.send(answer).is_ok())
    }

    pub(super) fn next_event(&self) -> Option<DeviceEvent> {
        let mut mail = self.mail();
        if let Some(reason) = mail.ended {
            return Some(DeviceEvent::Ended(reason));
        }
        if let Some(call) = mail.methods.pop_front() {
            return Some(DeviceEvent::Method(call));
        }
        mail.desired.pop_front().map(DeviceEvent::Desired)
    }
}
