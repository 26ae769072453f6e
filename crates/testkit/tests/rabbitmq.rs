//! Real RabbitMQ for tests: `twincast_testkit::services`.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use twincast_testkit::services::{Proxy, RabbitMq};

/// Sends the protocol header. A broker answers with a method frame on channel 0.
async fn greet(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    let mut frame = [0; 3];
    stream.read_exact(&mut frame).await?;
    assert_eq!(frame, [1, 0, 0]);
    Ok(())
}

#[tokio::test]
async fn shared_rabbitmq_is_reused_and_reachable_through_a_proxy() {
    let (a, b) = tokio::join!(RabbitMq::shared(), RabbitMq::shared());
    assert_eq!(a.url(), b.url());
    greet(a.address()).await.unwrap();

    let proxy = Proxy::start(a.address()).await;
    let via = format!("amqp://guest:guest@{}", proxy.address());
    assert_eq!(a.url_via(&proxy), via);
    greet(proxy.address()).await.unwrap();
    proxy.refuse();
    greet(proxy.address()).await.unwrap_err();
}

#[tokio::test]
async fn a_restart_keeps_port_and_data() {
    let rabbit = RabbitMq::start().await;
    let address = rabbit.address();
    rabbit.ctl(&["add_vhost", "kept"]).await;
    rabbit.stop().await;
    greet(address).await.unwrap_err();
    rabbit.start_stopped().await;
    greet(address).await.unwrap();

    rabbit.kill().await;
    greet(address).await.unwrap_err();
    rabbit.start_stopped().await;
    assert_eq!(rabbit.address(), address);
    assert!(rabbit.ctl(&["list_vhosts"]).await.contains("kept"));

    let folder = rabbit.folder().to_owned();
    drop(rabbit);
    greet(address).await.unwrap_err();
    assert!(!folder.exists());
}
