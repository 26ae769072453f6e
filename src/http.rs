//! An HTTP/1.1 server that no client can exhaust of memory or time.
//!
//! * The head of a request has at most [`MAX_HEAD_BYTES`] bytes; the first head arrives within
//!   [`FIRST_HEAD_TIMEOUT`].
//! * A connection without requests ends after [`IDLE_TIMEOUT`]; a connection with an unread answer
//!   ends after [`UNREAD_TIMEOUT`].
//! * [`ConnectionLimits`] limit the connections in total and per peer. Beyond a limit, a new
//!   connection evicts the connection waiting longest for a request. Connections with a running
//!   request are never evicted; the handlers limit the number of running requests.

mod slots;
pub(crate) mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::connect_info::ConnectInfo;
use axum::serve::Listener;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::SocketAddr as UnixAddr;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use slots::{Activity, ConnectionSlot, ConnectionSlots};
pub(crate) use slots::{ConnectionLimits, Peer};
use tls::Tls;

/// The largest head of a request, in bytes. A token of an issuer may take up half.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Time limit for the TLS handshake and the first request on a new connection.
const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for a connection without requests. Longer than common limits of proxies, so a proxy
/// sends no request over a connection about to end.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Time limit for a client to read a part of an answer, over TCP.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A listener with knowledge of the peers.
pub(crate) trait PeerListener: Listener {
    /// Configures a new connection, and returns the peer.
    fn identify(io: &Self::Io, address: &Self::Addr) -> Peer;
}

impl PeerListener for TcpListener {
    fn identify(io: &TcpStream, address: &SocketAddr) -> Peer {
        // The connection also works without these options, at a higher cost.
        _ = io.set_nodelay(true);
        #[cfg(target_os = "linux")]
        {
            _ = socket2::SockRef::from(io).set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
        }
        Peer::Machine(address.ip().to_canonical())
    }
}

impl PeerListener for UnixListener {
    fn identify(io: &UnixStream, _: &UnixAddr) -> Peer {
        Peer::User(io.peer_cred().ok().map(|it| it.uid()))
    }
}

/// A server and the server's settings.
pub(crate) struct Server {
    /// Answers requests. Handlers find the peer as `ConnectInfo` of a [`Peer`], and the IP address,
    /// if any, as `ConnectInfo` of an `IpAddr`.
    pub(crate) router: Router,
    /// Encrypts connections, if present.
    pub(crate) tls: Option<Arc<Tls>>,
    /// The limits on connections.
    pub(crate) limits: ConnectionLimits,
    /// Time limit for running requests once the server is asked to stop.
    pub(crate) shutdown_timeout: Duration,
}

impl Server {
    /// Serves until `stop`, then lets running requests finish.
    pub(crate) async fn serve<L: PeerListener>(self, mut listener: L, stop: CancellationToken) {
        let server = Arc::new(self);
        let slots = ConnectionSlots::new(server.limits);
        let connections = TaskTracker::new();
        loop {
            let (io, address) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let peer = L::identify(&io, &address);
            // All slots are taken by connections with running requests: the new connection is
            // closed.
            let Some(slot) = slots.take(peer) else {
                continue;
            };
            let (server, stop) = (Arc::clone(&server), stop.clone());
            connections.spawn(async move { server.serve_connection(io, peer, slot, &stop).await });
        }
        // A stopping process accepts no connection.
        drop(listener);
        connections.close();
        connections.wait().await;
    }

    /// Serves a connection while the connection keeps its slot.
    async fn serve_connection<S>(
        &self,
        io: S,
        peer: Peer,
        slot: ConnectionSlot,
        stop: &CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let slot = Arc::new(slot);
        let serving = async {
            match &self.tls {
                None => self.serve_requests(io, peer, &slot, stop).await,
                Some(tls) => match tls.acceptor().accept(io).await {
                    Ok(io) => self.serve_requests(io, peer, &slot, stop).await,
                    Err(error) => tracing::debug!(%error, "TLS handshake failed"),
                },
            }
        };
        let silent = async {
            tokio::time::sleep(FIRST_HEAD_TIMEOUT).await;
            if slot.had_request() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = serving => {}
            () = silent => {}
            () = slot.evicted() => {}
        }
    }

    async fn serve_requests<S>(
        &self,
        io: S,
        peer: Peer,
        slot: &Arc<ConnectionSlot>,
        stop: &CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| answer(self.router.clone(), request, peer, slot));
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_TIMEOUT)
                .max_header_size(MAX_HEAD_BYTES)
                .max_buf_size(MAX_HEAD_BYTES)
                .serve_connection(TokioIo::new(io), service)
        );
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let ended = tokio::time::timeout(self.shutdown_timeout, connection).await;
                ended.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended with an error");
        }
    }
}

/// Answers a request, and records the activity of the connection.
async fn answer(
    mut router: Router,
    request: Request<Incoming>,
    peer: Peer,
    slot: &Arc<ConnectionSlot>,
) -> Result<Response<Sending>, Infallible> {
    slot.set_activity(Activity::Answering);
    let mut request = request.map(Body::new);
    let extensions = request.extensions_mut();
    extensions.insert(ConnectInfo(peer));
    if let Peer::Machine(address) = peer {
        extensions.insert(ConnectInfo(address));
    }
    let response = router.call(request).await?;
    slot.set_activity(Activity::Sending);
    Ok(response.map(|body| Sending {
        body,
        slot: Arc::clone(slot),
    }))
}

/// The body of an answer. On drop, the connection counts as waiting.
struct Sending {
    body: Body,
    slot: Arc<ConnectionSlot>,
}

impl hyper::body::Body for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.slot.set_activity(Activity::Idle);
    }
}
