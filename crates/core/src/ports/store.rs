//! The store: the truth about every rollout.

use std::time::Duration;

use async_trait::async_trait;

use crate::batch::{BatchStatus, Held, Lease, Reopened};
use crate::budget::{BudgetGroup, GroupProgress};
use crate::evidence::{ListenerReport, ListenerStatus};
use crate::group::Line;
use crate::ids::{
    Attempt, BatchId, GroupName, Holder, HubHost, HubName, Revision, RolloutId, RolloutName,
    StageIndex,
};
use crate::link::{LinkReport, LinkStatus};
use crate::outcome::{Counts, Outcome, OutcomeList};
use crate::permits::{Grant, LimiterState, PermitRequest};
use crate::plan::{Batch, BatchHeader, Checksum};
use crate::rollout::{Adding, LookId, Phase, Rollout, Wanted};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has changed the record, or holds the lease, since. Read again, or let go.
    #[error("{what} was changed by somebody else in the meantime")]
    Superseded {
        /// What.
        what: String,
    },
    /// There is no such thing.
    #[error("{what} does not exist")]
    NotFound {
        /// What.
        what: String,
    },
    /// No room, or no permission to write: nothing was changed.
    #[error("cannot {doing}: the store cannot be written")]
    NotWritable {
        /// What was being done.
        doing: String,
        /// What the system says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store does not answer. The effect may or may not have taken place.
    #[error("cannot {doing}: the store does not answer")]
    Unavailable {
        /// What was being done.
        doing: String,
        /// What the store's client says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A newer release has written it, in a format that this one does not know. Nothing was changed; it is to be left to those
    /// that know it.
    #[error("{what} is of a newer release: format {found}, and this release knows up to {known}")]
    Newer {
        /// What.
        what: String,
        /// Its format.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// The store lost writes that it had acknowledged, so the call would rely on what is not there. Nothing was changed:
    /// read again, and do again what is missing.
    #[error("the store has lost its last writes: {what}")]
    Regressed {
        /// What is missing.
        what: String,
    },
    /// What is stored cannot be what was written.
    #[error("cannot {doing}: the stored data are damaged")]
    Corrupt {
        /// What was being done.
        doing: String,
        /// What does not fit.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What `create` found.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    /// It was new and is stored.
    New,
    /// There was one of that name; it was left as it is.
    Existing(Box<Rollout>),
}

/// A wish to work on a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The rollout.
    pub rollout: RolloutName,
    /// The batch.
    pub batch: BatchId,
    /// Who wants it.
    pub holder: Holder,
    /// For how long, unless renewed.
    pub ttl: Duration,
}

/// What became of the wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseReply {
    /// Here it is.
    Granted(Lease),
    /// Somebody has it.
    Held(Held),
    /// Nothing is left to do on the batch.
    Done,
    /// The rollout does not want the batch to be worked on now, or does not want any.
    NotWanted,
    /// It has brought down its holders so often ([`MAX_STRIKES`](crate::batch::MAX_STRIKES))
    /// that nobody is to touch it until somebody has looked.
    Quarantined,
}

/// Which devices of a batch will not be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// All that are left, for the rollout is being aborted: `pending` becomes `skipped`, `attempting` becomes `unknown`.
    Rest,
    /// Those that have left the target, as far as they are `pending`, which becomes `skipped`.
    Left {
        /// The look that has found it.
        look: LookId,
        /// Their positions in the manifest, ascending.
        devices: Vec<u32>,
    },
}

impl Skip {
    /// What is to be recorded of the device at `index` whose outcome is `known`.
    #[must_use]
    pub fn end(&self, index: u32, known: Outcome) -> Option<Outcome> {
        match (self, known) {
            (Self::Rest, Outcome::Pending) => Some(Outcome::Skipped),
            (Self::Rest, Outcome::Attempting) => Some(Outcome::Unknown),
            (Self::Left { devices, .. }, Outcome::Pending) => {
                let has_left = devices.binary_search(&index).is_ok();
                has_left.then_some(Outcome::Skipped)
            }
            _ => None,
        }
    }

    /// Whether that may happen to a rollout as it is.
    #[must_use]
    pub fn is_allowed(&self, rollout: &Rollout) -> bool {
        match self {
            Self::Rest => matches!(rollout.phase, Phase::Aborting { .. }),
            Self::Left { look, .. } => rollout.adding() == Some(Adding::Look(*look)),
        }
    }
}

/// A batch with all that is known of its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchWork {
    /// The rollout.
    pub rollout: RolloutId,
    /// The manifest.
    pub batch: Batch,
    /// Their outcomes, in the manifest's order.
    pub outcomes: OutcomeList,
    /// The hub's codes for the devices that it refused, by position, ascending.
    pub codes: Vec<(u32, u32)>,
    /// Which attempt is made at those that are pending.
    pub attempt: Attempt,
}

/// A report on one device of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Its position in the manifest.
    pub index: u32,
    /// What became of it.
    pub outcome: Outcome,
    /// The hub's code for a [`Outcome::Refused`], else 0. The first that is recorded stands.
    pub code: u32,
}

/// The counts of one stage on one hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// The stage.
    pub stage: StageIndex,
    /// The hub.
    pub hub: HubName,
    /// How many devices have which outcome.
    pub counts: Counts,
}

impl Tally {
    /// The counts of all stages and hubs together.
    #[must_use]
    pub fn sum<'a>(tallies: impl IntoIterator<Item = &'a Self>) -> Counts {
        let mut counts = Counts::default();
        for tally in tallies {
            counts.add(&tally.counts);
        }
        counts
    }
}

/// Keeps rollouts, plans, outcomes and permits. All methods are atomic: they take effect whole or
/// not at all.
///
/// `Ok` means durable after some [time](Store::durable_after). A store that crashes earlier may come back as it was before some of
/// its last writes: in an older state, never in a mixture of states. It lists and leases no batch before the batch, and
/// the completion of the plan, are durable, so no message of a plan is sent that may be made again in another way.
///
/// Cancel safety: a dropped call may or may not have taken effect, as after
/// [`StoreError::Unavailable`]; every call may be repeated.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The time after which an acknowledged write is durable: until then a crash of the store may undo the write. Zero when
    /// `Ok` means durable.
    fn durable_after(&self) -> Duration {
        Duration::ZERO
    }

    /// Stores a rollout unless there is one of its name.
    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError>;

    /// A rollout's record, `None` if there is none of that name.
    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError>;

    /// The revision of a rollout's record: whether it changed, for less than reading it.
    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError>;

    /// The names of all rollouts, ascending.
    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError>;

    /// Replaces a record by one that was made from its revision `from`.
    ///
    /// A record of the same version as before differs in its `account` and its `clock` only: nothing has happened to
    /// the rollout, and nobody is fenced by it.
    ///
    /// When the new record has another `plan_id`, all batches of older tries are gone with it.
    /// [`StoreError::Superseded`] when the stored revision is another, [`StoreError::Regressed`] when the store does not
    /// hold what the new record [relies on](Rollout::relies_on).
    async fn save(&self, rollout: &Rollout, from: Revision) -> Result<(), StoreError>;

    /// Removes a rollout that has ended and is off the [roster](super::Roster), with its batches and outcomes. The name is
    /// free afterwards. Nothing is changed when there is no rollout of that name. However large the rollout was, other
    /// calls are not held up: what it took is given back after the call, piece by piece.
    /// [`StoreError::Superseded`] when the stored revision is another.
    async fn remove(&self, name: &RolloutName, revision: Revision) -> Result<(), StoreError>;

    /// Adds batches, all devices pending. Repeating a batch changes nothing. Gives the checksum of all batches that the
    /// rollout has then.
    /// [`StoreError::Superseded`] when that is not what the rollout's batches are
    /// [added by](Rollout::adding) now.
    async fn add_batches(
        &self,
        name: &RolloutName,
        by: Adding,
        batches: Vec<Batch>,
    ) -> Result<Checksum, StoreError>;

    /// Batches in the order of their numbers, `limit` at the most, after the number `after`.
    async fn batches(
        &self,
        name: &RolloutName,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError>;

    /// A hub's batches of the stages up to `through` on which something is left to do, the first
    /// `limit` in the order of stages, places and numbers. Cheap, however many there are besides.
    async fn open_batches(
        &self,
        name: &RolloutName,
        hub: &HubName,
        through: StageIndex,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError>;

    /// Asks for a batch. Only one of the stages up to the rollout's current one is given, and only one that all of
    /// its budgets have room for: from then on they count it ([`budget`](crate::budget)).
    async fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, StoreError>;

    /// A batch and what is known of it.
    async fn load(&self, name: &RolloutName, batch: BatchId) -> Result<BatchWork, StoreError>;

    /// Merges reports into the batch's outcomes, moves the counters by what that changed, renews
    /// the lease until `ttl` from now, and says what the rollout wants. With no reports it is a
    /// heartbeat. Idempotent: the outcomes are a semilattice.
    /// [`StoreError::Superseded`] when the lease no longer holds; then nothing was recorded.
    async fn record(
        &self,
        lease: &Lease,
        reports: &[Report],
        ttl: Duration,
    ) -> Result<Wanted, StoreError>;

    /// Merges what others than the batch's holder have learned, the hub's feedback above all:
    /// as [`record`](Self::record), but under no lease. `attempt` is that of the messages which the
    /// reports are about; those that no longer say anything of their device are passed over, see
    /// [`Attempts::admits`](crate::batch::Attempts::admits). Idempotent.
    /// [`StoreError::NotFound`] when there is no such batch (any more), or the rollout of that name is another one.
    async fn merge(
        &self,
        name: &RolloutName,
        id: RolloutId,
        batch: BatchId,
        attempt: Attempt,
        reports: &[Report],
    ) -> Result<(), StoreError>;

    /// Lets go of a batch. Does nothing if the lease no longer holds.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Settles devices of a batch that will not be sent to: see [`Skip`]. Gives the holder if somebody works on the
    /// batch; then nothing was changed, and it can be asked again later.
    /// [`StoreError::Superseded`] when the rollout is not being aborted, or no longer at that look.
    async fn skip(
        &self,
        name: &RolloutName,
        batch: BatchId,
        which: &Skip,
    ) -> Result<Option<Held>, StoreError>;

    /// Makes the devices of a batch pending again that have one of `outcomes` (of those that
    /// [can be retried](Outcome::can_be_retried)), as attempt `attempt`, and forgets the hub's codes
    /// for them. With none such nothing is changed. Whoever had the batch last is fenced: what they
    /// have not recorded by now is about an older attempt.
    ///
    /// A driver that died may do all of it again: a batch that was reopened for this attempt or a
    /// newer one is left as it is. Nothing is sent meanwhile, so none of it fails again in between.
    /// [`StoreError::Superseded`] when the rollout does not prepare this attempt.
    async fn reopen(
        &self,
        name: &RolloutName,
        batch: BatchId,
        attempt: Attempt,
        outcomes: &[Outcome],
    ) -> Result<Reopened, StoreError>;

    /// Groups of a rollout as they are now, in their order.
    async fn in_progress(
        &self,
        name: &RolloutName,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, StoreError>;

    /// A rollout's counters by stage and hub: always the sum of its outcomes.
    async fn tallies(&self, name: &RolloutName) -> Result<Vec<Tally>, StoreError>;

    /// The line of a group: the empty one of version 0 before somebody has joined it.
    async fn line(&self, group: &GroupName) -> Result<Line, StoreError>;

    /// Replaces a group's line by one that was made from the version before it.
    /// [`StoreError::Superseded`] when the stored version is another.
    async fn save_line(&self, group: &GroupName, line: &Line) -> Result<(), StoreError>;

    /// Binds the alias of a hub to the hub's host name, unless the alias is bound already; gives the host name to which
    /// the alias is bound. A binding never changes, because all records under the alias are about that hub.
    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError>;

    /// Reserves permits on a hub.
    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError>;

    /// A hub refused a send for its quota: slows everyone down.
    async fn throttled(
        &self,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) -> Result<(), StoreError>;

    /// Keeps what a listener to a hub's feedback says of itself, in place of what it said before. A report that is older
    /// than [`FORGOTTEN`](crate::evidence::FORGOTTEN) may be forgotten.
    ///
    /// An implementation that is a part of the process knows after a crash that there was a listener: it reports none that
    /// is listening, with the state of the last one, as of the moment at which it was opened.
    async fn report_listener(
        &self,
        hub: &HubName,
        report: &ListenerReport,
    ) -> Result<(), StoreError>;

    /// The listeners to a hub's feedback, with their newest reports, in no order. Those that were lost are among them,
    /// until they are forgotten.
    async fn listeners(&self, hub: &HubName) -> Result<Vec<ListenerStatus>, StoreError>;

    /// Keeps what a worker says of its sending link to a hub, in place of what it said before. A report that is older
    /// than [`FORGOTTEN`](crate::evidence::FORGOTTEN) may be forgotten. It need not outlive the process of a store that
    /// is a part of it.
    async fn report_link(&self, hub: &HubName, report: &LinkReport) -> Result<(), StoreError>;

    /// The workers' sending links to a hub, with their newest reports, in no order. Those of workers that have gone are
    /// among them, until they are forgotten.
    async fn links(&self, hub: &HubName) -> Result<Vec<LinkStatus>, StoreError>;

    /// What a hub's limiter does now. Changes nothing.
    async fn limiter(&self, hub: &HubName) -> Result<LimiterState, StoreError>;

    /// Reserves the opening of one link to a hub, and says how long to wait before it: links have
    /// a small budget of their own, see [`Links`](crate::permits::Links).
    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError>;
}

/// One device of a batch, with what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownDevice<'a> {
    /// Its position in the manifest.
    pub index: u32,
    /// Its id.
    pub id: &'a str,
    /// What became of it.
    pub outcome: Outcome,
    /// The hub's code, if it refused it.
    pub code: Option<u32>,
}

impl BatchWork {
    /// Its devices, in the manifest's order.
    pub fn devices(&self) -> impl Iterator<Item = KnownDevice<'_>> {
        let mut codes = self.codes.iter().peekable();
        let outcomes = (0u32..).zip(self.outcomes.iter());
        let devices = outcomes.zip(self.batch.devices.iter());
        devices.map(move |((index, outcome), id)| {
            let code = codes.next_if(|(at, _)| *at == index);
            KnownDevice {
                index,
                id,
                outcome,
                code: code.map(|(_, code)| *code),
            }
        })
    }

    /// The header, for brevity.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.batch.header
    }
}
