//! A device whose send ends the connection must not cost other devices their answers for ever.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use twincast_core::answer::Answer;
use twincast_core::ids::DeviceId;
use twincast_core::message::Outbound;
use twincast_core::outcome::Outcome;
use twincast_core::ports::{DevicePage, DeviceQuery, Hub, HubError, SendResult};
use twincast_core::query::PropertyName;
use twincast_testkit::{RuntimeClock, ScriptedHub, build};
use twincast_worker::{Worker, WorkerHub};

use crate::bench::Bench;

/// The time from a send to the answer.
const ANSWER: Duration = Duration::from_millis(20);

/// A hub with a connection that ends soon after a send to `poison`.
struct Fragile {
    hub: ScriptedHub,
    poison: Option<DeviceId>,
    /// The number of lost connections.
    losses: watch::Sender<u64>,
    under_way: AtomicUsize,
    /// For each send to the poisonous device, the number of other sends lost with the connection.
    taken: Mutex<Vec<usize>>,
}

impl Fragile {
    fn new(poison: Option<DeviceId>) -> Arc<Self> {
        Arc::new(Self {
            hub: ScriptedHub::of(0),
            poison,
            losses: watch::channel(0).0,
            under_way: AtomicUsize::new(0),
            taken: Mutex::default(),
        })
    }
}

#[async_trait]
impl Hub for Fragile {
    async fn count(&self, condition: &str) -> Result<u64, HubError> {
        self.hub.count(condition).await
    }

    fn devices(&self, query: DeviceQuery) -> BoxStream<'_, Result<DevicePage, HubError>> {
        self.hub.devices(query)
    }

    async fn count_states(
        &self,
        condition: &str,
        property: &PropertyName,
    ) -> Result<Vec<(String, u64)>, HubError> {
        self.hub.count_states(condition, property).await
    }

    fn answers(
        &self,
        condition: &str,
        property: &PropertyName,
    ) -> BoxStream<'_, Result<Vec<Answer>, HubError>> {
        self.hub.answers(condition, property)
    }

    async fn send(&self, message: Outbound) -> SendResult {
        let mut losses = self.losses.subscribe();
        losses.mark_unchanged();
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let lost = SendResult::Unknown {
            detail: "the connection ended".to_owned(),
        };
        let result = if Some(&message.device) == self.poison.as_ref() {
            tokio::time::sleep(ANSWER / 2).await;
            let others = self.under_way.load(Ordering::Relaxed) - 1;
            self.taken.lock().unwrap().push(others);
            self.losses.send_modify(|losses| *losses += 1);
            lost
        } else {
            tokio::select! {
                biased;
                _ = losses.changed() => lost,
                () = tokio::time::sleep(ANSWER) => SendResult::Enqueued,
            }
        };
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        result
    }
}

fn start(bench: &Bench, hub: Arc<Fragile>) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let worker = Worker::new(
        bench.config,
        Arc::clone(&bench.store) as _,
        Arc::clone(&bench.queue) as _,
        vec![WorkerHub {
            name: build::hub("a"),
            host: build::host("a"),
            hub,
            limits: bench.limits,
        }],
        Arc::new(RuntimeClock::default()),
    );
    let stop = CancellationToken::new();
    let running = worker.run(stop.clone());
    (stop, tokio::spawn(async move { running.await.unwrap() }))
}

#[tokio::test(start_paused = true)]
async fn a_suspect_is_sent_to_alone_after_two_losses() {
    // Two batches, so that sends of another batch are affected, too.
    let mut bench = Bench::new(&[3_000, 3_000]).await;
    bench.config.window = 20;
    let poison = build::batch(0, 3_000).devices.get(0);
    let hub = Fragile::new(Some(poison));
    let (stop, worker) = start(&bench, Arc::clone(&hub));
    let counts = bench.until_settled().await;
    stop.cancel();
    worker.await.unwrap();
    assert_eq!(counts.get(Outcome::Enqueued), 5_999);
    assert_eq!(counts.get(Outcome::Unknown), 1);
    let taken = hub.taken.lock().unwrap().clone();
    assert_eq!(taken.len(), usize::from(bench.config.tries));
    let (together, alone) = taken.split_at(2);
    assert!(together.iter().all(|others| *others > 0), "{taken:?}");
    assert!(alone.iter().all(|others| *others == 0), "{taken:?}");
    assert!(!alone.is_empty());
}
