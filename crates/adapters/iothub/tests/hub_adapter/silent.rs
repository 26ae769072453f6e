//! A hub that accepts connections and stays silent.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;
use twincast_core::ports::{Hub, HubTrouble};
use twincast_hub_adapter::IotHub;
use twincast_iothub::{ClientOptions, ConnectionString, Credentials, Endpoint};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The decision to give up must not have to wait for the end of the first attempt.
#[tokio::test(flavor = "multi_thread")]
async fn pending_first_connection_is_reported_before_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = ClientOptions::default();
    options.amqp = Endpoint {
        host: Some("127.0.0.1".to_owned()),
        port: Some(listener.local_addr().unwrap().port()),
    };
    options.connect_timeout = 2 * TEST_TIMEOUT;
    let connection = "HostName=h.example.net;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0";
    let connection: ConnectionString = connection.parse().unwrap();
    let credentials = Credentials::SharedAccess(connection.clone().into());
    let hub = IotHub::new(connection.address(), credentials, options, None).unwrap();
    assert!(!hub.is_ready());
    // On a busy machine, the connection may no longer be new.
    let early = hub
        .obstacle()
        .filter(|it| it.lasting < Duration::from_secs(1));
    assert_eq!(early, None, "a new connection is no obstacle");
    let hindered = async {
        loop {
            match hub.obstacle() {
                Some(obstacle) => return obstacle,
                None => tokio::task::yield_now().await,
            }
        }
    };
    let obstacle = timeout(TEST_TIMEOUT, hindered).await.expect("an obstacle");
    assert_eq!(obstacle.trouble, HubTrouble::Unreachable);
    assert!(!obstacle.lasting.is_zero());
}
