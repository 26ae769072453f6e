//! Lost connections, channels and brokers; and a broker that blocks publishers.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, Notify, OnceCell, watch};
use twincast_amqp::{Amqp, AmqpQueue, COMMAND_TYPE, Settings, State};
use twincast_core::error::describe;
use twincast_core::ports::{Deliveries, Queue};
use twincast_testkit::services::{Proxy, RabbitMq};

use crate::{connect, dispatch, hub, in_time, next, settings, until, until_connected, until_lost};

/// Returns a broker for disruptive tests, for a single test at a time.
async fn rough() -> MutexGuard<'static, RabbitMq> {
    static ROUGH: OnceCell<Mutex<RabbitMq>> = OnceCell::const_new();
    let start = async || Mutex::new(RabbitMq::start().await);
    ROUGH.get_or_init(start).await.lock().await
}

/// The progress of some work.
struct Done(watch::Sender<usize>);

impl Done {
    fn nothing() -> Self {
        Self(watch::Sender::new(0))
    }

    fn one(&self) {
        self.0.send_modify(|done| *done += 1);
    }

    /// Waits until `many` items are done.
    async fn reaches(&self, many: usize) {
        let mut done = self.0.subscribe();
        let reached = in_time(done.wait_for(|done| *done >= many)).await;
        reached.expect("the sender is open");
    }
}

/// Consumes, on a connection that may be lost meanwhile.
async fn consume(queue: &AmqpQueue, prefetch: usize) -> Box<dyn Deliveries> {
    let consuming = async {
        loop {
            if let Ok(consumer) = queue.consume(&hub(), prefetch).await {
                return consumer;
            }
        }
    };
    in_time(consuming).await
}

/// Publishes dispatches of these batches until each is confirmed.
async fn publish(queue: &AmqpQueue, batches: impl IntoIterator<Item = u32>) {
    publish_counting(queue, batches, &Done::nothing()).await;
}

async fn publish_counting(
    queue: &AmqpQueue,
    batches: impl IntoIterator<Item = u32>,
    confirmed: &Done,
) {
    for batch in batches {
        while queue.publish(&dispatch(batch)).await.is_err() {}
        confirmed.one();
    }
}

/// Consumes and acks until a dispatch of each of these batches has come.
async fn take_all(queue: &AmqpQueue, batches: impl IntoIterator<Item = u32>) {
    take_all_counting(queue, batches, &Done::nothing()).await;
}

async fn take_all_counting(
    queue: &AmqpQueue,
    batches: impl IntoIterator<Item = u32>,
    acked: &Done,
) {
    let mut missing: BTreeSet<_> = batches.into_iter().collect();
    let mut consumer = consume(queue, 10).await;
    while !missing.is_empty() {
        let delivery = next(&mut consumer).await;
        // Without the ack the dispatch may come again, which is acceptable.
        if let Err(error) = delivery.ticket.ack().await {
            let message = describe(&error);
            let is_late = message.contains("did not answer");
            assert!(!is_late, "reported at once: {message}");
        }
        if missing.remove(&delivery.dispatch.batch.0) {
            acked.one();
        }
    }
}

/// Settings of a client that reaches the shared broker through a proxy.
async fn through(proxy: &Proxy) -> Settings {
    settings(&RabbitMq::shared().await.url_via(proxy))
}

/// The connection is cut repeatedly while publishing and while consuming.
#[tokio::test]
async fn cut_connections_lose_no_confirmed_dispatch() {
    let proxy = Proxy::start(RabbitMq::shared().await.address()).await;
    let settings = through(&proxy).await;
    let publishing = connect(settings.clone()).await;
    let consuming = connect(settings).await;
    let (publisher, consumer) = (publishing.queue(), consuming.queue());
    let (confirmed, acked) = (Done::nothing(), Done::nothing());
    let cutting = async |work: &Done| {
        for many in (75..1_500).step_by(150) {
            work.reaches(many).await;
            proxy.cut();
        }
    };
    tokio::join!(
        publish_counting(&publisher, 0..1_500, &confirmed),
        take_all_counting(&consumer, 0..1_500, &acked),
        cutting(&confirmed),
        cutting(&acked),
    );
    in_time(async { tokio::join!(publishing.close(), consuming.close()) }).await;
}

/// The broker is killed instead of stopped.
#[tokio::test]
async fn killed_broker_keeps_confirmed_dispatches() {
    let broker = rough().await;
    let amqp = connect(settings(&broker.url())).await;
    let queue = amqp.queue();
    let mut commands = amqp.commands(1).await.unwrap();
    let (confirmed, acked) = (Done::nothing(), Done::nothing());
    let is_lost = Notify::new();
    let killing = async {
        tokio::join!(confirmed.reaches(100), acked.reaches(50));
        broker.kill().await;
        until_lost(&amqp).await;
        is_lost.notify_one();
        broker.start_stopped().await;
    };
    let publishing = async {
        publish_counting(&queue, 0..900, &confirmed).await;
        in_time(is_lost.notified()).await;
        publish_counting(&queue, 900..1_000, &confirmed).await;
    };
    tokio::join!(
        killing,
        publishing,
        take_all_counting(&queue, 0..1_000, &acked),
    );
    until_connected(&amqp).await;
    let send = async || amqp.send_command(b"1".to_vec(), COMMAND_TYPE, None).await;
    in_time(async { while send().await.is_err() {} }).await;
    let command = in_time(commands.next()).await.unwrap();
    command.ack().await.unwrap();
    in_time(amqp.close()).await;
}

/// An ack over a lost connection fails, and the dispatch comes again.
#[tokio::test]
async fn ack_over_a_lost_connection_fails() {
    let proxy = Proxy::start(RabbitMq::shared().await.address()).await;
    let amqp = connect(through(&proxy).await).await;
    let queue = amqp.queue();
    queue.publish(&dispatch(1)).await.unwrap();
    let mut consumer = queue.consume(&hub(), 2).await.unwrap();
    let first = next(&mut consumer).await;
    proxy.cut();
    until_lost(&amqp).await;
    let again = next(&mut consumer).await;
    assert_eq!(again.dispatch, dispatch(1));
    assert!(again.redelivered);
    let error = first.ticket.ack().await.unwrap_err();
    let message = describe(&error);
    assert!(message.contains("over a lost connection"), "{message}");
    again.ticket.ack().await.unwrap();
}

/// A network that loses everything: detected by the heartbeat, six seconds in this test.
#[tokio::test]
async fn a_silent_connection_is_given_up() {
    let proxy = Proxy::start(RabbitMq::shared().await.address()).await;
    let settings = Settings {
        heartbeat: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(5),
        ..through(&proxy).await
    };
    let amqp = Amqp::start(settings).unwrap();
    until_connected(&amqp).await;
    let queue = amqp.queue();
    let mut consumer = consume(&queue, 2).await;
    proxy.block();
    until_lost(&amqp).await;
    // Some attempts to connect without an answer.
    until(&amqp, |state| {
        matches!(state, State::Reconnecting { last_error: Some(why), .. } if why.contains("within"))
    })
    .await;
    proxy.unblock();
    until_connected(&amqp).await;
    publish(&queue, [1]).await;
    while next(&mut consumer).await.ticket.ack().await.is_err() {}
    in_time(amqp.close()).await;
}

/// An operator closes all connections.
#[tokio::test]
async fn connection_closed_by_the_broker_is_replaced() {
    let broker = rough().await;
    let amqp = connect(settings(&broker.url())).await;
    let queue = amqp.queue();
    let mut consumer = queue.consume(&hub(), 2).await.unwrap();
    let mut state = amqp.state();
    state.mark_unchanged();
    broker.close_connections("maintenance").await;
    in_time(state.changed()).await.unwrap();
    if let State::Reconnecting { last_error, .. } = &*state.borrow() {
        let why = last_error.as_deref().unwrap_or_default();
        assert!(why.contains("maintenance"), "{why}");
    }
    publish(&queue, [1]).await;
    next(&mut consumer).await.ticket.ack().await.unwrap();
}

/// The broker closes the channel of a consumer that holds a delivery for too long, and redelivers
/// the message.
#[tokio::test]
async fn consumer_resumes_after_consumer_timeout() {
    let broker = rough().await;
    let set = "application:set_env(rabbit, consumer_timeout, 300), \
               application:set_env(rabbit, channel_tick_interval, 200).";
    broker.ctl(&["eval", set]).await;
    let amqp = connect(settings(&broker.url())).await;
    let queue = amqp.queue();
    publish(&queue, [1]).await;
    let mut consumer = queue.consume(&hub(), 1).await.unwrap();
    let held = next(&mut consumer).await;
    let again = next(&mut consumer).await;
    assert_eq!(again.dispatch, held.dispatch);
    assert!(again.redelivered);
    assert!(held.ticket.ack().await.is_err());
    // On a busy machine, the ack may be too late again.
    let mut acked = again.ticket.ack().await;
    while acked.is_err() {
        acked = next(&mut consumer).await.ticket.ack().await;
    }
    let set = "application:set_env(rabbit, consumer_timeout, 1800000), \
               application:set_env(rabbit, channel_tick_interval, 60000).";
    broker.ctl(&["eval", set]).await;
}

/// While the broker is short of memory, a publish waits until the time limit, and then reports the
/// reason. Closing does not wait for the broker.
#[tokio::test]
async fn publish_to_a_blocked_broker_reports_the_reason() {
    let broker = rough().await;
    let settings = Settings {
        publish_timeout: Duration::from_secs(5),
        ..settings(&broker.url())
    };
    let amqp = connect(settings.clone()).await;
    let other = connect(settings).await;
    let queue = amqp.queue();
    queue.publish(&dispatch(1)).await.unwrap();
    broker
        .ctl(&["set_vm_memory_high_watermark", "0.0000001"])
        .await;
    // The broker blocks publishing clients.
    for client in [&amqp, &other] {
        let state = client.state();
        let is_blocked = || matches!(*state.borrow(), State::Blocked { .. });
        let publishing = async {
            while !is_blocked() {
                client.queue().publish(&dispatch(2)).await.ok();
            }
        };
        in_time(publishing).await;
    }
    let error = queue.publish(&dispatch(3)).await.unwrap_err();
    let message = describe(&error);
    assert!(message.contains("accepts no messages for now"), "{message}");
    assert!(message.contains("low on memory"), "{message}");
    in_time(other.close()).await;
    broker.ctl(&["set_vm_memory_high_watermark", "0.4"]).await;
    until_connected(&amqp).await;
    publish(&queue, [4]).await;
    take_all(&queue, [4]).await;
    in_time(amqp.close()).await;
}

/// Dropping the last handle leaves neither tasks nor connections behind.
#[tokio::test]
async fn dropping_the_last_handle_closes_the_connection() {
    let broker = RabbitMq::shared().await;
    let proxy = Proxy::start(broker.address()).await;
    let settings = through(&proxy).await;
    let name = settings.connection_name.clone();
    let amqp = connect(settings).await;
    let consumer = amqp.queue().consume(&hub(), 1).await.unwrap();
    let listed = async || {
        let connections = broker.ctl(&["list_connections", "client_properties"]).await;
        connections.contains(&format!("\"{name}\""))
    };
    in_time(async { while !listed().await {} }).await;
    let mut state = amqp.state();
    drop(amqp);
    assert_eq!(
        *state.borrow_and_update(),
        State::Connected,
        "the consumer keeps the connection"
    );
    drop(consumer);
    in_time(state.wait_for(|state| *state == State::Closed))
        .await
        .unwrap();
    in_time(async { while listed().await {} }).await;
}

/// Many concurrent clients reconnect after a cut.
#[tokio::test]
async fn all_clients_reconnect_after_a_cut() {
    let proxy = Proxy::start(RabbitMq::shared().await.address()).await;
    let settings = through(&proxy).await;
    let clients = futures::future::join_all((0..10).map(|_| connect(settings.clone()))).await;
    proxy.refuse();
    for client in &clients {
        until_lost(client).await;
    }
    proxy.unblock();
    for client in &clients {
        until_connected(client).await;
        round_trip(client).await;
    }
}

async fn round_trip(amqp: &Amqp) {
    let queue = amqp.queue();
    publish(&queue, [1]).await;
    let mut consumer: Box<dyn Deliveries> = queue.consume(&hub(), 1).await.unwrap();
    next(&mut consumer).await.ticket.ack().await.unwrap();
}
