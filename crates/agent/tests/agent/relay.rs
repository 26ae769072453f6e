//! A TCP relay between the agent and the hub, with a switch to block the traffic.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    open: watch::Sender<bool>,
    pub(crate) passed: Arc<AtomicUsize>,
}

impl Relay {
    /// Starts a relay to `target`. With `is_proxy`, the relay is an HTTP proxy for `CONNECT`
    /// requests.
    pub(crate) async fn to(target: SocketAddr, is_proxy: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, is_open) = watch::channel(true);
        let passed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&passed);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut is_open, count) = (is_open.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    if !*is_open.borrow_and_update() {
                        return;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::select! {
                        _ = pass(stream, target, is_proxy) => {}
                        _ = is_open.changed() => {}
                    }
                });
            }
        });
        Self {
            address,
            open,
            passed,
        }
    }

    /// Ends all connections and refuses new connections.
    pub(crate) fn block(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn unblock(&self) {
        self.open.send_replace(true);
    }
}

async fn pass(mut stream: TcpStream, target: SocketAddr, is_proxy: bool) -> std::io::Result<()> {
    if is_proxy {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        assert!(
            head.starts_with(b"CONNECT localhost:"),
            "{}",
            String::from_utf8_lossy(&head)
        );
        stream
            .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            .await?;
    }
    let mut target = TcpStream::connect(target).await?;
    copy_bidirectional(&mut stream, &mut target).await.map(drop)
}
