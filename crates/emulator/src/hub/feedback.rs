//! Feedback: the ends of messages, in batches for services to take and settle.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use uuid::Uuid;

use super::store::MessageState;

/// The end of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) at_ms: u64,
    pub(crate) message: u32,
    pub(crate) state: MessageState,
}

/// Feedback records delivered together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FeedbackBatch {
    pub(crate) records: Vec<Record>,
    pub(crate) made_ms: u64,
    /// The number of earlier deliveries.
    pub(crate) deliveries: u32,
}

/// The settlement of a feedback batch by a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FeedbackSettlement {
    /// The service has processed the batch.
    Completed,
    /// The service refuses the batch.
    Rejected,
    /// The service gives the batch back, or has disconnected.
    Abandoned,
}

/// Counters of the feedback queue.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FeedbackCounts {
    pub(crate) made: u64,
    pub(crate) completed: u64,
    pub(crate) dropped: u64,
}

/// The hub's single feedback queue, shared by all services.
#[derive(Debug)]
pub(crate) struct FeedbackQueue {
    open: VecDeque<Record>,
    ready: VecDeque<FeedbackBatch>,
    /// Batches handed out over HTTPS, each with the time of return to the queue unless settled
    /// before.
    locked: HashMap<Uuid, (FeedbackBatch, u64)>,
    /// The number of records in `open`, `ready` and `locked`.
    records: usize,
    batch: usize,
    interval: Duration,
    records_max: usize,
    ttl_ms: u64,
    deliveries_max: u32,
    pub(crate) counts: FeedbackCounts,
}

impl FeedbackQueue {
    pub(crate) fn new(
        batch: usize,
        interval: Duration,
        ttl: Duration,
        records_max: usize,
        deliveries_max: u32,
    ) -> Self {
        Self {
            open: VecDeque::new(),
            ready: VecDeque::new(),
            locked: HashMap::new(),
            records: 0,
            batch: batch.max(1),
            interval,
            records_max,
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            deliveries_max,
            counts: FeedbackCounts::default(),
        }
    }

    /// Returns the number of waiting and locked records.
    pub(crate) fn len(&self) -> usize {
        self.records
    }

    /// Adds a record. Beyond the bound, the oldest records are dropped.
    pub(crate) fn push(&mut self, record: Record) {
        self.counts.made += 1;
        self.records += 1;
        self.open.push_back(record);
        while self.records > self.records_max {
            match self.ready.pop_front() {
                Some(batch) => self.forget(batch.records.len()),
                None => {
                    self.open.pop_front();
                    self.forget(1);
                }
            }
        }
    }

    fn forget(&mut self, records: usize) {
        self.records -= records;
        self.counts.dropped += records as u64;
    }

    /// Forms batches of records that have waited long enough, takes back batches with an expired
    /// lock, and drops batches past the time to live. Returns whether a new batch is ready to take.
    pub(crate) fn form_batches(&mut self, now_ms: u64) -> bool {
        let interval_ms = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX);
        let mut made = false;
        while let Some(first) = self.open.front() {
            if self.open.len() < self.batch && now_ms.saturating_sub(first.at_ms) < interval_ms {
                break;
            }
            let count = self.open.len().min(self.batch);
            let records = self.open.drain(..count).collect();
            self.ready.push_back(FeedbackBatch {
                records,
                made_ms: now_ms,
                deliveries: 0,
            });
            made = true;
        }
        let late: Vec<Uuid> = self
            .locked
            .iter()
            .filter(|(_, (_, until_ms))| *until_ms <= now_ms)
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            made |= self.unlock(token, FeedbackSettlement::Abandoned) == Some(true);
        }
        while let Some(first) = self.ready.front() {
            if now_ms.saturating_sub(first.made_ms) < self.ttl_ms {
                break;
            }
            let count = first.records.len();
            self.ready.pop_front();
            self.forget(count);
        }
        made
    }

    /// Takes the oldest batch. The caller must return the batch through [`FeedbackQueue::settle`]
    /// or [`FeedbackQueue::lock`].
    pub(crate) fn take(&mut self) -> Option<FeedbackBatch> {
        let batch = self.ready.pop_front()?;
        // A batch held by a service does not count against the bound; the batch returns or is
        // settled for good.
        self.records -= batch.records.len();
        Some(batch)
    }

    /// Settles a taken batch. Returns whether the batch waits again.
    pub(crate) fn settle(
        &mut self,
        mut batch: FeedbackBatch,
        settlement: FeedbackSettlement,
    ) -> bool {
        let records = batch.records.len();
        match settlement {
            FeedbackSettlement::Completed => self.counts.completed += records as u64,
            FeedbackSettlement::Rejected => self.counts.dropped += records as u64,
            FeedbackSettlement::Abandoned => {
                batch.deliveries += 1;
                if batch.deliveries < self.deliveries_max {
                    self.records += records;
                    self.ready.push_front(batch);
                    return true;
                }
                self.counts.dropped += records as u64;
            }
        }
        false
    }

    /// Keeps a taken batch until the service settles it with the returned token, at the latest
    /// until `until_ms`. A locked batch counts against the bound, since no other limit bounds the
    /// number of locked batches.
    pub(crate) fn lock(&mut self, batch: FeedbackBatch, until_ms: u64) -> Uuid {
        let token = Uuid::new_v4();
        self.records += batch.records.len();
        self.locked.insert(token, (batch, until_ms));
        token
    }

    /// Settles a locked batch. Returns whether the batch waits again, or `None` if the token locks
    /// no batch.
    pub(crate) fn unlock(&mut self, token: Uuid, settlement: FeedbackSettlement) -> Option<bool> {
        let (batch, _) = self.locked.remove(&token)?;
        self.records -= batch.records.len();
        Some(self.settle(batch, settlement))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(records_max: usize) -> FeedbackQueue {
        FeedbackQueue::new(
            64,
            Duration::from_secs(15),
            Duration::from_secs(3600),
            records_max,
            3,
        )
    }

    fn record(message: u32, at_ms: u64) -> Record {
        Record {
            at_ms,
            message,
            state: MessageState::Delivered,
        }
    }

    #[test]
    fn a_batch_is_sixty_four_records_or_fifteen_seconds() {
        let mut queue = queue(1000);
        (0..70).for_each(|i| queue.push(record(i, 0)));
        assert!(queue.form_batches(10));
        assert_eq!(queue.take().unwrap().records.len(), 64);
        assert!(!queue.form_batches(14_999));
        assert!(queue.form_batches(15_000));
        assert_eq!(queue.take().unwrap().records.len(), 6);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn abandoned_batch_returns_up_to_the_delivery_limit() {
        let mut queue = queue(1000);
        queue.push(record(1, 0));
        queue.form_batches(20_000);
        for back in [true, true, false] {
            let batch = queue.take().unwrap();
            assert_eq!(queue.settle(batch, FeedbackSettlement::Abandoned), back);
        }
        assert_eq!((queue.len(), queue.counts.dropped), (0, 1));
    }

    #[test]
    fn a_locked_batch_is_settled_once_or_comes_back_in_time() {
        let mut queue = queue(1000);
        queue.push(record(1, 0));
        queue.form_batches(20_000);
        let batch = queue.take().unwrap();
        let token = queue.lock(batch, 30_000);
        assert_eq!((queue.take(), queue.len()), (None, 1));
        assert!(!queue.form_batches(29_999));
        assert!(queue.form_batches(30_000));
        assert_eq!(queue.unlock(token, FeedbackSettlement::Completed), None);
        let batch = queue.take().unwrap();
        assert_eq!(batch.deliveries, 1);
        let token = queue.lock(batch, 60_000);
        assert_eq!(
            queue.unlock(token, FeedbackSettlement::Completed),
            Some(false)
        );
        assert_eq!(queue.unlock(token, FeedbackSettlement::Completed), None);
        assert_eq!((queue.len(), queue.counts.completed), (0, 1));
    }

    #[test]
    fn locked_batches_count_against_the_bound() {
        let mut queue = queue(10);
        (0..8).for_each(|i| queue.push(record(i, 0)));
        queue.form_batches(20_000);
        let batch = queue.take().unwrap();
        let token = queue.lock(batch, 90_000);
        (8..20).for_each(|i| queue.push(record(i, 20_000)));
        assert_eq!((queue.len(), queue.counts.dropped), (10, 10));
        assert_eq!(
            queue.unlock(token, FeedbackSettlement::Abandoned),
            Some(true)
        );
        assert_eq!(queue.take().unwrap().records.len(), 8);
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn oldest_records_are_dropped_beyond_the_bound() {
        let mut queue = queue(10);
        (0..25).for_each(|i| queue.push(record(i, 0)));
        assert_eq!((queue.len(), queue.counts.dropped), (10, 15));
        queue.form_batches(20_000);
        assert_eq!(queue.take().unwrap().records[0].message, 15);
    }
}
