//! HTTP connections and the way from a request to its handler.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::{bulk, devices, query, twins};
use crate::faults::HttpFault;
use crate::hub::{Admission, Hub, Operation};
use crate::policy::Permissions;

/// The largest request body: a hundred devices with full twins fit.
const BODY_BYTES_MAX: usize = 8 << 20;
/// How long a client may take for the head of a request, and between two requests.
const HEAD_TIME_OUT: Duration = Duration::from_secs(120);

/// An answer of the REST interface.
pub(crate) type Answer = Result<Response<Full<Bytes>>, ApiError>;

/// A request that may be handled.
pub(crate) struct Call {
    pub(crate) hub: Arc<Hub>,
    pub(crate) headers: HeaderMap,
    pub(crate) query: String,
    pub(crate) body: Bytes,
}

/// Serves one HTTP connection until it ends or the hub stops.
pub(crate) async fn serve<S>(stream: S, hub: Arc<Hub>, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let hub = Arc::clone(&hub);
        async move { Ok::<_, Infallible>(handle(hub, request).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_OUT);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, "HTTP connection ended");
    }
}

async fn handle(hub: Arc<Hub>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    hub.tallies.http_requests.one();
    let delay = hub.faults.http_delay();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let answer = match hub.faults.on_http() {
        Some(fault) => Err(faulty(fault)),
        None => route(hub, request).await,
    };
    answer.unwrap_or_else(|error| error.response())
}

fn faulty(fault: HttpFault) -> ApiError {
    match fault {
        HttpFault::TooManyRequests { retry_after_s } => {
            ApiError::throttled("QueryDevices", retry_after_s)
        }
        HttpFault::Internal => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "ServerError",
            "injected by a fault",
        ),
        HttpFault::Unavailable => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "injected by a fault",
        ),
    }
}

async fn route(hub: Arc<Hub>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let segments: Vec<String> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let route = Route::find(&head.method, &segments).ok_or_else(|| {
        let text = format!("there is no {} {path}", head.method);
        ApiError::new(StatusCode::NOT_FOUND, "InvalidProtocolVersion", text)
    })?;
    authorize(&hub, &head.headers, &path, route.permissions())?;
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body
        .map_err(|error| ApiError::bad_request(format!("reading the body: {error}")))?
        .to_bytes();
    if let Some(operation) = route.operation() {
        admit(&hub, operation, 1).await?;
    }
    let query = head.uri.query().unwrap_or_default().to_owned();
    let call = Call {
        hub,
        headers: head.headers,
        query,
        body,
    };
    match route {
        Route::Query => query::run(&call).await,
        Route::Bulk => bulk::run(&call).await,
        Route::ListDevices => devices::list(&call),
        Route::GetDevice(id) => devices::get(&call, id),
        Route::PutDevice(id) => devices::put(&call, id),
        Route::DeleteDevice(id) => devices::delete(&call, id),
        Route::Purge(id) => devices::purge(&call, id),
        Route::GetTwin(id) => twins::get(&call, id),
        Route::PatchTwin(id) => twins::update(&call, id, twins::Manner::Merge),
        Route::PutTwin(id) => twins::update(&call, id, twins::Manner::Replace),
        Route::DeviceStatistics => off_loop(move || devices::statistics(&call)).await,
        Route::ServiceStatistics => off_loop(move || devices::service_statistics(&call)).await,
    }
}

/// Runs something that looks at every device where it holds up nobody.
pub(crate) async fn off_loop<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        let text = format!("the scan failed: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "ServerError", text)
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route<'a> {
    Query,
    Bulk,
    ListDevices,
    GetDevice(&'a str),
    PutDevice(&'a str),
    DeleteDevice(&'a str),
    Purge(&'a str),
    GetTwin(&'a str),
    PatchTwin(&'a str),
    PutTwin(&'a str),
    DeviceStatistics,
    ServiceStatistics,
}

impl<'a> Route<'a> {
    fn find(method: &Method, segments: &[&'a str]) -> Option<Self> {
        Some(match (method.as_str(), segments) {
            ("POST", ["devices", "query"]) => Self::Query,
            ("POST", ["devices"]) => Self::Bulk,
            ("GET", ["devices"]) => Self::ListDevices,
            ("GET", &["devices", id]) => Self::GetDevice(id),
            ("PUT", &["devices", id]) => Self::PutDevice(id),
            ("DELETE", &["devices", id]) => Self::DeleteDevice(id),
            ("DELETE", &["devices", id, "commands"]) => Self::Purge(id),
            ("GET", &["twins", id]) => Self::GetTwin(id),
            ("PATCH", &["twins", id]) => Self::PatchTwin(id),
            ("PUT", &["twins", id]) => Self::PutTwin(id),
            ("GET", ["statistics", "devices"]) => Self::DeviceStatistics,
            ("GET", ["statistics", "service"]) => Self::ServiceStatistics,
            _ => return None,
        })
    }

    fn permissions(self) -> Permissions {
        match self {
            Self::Query
            | Self::Purge(_)
            | Self::GetTwin(_)
            | Self::PatchTwin(_)
            | Self::PutTwin(_) => Permissions::SERVICE,
            Self::ListDevices
            | Self::GetDevice(_)
            | Self::DeviceStatistics
            | Self::ServiceStatistics => Permissions::REGISTRY_READ,
            Self::Bulk | Self::PutDevice(_) | Self::DeleteDevice(_) => {
                Permissions::REGISTRY_READ_WRITE
            }
        }
    }

    /// The throttle the route falls under; bulk requests count their devices themselves.
    fn operation(self) -> Option<Operation> {
        match self {
            Self::Query => Some(Operation::Query),
            Self::GetTwin(_) => Some(Operation::TwinRead),
            Self::PatchTwin(_) | Self::PutTwin(_) => Some(Operation::TwinUpdate),
            Self::Bulk => None,
            _ => Some(Operation::Registry),
        }
    }
}

fn authorize(
    hub: &Hub,
    headers: &HeaderMap,
    path: &str,
    wanted: Permissions,
) -> Result<(), ApiError> {
    let token = headers
        .get(http::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token = token.ok_or_else(|| ApiError::unauthorized("there is no Authorization header"))?;
    let grant = hub
        .authenticate(token)
        .map_err(|error| ApiError::unauthorized(error.to_string()))?;
    if grant.covers(path, wanted, hub.now_s()) {
        Ok(())
    } else {
        Err(ApiError::unauthorized(format!(
            "the policy '{}' does not allow this",
            grant.policy
        )))
    }
}

/// Waits for the throttle's permit.
pub(crate) async fn admit(hub: &Hub, operation: Operation, count: u64) -> Result<(), ApiError> {
    match hub.admit(operation, count) {
        Admission::Now => Ok(()),
        Admission::After(wait) => {
            hub.tallies.http_shaped.one();
            tokio::time::sleep(wait).await;
            Ok(())
        }
        Admission::Refused => {
            hub.tallies.http_throttled.one();
            let retry_after_s = hub.faults.get().retry_after_s;
            Err(ApiError::throttled(operation.name(), retry_after_s))
        }
    }
}

/// A stream of which something was already read.
#[derive(Debug)]
pub(crate) struct Prefixed<S> {
    prefix: BytesMut,
    stream: S,
}

impl<S> Prefixed<S> {
    pub(crate) fn new(stream: S, prefix: BytesMut) -> Self {
        Self { prefix, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
