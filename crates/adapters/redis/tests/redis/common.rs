//! Stores on servers of the test process, each with a unique prefix.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::OnceCell;
use twincast_core::ids::{BatchId, RolloutName};
use twincast_core::outcome::Counts;
use twincast_core::plan::Batch;
use twincast_core::ports::Store;
use twincast_redis::{RedisStore, Settings, TimeSource};
use twincast_testkit::services::{Redis, RedisCluster};
use twincast_testkit::{ManualClock, build};

/// Returns a prefix not used by any other test of this process. The servers belong to this process.
pub(crate) fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}:", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Opens a store on the shared Redis.
pub(crate) async fn on_one() -> (Arc<RedisStore>, ManualClock) {
    on(Settings::new(Redis::shared().await.url())).await
}

/// Opens a store on the shared cluster.
pub(crate) async fn on_three() -> (Arc<RedisStore>, ManualClock) {
    on(Settings::cluster(&RedisCluster::shared().await.urls())).await
}

/// The time limit of a call to a server on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Returns settings with time limits for a busy machine.
pub(crate) fn patient(settings: Settings) -> Settings {
    Settings {
        connect_timeout: PATIENCE,
        response_timeout: PATIENCE,
        ..settings
    }
}

/// Opens a store with a unique prefix and a clock controlled by the test.
pub(crate) async fn on(settings: Settings) -> (Arc<RedisStore>, ManualClock) {
    let clock = ManualClock::default();
    let settings = Settings {
        prefix: prefix(),
        time: TimeSource::Given(Arc::new(clock.clone())),
        durable_after: Some(Duration::ZERO),
        ..patient(settings)
    };
    let store = RedisStore::connect(&settings).await.expect("a store");
    (Arc::new(store), clock)
}

/// Commands refused by at least one managed service (Azure Cache for Redis, Azure Managed
/// Redis, ElastiCache, Memorystore): commands about the machine, the disk, replicas and users, and
/// commands unknown to a proxy in front of shards.
pub(crate) const MANAGED: &[&str] = &[
    "ACL",
    "BGREWRITEAOF",
    "BGSAVE",
    "CLIENT SETINFO",
    "CLIENT SETNAME",
    "CLUSTER",
    "COMMAND",
    "CONFIG",
    "DEBUG",
    "FAILOVER",
    "HELLO",
    "INFO",
    "LATENCY",
    "MEMORY",
    "MIGRATE",
    "MODULE",
    "MONITOR",
    "OBJECT",
    "PSYNC",
    "READONLY",
    "REPLICAOF",
    "ROLE",
    "SAVE",
    "SCRIPT",
    "SELECT",
    "SHUTDOWN",
    "SLAVEOF",
    "SLOWLOG",
    "SYNC",
    "WAIT",
];

/// Starts a server with the user `engine`, the password `secret` and the rights from the
/// documentation, without `INFO`: the command is refused in scripts, too.
pub(crate) async fn as_documented() -> SocketAddr {
    static MADE: OnceCell<SocketAddr> = OnceCell::const_new();
    let made = MADE.get_or_init(async || {
        let page = include_str!("../../../../../docs/how-to/secure.md");
        let rule = page
            .lines()
            .find_map(|line| line.strip_prefix("ACL SETUSER engine on >SECRET ~twincast:* "));
        let rule = rule
            .expect("the documentation lists the rights")
            .replace("+info ", "");
        let redis = Redis::shared().await;
        let set = format!("ACL SETUSER engine on >secret ~test-* {rule}");
        assert_eq!(redis.command(&set).await, "+OK\r\n");
        redis.address()
    });
    *made.await
}

/// Returns settings for a test's own Redis, with a unique prefix and the server's time.
pub(crate) fn settings(redis: &Redis) -> Settings {
    Settings {
        prefix: prefix(),
        durable_after: Some(Duration::ZERO),
        ..patient(Settings::new(redis.url()))
    }
}

/// Opens a store with these settings, which must be valid.
pub(crate) async fn connect(settings: &Settings) -> RedisStore {
    RedisStore::connect(settings).await.expect("a store")
}

/// Recounts a rollout's outcomes, and compares the result with all stored sums.
pub(crate) async fn verify(store: &dyn Store, name: &RolloutName) {
    let mut tallies = BTreeMap::<_, Counts>::new();
    let mut open = BTreeMap::<_, Vec<BatchId>>::new();
    let mut after = None;
    loop {
        let page = store.batches(name, after, 100).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.header.id);
        for status in &page {
            let header = &status.header;
            let work = store.load(name, header.id).await.unwrap();
            assert_eq!(work.outcomes.counts(), status.counts, "batch {}", header.id);
            let sum = tallies.entry((header.stage, header.hub.clone()));
            sum.or_default().add(&status.counts);
            let open = open.entry(header.hub.clone()).or_default();
            if !status.is_done() {
                open.push(header.id);
            }
        }
    }
    for (hub, expected) in open {
        let page = store
            .open_batches(name, &hub, build::ALL_STAGES, usize::MAX)
            .await
            .unwrap();
        let found: Vec<_> = page.iter().map(|status| status.header.id).collect();
        assert_eq!(found, expected, "open batches of {hub}");
    }
    let stored = store.tallies(name).await.unwrap();
    let stored: BTreeMap<_, _> = stored
        .into_iter()
        .map(|tally| ((tally.stage, tally.hub), tally.counts))
        .collect();
    assert_eq!(stored, tallies);
}

/// Pseudo-random numbers, the same in every run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Returns a number below `limit`.
    pub(crate) fn roll(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32 % limit
    }
}

/// Creates a batch with ids of 20 random lowercase letters and digits.
pub(crate) fn random_batch(id: u32, devices: u32) -> Batch {
    const CHARACTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut dice = Dice::new(u64::from(id) + 1);
    let mut character = || char::from(CHARACTERS[dice.roll(36) as usize]);
    let mut batch = build::batch(id, 0);
    for _ in 0..devices {
        let text: String = std::iter::repeat_with(&mut character).take(20).collect();
        batch.devices.push(&build::device(&text));
    }
    batch.header.devices = devices;
    batch
}
