//! Feedback: what became of messages, in batches that services take and answer.

use std::collections::VecDeque;
use std::time::Duration;

use super::store::MessageState;

/// The end of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) at_ms: u64,
    pub(crate) message: u32,
    pub(crate) state: MessageState,
}

/// Records that travel together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FeedbackBatch {
    pub(crate) records: Vec<Record>,
    pub(crate) made_ms: u64,
    /// How often it was given out before.
    pub(crate) deliveries: u32,
}

/// What the queue has counted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FeedbackCounts {
    pub(crate) made: u64,
    pub(crate) completed: u64,
    pub(crate) dropped: u64,
}

/// The hub's one feedback queue, for all services together.
#[derive(Debug)]
pub(crate) struct FeedbackQueue {
    open: VecDeque<Record>,
    ready: VecDeque<FeedbackBatch>,
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
            records: 0,
            batch: batch.max(1),
            interval,
            records_max,
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            deliveries_max,
            counts: FeedbackCounts::default(),
        }
    }

    /// How many records wait.
    pub(crate) fn len(&self) -> usize {
        self.records
    }

    /// Adds a record; if there are too many, the oldest go.
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

    /// Makes batches of what has waited long enough, drops what has waited too long, and says whether there
    /// is anything new to take.
    pub(crate) fn cut(&mut self, now_ms: u64) -> bool {
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

    /// Takes the oldest batch. It must come back through one of the three methods below.
    pub(crate) fn take(&mut self) -> Option<FeedbackBatch> {
        let batch = self.ready.pop_front()?;
        // A batch in a service's hands does not count against the bound; it comes back or is done with.
        self.records -= batch.records.len();
        Some(batch)
    }

    /// The service has dealt with the batch.
    pub(crate) fn complete(&mut self, batch: &FeedbackBatch) {
        self.counts.completed += batch.records.len() as u64;
    }

    /// The service will not have the batch.
    pub(crate) fn reject(&mut self, batch: &FeedbackBatch) {
        self.counts.dropped += batch.records.len() as u64;
    }

    /// The service gave the batch back, or was lost. Returns whether it waits again.
    pub(crate) fn give_back(&mut self, mut batch: FeedbackBatch) -> bool {
        batch.deliveries += 1;
        if batch.deliveries >= self.deliveries_max {
            self.counts.dropped += batch.records.len() as u64;
            return false;
        }
        self.records += batch.records.len();
        self.ready.push_front(batch);
        true
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
        assert!(queue.cut(10));
        assert_eq!(queue.take().unwrap().records.len(), 64);
        assert!(!queue.cut(14_999));
        assert!(queue.cut(15_000));
        assert_eq!(queue.take().unwrap().records.len(), 6);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_batch_comes_back_until_it_has_been_out_too_often() {
        let mut queue = queue(1000);
        queue.push(record(1, 0));
        queue.cut(20_000);
        for back in [true, true, false] {
            let batch = queue.take().unwrap();
            assert_eq!(queue.give_back(batch), back);
        }
        assert_eq!((queue.len(), queue.counts.dropped), (0, 1));
    }

    #[test]
    fn the_oldest_are_dropped_when_there_are_too_many() {
        let mut queue = queue(10);
        (0..25).for_each(|i| queue.push(record(i, 0)));
        assert_eq!((queue.len(), queue.counts.dropped), (10, 15));
        queue.cut(20_000);
        assert_eq!(queue.take().unwrap().records[0].message, 15);
    }
}
