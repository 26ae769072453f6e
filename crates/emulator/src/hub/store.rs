//! The messages: queued, delivered and done, in about a hundred bytes each.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::intern::{Interner, TextArena, TextRef};
use super::windows::Windows;

/// The state of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// In the device's queue.
    Enqueued,
    /// Delivered to the device, and not yet settled.
    Invisible,
    /// Completed by the device.
    Delivered,
    /// Expired before completion.
    Expired,
    /// Rejected by the device.
    Rejected,
    /// Abandoned by the device too often.
    DeliveryCountExceeded,
    /// Removed on request.
    Purged,
    /// Deleted together with the device.
    Lost,
}

impl MessageState {
    /// Whether the message still takes a place in the device's queue.
    #[must_use]
    pub fn is_pending(self) -> bool {
        matches!(self, Self::Enqueued | Self::Invisible)
    }

    /// Returns the status for feedback records, or `None` for a state without feedback.
    pub(crate) fn feedback_status(self) -> Option<&'static str> {
        match self {
            Self::Delivered => Some("Success"),
            Self::Expired => Some("Expired"),
            Self::Rejected => Some("Rejected"),
            Self::DeliveryCountExceeded => Some("DeliveryCountExceeded"),
            Self::Purged => Some("Purged"),
            Self::Enqueued | Self::Invisible | Self::Lost => None,
        }
    }
}

/// The feedback requested by the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ack {
    None,
    Positive,
    Negative,
    Full,
}

impl Ack {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self::None),
            "positive" => Some(Self::Positive),
            "negative" => Some(Self::Negative),
            "full" => Some(Self::Full),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Positive => "positive",
            Self::Negative => "negative",
            Self::Full => "full",
        }
    }

    /// Whether the sender asks for feedback on the end `state`.
    pub(crate) fn wants(self, state: MessageState) -> bool {
        match (self, state) {
            (Self::None, _) | (_, MessageState::Lost) => false,
            (Self::Full, _) => !state.is_pending(),
            (Self::Positive, _) => state == MessageState::Delivered,
            (Self::Negative, _) => !state.is_pending() && state != MessageState::Delivered,
        }
    }
}

/// A stored message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredMessage {
    pub(crate) enqueued_ms: u64,
    pub(crate) id: TextRef,
    pub(crate) device: u32,
    /// The number of the device's next message, plus one.
    next: u32,
    pub(crate) properties: u32,
    /// The system properties, see [`SystemFields`](crate::amqp::SystemFields).
    pub(crate) system: u32,
    pub(crate) body: u32,
    /// The time from enqueuing to expiry: at most two days, so 32 bits suffice.
    pub(crate) ttl_ms: u32,
    /// The time from enqueuing to the end, for an ended message.
    pub(crate) done_after_ms: u32,
    pub(crate) state: MessageState,
    /// The planned end. A message to a real device has no plan and stays `Enqueued`.
    planned: MessageState,
    pub(crate) ack: Ack,
    /// The number of deliveries to a real device.
    pub(crate) deliveries: u8,
}

impl StoredMessage {
    /// Returns the expiry, in milliseconds since 1970.
    pub(crate) fn expires_ms(&self) -> u64 {
        self.enqueued_ms + u64::from(self.ttl_ms)
    }
}

/// A message to be stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewMessage<'a> {
    pub(crate) now_ms: u64,
    pub(crate) device: u32,
    pub(crate) id: &'a str,
    pub(crate) ack: Ack,
    pub(crate) properties: &'a [u8],
    pub(crate) system: &'a [u8],
    pub(crate) body: &'a [u8],
    pub(crate) ttl_ms: u64,
    pub(crate) invisible: bool,
    /// `Enqueued` for a message to a real device.
    pub(crate) planned: MessageState,
    pub(crate) due_ms: u64,
}

/// The message list of a device: the numbers of the first and last message, each plus one, and the
/// number of pending messages.
#[derive(Debug, Clone, Copy, Default)]
struct DeviceState {
    head: u32,
    tail: u32,
    pending: u32,
}

/// The counters of the store.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StoreCounts {
    pub(crate) accepted: u64,
    pub(crate) distinct_devices: u64,
    pub(crate) repeated_message_ids: u64,
    pub(crate) pending: u64,
    pub(crate) delivered: u64,
    pub(crate) expired: u64,
    pub(crate) rejected: u64,
    pub(crate) delivery_count_exceeded: u64,
    pub(crate) purged: u64,
    pub(crate) lost: u64,
}

const MESSAGES_PER_BLOCK: usize = 1 << 14;
const DEVICES_PER_PAGE: usize = 1 << 10;

/// All messages of a hub.
#[derive(Debug)]
pub(crate) struct Store {
    blocks: Vec<Vec<StoredMessage>>,
    devices: Vec<Option<Box<[DeviceState]>>>,
    ids: TextArena,
    pub(crate) bodies: Interner,
    pub(crate) properties: Interner,
    /// Hashes of the message ids accepted so far. With a million ids, the chance of two different
    /// ids sharing a hash is below one in ten million.
    seen: HashSet<u64, std::hash::BuildHasherDefault<IdentityHasher>>,
    /// Messages by the time of the next event: the planned end, or the expiry.
    due: BTreeMap<u64, Vec<u32>>,
    pub(crate) windows: Windows,
    pub(crate) counts: StoreCounts,
}

/// A hasher for keys that are hashes already, such as the seen ids: returns the key unchanged.
#[derive(Debug, Default)]
pub(crate) struct IdentityHasher(u64);

impl std::hash::Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64(bytes);
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            blocks: Vec::new(),
            devices: Vec::new(),
            ids: TextArena::default(),
            bodies: Interner::default(),
            properties: Interner::default(),
            seen: HashSet::default(),
            due: BTreeMap::new(),
            windows: Windows::new(),
            counts: StoreCounts::default(),
        }
    }

    /// Returns the number of stored messages, including ended messages.
    pub(crate) fn len(&self) -> usize {
        match self.blocks.split_last() {
            None => 0,
            Some((last, full)) => full.len() * MESSAGES_PER_BLOCK + last.len(),
        }
    }

    /// Returns a message.
    pub(crate) fn message(&self, number: u32) -> Option<&StoredMessage> {
        let number = number as usize;
        self.blocks
            .get(number / MESSAGES_PER_BLOCK)?
            .get(number % MESSAGES_PER_BLOCK)
    }

    fn message_mut(&mut self, number: u32) -> Option<&mut StoredMessage> {
        let number = number as usize;
        self.blocks
            .get_mut(number / MESSAGES_PER_BLOCK)?
            .get_mut(number % MESSAGES_PER_BLOCK)
    }

    /// Returns the id of a message.
    pub(crate) fn id(&self, message: &StoredMessage) -> &str {
        self.ids.get(message.id)
    }

    fn device(&self, device: u32) -> DeviceState {
        let page = self.devices.get(device as usize / DEVICES_PER_PAGE);
        page.and_then(Option::as_ref)
            .map_or_else(DeviceState::default, |page| {
                page[device as usize % DEVICES_PER_PAGE]
            })
    }

    fn device_mut(&mut self, device: u32) -> &mut DeviceState {
        let at = device as usize / DEVICES_PER_PAGE;
        if self.devices.len() <= at {
            self.devices.resize_with(at + 1, || None);
        }
        let empty = || vec![DeviceState::default(); DEVICES_PER_PAGE].into_boxed_slice();
        &mut self.devices[at].get_or_insert_with(empty)[device as usize % DEVICES_PER_PAGE]
    }

    /// Returns the number of pending messages of a device.
    pub(crate) fn pending(&self, device: u32) -> u32 {
        self.device(device).pending
    }

    /// Adds a message to the device's queue.
    pub(crate) fn enqueue(&mut self, new: NewMessage<'_>) -> u32 {
        let number = u32::try_from(self.len()).unwrap_or(u32::MAX);
        let is_real = new.planned == MessageState::Enqueued;
        let message = StoredMessage {
            enqueued_ms: new.now_ms,
            id: self.ids.push(new.id),
            device: new.device,
            next: 0,
            properties: self.properties.intern(new.properties, is_real),
            system: self.properties.intern(new.system, is_real),
            body: self.bodies.intern(new.body, is_real),
            ttl_ms: u32::try_from(new.ttl_ms).unwrap_or(u32::MAX),
            done_after_ms: 0,
            state: if new.invisible {
                MessageState::Invisible
            } else {
                MessageState::Enqueued
            },
            planned: new.planned,
            ack: new.ack,
            deliveries: 0,
        };
        if self
            .blocks
            .last()
            .is_none_or(|block| block.len() == MESSAGES_PER_BLOCK)
        {
            self.blocks.push(Vec::with_capacity(MESSAGES_PER_BLOCK));
        }
        if let Some(block) = self.blocks.last_mut() {
            block.push(message);
        }
        let state = self.device_mut(new.device);
        state.pending += 1;
        let last = std::mem::replace(&mut state.tail, number + 1);
        if last == 0 {
            state.head = number + 1;
            self.counts.distinct_devices += 1;
        } else if let Some(last) = self.message_mut(last - 1) {
            last.next = number + 1;
        }
        if !self
            .seen
            .insert(xxhash_rust::xxh3::xxh3_64(new.id.as_bytes()))
        {
            self.counts.repeated_message_ids += 1;
        }
        self.due.entry(new.due_ms).or_default().push(number);
        self.counts.accepted += 1;
        self.counts.pending += 1;
        self.windows.count(new.now_ms);
        number
    }

    /// Ends due messages, and calls `ended` for each. Stops after the millisecond in which `limit`
    /// is reached, so the result may exceed `limit`. Returns the number of ended messages.
    pub(crate) fn run_due(
        &mut self,
        now_ms: u64,
        limit: usize,
        mut ended: impl FnMut(u32, &StoredMessage),
    ) -> usize {
        let mut count = 0;
        while count < limit {
            let Some(entry) = self
                .due
                .first_entry()
                .filter(|entry| *entry.key() <= now_ms)
            else {
                break;
            };
            for number in entry.remove() {
                let Some(planned) = self.message(number).and_then(|it| due_end(it, now_ms)) else {
                    continue;
                };
                if let Some(message) = self.finish(number, planned, now_ms) {
                    ended(number, &message);
                }
                count += 1;
            }
        }
        count
    }

    /// Cancels the planned end of a pending message, after the device has become real.
    pub(crate) fn leave_to_device(&mut self, number: u32) {
        let Some(message) = self.message_mut(number) else {
            return;
        };
        message.planned = MessageState::Enqueued;
        message.state = MessageState::Enqueued;
        let expires_ms = message.expires_ms();
        self.due.entry(expires_ms).or_default().push(number);
    }

    /// Marks a message as delivered to the device.
    pub(crate) fn give(&mut self, number: u32) -> Option<&StoredMessage> {
        let message = self.message_mut(number)?;
        message.state = MessageState::Invisible;
        message.deliveries = message.deliveries.saturating_add(1);
        Some(message)
    }

    /// Marks a message as back in the device's queue.
    pub(crate) fn requeue(&mut self, number: u32) {
        if let Some(message) = self.message_mut(number) {
            message.state = MessageState::Enqueued;
        }
    }

    /// Ends a pending message. Returns `None` if the message has ended already.
    pub(crate) fn finish(
        &mut self,
        number: u32,
        state: MessageState,
        now_ms: u64,
    ) -> Option<StoredMessage> {
        let message = self.message_mut(number)?;
        if !message.state.is_pending() {
            return None;
        }
        message.state = state;
        message.done_after_ms =
            u32::try_from(now_ms.saturating_sub(message.enqueued_ms)).unwrap_or(u32::MAX);
        let message = *message;
        self.device_mut(message.device).pending -= 1;
        self.counts.pending -= 1;
        let counts = &mut self.counts;
        match state {
            MessageState::Delivered => counts.delivered += 1,
            MessageState::Expired => counts.expired += 1,
            MessageState::Rejected => counts.rejected += 1,
            MessageState::DeliveryCountExceeded => counts.delivery_count_exceeded += 1,
            MessageState::Purged => counts.purged += 1,
            MessageState::Lost => counts.lost += 1,
            MessageState::Enqueued | MessageState::Invisible => {}
        }
        Some(message)
    }

    /// Returns the time of the first message completed by the device, in milliseconds since 1970.
    /// Only messages enqueued at `since_ms` or later count: earlier messages belong to a deleted
    /// device with the same id.
    pub(crate) fn first_delivery(&self, device: u32, since_ms: u64) -> Option<u64> {
        self.messages_of(device)
            .filter_map(|number| self.message(number))
            .filter(|message| message.enqueued_ms >= since_ms)
            .filter(|message| message.state == MessageState::Delivered)
            .map(|message| message.enqueued_ms + u64::from(message.done_after_ms))
            .min()
    }

    /// Returns the numbers of a device's messages, oldest first.
    pub(crate) fn messages_of(&self, device: u32) -> impl Iterator<Item = u32> + '_ {
        let mut next = self.device(device).head;
        std::iter::from_fn(move || {
            let number = next.checked_sub(1)?;
            next = self.message(number)?.next;
            Some(number)
        })
    }
}

/// Returns the end of a due message, or `None` if the message goes on.
fn due_end(message: &StoredMessage, now_ms: u64) -> Option<MessageState> {
    if message.planned != MessageState::Enqueued {
        return Some(message.planned);
    }
    // A message held by a device expires only when returned to the queue. An event planned before
    // the device became real is void.
    let expired = message.state == MessageState::Enqueued && message.expires_ms() <= now_ms;
    expired.then_some(MessageState::Expired)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_message(device: u32, id: &str, now_ms: u64, due_ms: u64) -> NewMessage<'_> {
        NewMessage {
            now_ms,
            device,
            id,
            ack: Ack::Full,
            properties: b"",
            system: b"",
            body: b"body",
            ttl_ms: 1000,
            invisible: false,
            planned: MessageState::Delivered,
            due_ms,
        }
    }

    #[test]
    fn messages_end_once_and_in_time() {
        let mut store = Store::new();
        store.enqueue(new_message(7, "a", 0, 20));
        store.enqueue(new_message(7, "b", 1, 10));
        store.enqueue(new_message(9, "a", 2, 30));
        assert_eq!(
            (store.pending(7), store.pending(9), store.pending(8)),
            (2, 1, 0)
        );
        assert_eq!(store.counts.repeated_message_ids, 1);
        assert_eq!(store.counts.distinct_devices, 2);
        let mut ended = Vec::new();
        store.run_due(15, 10, |number, _| ended.push(number));
        assert_eq!(ended, [1]);
        assert!(store.finish(0, MessageState::Purged, 16).is_some());
        store.run_due(100, 10, |number, _| ended.push(number));
        assert_eq!(ended, [1, 2]);
        assert_eq!(
            (
                store.counts.delivered,
                store.counts.purged,
                store.counts.pending
            ),
            (2, 1, 0)
        );
        assert!(store.messages_of(7).eq([0, 1]));
    }

    #[test]
    fn ack_levels_select_the_reported_states() {
        use MessageState::{Delivered, Enqueued, Expired, Lost, Purged};
        for (ack, reported) in [
            (Ack::None, &[][..]),
            (Ack::Positive, &[Delivered]),
            (Ack::Negative, &[Expired, Purged]),
            (Ack::Full, &[Delivered, Expired, Purged]),
        ] {
            for state in [Delivered, Expired, Purged, Enqueued, Lost] {
                assert_eq!(
                    ack.wants(state),
                    reported.contains(&state),
                    "{ack:?} {state:?}"
                );
            }
        }
    }

    #[test]
    fn a_message_is_small() {
        assert!(
            size_of::<StoredMessage>() <= 48,
            "{}",
            size_of::<StoredMessage>()
        );
    }
}
