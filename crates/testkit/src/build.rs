//! Rollouts, batches and reports in a line. Everything here panics when it is given nonsense.

use std::time::Duration;

use twincast_core::batch::{BatchStatus, Lease};
use twincast_core::ids::{
    BatchId, DeviceId, Holder, HubHost, HubName, RolloutId, RolloutName, StageIndex, StageName,
};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::plan::{Batch, BatchHeader, Checksum, DeviceList, Group, PlanSummary};
use twincast_core::ports::{LeaseReply, LeaseRequest, Report, Store};
use twincast_core::rollout::{Adding, Event, Found, PlanId, Rollout, Word};
use twincast_core::spec::{Continuous, RolloutSpec};
use twincast_core::time::Timestamp;

/// The lease time of [`lease_request`].
pub const TTL: Duration = Duration::from_secs(30);

/// No stage is beyond it.
pub const ALL_STAGES: StageIndex = StageIndex(u16::MAX);

/// A rollout's name.
#[must_use]
pub fn name(text: &str) -> RolloutName {
    RolloutName::new(text).expect("a rollout name")
}

/// A hub's name.
#[must_use]
pub fn hub(text: &str) -> HubName {
    HubName::new(text).expect("a hub name")
}

/// The host name of the hub of that name.
#[must_use]
pub fn host(hub: &str) -> HubHost {
    HubHost::new(format!("{hub}.azure-devices.net")).expect("a host name")
}

/// A device's id.
#[must_use]
pub fn device(text: &str) -> DeviceId {
    DeviceId::new(text).expect("a device id")
}

/// A holder.
#[must_use]
pub fn holder(text: &str) -> Holder {
    Holder::new(text).expect("a holder")
}

/// A rollout to all devices that was just accepted. Its id is 0, as that of all that are made here.
#[must_use]
pub fn accepted(name: &str) -> Rollout {
    let text = format!("{{name: {name}, target: {{all: true}}, message: {{body: {{text: hi}}}}}}");
    let spec = RolloutSpec::read("test", &text).expect("the spec is right");
    of_spec(spec)
}

fn of_spec(spec: RolloutSpec) -> Rollout {
    Rollout {
        id: RolloutId::default(),
        ..Rollout::accepted(spec, Default::default(), Timestamp(1))
    }
}

/// The record after an event that must be possible.
#[must_use]
pub fn after(rollout: &Rollout, event: Event) -> Rollout {
    rollout
        .after(event, Timestamp(2))
        .expect("the event is possible")
        .expect("the event changes something")
}

/// A plan of `devices` devices was completed.
#[must_use]
pub fn plan_completed(devices: u64) -> Event {
    Event::PlanCompleted {
        plan: PlanSummary {
            devices,
            batches: 1,
            digest: String::new(),
            checksum: Checksum::default(),
            hubs: vec![],
            stages: vec![],
            excluded: vec![],
            repeated: 0,
            not_understood: Default::default(),
            unknown_zones: Default::default(),
        },
    }
}

/// A plan was completed that has these batches.
#[must_use]
pub fn plan_of(batches: &[Batch]) -> Event {
    let mut event = plan_completed(
        batches
            .iter()
            .map(|batch| u64::from(batch.header.devices))
            .sum(),
    );
    if let Event::PlanCompleted { plan } = &mut event {
        plan.checksum = batches.iter().collect();
    }
    event
}

/// A pause was requested.
#[must_use]
pub fn paused() -> Event {
    Event::PauseRequested {
        reason: "a test".into(),
    }
}

/// An abort was requested.
#[must_use]
pub fn aborted() -> Event {
    Event::AbortRequested {
        reason: "a test".into(),
    }
}

/// A new attempt was requested at devices with one of these outcomes.
#[must_use]
pub fn retry_of(outcomes: &[Outcome]) -> Event {
    Event::RetryRequested {
        outcomes: outcomes.to_vec(),
        stage: None,
        word: Word::default(),
    }
}

/// A batch of `devices` devices on hub `a`, stage 0. Its devices' ids hold its number.
#[must_use]
pub fn batch(id: u32, devices: u32) -> Batch {
    batch_on(id, "a", 0, devices)
}

/// A batch on a hub and in a stage.
#[must_use]
pub fn batch_on(id: u32, on: &str, stage: u16, devices: u32) -> Batch {
    let mut list = DeviceList::default();
    for index in 0..devices {
        list.push(&device(&format!("device-{id}-{index:06}")));
    }
    Batch {
        header: BatchHeader {
            id: BatchId(id),
            hub: hub(on),
            host: host(on),
            stage: StageIndex(stage),
            group: Group::default(),
            further: Vec::new(),
            devices,
            place: Default::default(),
            budgets: Vec::new(),
        },
        devices: list,
    }
}

/// A batch of which nothing is done, and which nobody holds.
#[must_use]
pub fn open_status(header: BatchHeader) -> BatchStatus {
    BatchStatus {
        counts: Counts::pending(u64::from(header.devices)),
        header,
        held: None,
        lapsed: false,
        quarantined: false,
        begun: false,
    }
}

/// A report without a code.
#[must_use]
pub fn report(index: u32, outcome: Outcome) -> Report {
    Report {
        index,
        outcome,
        code: 0,
    }
}

/// A wish to work on a batch, for [`TTL`].
#[must_use]
pub fn lease_request(rollout: &RolloutName, batch: u32, by: &str) -> LeaseRequest {
    LeaseRequest {
        rollout: rollout.clone(),
        batch: BatchId(batch),
        holder: holder(by),
        ttl: TTL,
    }
}

/// Stores a change of a rollout. A plan, or a look, is completed with the batches that there are.
pub async fn step(store: &dyn Store, rollout: &Rollout, mut event: Event) -> Rollout {
    match &mut event {
        Event::PlanCompleted { plan } => plan.checksum = stored(store, rollout).await,
        Event::Looked { found } => found.checksum = stored(store, rollout).await,
        _ => {}
    }
    let next = after(rollout, event);
    store
        .save(&next, rollout.revision())
        .await
        .expect("nobody else changes it");
    next
}

/// The checksum of a rollout's batches.
pub async fn stored(store: &dyn Store, rollout: &Rollout) -> Checksum {
    let name = &rollout.spec.name;
    let mut checksum = Checksum::default();
    for batch in store
        .batches(name, None, usize::MAX)
        .await
        .expect("it exists")
    {
        let work = store.load(name, batch.header.id).await;
        checksum.add(&work.expect("it was listed").batch);
    }
    checksum
}

/// Creates a rollout and starts planning it.
pub async fn planning(store: &dyn Store, name: &str) -> Rollout {
    plan(store, &accepted(name)).await
}

async fn plan(store: &dyn Store, rollout: &Rollout) -> Rollout {
    store.create(rollout).await.expect("it can be created");
    step(store, rollout, Event::PlanningStarted).await
}

/// Creates a rollout that runs, with these batches.
pub async fn running(store: &dyn Store, name: &str, batches: Vec<Batch>) -> Rollout {
    run(store, &accepted(name), batches).await
}

async fn run(store: &dyn Store, rollout: &Rollout, batches: Vec<Batch>) -> Rollout {
    store.create(rollout).await.expect("it can be created");
    planned(store, rollout, batches).await
}

/// Plans a rollout that was created, with these batches. It runs then.
pub async fn planned(store: &dyn Store, rollout: &Rollout, batches: Vec<Batch>) -> Rollout {
    let rollout = step(store, rollout, Event::PlanningStarted).await;
    let devices = batches.iter().map(|b| u64::from(b.header.devices)).sum();
    store
        .add_batches(&rollout.spec.name, Adding::Plan(PlanId(1)), batches)
        .await
        .expect("the plan is not whole");
    step(store, &rollout, plan_completed(devices)).await
}

/// Creates a rollout that runs, with stages `one`, `two` and the rest, and these batches.
pub async fn staged(store: &dyn Store, name: &str, batches: Vec<Batch>) -> Rollout {
    let text = format!(
        "{{name: {name}, target: {{all: true}}, message: {{body: {{text: hi}}}}, \
         stages: [{{name: one, percent: 10%}}, {{name: two, percent: 50%}}]}}"
    );
    let spec = RolloutSpec::read("test", &text).expect("the spec is right");
    let rollout = of_spec(spec);
    run(store, &rollout, batches).await
}

/// A rollout that goes on with devices that join later, accepted.
#[must_use]
pub fn continuous(name: &str) -> Rollout {
    let mut rollout = accepted(name);
    rollout.spec.continuous = Some(Continuous::default());
    rollout
}

/// Creates a continuous rollout that runs, with these batches.
pub async fn running_on(store: &dyn Store, name: &str, batches: Vec<Batch>) -> Rollout {
    run(store, &continuous(name), batches).await
}

/// A look is over.
#[must_use]
pub fn looked(joined: u64, left: u64) -> Event {
    Event::Looked {
        found: Found {
            joined,
            left,
            ..Found::default()
        },
    }
}

/// A stage is over.
#[must_use]
pub fn stage_passed(stage: &str) -> Event {
    Event::StagePassed {
        stage: StageName::new(stage).expect("a stage name"),
        reason: "a test".into(),
    }
}

/// Leases a batch that must be free.
pub async fn leased(store: &dyn Store, rollout: &RolloutName, batch: u32, by: &str) -> Lease {
    let reply = store.lease(&lease_request(rollout, batch, by)).await;
    match reply.expect("the store works") {
        LeaseReply::Granted(lease) => lease,
        other => panic!("batch {batch} was not leased to {by}: {other:?}"),
    }
}
