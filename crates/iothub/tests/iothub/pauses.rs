//! Pauses of this process, for example with the virtual machine.

use std::time::Duration;

use futures::future::join_all;
use tokio::runtime::{Builder, Runtime};
use twincast_emulator::Faults;
use twincast_iothub::C2dSender;

use crate::common::{client_with, hub, message, options, template};

const SENDS: u64 = 50;

/// The answers of the hub wait to be read after the pause, so all outcomes are known.
#[test]
fn answers_of_a_pause_are_read() {
    let runtime_of_hub = Runtime::new().unwrap();
    let faults = Faults {
        disposition_delay_ms: 1_000,
        ..Faults::default()
    };
    let hub = runtime_of_hub.block_on(hub(100, faults));
    let paused = Builder::new_current_thread().enable_all().build().unwrap();
    paused.block_on(async {
        let mut options = options(&hub);
        options.stall_timeout = Duration::from_secs(2);
        options.send_timeout = Duration::from_secs(2);
        let client = client_with(&hub, options);
        let sender = C2dSender::connect(&client).await.unwrap();
        let template = template();
        let sends = (0..SENDS).map(|n| sender.send(message(&template, n, 1)));
        let pause = async {
            while hub.hub().summary().transfers < SENDS {
                tokio::task::yield_now().await;
            }
            #[expect(clippy::disallowed_methods, reason = "the whole process pauses")]
            std::thread::sleep(Duration::from_secs(4));
        };
        let (outcomes, ()) = tokio::join!(join_all(sends), pause);
        for outcome in outcomes {
            assert!(outcome.is_accepted(), "{outcome}");
        }
        sender.close().await;
    });
    runtime_of_hub.block_on(hub.shutdown());
}
