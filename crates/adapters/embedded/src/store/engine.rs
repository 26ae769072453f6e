//! The thread that owns the file, with group commit.
//!
//! Requests wait in a bounded channel. The thread takes all waiting requests, applies every write
//! in a single transaction, commits once, and only then answers the writes; reads follow, and see
//! the new commit. So under load more requests share a sync of the disk, and no request waits for
//! more than two syncs.
//!
//! When a write fails (for example, on a full disk), no write of the group is kept. The database
//! refuses to continue after a failed write, so the thread opens the database anew. A number raised
//! by each group then shows whether the failed commit took effect after all.

use std::sync::Arc;

use redb::{Database, ReadableDatabase};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use twincast_core::evidence::{LOCK, ListenerReport, ListenerState, Listeners};
use twincast_core::ids::{Holder, HubName};
use twincast_core::ports::{Clock, StoreError};
use twincast_core::time::Timestamp;

use super::disk::Disk;
use super::error::{Cause, Fault, InvalidData, OpenError, ReadOnly};
use super::lease_states::LeaseStates;
use super::tables::{LastListener, ReadTables, WriteTables, meta};
use super::write_ops::{self, Swept};

/// The most waiting requests. A waiting request holds the data to write, at most a few hundred KiB,
/// and the number of calling tasks is limited; a longer queue would not add concurrency.
pub(super) const MAX_WAITING: usize = 64;
/// The most requests in a transaction.
const MAX_PER_COMMIT: usize = 64;
/// The most rows of abandoned plans removed by a transaction. Some 2 MiB of manifests.
const SWEEP_ROWS: usize = 512;

/// A request to the thread.
pub(super) enum Request {
    /// Changes the state.
    Write(Box<dyn Write>),
    /// Reads the state.
    Read(Box<dyn Read>),
    /// Closes the file, and reports the close.
    Close(oneshot::Sender<()>),
}

/// The context of a write.
pub(super) struct Writing<'a, 't> {
    pub(super) tables: &'a mut WriteTables<'t>,
    pub(super) lease_states: &'a mut LeaseStates,
    pub(super) now: Timestamp,
}

/// The context of a read.
pub(super) struct Reading<'a> {
    pub(super) tables: &'a ReadTables,
    pub(super) lease_states: &'a mut LeaseStates,
    pub(super) now: Timestamp,
}

/// A write request.
pub(super) trait Write: Send {
    /// Applies the write in a transaction. An error means that the transaction is lost.
    fn apply(&mut self, on: Writing<'_, '_>) -> Result<(), redb::Error>;
    /// Answers the request after the end of the transaction.
    fn answer(self: Box<Self>, commit: Result<(), &CommitFault>);
}

/// A read request.
pub(super) trait Read: Send {
    /// Reads, and answers the request.
    fn answer(self: Box<Self>, on: Result<Reading<'_>, &Cause>);
}

/// Why a group had no confirmed effect.
#[derive(Debug)]
pub(super) enum CommitFault {
    /// Nothing of the group was kept.
    NotWritten(Cause),
    /// The group may have been kept or not.
    InDoubt(Cause),
}

/// A call of the store, from the caller's side to the thread and back.
pub(super) struct Call<T, F> {
    doing: String,
    operation: Option<F>,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Call<T, F> {
    pub(super) fn new(
        doing: String,
        operation: F,
    ) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let call = Self {
            doing,
            operation: Some(operation),
            result: None,
            reply,
        };
        (call, answer)
    }

    fn corrupt(
        doing: String,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        StoreError::Corrupt {
            doing,
            source: source.into(),
        }
    }
}

impl<T, F> Write for Call<T, F>
where
    T: Send,
    F: FnOnce(Writing<'_, '_>) -> Result<T, Fault> + Send,
{
    fn apply(&mut self, on: Writing<'_, '_>) -> Result<(), redb::Error> {
        let Some(operation) = self.operation.take().filter(|_| !self.reply.is_closed()) else {
            return Ok(());
        };
        self.result = Some(match operation(on) {
            Ok(value) => Ok(value),
            Err(Fault::Refused(error)) => Err(error),
            Err(Fault::Damaged(what)) => Err(Self::corrupt(self.doing.clone(), InvalidData(what))),
            Err(Fault::Failed(error)) => return Err(error),
        });
        Ok(())
    }

    fn answer(self: Box<Self>, commit: Result<(), &CommitFault>) {
        let doing = self.doing;
        let result = match (commit, self.result) {
            // The caller has gone, so the write was not tried.
            (Ok(()), None) => return,
            (Ok(()), Some(result)) => result,
            // A refusal wrote nothing, but the data behind the refusal may be lost.
            (Err(CommitFault::NotWritten(cause)), _) => Err(StoreError::NotWritable {
                doing,
                source: Box::new(cause.clone()),
            }),
            (Err(CommitFault::InDoubt(cause)), _) => Err(StoreError::Unavailable {
                doing,
                source: Box::new(cause.clone()),
            }),
        };
        _ = self.reply.send(result);
    }
}

impl<T, F> Read for Call<T, F>
where
    T: Send,
    F: FnOnce(Reading<'_>) -> Result<T, Fault> + Send,
{
    fn answer(mut self: Box<Self>, on: Result<Reading<'_>, &Cause>) {
        let Some(operation) = self.operation.take().filter(|_| !self.reply.is_closed()) else {
            return;
        };
        let doing = self.doing;
        let unavailable = |doing, cause: Cause| StoreError::Unavailable {
            doing,
            source: Box::new(cause),
        };
        let result = match on {
            Err(cause) => Err(unavailable(doing, cause.clone())),
            Ok(on) => match operation(on) {
                Ok(value) => Ok(value),
                Err(Fault::Refused(error)) => Err(error),
                Err(Fault::Damaged(what)) => Err(Self::corrupt(doing, InvalidData(what))),
                Err(Fault::Failed(error @ redb::Error::Corrupted(_))) => {
                    Err(Self::corrupt(doing, error))
                }
                Err(Fault::Failed(error)) => Err(unavailable(doing, cause_of(error))),
            },
        };
        _ = self.reply.send(result);
    }
}

/// The state of the thread.
pub(super) struct Engine {
    disk: Disk,
    /// `None` after a failure, until the database could be opened again.
    database: Option<Database>,
    commits: u64,
    garbage: bool,
    listened_to: Vec<(String, Vec<u8>)>,
    lease_states: LeaseStates,
    clock: Arc<dyn Clock>,
}

impl Engine {
    pub(super) fn open(mut disk: Disk, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let opened = disk.open(true)?;
        Ok(Self {
            disk,
            database: Some(opened.database),
            commits: opened.commits,
            garbage: opened.garbage,
            listened_to: opened.listened_to,
            lease_states: LeaseStates::default(),
            clock,
        })
    }

    /// Returns the listeners of an earlier process. A listener without a reported end may have held
    /// messages until now.
    pub(super) fn lost_listeners(&mut self, now: Timestamp) -> Listeners {
        let mut listeners = Listeners::default();
        for (hub, last) in std::mem::take(&mut self.listened_to) {
            let Ok(hub) = HubName::new(&hub) else {
                continue;
            };
            let last = serde_json::from_slice(&last).unwrap_or(LastListener {
                state: ListenerState {
                    hidden_ms: LOCK.as_millis() as u64,
                    ..ListenerState::default()
                },
                ended: None,
            });
            let report = ListenerReport {
                listener: Holder::new("before").expect("the name is valid"),
                received_ago: None,
                state: ListenerState {
                    listening: false,
                    ..last.state
                },
            };
            listeners.report(&hub, &report, last.ended.unwrap_or(now).min(now));
        }
        listeners
    }

    /// Serves requests until a close request, or until all senders are dropped.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut may_sweep = true;
        loop {
            let first = match requests.try_recv() {
                Ok(request) => Some(request),
                Err(TryRecvError::Disconnected) => None,
                Err(TryRecvError::Empty) if self.garbage && may_sweep => {
                    // No request waits: time to clean up. After a failure, cleaning up waits until
                    // the next request has shown that writes work again.
                    may_sweep = self.commit(&mut []).is_ok();
                    continue;
                }
                Err(TryRecvError::Empty) => requests.blocking_recv(),
            };
            let Some(first) = first else {
                return;
            };
            may_sweep = true;
            if let Some(closed) = self.serve(first, &mut requests) {
                requests.close();
                drop(self);
                _ = closed.send(());
                return;
            }
        }
    }

    /// Serves a group of requests. Returns the close request, if the group has such a request.
    fn serve(
        &mut self,
        first: Request,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Option<oneshot::Sender<()>> {
        let (mut writes, mut reads, mut close) = (Vec::new(), Vec::new(), None);
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Write(write) => writes.push(write),
                Request::Read(read) => reads.push(read),
                Request::Close(closed) => close = Some(closed),
            }
            let full = writes.len() + reads.len() >= MAX_PER_COMMIT || close.is_some();
            next = if full { None } else { requests.try_recv().ok() };
        }
        if !writes.is_empty() {
            let outcome = self.commit(&mut writes);
            for write in writes {
                write.answer(outcome.as_ref().copied());
            }
        }
        if !reads.is_empty() {
            self.read(reads);
        }
        close
    }

    /// Applies and commits a group.
    fn commit(&mut self, writes: &mut [Box<dyn Write>]) -> Result<(), CommitFault> {
        if self.disk.is_read_only {
            return Err(CommitFault::NotWritten(Cause(Arc::new(ReadOnly))));
        }
        if self.database.is_none() {
            self.reopen().map_err(CommitFault::NotWritten)?;
        }
        let fault = match self.transact(writes) {
            Ok(()) => return Ok(()),
            Err(fault) => fault,
        };
        tracing::warn!(error = %fault.cause(), "the state could not be written, reopening it");
        self.database = None;
        let attempted = self.commits + 1;
        let reopened = self.reopen();
        match fault {
            CommitFault::InDoubt(_) if reopened.is_ok() && self.commits == attempted => Ok(()),
            CommitFault::InDoubt(cause) if reopened.is_ok() => Err(CommitFault::NotWritten(cause)),
            fault => Err(fault),
        }
    }

    /// Runs a transaction. After a failure, the database must be opened anew.
    fn transact(&mut self, writes: &mut [Box<dyn Write>]) -> Result<(), CommitFault> {
        let before = |error: redb::Error| CommitFault::NotWritten(cause_of(error));
        let database = self.database.as_ref().expect("it was opened just now");
        let transaction = database.begin_write().map_err(|e| before(e.into()))?;
        let mut tables = WriteTables::open(&transaction).map_err(|e| before(e.into()))?;
        let now = self.clock.now();
        for write in writes.iter_mut() {
            let lease_states = &mut self.lease_states;
            let tables = &mut tables;
            write
                .apply(Writing {
                    tables,
                    lease_states,
                    now,
                })
                .map_err(before)?;
        }
        let swept = sweep(&mut tables).map_err(before)?;
        let wrote = tables.wrote;
        if wrote {
            let raised = tables.meta.insert(meta::COMMITS, self.commits + 1);
            raised.map_err(|e| before(e.into()))?;
        }
        drop(tables);
        if wrote {
            let committed = transaction.commit();
            committed.map_err(|e| CommitFault::InDoubt(cause_of(e.into())))?;
            self.commits += 1;
        } else {
            transaction.abort().map_err(|e| before(e.into()))?;
        }
        self.garbage = swept != Swept::Clean;
        if let Swept::Finished(series) = swept {
            self.lease_states.forget(series);
        }
        Ok(())
    }

    fn read(&mut self, reads: Vec<Box<dyn Read>>) {
        let tables = match self.read_tables() {
            Ok(tables) => tables,
            Err(cause) => {
                for read in reads {
                    read.answer(Err(&cause));
                }
                return;
            }
        };
        let now = self.clock.now();
        for read in reads {
            read.answer(Ok(Reading {
                tables: &tables,
                lease_states: &mut self.lease_states,
                now,
            }));
        }
    }

    fn read_tables(&mut self) -> Result<ReadTables, Cause> {
        if self.database.is_none() {
            self.reopen()?;
        }
        let database = self.database.as_ref().expect("it was opened just now");
        let open = || -> Result<ReadTables, redb::Error> {
            Ok(ReadTables::open(&database.begin_read()?)?)
        };
        open().map_err(cause_of)
    }

    fn reopen(&mut self) -> Result<(), Cause> {
        let opened = self.disk.open(false);
        let opened = opened.map_err(|error| Cause(Arc::new(error)))?;
        self.commits = opened.commits;
        self.garbage = opened.garbage;
        self.database = Some(opened.database);
        Ok(())
    }
}

impl CommitFault {
    fn cause(&self) -> &Cause {
        match self {
            Self::NotWritten(cause) | Self::InDoubt(cause) => cause,
        }
    }
}

/// Removes a part of the abandoned plans.
fn sweep(tables: &mut WriteTables<'_>) -> Result<Swept, redb::Error> {
    match write_ops::sweep(tables, SWEEP_ROWS) {
        Ok(swept) => Ok(swept),
        Err(Fault::Failed(error)) => Err(error),
        Err(Fault::Refused(_) | Fault::Damaged(_)) => {
            tracing::error!("an abandoned plan cannot be removed, and stays");
            Ok(Swept::Clean)
        }
    }
}

fn cause_of(error: redb::Error) -> Cause {
    Cause(Arc::new(error))
}
