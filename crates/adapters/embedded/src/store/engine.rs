//! The thread that owns the file, and its group commit.
//!
//! Requests wait in a bounded line. The thread takes what is there, applies every request that
//! writes in one transaction, commits it once, and only then answers them; the requests that
//! only read come after, and see what was just committed. So the more there is to do, the more
//! shares one sync of the disk, and nobody waits for more than two of them.
//!
//! When a write fails (the disk is full), nothing of the group is kept. The database refuses to
//! go on after a failed write, so it is opened anew; a number that each group raises then tells
//! whether the failed commit got through after all.

use std::sync::Arc;

use redb::{Database, ReadableDatabase};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use twincast_core::evidence::{LOCK, ListenerReport, ListenerState, Listeners};
use twincast_core::ids::{Holder, HubName};
use twincast_core::ports::{Clock, StoreError};
use twincast_core::time::Timestamp;

use super::disk::Disk;
use super::error::{Cause, Fault, Misfit, OpenError, ToLook};
use super::tables::{LastListener, ReadTables, WriteTables, meta};
use super::tenancies::Tenancies;
use super::write_ops::{self, Swept};

/// Requests that may wait. They hold what they want to write, at most a few hundred KiB each,
/// and there are only so many tasks that ask; more than this would be no more concurrency.
pub(super) const WAITING: usize = 64;
/// Requests in one transaction.
const GROUP: usize = 64;
/// Rows of given-up plans that one transaction removes. Some 2 MiB of manifests.
const SWEEP_ROWS: usize = 512;

/// What the thread is asked.
pub(super) enum Request {
    /// To change something.
    Write(Box<dyn Write>),
    /// To read something.
    Read(Box<dyn Read>),
    /// To close the file, and to say when it is closed.
    Close(oneshot::Sender<()>),
}

/// What an operation that writes works on.
pub(super) struct Writing<'a, 't> {
    pub(super) tables: &'a mut WriteTables<'t>,
    pub(super) tenancies: &'a mut Tenancies,
    pub(super) now: Timestamp,
}

/// What an operation that reads works on.
pub(super) struct Reading<'a> {
    pub(super) tables: &'a ReadTables,
    pub(super) tenancies: &'a mut Tenancies,
    pub(super) now: Timestamp,
}

/// A request that writes.
pub(super) trait Write: Send {
    /// Takes effect in a transaction. An error means that the transaction is lost.
    fn apply(&mut self, on: Writing<'_, '_>) -> Result<(), redb::Error>;
    /// Answers, now that it is known what became of the transaction.
    fn answer(self: Box<Self>, group: Result<(), &GroupFault>);
}

/// A request that only reads.
pub(super) trait Read: Send {
    /// Reads and answers.
    fn answer(self: Box<Self>, on: Result<Reading<'_>, &Cause>);
}

/// Why a group had no effect.
#[derive(Debug)]
pub(super) enum GroupFault {
    /// Nothing of it was kept.
    NotWritten(Cause),
    /// It is not known whether it was kept.
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
            Err(Fault::Damaged(what)) => Err(Self::corrupt(self.doing.clone(), Misfit(what))),
            Err(Fault::Failed(error)) => return Err(error),
        });
        Ok(())
    }

    fn answer(self: Box<Self>, group: Result<(), &GroupFault>) {
        let doing = self.doing;
        let result = match (group, self.result) {
            // Nobody waits for it any more, so it was not even tried.
            (Ok(()), None) => return,
            (Ok(()), Some(result)) => result,
            // A refusal wrote nothing, but what it was founded on may not be there.
            (Err(GroupFault::NotWritten(cause)), _) => Err(StoreError::NotWritable {
                doing,
                source: Box::new(cause.clone()),
            }),
            (Err(GroupFault::InDoubt(cause)), _) => Err(StoreError::Unavailable {
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
                Err(Fault::Damaged(what)) => Err(Self::corrupt(doing, Misfit(what))),
                Err(Fault::Failed(error @ redb::Error::Corrupted(_))) => {
                    Err(Self::corrupt(doing, error))
                }
                Err(Fault::Failed(error)) => Err(unavailable(doing, cause_of(error))),
            },
        };
        _ = self.reply.send(result);
    }
}

/// The thread's own.
pub(super) struct Engine {
    disk: Disk,
    /// `None` after a failure, until it could be opened again.
    database: Option<Database>,
    groups: u64,
    garbage: bool,
    listened_to: Vec<(String, Vec<u8>)>,
    tenancies: Tenancies,
    clock: Arc<dyn Clock>,
}

impl Engine {
    pub(super) fn open(mut disk: Disk, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let opened = disk.open(true)?;
        Ok(Self {
            disk,
            database: Some(opened.database),
            groups: opened.groups,
            garbage: opened.garbage,
            listened_to: opened.listened_to,
            tenancies: Tenancies::default(),
            clock,
        })
    }

    /// Listeners of an earlier process: one that did not say that it ended may have had messages in hand up to now.
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
                listener: Holder::new("before").expect("a name of ours"),
                heard_ago: None,
                state: ListenerState {
                    listening: false,
                    ..last.state
                },
            };
            listeners.report(&hub, &report, last.ended.unwrap_or(now).min(now));
        }
        listeners
    }

    /// Works until it is told to close, or nobody can ask any more.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut may_sweep = true;
        loop {
            let first = match requests.try_recv() {
                Ok(request) => Some(request),
                Err(TryRecvError::Disconnected) => None,
                Err(TryRecvError::Empty) if self.garbage && may_sweep => {
                    // Nobody waits: time to clean up. After a failure, not before the next one
                    // who asks has found that writing works again.
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

    /// Serves one group. Gives the request to close, if one is in it.
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
            let full = writes.len() + reads.len() >= GROUP || close.is_some();
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
    fn commit(&mut self, writes: &mut [Box<dyn Write>]) -> Result<(), GroupFault> {
        if self.disk.is_to_look {
            return Err(GroupFault::NotWritten(Cause(Arc::new(ToLook))));
        }
        if self.database.is_none() {
            self.reopen().map_err(GroupFault::NotWritten)?;
        }
        let fault = match self.transact(writes) {
            Ok(()) => return Ok(()),
            Err(fault) => fault,
        };
        tracing::warn!(error = %fault.cause(), "the state could not be written, opening it anew");
        self.database = None;
        let attempted = self.groups + 1;
        let reopened = self.reopen();
        match fault {
            GroupFault::InDoubt(_) if reopened.is_ok() && self.groups == attempted => Ok(()),
            GroupFault::InDoubt(cause) if reopened.is_ok() => Err(GroupFault::NotWritten(cause)),
            fault => Err(fault),
        }
    }

    /// One transaction. When it fails, the database must be opened anew.
    fn transact(&mut self, writes: &mut [Box<dyn Write>]) -> Result<(), GroupFault> {
        let before = |error: redb::Error| GroupFault::NotWritten(cause_of(error));
        let database = self.database.as_ref().expect("it was opened just now");
        let transaction = database.begin_write().map_err(|e| before(e.into()))?;
        let mut tables = WriteTables::open(&transaction).map_err(|e| before(e.into()))?;
        let now = self.clock.now();
        for write in writes.iter_mut() {
            let tenancies = &mut self.tenancies;
            let tables = &mut tables;
            write
                .apply(Writing {
                    tables,
                    tenancies,
                    now,
                })
                .map_err(before)?;
        }
        let swept = sweep(&mut tables).map_err(before)?;
        let wrote = tables.wrote;
        if wrote {
            let raised = tables.meta.insert(meta::GROUPS, self.groups + 1);
            raised.map_err(|e| before(e.into()))?;
        }
        drop(tables);
        if wrote {
            let committed = transaction.commit();
            committed.map_err(|e| GroupFault::InDoubt(cause_of(e.into())))?;
            self.groups += 1;
        } else {
            transaction.abort().map_err(|e| before(e.into()))?;
        }
        self.garbage = swept != Swept::Clean;
        if let Swept::Whole(series) = swept {
            self.tenancies.forget(series);
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
                tenancies: &mut self.tenancies,
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
        self.groups = opened.groups;
        self.garbage = opened.garbage;
        self.database = Some(opened.database);
        Ok(())
    }
}

impl GroupFault {
    fn cause(&self) -> &Cause {
        match self {
            Self::NotWritten(cause) | Self::InDoubt(cause) => cause,
        }
    }
}

/// Removes a part of what was given up.
fn sweep(tables: &mut WriteTables<'_>) -> Result<Swept, redb::Error> {
    match write_ops::sweep(tables, SWEEP_ROWS) {
        Ok(swept) => Ok(swept),
        Err(Fault::Failed(error)) => Err(error),
        Err(Fault::Refused(_) | Fault::Damaged(_)) => {
            tracing::error!("a plan that was given up cannot be removed, and stays");
            Ok(Swept::Clean)
        }
    }
}

fn cause_of(error: redb::Error) -> Cause {
    Cause(Arc::new(error))
}
