//! An HTTP/1.1 server whose memory and time nobody can use up.
//!
//! * The head of a request has [`HEAD_BYTES`] at the most, and the first one comes within [`FIRST_HEAD`].
//! * A connection over which nothing is asked ends after [`IDLE`], one whose answer nobody reads after [`UNREAD`].
//! * There are as many connections as [`Bounds`] say, in all and with one peer. A new one always gets a place: the one
//!   gives way that has waited longest to be asked something. Requests that are being answered never give way; how many
//!   there are is bounded by what answers them.

mod seats;
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

pub(crate) use seats::{Bounds, Peer};
use seats::{Doing, Seat, Seats};
use tls::Tls;

/// The largest head of a request. A token of an issuer may have half of it.
const HEAD_BYTES: usize = 32 * 1024;
/// How long a new connection may take to be encrypted, and to ask for something.
const FIRST_HEAD: Duration = Duration::from_secs(10);
/// How long a connection is kept over which nothing is asked. Longer than proxies keep theirs, so that they do not ask
/// over one that just ends.
const IDLE: Duration = Duration::from_secs(75);
/// How long a part of an answer may wait to be read, over TCP.
const UNREAD: Duration = Duration::from_secs(30);

/// A listener that knows who connects.
pub(crate) trait Accepting: Listener {
    /// Sets a new connection up, and says whose it is.
    fn meet(io: &Self::Io, address: &Self::Addr) -> Peer;
}

impl Accepting for TcpListener {
    fn meet(io: &TcpStream, address: &SocketAddr) -> Peer {
        // One that cannot be set up so is as good, but for what it costs.
        _ = io.set_nodelay(true);
        #[cfg(target_os = "linux")]
        {
            _ = socket2::SockRef::from(io).set_tcp_user_timeout(Some(UNREAD));
        }
        Peer::Machine(address.ip().to_canonical())
    }
}

impl Accepting for UnixListener {
    fn meet(io: &UnixStream, _: &UnixAddr) -> Peer {
        Peer::User(io.peer_cred().ok().map(|it| it.uid()))
    }
}

/// What is served, and how.
pub(crate) struct Server {
    /// What answers. It finds who asks as `ConnectInfo` of a [`Peer`], and of an `IpAddr` where there is one.
    pub(crate) router: Router,
    /// How connections are encrypted, if they are.
    pub(crate) tls: Option<Arc<Tls>>,
    /// How many there may be.
    pub(crate) bounds: Bounds,
    /// How long requests under way may take when it is to stop.
    pub(crate) last_requests: Duration,
}

impl Server {
    /// Answers until `stop`, then lets requests under way end.
    pub(crate) async fn serve<L: Accepting>(self, mut listener: L, stop: CancellationToken) {
        let server = Arc::new(self);
        let seats = Seats::new(server.bounds);
        let conversations = TaskTracker::new();
        loop {
            let (io, address) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let peer = L::meet(&io, &address);
            // Whoever fills all places with requests that are being answered is not answered.
            let Some(seat) = seats.take(peer) else {
                continue;
            };
            let (server, stop) = (Arc::clone(&server), stop.clone());
            conversations.spawn(async move { server.sit(io, peer, seat, &stop).await });
        }
        // Nobody connects to a process that is about to end.
        drop(listener);
        conversations.close();
        conversations.wait().await;
    }

    /// Talks over one connection, for as long as it keeps its seat.
    async fn sit<S>(&self, io: S, peer: Peer, seat: Seat, stop: &CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let seat = Arc::new(seat);
        let talk = async {
            match &self.tls {
                None => self.talk(io, peer, &seat, stop).await,
                Some(tls) => match tls.acceptor().accept(io).await {
                    Ok(io) => self.talk(io, peer, &seat, stop).await,
                    Err(error) => tracing::debug!(%error, "a connection is not encrypted"),
                },
            }
        };
        let silent = async {
            tokio::time::sleep(FIRST_HEAD).await;
            if seat.was_asked() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = talk => {}
            () = silent => {}
            () = seat.given_up() => {}
        }
    }

    async fn talk<S>(&self, io: S, peer: Peer, seat: &Arc<Seat>, stop: &CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| answer(self.router.clone(), request, peer, seat));
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE)
                .max_header_size(HEAD_BYTES)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(io), service)
        );
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let ended = tokio::time::timeout(self.last_requests, connection).await;
                ended.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
        }
    }
}

/// Has a request answered, and notes what its connection is doing.
async fn answer(
    mut router: Router,
    request: Request<Incoming>,
    peer: Peer,
    seat: &Arc<Seat>,
) -> Result<Response<Sending>, Infallible> {
    seat.does(Doing::Answering);
    let mut request = request.map(Body::new);
    let extensions = request.extensions_mut();
    extensions.insert(ConnectInfo(peer));
    if let Peer::Machine(address) = peer {
        extensions.insert(ConnectInfo(address));
    }
    let response = router.call(request).await?;
    seat.does(Doing::Sending);
    Ok(response.map(|body| Sending {
        body,
        seat: Arc::clone(seat),
    }))
}

/// The body of an answer. Once it is sent, the connection waits.
struct Sending {
    body: Body,
    seat: Arc<Seat>,
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
        self.seat.does(Doing::Waiting);
    }
}
