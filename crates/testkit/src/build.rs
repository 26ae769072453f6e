//! Builders of rollouts, batches and reports, each in a single line of a test. All functions panic
//! on invalid arguments.

use std::time::Duration;

use twincast_core::batch::{BatchStatus, Lease};
use twincast_core::ids::{
    BatchId, DeviceId, Holder, HubHost, HubName, RolloutId, RolloutName, StageIndex, StageName,
};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::plan::{Batch, BatchHeader, Checksum, DeviceList, PlanSummary, TagGroup};
use twincast_core::ports::{LeaseReply, LeaseRequest, Report, Store};
use twincast_core::rollout::{Adding, Attribution, Event, PlanId, Rollout, ScanResult};
use twincast_core::spec::{Continuous, RolloutSpec};
use twincast_core::time::Timestamp;

/// The lease time of [`lease_request`].
pub const TTL: Duration = Duration::from_secs(30);

/// An upper bound of all stages.
pub const ALL_STAGES: StageIndex = StageIndex(u16::MAX);

/// Returns a rollout's name.
#[must_use]
pub fn name(text: &str) -> RolloutName {
    RolloutName::new(text).expect("a rollout name")
}

/// Returns a hub's name.
#[must_use]
pub fn hub(text: &str) -> HubName {
    HubName::new(text).expect("a hub name")
}

/// Returns the host name of a hub.
#[must_use]
pub fn host(hub: &str) -> HubHost {
    HubHost::new(format!("{hub}.azure-devices.net")).expect("a host name")
}

/// Returns a device's id.
#[must_use]
pub fn device(text: &str) -> DeviceId {
    DeviceId::new(text).expect("a device id")
}

/// Returns a holder.
#[must_use]
pub fn holder(text: &str) -> Holder {
    Holder::new(text).expect("a holder")
}

/// Returns a just accepted rollout to all devices. The id is 0, as for all rollouts of this module.
#[must_use]
pub fn accepted(name: &str) -> Rollout {
    let text = format!("{{name: {name}, target: {{all: true}}, message: {{body: {{text: hi}}}}}}");
    let spec = RolloutSpec::read("test", &text).expect("the spec is valid");
    of_spec(spec)
}

fn of_spec(spec: RolloutSpec) -> Rollout {
    Rollout {
        id: RolloutId::default(),
        ..Rollout::accepted(spec, Default::default(), Timestamp(1))
    }
}

/// Returns the record after an event. The event must be possible and change the record.
#[must_use]
pub fn after(rollout: &Rollout, event: Event) -> Rollout {
    rollout
        .after(event, Timestamp(2))
        .expect("the event is possible")
        .expect("the event changes the rollout")
}

/// Returns the event of a completed plan with `devices` devices.
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
            malformed_rows: Default::default(),
            unknown_zones: Default::default(),
        },
    }
}

/// Returns the event of a completed plan with these batches.
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

/// Returns the event of a requested pause.
#[must_use]
pub fn pause_requested() -> Event {
    Event::PauseRequested {
        reason: "a test".into(),
    }
}

/// Returns the event of a requested abort.
#[must_use]
pub fn abort_requested() -> Event {
    Event::AbortRequested {
        reason: "a test".into(),
    }
}

/// Returns the event of a requested retry at devices with any of these outcomes.
#[must_use]
pub fn retry_of(outcomes: &[Outcome]) -> Event {
    Event::RetryRequested {
        outcomes: outcomes.to_vec(),
        stage: None,
        attribution: Attribution::default(),
    }
}

/// Returns a batch of `devices` devices on hub `a`, stage 0. The device ids contain the number of
/// the batch.
#[must_use]
pub fn batch(id: u32, devices: u32) -> Batch {
    batch_on(id, "a", 0, devices)
}

/// Returns a batch on a hub and in a stage.
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
            group: TagGroup::default(),
            further_groups: Vec::new(),
            devices,
            sort_key: Default::default(),
            budgets: Vec::new(),
        },
        devices: list,
    }
}

/// Returns the status of a batch without outcomes and without a holder.
#[must_use]
pub fn open_status(header: BatchHeader) -> BatchStatus {
    BatchStatus {
        counts: Counts::pending(u64::from(header.devices)),
        header,
        held: None,
        lapsed: false,
        quarantined: false,
        is_counted: false,
    }
}

/// Returns a report without a code.
#[must_use]
pub fn report(index: u32, outcome: Outcome) -> Report {
    Report {
        index,
        outcome,
        code: 0,
    }
}

/// Returns a request to lease a batch for [`TTL`].
#[must_use]
pub fn lease_request(rollout: &RolloutName, batch: u32, by: &str) -> LeaseRequest {
    LeaseRequest {
        rollout: rollout.clone(),
        batch: BatchId(batch),
        holder: holder(by),
        ttl: TTL,
    }
}

/// Applies an event to a rollout and stores the record. The checksum of a completed plan or scan is
/// set to the checksum of the stored batches.
pub async fn apply(store: &dyn Store, rollout: &Rollout, mut event: Event) -> Rollout {
    match &mut event {
        Event::PlanCompleted { plan } => plan.checksum = stored_checksum(store, rollout).await,
        Event::ScanCompleted { found } => found.checksum = stored_checksum(store, rollout).await,
        _ => {}
    }
    let next = after(rollout, event);
    store
        .save(&next, rollout.revision())
        .await
        .expect("the rollout has no concurrent change");
    next
}

/// Returns the checksum of a rollout's stored batches.
pub async fn stored_checksum(store: &dyn Store, rollout: &Rollout) -> Checksum {
    let name = &rollout.spec.name;
    let mut checksum = Checksum::default();
    for batch in store
        .batches(name, None, usize::MAX)
        .await
        .expect("the rollout exists")
    {
        let work = store.load(name, batch.header.id).await;
        checksum.add(&work.expect("the listed batch exists").batch);
    }
    checksum
}

/// Creates a rollout and starts the planning.
pub async fn planning(store: &dyn Store, name: &str) -> Rollout {
    plan(store, &accepted(name)).await
}

async fn plan(store: &dyn Store, rollout: &Rollout) -> Rollout {
    store
        .create(rollout)
        .await
        .expect("the rollout can be created");
    apply(store, rollout, Event::PlanningStarted).await
}

/// Creates a running rollout with these batches.
pub async fn running(store: &dyn Store, name: &str, batches: Vec<Batch>) -> Rollout {
    run(store, &accepted(name), batches).await
}

async fn run(store: &dyn Store, rollout: &Rollout, batches: Vec<Batch>) -> Rollout {
    store
        .create(rollout)
        .await
        .expect("the rollout can be created");
    planned(store, rollout, batches).await
}

/// Plans a created rollout with these batches. The rollout runs afterwards.
pub async fn planned(store: &dyn Store, rollout: &Rollout, batches: Vec<Batch>) -> Rollout {
    let rollout = apply(store, rollout, Event::PlanningStarted).await;
    let devices = batches.iter().map(|b| u64::from(b.header.devices)).sum();
    store
        .add_batches(&rollout.spec.name, Adding::Plan(PlanId(1)), batches)
        .await
        .expect("the plan accepts batches");
    apply(store, &rollout, plan_completed(devices)).await
}

/// Creates a running rollout with these batches and the stages `one`, `two` and the rest.
pub async fn staged(store: &dyn Store, name: &str, batches: Vec<Batch>) -> Rollout {
    let text = format!(
        "{{name: {name}, target: {{all: true}}, message: {{body: {{text: hi}}}}, \
         stages: [{{name: one, percent: 10%}}, {{name: two, percent: 50%}}]}}"
    );
    let spec = RolloutSpec::read("test", &text).expect("the spec is valid");
    let rollout = of_spec(spec);
    run(store, &rollout, batches).await
}

/// Returns a just accepted continuous rollout: late joiners are added.
#[must_use]
pub fn continuous(name: &str) -> Rollout {
    let mut rollout = accepted(name);
    rollout.spec.continuous = Some(Continuous::default());
    rollout
}

/// Creates a running continuous rollout with these batches.
pub async fn running_continuous(store: &dyn Store, name: &str, batches: Vec<Batch>) -> Rollout {
    run(store, &continuous(name), batches).await
}

/// Returns the event of a completed scan of the target.
#[must_use]
pub fn scan_completed(joined: u64, departed: u64) -> Event {
    Event::ScanCompleted {
        found: ScanResult {
            joined,
            departed,
            ..ScanResult::default()
        },
    }
}

/// Returns the event of a passed stage.
#[must_use]
pub fn stage_passed(stage: &str) -> Event {
    Event::StagePassed {
        stage: StageName::new(stage).expect("a stage name"),
        reason: "a test".into(),
    }
}

/// Leases a batch. The batch must be free.
pub async fn leased(store: &dyn Store, rollout: &RolloutName, batch: u32, by: &str) -> Lease {
    let reply = store.lease(&lease_request(rollout, batch, by)).await;
    match reply.expect("the store is available") {
        LeaseReply::Granted(lease) => lease,
        other => panic!("batch {batch} was not leased to {by}: {other:?}"),
    }
}
