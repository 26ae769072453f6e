//! The first connection, and the possible errors.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::types::FieldTable;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use twincast_amqp::{Amqp, AmqpError, ConnectError, Settings, State};
use twincast_core::ports::{Queue, QueueError};
use twincast_testkit::services::{Proxy, RabbitMq, refusing_address};

use crate::broker::Other;
use crate::{connect, dispatch, in_time, refused, settings, shown, until, until_connected};

fn with_url(url: &str) -> Settings {
    settings(url)
}

async fn shared() -> SocketAddr {
    RabbitMq::shared().await.address()
}

#[tokio::test]
async fn wrong_password_is_reported() {
    let url = format!("amqp://guest:hunter2@{}", shared().await);
    let error = refused(with_url(&url)).await;
    assert!(
        matches!(error, ConnectError::Credentials { .. }),
        "{error:?}"
    );
    let shown = shown(&error);
    assert!(shown.contains("refuses user \"guest\""), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn wrong_virtual_host_is_reported() {
    let url = format!("amqp://guest:guest@{}/nowhere", shared().await);
    let error = refused(with_url(&url)).await;
    assert!(
        matches!(error, ConnectError::VirtualHost { .. }),
        "{error:?}"
    );
    assert!(shown(&error).contains("virtual host \"nowhere\""));
}

#[tokio::test]
async fn closed_port_is_reported_as_refused() {
    let (address, _socket) = refusing_address();
    let error = refused(with_url(&format!("amqp://{address}"))).await;
    assert!(
        matches!(error, ConnectError::Unreachable { .. }),
        "{error:?}"
    );
    let shown = shown(&error);
    assert!(
        shown.contains(&address.to_string()) && shown.contains("refused"),
        "{shown}"
    );
}

#[tokio::test]
async fn unknown_host_is_reported_as_unreachable() {
    let error = refused(with_url("amqp://nobody.invalid")).await;
    assert!(
        matches!(error, ConnectError::Unreachable { .. }),
        "{error:?}"
    );
}

/// The client gives up a silent peer after the time limit, and leaves nothing behind.
#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings = Settings {
        connect_timeout: Duration::from_secs(5),
        ..with_url(&format!("amqp://{address}"))
    };
    let (error, mut silent) = tokio::join!(refused(settings), async {
        listener.accept().await.unwrap().0
    });
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error:?}");
    assert!(
        shown(&error).contains("while doing the AMQP handshake"),
        "{error}"
    );
    // The library's thread has ended, and so has the socket.
    let mut received = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut received);
    in_time(ended).await.unwrap();
    assert!(received.starts_with(b"AMQP"), "{received:?}");
}

/// The peer does not speak AMQP at all.
#[tokio::test]
async fn non_amqp_peer_fails_the_handshake() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (error, ()) = tokio::join!(refused(with_url(&format!("amqp://{address}"))), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let page = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, page)
            .await
            .unwrap();
    });
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error:?}");
}

#[tokio::test]
async fn conflicting_queue_arguments_are_reported() {
    let url = RabbitMq::shared().await.url();
    let settings = settings(&url);
    let name = format!("{}.commands", settings.prefix);
    let other = Other::at(&url).await;
    other.declare(&name, FieldTable::default()).await;
    let error = refused(settings.clone()).await;
    let ConnectError::Topology { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(
        matches!(source, AmqpError::OtherArguments { .. }),
        "{source:?}"
    );
    assert!(shown(&error).contains(&format!("queue {name} exists with other arguments")));
    // A client started without waiting reports the error as well, and connects when the queue is
    // corrected.
    let amqp = Amqp::start(settings).unwrap();
    until(&amqp, |state| {
        matches!(state, State::Reconnecting { last_error: Some(why), .. } if why.contains(&name))
    })
    .await;
    other.delete(&name).await;
    until_connected(&amqp).await;
}

/// Without a broker, operations wait for as long as allowed, and then report the reason.
#[tokio::test]
async fn client_connects_once_the_broker_is_available() {
    let broker = RabbitMq::shared().await;
    let proxy = Proxy::start(broker.address()).await;
    proxy.refuse();
    let settings = Settings {
        publish_timeout: Duration::from_millis(300),
        ..settings(&broker.url_via(&proxy))
    };
    let amqp = Amqp::start(settings).unwrap();
    let began = Instant::now();
    let error = amqp.queue().publish(&dispatch(1)).await.unwrap_err();
    assert!(began.elapsed() >= Duration::from_millis(300));
    let QueueError::Unavailable { source, .. } = error else {
        panic!("{error:?}");
    };
    assert!(
        source.to_string().contains("no connection to the broker"),
        "{source}"
    );
    proxy.unblock();
    until_connected(&amqp).await;
    in_time(async { while amqp.queue().publish(&dispatch(1)).await.is_err() {} }).await;
    in_time(amqp.close()).await;
    assert_eq!(*amqp.state().borrow(), State::Closed);
}

/// Closing does not wait for an unavailable broker.
#[tokio::test]
async fn close_does_not_wait_for_a_pending_connection() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let amqp = Amqp::start(with_url(&format!("amqp://{address}"))).unwrap();
    let _silent = listener.accept().await.unwrap();
    in_time(amqp.close()).await;
}

/// A broker behind TLS, with a certificate signed by a private authority.
pub(crate) struct Tls {
    pub(crate) address: SocketAddr,
    /// The authority's certificate.
    pub(crate) authority: String,
}

impl Tls {
    pub(crate) async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let broker = shared().await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(stream).await else {
                        return;
                    };
                    let mut server = TcpStream::connect(broker).await.unwrap();
                    copy_bidirectional(&mut client, &mut server).await.ok();
                });
            }
        });
        Self {
            address,
            authority: made.cert.pem(),
        }
    }

    fn settings(&self, host: &str) -> Settings {
        settings(&format!(
            "amqps://guest:guest@{host}:{}",
            self.address.port()
        ))
    }
}

#[tokio::test]
async fn tls_requires_trusted_authority_and_matching_name() {
    let tls = Tls::start().await;
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), &tls.authority).unwrap();
    let ca_file = Some(ca.path().to_owned());
    let trusting = Settings {
        ca_file: ca_file.clone(),
        ..tls.settings("localhost")
    };
    let amqp = connect(trusting).await;
    amqp.queue().publish(&dispatch(1)).await.unwrap();
    in_time(amqp.close()).await;

    let error = refused(tls.settings("localhost")).await;
    assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
    assert!(shown(&error).contains("UnknownIssuer"), "{error:?}");

    let elsewhere = Settings {
        ca_file,
        ..tls.settings("127.0.0.1")
    };
    let error = refused(elsewhere).await;
    assert!(
        shown(&error).contains("not valid for name"),
        "{}",
        shown(&error)
    );
}

#[tokio::test]
async fn tls_mismatch_is_reported() {
    let port = shared().await.port();
    let error = refused(settings(&format!("amqps://guest:guest@localhost:{port}"))).await;
    assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
    let tls = Tls::start().await;
    let port = tls.address.port();
    let error = refused(settings(&format!("amqp://guest:guest@localhost:{port}"))).await;
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error:?}");
}

#[tokio::test]
async fn invalid_ca_files_are_reported() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let with = |path: &std::path::Path| Settings {
        ca_file: Some(path.to_owned()),
        ..settings("amqps://localhost")
    };
    let error = refused(with(file.path())).await;
    assert!(shown(&error).contains("no PEM certificate"), "{error:?}");
    let error = refused(with(&file.path().with_extension("gone"))).await;
    assert!(shown(&error).contains("No such file"), "{error:?}");
    std::fs::write(
        file.path(),
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let error = refused(with(file.path())).await;
    assert!(matches!(error, ConnectError::Authorities(_)), "{error:?}");
}
