//! A TCP proxy with faults on request.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// The number of bytes held per direction and connection while blocked: small, so that senders
/// notice.
const BUFFER: usize = 16 * 1024;

/// The mode of the proxy, and the number of cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    mode: Mode,
    cuts: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    Hold,
    Refuse,
}

/// A proxy in front of an address. The proxy forwards everything until a test sets another mode.
/// The proxy ends on drop, or with the runtime of the start, whichever is first.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    task: AbortHandle,
}

impl Proxy {
    /// Starts a proxy in front of `target`, on a free port.
    ///
    /// # Panics
    /// If no port can be bound.
    pub async fn start(target: SocketAddr) -> Self {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = bound.expect("a free port for a proxy");
        let address = listener.local_addr().expect("a bound port");
        let (state, seen) = watch::channel(State {
            mode: Mode::Pass,
            cuts: 0,
        });
        let task = tokio::spawn(accept(listener, target, seen)).abort_handle();
        Self {
            address,
            state,
            task,
        }
    }

    /// Returns the address for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets all present connections. New connections are served.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Blocks all traffic without closing connections, like a network losing every packet. New
    /// connections are accepted and get no answer. Held bytes are forwarded after the block.
    pub fn block(&self) {
        self.state.send_modify(|state| state.mode = Mode::Hold);
    }

    /// Resets all present and new connections, like a machine without the service.
    pub fn refuse(&self) {
        self.state.send_modify(|state| {
            state.mode = Mode::Refuse;
            state.cuts += 1;
        });
    }

    /// Ends [`block`](Self::block) and [`refuse`](Self::refuse).
    pub fn unblock(&self) {
        self.state.send_modify(|state| state.mode = Mode::Pass);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        // Both branches are cancel safe.
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(serve(client, target, state.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut client: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    let State { mode, cuts } = *state.borrow_and_update();
    let ended = mode != Mode::Refuse && {
        let passing = state.clone();
        tokio::select! {
            _ = state.wait_for(|state| state.cuts != cuts) => false,
            passed = pass(&mut client, target, passing) => passed.is_ok(),
        }
    };
    if !ended {
        // Turns the following close into a reset, instead of an orderly end.
        client.set_zero_linger().ok();
    }
}

/// Forwards both directions until both have ended.
async fn pass(
    client: &mut TcpStream,
    target: SocketAddr,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let _ = state.wait_for(|state| state.mode == Mode::Pass).await;
    let mut server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let there = pump(from_client, to_server, state.clone());
    let back = pump(from_server, to_client, state);
    tokio::try_join!(there, back)?;
    Ok(())
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        let _ = state.wait_for(|state| state.mode == Mode::Pass).await;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
