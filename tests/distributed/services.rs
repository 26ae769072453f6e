//! RabbitMQ and Redis for an engine: those that all tests share, under names of its own, or a
//! pair of its own that can be stopped, killed and cut off.

use std::future::Future;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::runtime::Runtime;
use twincast_testkit::services::{Proxy, RabbitMq, Redis};

/// What services and proxies run on. It outlives every test.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

/// Waits for something asynchronous.
pub(crate) fn wait<T>(doing: impl Future<Output = T>) -> T {
    RUNTIME.block_on(doing)
}

/// How services are reached, and the names that an engine has in them.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) amqp_url: String,
    pub(crate) redis_url: String,
    pub(crate) prefix: String,
}

impl Access {
    /// The services that all tests share, under names that nobody else has.
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

/// Services of one test's own, each behind a proxy.
pub(crate) struct OwnServices {
    pub(crate) rabbitmq: RabbitMq,
    pub(crate) redis: Redis,
    pub(crate) to_rabbitmq: Proxy,
    pub(crate) to_redis: Proxy,
}

impl OwnServices {
    /// Starts them; Redis with options of its own.
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

    /// The way to them, through the proxies.
    pub(crate) fn access(&self) -> Access {
        Access {
            amqp_url: self.rabbitmq.url_via(&self.to_rabbitmq),
            redis_url: self.redis.url_via(&self.to_redis),
            prefix: "twincast".to_owned(),
        }
    }
}
