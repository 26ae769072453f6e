//! Real Redis for tests, and the proxy in front of it: `twincast_testkit::services`.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use twincast_testkit::services::{Proxy, Redis, RedisCluster};

async fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"+PONG\r\n");
    Ok(())
}

#[tokio::test]
async fn the_shared_redis_is_reused() {
    let (a, b) = tokio::join!(Redis::shared(), Redis::shared());
    assert_eq!(a.url(), b.url());
    assert_eq!(a.command("PING").await, "+PONG\r\n");
}

#[tokio::test]
async fn a_restart_keeps_port_and_data() {
    let redis = Redis::start(&["--appendfsync", "always"]).await;
    let address = redis.address();
    redis.command("SET how stopped").await;
    redis.restart().await;
    assert_eq!(redis.address(), address);
    assert_eq!(redis.command("GET how").await, "$7\r\nstopped\r\n");

    redis.command("SET how killed").await;
    redis.kill().await;
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    redis.start_stopped().await;
    assert_eq!(redis.command("GET how").await, "$6\r\nkilled\r\n");
}

#[tokio::test]
async fn a_dropped_redis_stops_and_removes_the_folder() {
    let redis = Redis::start(&[]).await;
    let (address, folder) = (redis.address(), redis.folder().to_owned());
    drop(redis);
    assert!(TcpStream::connect(address).await.is_err());
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_cluster_serves_all_slots_also_after_a_node_was_killed() {
    let cluster = RedisCluster::start().await;
    assert_eq!(cluster.urls().len(), 3);
    for node in cluster.nodes() {
        assert!(
            node.command("CLUSTER INFO")
                .await
                .contains("cluster_slots_ok:16384")
        );
    }
    let [_, second, _] = cluster.nodes();
    second.kill().await;
    second.start_stopped().await;
    cluster.ready().await;
}

#[tokio::test]
async fn a_proxy_cuts_holds_and_refuses() {
    let redis = Redis::shared().await;
    let proxy = Proxy::start(redis.address()).await;
    assert_eq!(
        redis.url_via(&proxy),
        format!("redis://{}", proxy.address())
    );
    let connect = || TcpStream::connect(proxy.address());

    let mut stream = connect().await.unwrap();
    ping(&mut stream).await.unwrap();
    proxy.cut();
    let reset = stream.read(&mut [0]).await.unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);

    let mut before = connect().await.unwrap();
    ping(&mut before).await.unwrap();
    proxy.block();
    let mut during = connect().await.unwrap();
    for stream in [&mut before, &mut during] {
        stream.write_all(b"PING\r\n").await.unwrap();
        let answered = timeout(Duration::from_millis(50), stream.read(&mut [0])).await;
        assert!(answered.is_err(), "{answered:?}");
    }
    proxy.unblock();
    for stream in [&mut before, &mut during] {
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
    }

    proxy.refuse();
    assert!(before.read(&mut [0]).await.is_err());
    assert!(connect().await.unwrap().read(&mut [0]).await.is_err());
    proxy.unblock();
    ping(&mut connect().await.unwrap()).await.unwrap();
}

/// The environment variable of the process to be killed.
const VICTIM: &str = "TWINCAST_TEST_VICTIM";

/// Not a test: the process killed by the next test.
#[tokio::test]
#[expect(
    clippy::print_stdout,
    reason = "tells the test that kills it where things are"
)]
async fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let redis = Redis::shared().await;
    println!("\nvictim: {} {}", redis.address(), redis.folder().display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn servers_of_a_killed_test_process_are_removed() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["victim", "--exact", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let line = lines
        .map(Result::unwrap)
        .find(|line| line.starts_with("victim: "))
        .unwrap();
    let [_, address, folder] = line.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{line}")
    };
    let address = address.parse::<SocketAddr>().unwrap();
    let root = Path::new(folder).parent().unwrap();
    assert!(TcpStream::connect(address).await.is_ok());

    victim.kill().unwrap();
    victim.wait().unwrap();
    let removal = async {
        while root.exists() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), removal)
        .await
        .expect("the guard removes the folder");
    assert!(TcpStream::connect(address).await.is_err());
}
