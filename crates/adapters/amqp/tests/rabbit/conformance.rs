//! The conformance suite of the queue port.

use twincast_amqp::{Amqp, AmqpQueue, Settings};
use twincast_testkit::services::RabbitMq;

use crate::settings;

async fn make(dispatch_limit: usize) -> AmqpQueue {
    let settings = Settings {
        dispatch_limit,
        ..settings(&RabbitMq::shared().await.url())
    };
    let amqp = Amqp::connect(settings).await;
    amqp.expect("the broker is reachable").queue()
}

twincast_testkit::queue_conformance!(make);
