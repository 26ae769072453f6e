//! The hook before every link, over real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use twincast_emulator::{Cut, Faults};
use twincast_iothub::{C2dSender, FeedbackReceiver, LinkHook, LinkState};

use crate::common::{client_with, hub, message, options, template, until_opened};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A gate awaited by links, with a count of the waits.
struct HookGate {
    open: watch::Sender<bool>,
    calls: Arc<AtomicU64>,
}

impl HookGate {
    fn new(open: bool) -> Self {
        Self {
            open: watch::Sender::new(open),
            calls: Arc::default(),
        }
    }

    fn hook(&self) -> LinkHook {
        let (open, calls) = (self.open.clone(), Arc::clone(&self.calls));
        LinkHook::new(move || {
            calls.fetch_add(1, Ordering::Relaxed);
            let mut open = open.subscribe();
            async move {
                let _ = open.wait_for(|open| *open).await;
            }
        })
    }

    async fn wait_for_calls(&self, times: u64) {
        let reached = async {
            while self.calls.load(Ordering::Relaxed) < times {
                tokio::task::yield_now().await;
            }
        };
        timeout(TEST_TIMEOUT, reached).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hook_is_called_before_each_sender_and_feedback_link() {
    let hub = hub(10, Faults::default()).await;
    let gate = HookGate::new(true);
    let mut options = options(&hub);
    options.before_link = Some(gate.hook());
    let client = client_with(&hub, options);
    let sender = C2dSender::connect(&client).await.unwrap();
    let mut feedback = FeedbackReceiver::connect(&client).await.unwrap();
    let calls = || gate.calls.load(Ordering::Relaxed);
    assert_eq!((calls(), hub.hub().summary().link_opens), (2, 2));

    hub.hub().cut_connections(Cut::Drop);
    let waiting = tokio::spawn(async move { feedback.next().await.is_ok() });
    let sent = timeout(TEST_TIMEOUT, sender.send(message(&template(), 1, 1)));
    let _ = sent.await.unwrap();
    gate.wait_for_calls(4).await;
    timeout(TEST_TIMEOUT, until_opened(&hub, 4)).await.unwrap();
    assert_eq!(calls(), 4, "one call for each link");
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_hook_delays_only_new_links() {
    let hub = hub(10, Faults::default()).await;
    let gate = HookGate::new(false);
    let mut options = options(&hub);
    options.before_link = Some(gate.hook());
    let client = client_with(&hub, options);
    let sender = C2dSender::start(&client);
    gate.wait_for_calls(1).await;
    assert_eq!(hub.hub().summary().connections, 0, "no connection is open");
    gate.open.send_replace(true);
    assert!(sender.send(message(&template(), 1, 1)).await.is_accepted());

    gate.open.send_replace(false);
    assert!(
        sender.send(message(&template(), 1, 2)).await.is_accepted(),
        "the link is open"
    );
    hub.hub().cut_connections(Cut::Drop);
    let mut state = sender.state();
    let lost = state.wait_for(|state| matches!(state, LinkState::Reconnecting { .. }));
    timeout(TEST_TIMEOUT, lost).await.unwrap().unwrap();
    gate.wait_for_calls(2).await;
    let template = template();
    let mut sending = std::pin::pin!(sender.send(message(&template, 1, 3)));
    assert!(futures::poll!(&mut sending).is_pending());
    assert_eq!(hub.hub().summary().link_opens, 1);
    gate.open.send_replace(true);
    assert!(timeout(TEST_TIMEOUT, sending).await.unwrap().is_accepted());
    assert_eq!(hub.hub().summary().link_opens, 2);
}
