//! RabbitMQ and Redis for an engine: services shared by all tests, under separate names, or a
//! separate pair of services to be stopped, killed and disconnected.

use std::future::Future;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use twincast_testkit::services::{Proxy, RabbitMq, Redis};

use crate::waiting::poll_for;

/// The runtime of services and proxies, longer-lived than every test.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

/// Waits for a future.
pub(crate) fn wait<T>(doing: impl Future<Output = T>) -> T {
    RUNTIME.block_on(doing)
}

/// The addresses of services, and the engine's names in the services.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// The URL of RabbitMQ, the URLs of its nodes, or the path of a file with either.
    pub(crate) amqp_url: String,
    /// The URL of Redis, or the path of a file with the URL.
    pub(crate) redis_url: String,
    pub(crate) prefix: String,
}

impl Access {
    /// Returns the services shared by all tests, under unique names.
    pub(crate) fn shared() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (rabbitmq, redis) = wait(async { tokio::join!(RabbitMq::shared(), Redis::shared()) });
        Self {
            amqp_url: rabbitmq.url(),
            redis_url: redis.url(),
            prefix: format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// Services of a single test, each behind a proxy.
pub(crate) struct OwnServices {
    pub(crate) rabbitmq: RabbitMq,
    pub(crate) redis: Redis,
    pub(crate) to_rabbitmq: Proxy,
    pub(crate) to_redis: Proxy,
}

impl OwnServices {
    /// Starts the services; Redis with the given options.
    pub(crate) fn start(redis_options: &[&str]) -> Self {
        wait(async {
            let (rabbitmq, redis) = tokio::join!(RabbitMq::start(), Redis::start(redis_options));
            let to_rabbitmq = Proxy::start(rabbitmq.address()).await;
            let to_redis = Proxy::start(redis.address()).await;
            Self {
                rabbitmq,
                redis,
                to_rabbitmq,
                to_redis,
            }
        })
    }

    /// Returns the size of Redis' append-only file, in bytes.
    pub(crate) fn written(&self) -> u64 {
        let file = append_only_file(&self.redis);
        std::fs::metadata(file)
            .expect("the append-only file exists")
            .len()
    }

    /// Kills Redis after `lost`, and cuts the last writes from the file, at most those of `lost`, as
    /// in a power failure of the machine. Returns the number of lost bytes.
    pub(crate) fn power_cut(&self, lost: Duration) -> u64 {
        let is_dead = AtomicBool::new(false);
        let on_disk = std::thread::scope(|scope| {
            let observer = scope.spawn(|| {
                let mut sizes = Vec::new();
                while !is_dead.load(Ordering::Relaxed) {
                    sizes.push((Instant::now(), self.written()));
                    poll_for(Duration::from_millis(1), || {});
                }
                sizes
            });
            poll_for(lost, || {});
            wait(self.redis.kill());
            let died = Instant::now();
            is_dead.store(true, Ordering::Relaxed);
            let sizes: Vec<(Instant, u64)> = observer.join().expect("the file is readable");
            let recent = sizes
                .iter()
                .find(|(at, _)| died.duration_since(*at) <= lost);
            recent.map(|(_, size)| *size)
        });
        let written = self.written();
        let on_disk = on_disk.unwrap_or(written);
        let file = append_only_file(&self.redis);
        let opened = std::fs::OpenOptions::new().write(true).open(file);
        let cut = opened.and_then(|file| file.set_len(on_disk));
        cut.expect("the file is writable");
        wait(self.redis.start_stopped());
        written - on_disk
    }

    /// Returns the access through the proxies.
    pub(crate) fn access(&self) -> Access {
        Access {
            amqp_url: self.rabbitmq.url_via(&self.to_rabbitmq),
            redis_url: self.redis.url_via(&self.to_redis),
            prefix: "twincast".to_owned(),
        }
    }
}

/// Returns the path of Redis' append-only file.
fn append_only_file(redis: &Redis) -> PathBuf {
    let folder = redis.folder().join("data/appendonlydir");
    let files = std::fs::read_dir(folder).expect("Redis writes an append-only file");
    let mut files = files.map(|file| file.expect("a file").path());
    let newest = files.find(|path| {
        path.extension().is_some_and(|kind| kind == "aof")
            && path.to_string_lossy().contains(".incr.")
    });
    newest.expect("the newest part of the file")
}
