//! The hub's counters since the start.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::core::Hub;
use super::refusal::Refusal;

/// A counter that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A gauge, with the highest value so far.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    now: AtomicU64,
    max: AtomicU64,
}

impl Gauge {
    pub(crate) fn up(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.max.fetch_max(now, Ordering::Relaxed);
    }

    pub(crate) fn down(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    pub(crate) fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }
}

/// Counters outside the message store.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: Counter,
    pub(crate) open_connections: Gauge,
    pub(crate) link_opens: Counter,
    pub(crate) link_opens_throttled: Counter,
    pub(crate) feedback_pauses: Counter,
    pub(crate) transfers: Counter,
    pub(crate) unanswered: Gauge,
    pub(crate) shaped: Counter,
    pub(crate) throttled: Counter,
    pub(crate) not_found: Counter,
    pub(crate) disabled: Counter,
    pub(crate) queue_full: Counter,
    pub(crate) quota_exceeded: Counter,
    pub(crate) refused_other: Counter,
    pub(crate) released: Counter,
    pub(crate) modified: Counter,
    pub(crate) lost_dispositions: Counter,
    pub(crate) cut_connections: Counter,
    pub(crate) cut_links: Counter,
    pub(crate) tokens_accepted: Counter,
    pub(crate) tokens_refused: Counter,
    pub(crate) http_requests: Counter,
    pub(crate) http_throttled: Counter,
    pub(crate) http_shaped: Counter,
    pub(crate) query_pages: Counter,
    pub(crate) connected_devices: Gauge,
    pub(crate) device_connections: Counter,
    pub(crate) device_replacements: Counter,
    pub(crate) device_logins: Counter,
    pub(crate) device_logins_refused: Counter,
    pub(crate) deliveries: Counter,
    pub(crate) telemetry_messages: Counter,
    pub(crate) telemetry_bytes: Counter,
    pub(crate) device_twin_reads: Counter,
    pub(crate) reported_patches: Counter,
    pub(crate) device_shaped: Counter,
    pub(crate) device_throttled: Counter,
    pub(crate) methods: Counter,
    pub(crate) methods_answered: Counter,
}

impl Counters {
    pub(crate) fn refusal(&self, refusal: &Refusal) {
        match refusal.code {
            404_001 | 404_010 => self.not_found.one(),
            403_012 => self.disabled.one(),
            403_004 => self.queue_full.one(),
            403_002 => self.quota_exceeded.one(),
            429_001 => self.throttled.one(),
            _ => self.refused_other.one(),
        }
    }
}

/// The hub's counters since the start. Two sums must hold: `accepted = pending + delivered +
/// expired + rejected_by_device + delivery_count_exceeded + purged + lost_with_device`, and
/// `accepted = distinct_devices + repeats_by_device`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Devices in the registry, disabled ones included.
    pub devices: u64,
    /// The time since the start.
    pub uptime_ms: u64,
    /// Transfers received on sending links.
    pub transfers: u64,
    /// Messages enqueued.
    pub accepted: u64,
    /// Devices for which at least one message was enqueued.
    pub distinct_devices: u64,
    /// Messages enqueued for a device with an earlier message.
    pub repeats_by_device: u64,
    /// Messages enqueued with an already used message id.
    pub repeats_by_message_id: u64,
    /// The most messages enqueued in any 60 seconds, exact to the millisecond.
    pub accepted_in_any_minute_max: u64,
    /// The most messages enqueued in any second, exact to the millisecond.
    pub accepted_in_any_second_max: u64,
    /// Messages counted against today's quota: a large message counts several times.
    pub daily_messages_used: u64,
    /// Messages in devices' queues now.
    pub pending: u64,
    /// Messages completed by devices.
    pub delivered: u64,
    /// Messages that expired.
    pub expired: u64,
    /// Messages rejected by devices.
    pub rejected_by_device: u64,
    /// Messages abandoned by devices too often.
    pub delivery_count_exceeded: u64,
    /// Messages purged.
    pub purged: u64,
    /// Messages deleted together with the device.
    pub lost_with_device: u64,
    /// Sends slowed down by the throttle.
    pub shaped: u64,
    /// Sends refused by the throttle.
    pub throttled: u64,
    /// Sends refused because the device does not exist.
    pub not_found: u64,
    /// Sends refused because the device is disabled.
    pub disabled: u64,
    /// Sends refused because the device's queue was full.
    pub queue_full: u64,
    /// Sends refused because the daily quota was used up.
    pub quota_exceeded: u64,
    /// Sends refused for any other reason.
    pub refused_other: u64,
    /// Sends answered `released` by a fault.
    pub released: u64,
    /// Sends answered `modified` by a fault.
    pub modified: u64,
    /// Sends whose answer was dropped by a fault.
    pub lost_dispositions: u64,
    /// The most sends waiting for an answer at the same time.
    pub unanswered_max: u64,
    /// AMQP connections accepted.
    pub connections: u64,
    /// AMQP connections open now.
    pub open_connections: u64,
    /// The most AMQP connections open at the same time.
    pub open_connections_max: u64,
    /// AMQP links opened, token links not counted.
    pub link_opens: u64,
    /// AMQP link openings refused by the throttle.
    pub link_opens_throttled: u64,
    /// Connections cut by a fault.
    pub cut_connections: u64,
    /// Links cut by a fault.
    pub cut_links: u64,
    /// Tokens accepted, over AMQP.
    pub tokens_accepted: u64,
    /// Tokens refused, over AMQP.
    pub tokens_refused: u64,
    /// Feedback records made.
    pub feedback_made: u64,
    /// Feedback records completed by services.
    pub feedback_completed: u64,
    /// Feedback records dropped.
    pub feedback_dropped: u64,
    /// Feedback records waiting.
    pub feedback_waiting: u64,
    /// How often services have paused feedback over AMQP, by a credit of zero.
    pub feedback_pauses: u64,
    /// HTTP requests.
    pub http_requests: u64,
    /// HTTP requests slowed down by a throttle.
    pub http_shaped: u64,
    /// HTTP requests refused by a throttle.
    pub http_throttled: u64,
    /// Pages of queries answered.
    pub query_pages: u64,
    /// Devices connected at least once since the start, and no longer simulated.
    pub real_devices: u64,
    /// Devices connected now, not counting simulated devices.
    pub connected_devices: u64,
    /// The most devices connected at the same time.
    pub connected_devices_max: u64,
    /// Connections of devices.
    pub device_connections: u64,
    /// Connections of devices replaced by a new connection of the same device.
    pub device_replacements: u64,
    /// Successful device authentications, over any protocol.
    pub device_logins: u64,
    /// Failed device authentications.
    pub device_logins_refused: u64,
    /// Messages given to connected devices, repeats included.
    pub deliveries: u64,
    /// Messages from devices. The content is not kept.
    pub telemetry_messages: u64,
    /// The bytes of messages from devices, including properties.
    pub telemetry_bytes: u64,
    /// Twins read by their devices.
    pub device_twin_reads: u64,
    /// Patches of reported properties accepted from devices.
    pub reported_patches: u64,
    /// Connections, messages and twin operations of devices slowed down by a throttle.
    pub device_shaped: u64,
    /// Connections, messages and twin operations of devices refused by a throttle.
    pub device_throttled: u64,
    /// Direct methods called by services.
    pub methods: u64,
    /// Direct methods answered by a device.
    pub methods_answered: u64,
}

impl Hub {
    /// Returns the current counters.
    pub(crate) fn summary(&self) -> Summary {
        let devices = u64::from(self.registry().len());
        let state = self.state();
        let (counts, feedback, counters) =
            (state.store.counts, state.feedback.counts, &self.counters);
        Summary {
            real_devices: state.devices.len() as u64,
            devices,
            uptime_ms: u64::try_from(self.uptime().as_millis()).unwrap_or(u64::MAX),
            transfers: counters.transfers.get(),
            accepted: counts.accepted,
            distinct_devices: counts.distinct_devices,
            repeats_by_device: counts.accepted - counts.distinct_devices,
            repeats_by_message_id: counts.repeated_message_ids,
            accepted_in_any_minute_max: state.store.windows.max_minute(),
            accepted_in_any_second_max: state.store.windows.max_second(),
            daily_messages_used: state.quota.1,
            pending: counts.pending,
            delivered: counts.delivered,
            expired: counts.expired,
            rejected_by_device: counts.rejected,
            delivery_count_exceeded: counts.delivery_count_exceeded,
            purged: counts.purged,
            lost_with_device: counts.lost,
            shaped: counters.shaped.get(),
            throttled: counters.throttled.get(),
            not_found: counters.not_found.get(),
            disabled: counters.disabled.get(),
            queue_full: counters.queue_full.get(),
            quota_exceeded: counters.quota_exceeded.get(),
            refused_other: counters.refused_other.get(),
            released: counters.released.get(),
            modified: counters.modified.get(),
            lost_dispositions: counters.lost_dispositions.get(),
            unanswered_max: counters.unanswered.max(),
            connections: counters.connections.get(),
            open_connections: counters.open_connections.now(),
            open_connections_max: counters.open_connections.max(),
            link_opens: counters.link_opens.get(),
            link_opens_throttled: counters.link_opens_throttled.get(),
            cut_connections: counters.cut_connections.get(),
            cut_links: counters.cut_links.get(),
            tokens_accepted: counters.tokens_accepted.get(),
            tokens_refused: counters.tokens_refused.get(),
            feedback_made: feedback.made,
            feedback_completed: feedback.completed,
            feedback_dropped: feedback.dropped,
            feedback_waiting: state.feedback.len() as u64,
            feedback_pauses: counters.feedback_pauses.get(),
            http_requests: counters.http_requests.get(),
            http_shaped: counters.http_shaped.get(),
            http_throttled: counters.http_throttled.get(),
            query_pages: counters.query_pages.get(),
            ..self.device_summary()
        }
    }

    /// Returns the counters of real devices, and leaves all other fields at the default.
    fn device_summary(&self) -> Summary {
        let counters = &self.counters;
        Summary {
            connected_devices: counters.connected_devices.now(),
            connected_devices_max: counters.connected_devices.max(),
            device_connections: counters.device_connections.get(),
            device_replacements: counters.device_replacements.get(),
            device_logins: counters.device_logins.get(),
            device_logins_refused: counters.device_logins_refused.get(),
            deliveries: counters.deliveries.get(),
            telemetry_messages: counters.telemetry_messages.get(),
            telemetry_bytes: counters.telemetry_bytes.get(),
            device_twin_reads: counters.device_twin_reads.get(),
            reported_patches: counters.reported_patches.get(),
            device_shaped: counters.device_shaped.get(),
            device_throttled: counters.device_throttled.get(),
            methods: counters.methods.get(),
            methods_answered: counters.methods_answered.get(),
            ..Summary::default()
        }
    }
}
