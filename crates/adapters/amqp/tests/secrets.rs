//! The password is never visible: neither in the logs of this crate or the library, at any level,
//! nor in errors. A test binary of its own, because the test captures all logs of the process.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use twincast_amqp::{Amqp, COMMAND_TYPE, Settings};
use twincast_core::error::describe;
use twincast_secret::SecretSource;
use twincast_testkit::services::{Proxy, RabbitMq};

const PASSWORD: &str = "hunter2correcthorse";

/// Keeps log lines with the password, in any spelling.
#[derive(Clone, Default)]
struct Leaks(Arc<Mutex<(usize, Vec<String>)>>);

impl Write for Leaks {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let mut leaks = self.0.lock().unwrap();
        leaks.0 += 1;
        let bytes = format!("{:?}", PASSWORD.as_bytes());
        let bytes = bytes.trim_matches(['[', ']']);
        if text.contains(PASSWORD) || text.contains(bytes) {
            leaks.1.push(text.into_owned());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_password_does_not_show() {
    let leaks = Leaks::default();
    let writer = leaks.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();

    let broker = RabbitMq::shared().await;
    broker.ctl(&["add_user", "ops", PASSWORD]).await;
    broker
        .ctl(&["set_permissions", "ops", ".*", ".*", ".*"])
        .await;
    let proxy = Proxy::start(broker.address()).await;
    let url = format!("amqp://ops:{PASSWORD}@{}", proxy.address());
    let settings = Settings::new(SecretSource::Fixed(url.into()));
    let amqp = Amqp::connect(settings.clone()).await.unwrap();
    amqp.send_command(Vec::new(), COMMAND_TYPE, None)
        .await
        .unwrap();
    let request = amqp.request(Vec::new(), COMMAND_TYPE, None, Duration::from_millis(50));
    let unanswered = request.await.unwrap_err();
    proxy.refuse();
    let refused = Amqp::connect(settings.clone()).await.unwrap_err();
    broker.ctl(&["change_password", "ops", "another"]).await;
    proxy.unblock();
    let unknown = Amqp::connect(settings).await.unwrap_err();
    let shown = format!(
        "{amqp:?} {amqp:#?} {:?} {unanswered:?} {refused:?} {refused:#?} {unknown:?} {} {}",
        *amqp.state().borrow(),
        describe(&refused),
        describe(&unknown),
    );
    assert!(!shown.contains(PASSWORD), "{shown}");
    amqp.close().await;

    // A copy: the library's threads go on logging.
    let (lines, leaks) = leaks.0.lock().unwrap().clone();
    assert!(lines > 100, "{lines} lines were logged");
    assert!(leaks.is_empty(), "{leaks:#?}");
}
