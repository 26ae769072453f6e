//! Stores on servers of the test process, each under a prefix of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use twincast_redis::{RedisStore, Settings, TimeSource};
use twincast_testkit::ManualClock;
use twincast_testkit::services::{Redis, RedisCluster};

/// A prefix that no other test of this process has. The servers are this process's own.
pub(crate) fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}:", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A store on the shared Redis.
pub(crate) async fn on_one() -> (Arc<RedisStore>, ManualClock) {
    on(Settings::new(Redis::shared().await.url())).await
}

/// A store on the shared cluster.
pub(crate) async fn on_three() -> (Arc<RedisStore>, ManualClock) {
    on(Settings::cluster(RedisCluster::shared().await.urls())).await
}

/// A store of its own prefix, and on a clock that tests move.
pub(crate) async fn on(settings: Settings) -> (Arc<RedisStore>, ManualClock) {
    let clock = ManualClock::default();
    let settings = Settings {
        prefix: prefix(),
        time: TimeSource::Given(Arc::new(clock.clone())),
        ..settings
    };
    let store = RedisStore::connect(&settings).await.expect("a store");
    (Arc::new(store), clock)
}
