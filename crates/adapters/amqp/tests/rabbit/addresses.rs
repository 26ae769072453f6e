//! Several addresses of a broker; addresses and authorities that change while a process runs.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use twincast_amqp::{ConnectError, Settings, State};
use twincast_core::ports::Queue;
use twincast_secret::SecretSource;
use twincast_testkit::services::{Proxy, RabbitMq, refusing_address};

use crate::connecting::Tls;
use crate::{
    connect, dispatch, in_time, refused, settings, shown, until, until_connected, until_lost,
};

fn urls(addresses: &[SocketAddr]) -> String {
    let urls: Vec<_> = addresses
        .iter()
        .map(|address| format!("amqp://{address}"))
        .collect();
    urls.join(",")
}

/// A process reaches the working address from any first address, and reaches another address after
/// a loss.
#[tokio::test]
async fn the_next_address_is_tried() {
    let broker = RabbitMq::shared().await;
    let (one, other) = (
        Proxy::start(broker.address()).await,
        Proxy::start(broker.address()).await,
    );
    one.refuse();
    let (dead, _socket) = refusing_address();
    let addresses = [dead, one.address(), other.address()];
    let amqp = connect(settings(&urls(&addresses))).await;
    amqp.queue().publish(&dispatch(1)).await.unwrap();
    one.unblock();
    other.refuse();
    until_lost(&amqp).await;
    until_connected(&amqp).await;
    amqp.queue().publish(&dispatch(2)).await.unwrap();
    in_time(amqp.close()).await;
}

#[tokio::test]
async fn all_addresses_are_named_when_none_can_be_used() {
    let broker = RabbitMq::shared().await.address();
    let (dead, _socket) = refusing_address();
    let error = refused(settings(&format!(
        "amqp://guest:hunter2@{dead},amqp://guest:hunter2@{broker}"
    )))
    .await;
    let ConnectError::NoAddress { tried } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(tried.len(), 2);
    assert!(
        matches!(error.most_specific(), ConnectError::Credentials { .. }),
        "{error:?}"
    );
    let shown = shown(&error);
    for part in [
        format!("broker at {dead} cannot be reached"),
        format!("broker at {broker} refuses user \"guest\""),
    ] {
        assert!(shown.contains(&part), "{part}: {shown}");
    }
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// A folder like a secret mounted by the kubelet: each file is a link into `..data`, which is a
/// link to a folder.
struct Mounted {
    folder: tempfile::TempDir,
    versions: u32,
}

impl Mounted {
    fn new(secret: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        symlink("..data/secret", folder.path().join("secret")).unwrap();
        let mut mounted = Self {
            folder,
            versions: 0,
        };
        mounted.replace(secret);
        mounted
    }

    fn replace(&mut self, secret: &str) {
        self.versions += 1;
        let at = |name: &str| self.folder.path().join(name);
        let version = format!("..{}", self.versions);
        std::fs::create_dir(at(&version)).unwrap();
        std::fs::write(at(&version).join("secret"), secret).unwrap();
        symlink(&version, at("..new")).unwrap();
        std::fs::rename(at("..new"), at("..data")).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("secret")
    }
}

fn from_file(path: &Path) -> Settings {
    Settings {
        urls: SecretSource::File {
            setting: "amqp.url_file".to_owned(),
            path: path.to_owned(),
        },
        ..settings("unused")
    }
}

/// The password is changed, the connection is lost, and only then the file is replaced.
#[tokio::test]
async fn reconnect_waits_for_the_changed_password() {
    let broker = RabbitMq::shared().await;
    broker.ctl(&["add_user", "rotated", "first"]).await;
    broker
        .ctl(&["set_permissions", "rotated", ".*", ".*", ".*"])
        .await;
    let proxy = Proxy::start(broker.address()).await;
    let url = |password: &str| format!("amqp://rotated:{password}@{}\n", proxy.address());
    let mut mounted = Mounted::new(&url("first"));
    let amqp = connect(from_file(&mounted.path())).await;
    broker.ctl(&["change_password", "rotated", "second"]).await;
    amqp.queue().publish(&dispatch(1)).await.unwrap();
    proxy.cut();
    until(&amqp, |state| {
        matches!(state, State::Reconnecting { last_error: Some(why), .. } if why.contains("refuses user \"rotated\""))
    })
    .await;
    mounted.replace("");
    until(&amqp, |state| {
        matches!(state, State::Reconnecting { last_error: Some(why), .. } if why.contains("amqp.url_file"))
    })
    .await;
    mounted.replace(&url("second"));
    until_connected(&amqp).await;
    amqp.queue().publish(&dispatch(2)).await.unwrap();
    in_time(amqp.close()).await;
}

/// The broker's certificate is signed by another authority than before.
#[tokio::test]
async fn authorities_are_read_for_each_connection() {
    let (before, after) = (Tls::start().await, Tls::start().await);
    let proxy = Proxy::start(before.address).await;
    let mut authorities = Mounted::new(&before.authority);
    let url = |address: SocketAddr| format!("amqps://guest:guest@localhost:{}", address.port());
    let mut urls = Mounted::new(&url(proxy.address()));
    let amqp = connect(Settings {
        ca_file: Some(authorities.path()),
        ..from_file(&urls.path())
    })
    .await;
    urls.replace(&url(after.address));
    proxy.refuse();
    until(&amqp, |state| {
        matches!(state, State::Reconnecting { last_error: Some(why), .. } if why.contains("TLS handshake with the broker"))
    })
    .await;
    authorities.replace(&after.authority);
    until_connected(&amqp).await;
    amqp.queue().publish(&dispatch(1)).await.unwrap();
    in_time(amqp.close()).await;
}
