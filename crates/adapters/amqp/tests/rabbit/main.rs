//! The adapter on a real RabbitMQ, which all tests share that leave it alone.

mod conformance;

use std::sync::atomic::{AtomicUsize, Ordering};

use twincast_amqp::{Amqp, Settings};
use twincast_testkit::services::RabbitMq;

/// Settings with names of their own.
fn settings(url: &str) -> Settings {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Settings {
        prefix: format!("test{number}"),
        connection_name: format!("test {number}"),
        ..Settings::new(url.parse().expect("a broker's URL"))
    }
}

/// A connection to the shared broker, with names of its own.
async fn amqp() -> Amqp {
    let settings = settings(&RabbitMq::shared().await.url());
    Amqp::connect(settings).await.expect("the broker is there")
}
