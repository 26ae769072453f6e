//! AMQP on its own port and over WebSockets, directly and through a proxy.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use twincast_emulator::{Cut, Faults, RunningHub};
use twincast_iothub::{
    C2dSender, Client, ClientOptions, ConnectError, ConnectionFailure, FeedbackReceiver, Proxy,
    Transport,
};

use crate::common::{client_with, hub, message, options, template};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Sends a message, opens a feedback link, and counts the devices.
async fn works(client: &Client) {
    let sender = C2dSender::connect(client).await.unwrap();
    let sent = sender.send(message(&template(), 1, 1)).await;
    assert!(sent.is_accepted(), "{sent}");
    let feedback = FeedbackReceiver::connect(client).await.unwrap();
    feedback.close();
    sender.close().await;
    assert_eq!(client.count(None).await.unwrap(), 10);
}

/// A client with a dead AMQP port.
fn blocked(hub: &RunningHub, change: impl FnOnce(&mut ClientOptions)) -> Client {
    let mut options = options(hub);
    options.amqp.port = Some(1);
    options.https.port = Some(hub.https_addr().port());
    change(&mut options);
    client_with(hub, options)
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_work_while_the_amqp_port_is_blocked() {
    let hub = hub(10, Faults::default()).await;
    works(&blocked(&hub, |options| {
        options.transport = Transport::AmqpWs;
    }))
    .await;
    let only = blocked(&hub, |options| options.transport = Transport::Amqp);
    let failure = C2dSender::connect(&only).await.unwrap_err();
    assert!(
        matches!(
            &failure,
            ConnectionFailure::Connect(ConnectError::Refused { .. })
        ),
        "{failure}"
    );
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_keeps_the_first_working_transport() {
    let hub = hub(10, Faults::default()).await;
    let client = client_with(&hub, options(&hub));
    assert_eq!(client.transport(), None);
    works(&client).await;
    assert_eq!(client.transport(), Some(Transport::Amqp));
    let client = blocked(&hub, |_| {});
    works(&client).await;
    assert_eq!(client.transport(), Some(Transport::AmqpWs));
    // A lost link returns over the same transport.
    let sender = C2dSender::connect(&client).await.unwrap();
    hub.hub().cut_connections(Cut::Drop);
    let (template, mut id) = (template(), 1_000);
    let again = async {
        loop {
            id += 1;
            if sender.send(message(&template, 2, id)).await.is_accepted() {
                return;
            }
        }
    };
    timeout(TEST_TIMEOUT, again).await.unwrap();
    assert_eq!(client.transport(), Some(Transport::AmqpWs));
    sender.close().await;
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_switches_quickly_from_a_silent_port() {
    let hub = hub(10, Faults::default()).await;
    // The listener accepts packets and never answers, like a firewall that drops packets.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = blocked(&hub, |options| {
        options.amqp.port = Some(silent.local_addr().unwrap().port());
    });
    works(&client).await;
    assert_eq!(client.transport(), Some(Transport::AmqpWs));
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_certificate_does_not_switch_the_transport() {
    let hub = hub(10, Faults::default()).await;
    let mut options = options(&hub);
    options.roots = twincast_iothub::Roots::System;
    let failure = C2dSender::connect(&client_with(&hub, options))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &failure,
            ConnectionFailure::Connect(ConnectError::UnknownIssuer { .. })
        ),
        "{failure}"
    );
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_transport_failures_are_reported() {
    let hub = hub(10, Faults::default()).await;
    let client = blocked(&hub, |options| options.https.port = options.amqp.port);
    let failure = C2dSender::connect(&client).await.unwrap_err();
    let ConnectionFailure::Connect(error @ ConnectError::Both { .. }) = &failure else {
        panic!("{failure}");
    };
    assert_eq!(
        error.to_string().matches("was refused").count(),
        2,
        "{error}"
    );
    assert!(error.is_transient());
    hub.shutdown().await;
}

/// An HTTP proxy that opens tunnels to a single port, for authenticated clients only.
struct Squid {
    port: u16,
    refused: Arc<AtomicU64>,
    opened: Arc<AtomicU64>,
}

impl Squid {
    async fn start(allowed: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let squid = Self {
            port: listener.local_addr().unwrap().port(),
            refused: Arc::default(),
            opened: Arc::default(),
        };
        let (refused, opened) = (Arc::clone(&squid.refused), Arc::clone(&squid.opened));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (refused, opened) = (Arc::clone(&refused), Arc::clone(&opened));
                tokio::spawn(async move {
                    let done = pass(stream, allowed, &refused, &opened).await;
                    // The end of a connection is no error of the proxy.
                    done.or_else(|error| match error.kind() {
                        ErrorKind::Other => Err(error),
                        _ => Ok(()),
                    })
                });
            }
        });
        squid
    }

    fn url(&self, user: &str) -> Proxy {
        format!("http://{user}127.0.0.1:{}", self.port)
            .parse()
            .unwrap()
    }
}

async fn pass(
    mut client: TcpStream,
    allowed: u16,
    refused: &AtomicU64,
    opened: &AtomicU64,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(client.read_u8().await?);
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let target = request.split(' ').nth(1).unwrap_or_default();
    // base64 of ann:s3cr3t
    let answer = if !request
        .to_ascii_lowercase()
        .contains("proxy-authorization: basic yw5uonmzy3izda==")
    {
        "407 Proxy Authentication Required"
    } else if target == format!("localhost:{allowed}") {
        "200 Connection established"
    } else {
        "403 Forbidden"
    };
    client
        .write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes())
        .await?;
    if !answer.starts_with('2') {
        refused.fetch_add(1, Ordering::SeqCst);
        return Ok(());
    }
    opened.fetch_add(1, Ordering::SeqCst);
    let mut hub = TcpStream::connect(("127.0.0.1", allowed)).await?;
    tokio::io::copy_bidirectional(&mut client, &mut hub).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_open_to_a_single_port_is_sufficient() {
    let hub = hub(10, Faults::default()).await;
    let squid = Squid::start(hub.https_addr().port()).await;
    let client = blocked(&hub, |options| options.proxy = squid.url("ann:s3cr3t@"));
    works(&client).await;
    assert_eq!(client.transport(), Some(Transport::AmqpWs));
    // The AMQP port was requested first, and refused.
    assert_eq!(squid.refused.load(Ordering::SeqCst), 1);
    assert!(squid.opened.load(Ordering::SeqCst) >= 3);
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusing_proxy_is_named_with_the_answer() {
    let hub = hub(10, Faults::default()).await;
    let squid = Squid::start(hub.https_addr().port()).await;
    let client = blocked(&hub, |options| {
        options.proxy = squid.url("ann:wrong@");
        options.http_transient =
            twincast_retry::Policy::new(Duration::from_millis(1), Duration::from_millis(2))
                .unwrap()
                .with_max_attempts(2)
                .unwrap();
    });
    let failure = C2dSender::connect(&client).await.unwrap_err();
    let ConnectionFailure::Connect(error) = &failure else {
        panic!("{failure}");
    };
    let text = error.to_string();
    for part in ["proxy 127.0.0.1", "407 Proxy Authentication Required"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!format!("{failure:?}{client:?}").contains("wrong"));
    let error = client.count(None).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    hub.shutdown().await;
}
