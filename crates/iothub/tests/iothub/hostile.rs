//! Hubs sending bytes beyond AMQP or beyond the protocol library's abilities, and silent hubs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio::time::timeout;
use twincast_emulator::{Faults, HubConfig, RunningHub};
use twincast_iothub::{
    Ack, C2dSender, C2dTemplate, ConnectionFailure, Disposition, FeedbackError, FeedbackReceiver,
    LinkHook, LinkState, NotSent, SendOutcome, UnknownCause,
};
use twincast_retry::Policy;

use crate::common::proxy::{Proxy, Tamper, code, frame, honest, proxy};
use crate::common::{client, client_with, config, hub, message, options, template};

/// Longer than any test here takes; turns a hang into a failure.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

const ATTACH: u8 = 0x12;
const FLOW: u8 = 0x13;
const TRANSFER: u8 = 0x14;
const DISPOSITION: u8 = 0x15;

async fn hubs() -> RunningHub {
    let quick = HubConfig {
        feedback_interval: Duration::from_millis(50),
        feedback_lock: Duration::from_secs(30),
        ..config(100, Faults::default())
    };
    twincast_emulator::start(quick).await.unwrap()
}

/// Sends `bytes` in place of piece `number` of the first connection, and passes everything else
/// unchanged.
fn instead_of(number: usize, bytes: &'static [u8]) -> impl Fn(u64) -> Tamper + Send + 'static {
    move |connection| {
        if connection > 1 {
            return honest();
        }
        let mut seen = 0;
        Box::new(move |piece| {
            seen += 1;
            if seen == number {
                bytes.to_vec()
            } else {
                piece
            }
        })
    }
}

async fn sends_one(proxy: &Proxy, hub: &RunningHub) -> SendOutcome {
    let sender = C2dSender::start(&proxy.client(hub, options(hub)));
    let sent = async {
        loop {
            let outcome = sender.send(message(&template(), 1, 1)).await;
            // A message in flight at a loss is unknown; a caller retries.
            if !matches!(outcome.disposition(), Disposition::Unknown) {
                return outcome;
            }
        }
    };
    timeout(TEST_TIMEOUT, sent).await.expect("the send ends")
}

const MALFORMED: [&[u8]; 7] = [
    // A frame shorter than its own header.
    &[0, 0, 0, 4, 2, 0, 0, 0],
    // No data offset; an offset beyond the frame.
    &[0, 0, 0, 8, 0, 0, 0, 0],
    &[0, 0, 0, 8, 9, 0, 0, 0],
    // An undefined frame type.
    &[0, 0, 0, 12, 2, 9, 0, 0, 0, 0x53, 0x10, 0x45],
    // Four gigabytes.
    &[0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0],
    // An invalid performative; a list too small for its count.
    &[0, 0, 0, 12, 2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    &[0, 0, 0, 14, 2, 0, 0, 0, 0, 0x53, 0x10, 0xc0, 0, 0],
];

/// The hub's first pieces: two protocol headers and SASL between them, OPEN, BEGIN, the token
/// links, and so on.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_bytes_at_any_moment_of_opening_cost_one_connection() {
    let hub = hubs().await;
    for bytes in MALFORMED {
        for number in 1..=14 {
            let proxy = proxy(&hub, instead_of(number, bytes)).await;
            let outcome = sends_one(&proxy, &hub).await;
            assert!(
                outcome.is_accepted(),
                "{bytes:x?} as piece {number}: {outcome}"
            );
            assert!(proxy.count() <= 2, "{bytes:x?} as piece {number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bytes_cost_feedback_one_connection() {
    let hub = hubs().await;
    let acked = C2dTemplate::builder("x").ack(Ack::Full).build().unwrap();
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    for number in [1, 3, 5, 6, 8, 10, 12] {
        let proxy = proxy(&hub, instead_of(number, MALFORMED[0])).await;
        let mut feedback = FeedbackReceiver::new(&proxy.client(&hub, options(&hub)));
        assert!(sender.send(message(&acked, 1, 1)).await.is_accepted());
        let batch = timeout(TEST_TIMEOUT, feedback.next())
            .await
            .expect("feedback in time");
        batch.unwrap().complete().await.unwrap();
        assert_eq!(proxy.count(), 2);
        feedback.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failure_names_the_malformed_frame() {
    let hub = hubs().await;
    let proxy = proxy(&hub, instead_of(4, MALFORMED[0])).await;
    let failure = C2dSender::connect(&proxy.client(&hub, options(&hub)))
        .await
        .unwrap_err();
    assert!(
        failure
            .to_string()
            .contains("not AMQP 1.0: a frame of 4 bytes"),
        "{failure}"
    );
    assert!(failure.is_transient());
}

/// A panic under a link is a defect of the library or of a hook; the sender and its caller must
/// survive.
#[tokio::test(flavor = "multi_thread")]
async fn a_defect_met_while_a_link_opens_is_a_failed_attempt() {
    let hub = hubs().await;
    let with_defect = || {
        let calls = Arc::new(AtomicU64::new(0));
        let mut options = options(&hub);
        options.before_link = Some(LinkHook::new(move || {
            let calls = Arc::clone(&calls);
            async move { assert!(calls.fetch_add(1, Ordering::SeqCst) > 0, "a defect") }
        }));
        client_with(&hub, options)
    };
    let sender = C2dSender::start(&with_defect());
    let acked = C2dTemplate::builder("x").ack(Ack::Full).build().unwrap();
    let outcome = timeout(TEST_TIMEOUT, sender.send(message(&acked, 1, 1))).await;
    assert!(outcome.unwrap().is_accepted());
    let mut feedback = FeedbackReceiver::new(&with_defect());
    let batch = timeout(TEST_TIMEOUT, feedback.next()).await.unwrap();
    assert_eq!(batch.unwrap().records.len(), 1);
    // `connect` makes a single attempt and reports the failure.
    let failure = C2dSender::connect(&with_defect()).await.unwrap_err();
    assert!(failure.to_string().contains("a defect"), "{failure}");
}

async fn send_all(sender: &C2dSender, count: u64) -> Vec<SendOutcome> {
    let template = template();
    let sends = stream::iter(0..count).map(|i| sender.send(message(&template, i, i)));
    let all = sends.buffered(count as usize).collect();
    timeout(TEST_TIMEOUT, all).await.expect("the sends end")
}

/// A disposition `role, first, last, settled, state`.
fn disposition(like: &[u8], first: u32, last: u32, state: &[u8]) -> Vec<u8> {
    let mut items = vec![0x41, 0x70];
    items.extend(first.to_be_bytes());
    items.push(0x70);
    items.extend(last.to_be_bytes());
    items.push(0x41);
    items.extend(state);
    let mut body = vec![0x00, 0x53, DISPOSITION, 0xc0, items.len() as u8 + 1, 5];
    body.extend(items);
    frame(like, &body)
}

#[tokio::test(flavor = "multi_thread")]
async fn disposition_of_all_delivery_ids_is_cheap() {
    let hub = hub(100, Faults::default()).await;
    let proxy = proxy(&hub, |_| {
        Box::new(|piece| {
            if code(&piece) != Some(DISPOSITION) {
                return piece;
            }
            let wide = disposition(&piece, 0, u32::MAX, &[0x00, 0x53, 0x24, 0x45]);
            [wide, piece].concat()
        })
    })
    .await;
    let sender = C2dSender::connect(&proxy.client(&hub, options(&hub)))
        .await
        .unwrap();
    let outcomes = send_all(&sender, 60).await;
    assert!(
        outcomes.iter().all(SendOutcome::is_accepted),
        "{outcomes:?}"
    );
    assert_eq!(proxy.count(), 1);
}

/// The first message gets an odd answer, all others the hub's own. (Delivery 0 is the token.)
fn odd_first_answer(state: &'static [u8]) -> impl Fn(u64) -> Tamper + Send + 'static {
    move |_| {
        let mut answers = 0;
        Box::new(move |piece| {
            answers += u32::from(code(&piece) == Some(DISPOSITION));
            match answers == 2 && code(&piece) == Some(DISPOSITION) {
                true => [disposition(&piece, 1, 1, state), piece].concat(),
                false => piece,
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_answer_affects_a_single_delivery() {
    // Rejected for amqp:not-found, with an info map of odd types.
    const ODD_INFO: &[u8] = &[
        0x00, 0x53, 0x25, 0xc0, 34, 1, 0x00, 0x53, 0x1d, 0xc0, 28, 3, 0xa3, 14, b'a', b'm', b'q',
        b'p', b':', b'n', b'o', b't', b'-', b'f', b'o', b'u', b'n', b'd', 0x40, 0xc1, 8, 2, 0x54,
        1, 0x74, 1, 2, 3, 4,
    ];
    // Rejected without a condition.
    const NO_CONDITION: &[u8] = &[
        0x00, 0x53, 0x25, 0xc0, 9, 1, 0x00, 0x53, 0x1d, 0xc0, 3, 2, 0x40, 0x40,
    ];
    const UNKNOWN: &[u8] = &[0x00, 0x53, 0x7f, 0x45];
    const NO_STATE: &[u8] = &[0x43];
    for (state, expected) in [
        (ODD_INFO, "refused: amqp:not-found"),
        (NO_CONDITION, "refused"),
        (UNKNOWN, "unknown"),
        (NO_STATE, "unknown"),
    ] {
        let hub = hub(100, Faults::default()).await;
        let proxy = proxy(&hub, odd_first_answer(state)).await;
        let sender = C2dSender::connect(&proxy.client(&hub, options(&hub)))
            .await
            .unwrap();
        let outcomes = send_all(&sender, 60).await;
        assert!(
            outcomes[0].to_string().starts_with(expected),
            "{} is not {expected}",
            outcomes[0]
        );
        let others = &outcomes[1..];
        assert!(others.iter().all(SendOutcome::is_accepted), "{others:?}");
        assert_eq!(proxy.count(), 1);
        assert_eq!(hub.hub().summary().repeats_by_message_id, 0);
    }
}

/// A hub that falls silent once `silent` is set.
fn silent_when(silent: &Arc<AtomicBool>) -> impl Fn(u64) -> Tamper + Send + 'static {
    let silent = Arc::clone(silent);
    move |_| {
        let silent = Arc::clone(&silent);
        Box::new(move |piece| match silent.load(Ordering::SeqCst) {
            true => Vec::new(),
            false => piece,
        })
    }
}

/// However slowly messages are fed: a write proves no progress of the hub.
#[tokio::test(flavor = "multi_thread")]
async fn an_unresponsive_link_is_stalled_despite_new_sends() {
    let hub = hub(100, Faults::default()).await;
    let silent = Arc::new(AtomicBool::new(false));
    let proxy = proxy(&hub, silent_when(&silent)).await;
    let mut options = options(&hub);
    options.stall_timeout = Duration::from_millis(500);
    // Neither the slots nor the hub's credit run out within the test's time-out.
    options.max_in_flight = 1_000;
    let sender = C2dSender::connect(&proxy.client(&hub, options))
        .await
        .unwrap();
    let template = template();
    let accepted = async {
        // On a busy machine, the answer may come too late.
        while !sender.send(message(&template, 1, 0)).await.is_accepted() {}
    };
    timeout(TEST_TIMEOUT, accepted).await.unwrap();
    silent.store(true, Ordering::SeqCst);
    let fed = stream::iter(1..)
        .then(|id| async move {
            // Several times within the time-out.
            tokio::time::sleep(Duration::from_millis(100)).await;
            id
        })
        .map(|id| sender.send(message(&template, 1, id)))
        .buffer_unordered(1_000);
    let mut fed = std::pin::pin!(fed);
    let first = timeout(TEST_TIMEOUT, fed.next())
        .await
        .expect("an outcome in time");
    let Some(SendOutcome::Unknown(UnknownCause::Disconnected(failure))) = first else {
        panic!("{first:?}");
    };
    assert!(
        matches!(*failure, ConnectionFailure::Stalled(_)),
        "{failure}"
    );
}

/// Changes the status-code of the put-token answers selected by `which`.
fn token_status(
    which: impl Fn(u64) -> Option<u16> + Send + Sync + 'static,
) -> impl Fn(u64) -> Tamper + Send + 'static {
    let (answers, which) = (Arc::new(AtomicU64::new(0)), Arc::new(which));
    move |_| {
        let (answers, which) = (Arc::clone(&answers), Arc::clone(&which));
        Box::new(move |mut piece| {
            let key = b"status-code";
            let found = piece.windows(key.len()).position(|part| part == key);
            if let (Some(at), Some(TRANSFER)) = (found, code(&piece)) {
                let at = at + key.len();
                let number = answers.fetch_add(1, Ordering::SeqCst) + 1;
                if let Some(status) = which(number) {
                    assert_eq!(piece[at], 0x71, "the emulator writes an int");
                    let status = i32::from(status).to_be_bytes();
                    piece[at + 1..at + 5].copy_from_slice(&status);
                }
            }
            piece
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_token_with_a_transient_failure_is_retried() {
    let hub = hubs().await;
    for status in [400, 404, 408, 429, 500, 503] {
        let proxy = proxy(&hub, token_status(move |n| (n <= 3).then_some(status))).await;
        let outcome = sends_one(&proxy, &hub).await;
        assert!(outcome.is_accepted(), "{status}: {outcome}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_put_token_is_retried_once() {
    let hub = hubs().await;
    for status in [401, 403] {
        let once = proxy(&hub, token_status(move |n| (n == 1).then_some(status))).await;
        let client = once.client(&hub, options(&hub));
        let sender = C2dSender::connect(&client).await.unwrap();
        assert!(sender.send(message(&template(), 1, 1)).await.is_accepted());
        let always = proxy(&hub, token_status(move |_| Some(status))).await;
        let client = always.client(&hub, options(&hub));
        let sender = C2dSender::start(&client);
        let outcome = timeout(TEST_TIMEOUT, sender.send(message(&template(), 1, 2))).await;
        assert!(matches!(
            outcome.unwrap().disposition(),
            Disposition::HubUnavailable { .. }
        ));
        assert!(matches!(*sender.state().borrow(), LinkState::Failed(_)));
        let mut feedback = FeedbackReceiver::new(&client);
        let failed = timeout(TEST_TIMEOUT, feedback.next()).await.unwrap();
        assert!(matches!(failed, Err(FeedbackError::Failed(_))));
    }
}

/// A send refused because of the token requests a renewal. While the renewal is throttled, the old
/// token and the connection stay alive.
#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_renewal_is_retried_on_the_same_connection() {
    let hub = hub(100, Faults::default()).await;
    let answers = Arc::new(AtomicU64::new(0));
    let (statuses, count) = (Arc::clone(&answers), Arc::clone(&answers));
    let put_off = token_status(move |_| {
        let number = statuses.fetch_add(1, Ordering::SeqCst) + 1;
        (2..=4).contains(&number).then_some(429)
    });
    let proxy = proxy(&hub, move |connection| {
        let (mut put_off, mut dispositions) = (put_off(connection), 0);
        Box::new(move |piece| {
            dispositions += u32::from(code(&piece) == Some(DISPOSITION));
            // The first disposition is for the token, the second for the first message.
            match dispositions == 2 && code(&piece) == Some(DISPOSITION) {
                true => disposition(&piece, 1, 1, REFUSED_TOKEN),
                false => put_off(piece),
            }
        })
    })
    .await;
    let sender = C2dSender::connect(&proxy.client(&hub, options(&hub)))
        .await
        .unwrap();
    let first = sender.send(message(&template(), 1, 1)).await;
    assert!(
        matches!(first, SendOutcome::NotSent(NotSent::TokenRefused(_))),
        "{first}"
    );
    let renewed = async {
        while count.load(Ordering::SeqCst) < 5 {
            assert!(sender.send(message(&template(), 1, 2)).await.is_accepted());
        }
    };
    timeout(TEST_TIMEOUT, renewed)
        .await
        .expect("the token is renewed");
    assert!(sender.send(message(&template(), 1, 3)).await.is_accepted());
    assert_eq!(proxy.count(), 1);
}

/// Rejected for `amqp:unauthorized-access`.
const REFUSED_TOKEN: &[u8] = &[
    0x00, 0x53, 0x25, 0xc0, 33, 1, 0x00, 0x53, 0x1d, 0xc0, 27, 1, 0xa3, 24, b'a', b'm', b'q', b'p',
    b':', b'u', b'n', b'a', b'u', b't', b'h', b'o', b'r', b'i', b'z', b'e', b'd', b'-', b'a', b'c',
    b'c', b'e', b's', b's',
];

/// A DETACH of the handle 2 (the third link) with `amqp:unauthorized-access`.
fn refusal(like: &[u8], handle: &[u8]) -> Vec<u8> {
    let condition = b"amqp:unauthorized-access";
    let mut error = vec![0xa3, condition.len() as u8];
    error.extend(condition);
    let mut items = handle.to_vec();
    items.extend([0x41, 0x00, 0x53, 0x1d, 0xc0, error.len() as u8 + 1, 1]);
    items.extend(error);
    let mut body = vec![0x00, 0x53, 0x16, 0xc0, items.len() as u8 + 1, 3];
    body.extend(items);
    frame(like, &body)
}

/// Refuses the data link of the first `times` connections right after the attach.
fn refuse_links(times: u64) -> impl Fn(u64) -> Tamper + Send + 'static {
    move |connection| {
        let mut attached = 0;
        Box::new(move |piece| {
            attached += u64::from(code(&piece) == Some(ATTACH));
            let refused = connection <= times && attached == 3 && code(&piece) == Some(ATTACH);
            match refused {
                // Two token links come first, so the handle is 2.
                true => [piece.clone(), refusal(&piece, &[0x52, 2])].concat(),
                false => piece,
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_refused_for_the_token_is_retried_once() {
    let hub = hubs().await;
    let acked = C2dTemplate::builder("x").ack(Ack::Full).build().unwrap();
    let once = proxy(&hub, refuse_links(1)).await;
    let sender = C2dSender::start(&once.client(&hub, options(&hub)));
    let sent = timeout(TEST_TIMEOUT, sender.send(message(&acked, 1, 1)))
        .await
        .unwrap();
    assert!(
        sent.is_accepted() || matches!(sent.disposition(), Disposition::Unknown),
        "{sent}"
    );
    let sent = timeout(TEST_TIMEOUT, sender.send(message(&acked, 1, 2)))
        .await
        .unwrap();
    assert!(sent.is_accepted(), "{sent}");
    assert_eq!(once.count(), 2);
    let once = proxy(&hub, refuse_links(1)).await;
    let mut feedback = FeedbackReceiver::new(&once.client(&hub, options(&hub)));
    let batch = timeout(TEST_TIMEOUT, feedback.next()).await.unwrap();
    assert!(!batch.unwrap().records.is_empty());
    assert_eq!(once.count(), 2);

    let always = proxy(&hub, refuse_links(u64::MAX)).await;
    let mut options = options(&hub);
    // After a connection longer than the longest delay, the token would be tried once more.
    options.reconnect = Policy::new(Duration::from_millis(1), TEST_TIMEOUT).unwrap();
    let client = always.client(&hub, options);
    let sender = C2dSender::start(&client);
    let failed = async {
        loop {
            let outcome = sender.send(message(&acked, 1, 3)).await;
            if matches!(outcome.disposition(), Disposition::HubUnavailable { .. }) {
                break;
            }
        }
    };
    timeout(TEST_TIMEOUT, failed).await.unwrap();
    let mut feedback = FeedbackReceiver::new(&client);
    let failed = timeout(TEST_TIMEOUT, feedback.next()).await.unwrap();
    assert!(matches!(failed, Err(FeedbackError::Failed(_))));
    assert_eq!(always.count(), 4);
}

/// A feedback message with a body of `sections` precedes the hub's own.
#[tokio::test(flavor = "multi_thread")]
async fn unparsable_feedback_is_reported_and_the_link_stays_open() {
    const DEEP: &[u8] = &[0; 2_000];
    // Application properties in a list; repeated sections.
    const ODD: &[u8] = &[0x00, 0x53, 0x74, 0x45, 0x00, 0x53, 0x74, 0x45];
    const NOT_JSON: &[u8] = &[0x00, 0x53, 0x75, 0xa0, 2, b'{', b'}'];
    let hub = hubs().await;
    let acked = C2dTemplate::builder("x").ack(Ack::Full).build().unwrap();
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    for payload in [DEEP, ODD, NOT_JSON] {
        let is_over = Arc::new(AtomicBool::new(false));
        let proxy = proxy(&hub, move |_| {
            let is_over = Arc::clone(&is_over);
            Box::new(move |piece| {
                let is_feedback = piece.windows(17).any(|part| part == b"originalMessageId");
                if !is_feedback || is_over.swap(true, Ordering::SeqCst) {
                    return piece;
                }
                assert_eq!(piece[11], 0xd0, "the emulator writes a long list");
                let list = u32::from_be_bytes(*piece[12..].first_chunk().unwrap()) as usize + 16;
                let mut body = piece[8..list].to_vec();
                body.extend(payload);
                frame(&piece, &body)
            })
        })
        .await;
        let mut feedback = FeedbackReceiver::new(&proxy.client(&hub, options(&hub)));
        assert!(sender.send(message(&acked, 1, 1)).await.is_accepted());
        let unread = timeout(TEST_TIMEOUT, feedback.next()).await.unwrap();
        let Err(FeedbackError::Unparsable(unread)) = unread else {
            panic!("{unread:?}");
        };
        unread.complete().await.unwrap();
        assert!(sender.send(message(&acked, 2, 2)).await.is_accepted());
        let batch = timeout(TEST_TIMEOUT, feedback.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(batch.records[0].device_id, "d-2");
        batch.complete().await.unwrap();
        assert_eq!(proxy.count(), 1);
        feedback.close();
    }
}

/// Odd but decodable frames, answered by the library with the end of the session or connection. The
/// client must not wait for a hub that does not follow.
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_ignoring_an_end_or_close_is_disconnected() {
    let hub = hubs().await;
    let attach_of_nobody: &[u8] = &[0x00, 0x53, ATTACH, 0xc0, 7, 3, 0xa1, 1, b'x', 0x52, 9, 0x41];
    let flow_of_nobody: &[u8] = &[
        0x00, 0x53, FLOW, 0xc0, 11, 5, 0x43, 0x52, 9, 0x52, 9, 0x52, 9, 0x52, 99,
    ];
    for body in [attach_of_nobody, flow_of_nobody] {
        let proxy = proxy(&hub, move |connection| {
            let (mut attached, mut broken) = (0, connection > 1);
            Box::new(move |piece| {
                attached += u64::from(code(&piece) == Some(ATTACH));
                if broken && connection == 1 {
                    // Alive, but nothing more.
                    return vec![0, 0, 0, 8, 2, 0, 0, 0];
                }
                broken |= attached == 3;
                match broken && connection == 1 {
                    true => [piece.clone(), frame(&piece, body)].concat(),
                    false => piece,
                }
            })
        })
        .await;
        let mut feedback = FeedbackReceiver::new(&proxy.client(&hub, options(&hub)));
        let acked = C2dTemplate::builder("x").ack(Ack::Full).build().unwrap();
        let sender = C2dSender::connect(&client(&hub)).await.unwrap();
        assert!(sender.send(message(&acked, 1, 1)).await.is_accepted());
        let batch = timeout(TEST_TIMEOUT, feedback.next())
            .await
            .expect("feedback in time");
        batch.unwrap().complete().await.unwrap();
        assert_eq!(proxy.count(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_links_carry_the_client_version() {
    let hub = hubs().await;
    let proxy = proxy(&hub, |_| honest()).await;
    let client = proxy.client(&hub, options(&hub));
    let assert_version_count = |times: usize| {
        let said = proxy.said.lock().unwrap();
        let found = |what: &[u8]| {
            said.windows(what.len())
                .filter(|part| *part == what)
                .count()
        };
        let version = concat!("twincast twincast-iothub/", env!("CARGO_PKG_VERSION"));
        assert_eq!(found(b"com.microsoft:client-version"), times);
        assert_eq!(found(version.as_bytes()), times);
    };
    let _sender = C2dSender::connect(&client).await.unwrap();
    assert_version_count(1);
    let _feedback = FeedbackReceiver::connect(&client).await.unwrap();
    assert_version_count(2);
}
