//! HTTP connections, and the routing of requests to handlers.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::DATE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use twincast_tunnel::WebSocketBytes;

use super::error::ApiError;
use super::route::{Caller, Destination, Route};
use super::websocket::{Subprotocol, handshake};
use super::{bulk, device, devices, feedback, methods, query, twins};
use crate::entra::{self, Action};
use crate::faults::HttpFault;
use crate::hub::{
    Admission, AuthenticatedDevice, ClientCertificate, Hub, Operation, Proof, Refusal,
};
use crate::sas::TokenHolder;
use crate::{amqp, dps, lock, mqtt};

/// The largest request body: a hundred devices with full twins fit.
const BODY_BYTES_MAX: usize = 8 << 20;
/// The time allowed for the head of a request, and between two requests.
const HEAD_TIME_OUT: Duration = Duration::from_secs(120);

/// An answer of the REST interface.
pub(crate) type Answer = Result<Response<Full<Bytes>>, ApiError>;

/// An authorized request.
pub(crate) struct Call {
    pub(crate) hub: Arc<Hub>,
    pub(crate) headers: HeaderMap,
    pub(crate) query: String,
    pub(crate) body: Bytes,
}

/// The state shared by all requests of a connection.
struct Peer {
    hub: Arc<Hub>,
    certificate: Option<ClientCertificate>,
    /// Set by a request to upgrade the connection to a WebSocket.
    upgrade: Mutex<Option<(Subprotocol, OnUpgrade)>>,
}

/// Serves one HTTP connection, and a WebSocket after an upgrade, until the connection ends or the
/// hub stops.
pub(crate) async fn serve<S>(
    stream: S,
    certificate: Option<ClientCertificate>,
    hub: Arc<Hub>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = Arc::new(Peer {
        hub,
        certificate,
        upgrade: Mutex::default(),
    });
    serve_requests(stream, &peer, &stop).await;
    let upgrade = lock(&peer.upgrade).take();
    let Some((subprotocol, upgrade)) = upgrade else {
        return;
    };
    let stream = match upgrade.await {
        Ok(upgraded) => WebSocketBytes::accepted(TokioIo::new(upgraded)).await,
        Err(error) => {
            tracing::debug!(error = %error, "WebSocket closed during the upgrade");
            return;
        }
    };
    let (hub, certificate) = (Arc::clone(&peer.hub), peer.certificate.clone());
    drop(peer);
    let nothing = BytesMut::new();
    match subprotocol {
        Subprotocol::Mqtt => Box::pin(mqtt::serve(stream, nothing, certificate, hub, stop)).await,
        Subprotocol::Amqp => Box::pin(amqp::serve(stream, nothing, hub, certificate, stop)).await,
    }
}

async fn serve_requests<S>(stream: S, peer: &Arc<Peer>, stop: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(|request| {
        let peer = Arc::clone(peer);
        async move { Ok::<_, Infallible>(handle(&peer, request).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_OUT);
    let connection = builder
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
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

/// Answers a request, with the hub's clock in the `Date` header.
async fn handle(peer: &Peer, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let mut response = if request.uri().path() == "/" {
        // Not part of the interface: clients request this path to read the hub's clock.
        ApiError::new(StatusCode::NOT_FOUND, "NotFound", "path / not found").response()
    } else {
        handle_timeless(peer, request).await
    };
    let now = i64::try_from(peer.hub.now_ms()).ok();
    let now = now.and_then(|now| jiff::Timestamp::from_millisecond(now).ok());
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    let date = now.and_then(|now| printer.timestamp_to_rfc9110_string(&now).ok());
    if let Some(date) = date.and_then(|date| HeaderValue::try_from(date).ok()) {
        response.headers_mut().insert(DATE, date);
    }
    response
}

async fn handle_timeless(peer: &Peer, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let hub = &peer.hub;
    hub.counters.http_requests.one();
    let delay = hub.faults.http_delay();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let answer = match hub.faults.on_http() {
        Some(fault) => Err(faulty(fault)),
        None => route(peer, request).await,
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

async fn route(peer: &Peer, mut request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let segments: Vec<String> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if segments == ["$iothub", "websocket"] {
        let (subprotocol, response) = handshake(request.headers())?;
        let upgrade = hyper::upgrade::on(&mut request);
        *lock(&peer.upgrade) = Some((subprotocol, upgrade));
        return Ok(response);
    }
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default().to_owned();
    if let Some(resource) = dps::path_of(&head.method, &segments) {
        let body = read_body(body).await?;
        let certificate = peer.certificate.as_ref();
        let answer = dps::answer(
            &peer.hub,
            resource,
            &query,
            &head.headers,
            certificate,
            &body,
        );
        return Ok(answer);
    }
    if let Some(issuer) = &peer.hub.issuer
        && let Some(resource) = entra::path_of(&head.method, &segments)
    {
        let body = read_body(body).await?;
        let host = head.headers.get(http::header::HOST);
        let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
        let base = format!("https://{host}");
        return Ok(entra::answer(
            issuer,
            resource,
            &base,
            &body,
            peer.hub.now_s(),
        ));
    }
    let route = match Destination::find(&head.method, &segments) {
        Destination::Emulated(route) => route,
        Destination::NotEmulated(what) => return Err((&Refusal::not_emulated(what)).into()),
        Destination::OtherMethod => {
            let text = format!("{path} does not support {}", head.method);
            return Err(ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                text,
            ));
        }
        Destination::NotFound => {
            let text = format!("path {path} not found");
            return Err(ApiError::new(StatusCode::NOT_FOUND, "NotFound", text));
        }
    };
    let hub = Arc::clone(&peer.hub);
    let device = match route.caller() {
        Caller::Service(action) => {
            authorize(&hub, &head.method, &head.headers, &path, action)?;
            None
        }
        Caller::Device(id) => Some(authenticate(peer, &head.headers, id)?),
    };
    check_api_version(&query)?;
    let body = read_body(body).await?;
    if let Some(operation) = route.operation() {
        admit(&hub, operation, 1).await?;
    }
    let call = Call {
        hub,
        headers: head.headers,
        query,
        body,
    };
    match device {
        Some(device) => answer_device(&call, &device, route).await,
        None => answer(call, route).await,
    }
}

/// Answers a device's request.
async fn answer_device(call: &Call, device: &AuthenticatedDevice, route: Route<'_>) -> Answer {
    match route {
        Route::SendEvent(_) => device::send(call, device).await,
        Route::CompleteMessage(_, lock) => device::complete(call, device, lock),
        Route::AbandonMessage(_, lock) => device::abandon(call, device, lock),
        // The only other route for devices: see `Route::caller`.
        _ => device::receive(call, device),
    }
}

/// Answers a service's request.
async fn answer(call: Call, route: Route<'_>) -> Answer {
    match route {
        Route::Query => query::run(&call).await,
        Route::Bulk => bulk::run(&call).await,
        Route::ListDevices => devices::list(&call),
        Route::GetDevice(id) => devices::get(&call, id),
        Route::PutDevice(id) => devices::put(&call, id),
        Route::DeleteDevice(id) => devices::delete(&call, id),
        Route::Purge(id) => devices::purge(&call, id),
        Route::GetTwin(id) => twins::get(&call, id),
        Route::PatchTwin(id) => twins::update(&call, id, twins::UpdateMode::Merge),
        Route::PutTwin(id) => twins::update(&call, id, twins::UpdateMode::Replace),
        Route::DeviceStatistics => run_blocking(move || devices::statistics(&call)).await,
        Route::ServiceStatistics => run_blocking(move || devices::service_statistics(&call)).await,
        Route::ReceiveFeedback => feedback::receive(&call),
        Route::CompleteFeedback(token) => feedback::complete(&call, token),
        Route::AbandonFeedback(token) => feedback::abandon(&call, token),
        Route::ReceiveFileNotification => feedback::receive_file_notification(),
        Route::SettleFileNotification(token) => Err(feedback::lock_lost(token)),
        Route::InvokeMethod(id) => methods::invoke(&call, id).await,
        Route::SendEvent(_)
        | Route::ReceiveMessage(_)
        | Route::CompleteMessage(..)
        | Route::AbandonMessage(..) => Err(ApiError::unauthorized(
            "only a device may send this request",
        )),
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, ApiError> {
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| ApiError::bad_request(format!("reading the body: {error}")))?;
    Ok(body.to_bytes())
}

/// Runs a scan of all devices on a blocking thread, off the event loop.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        let text = format!("the scan failed: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "ServerError", text)
    })
}

/// The API versions requested by official SDKs and tools; the newest is sent by current SDKs. The
/// hub publishes no list.
const API_VERSIONS: [&str; 11] = [
    "2016-02-03",
    "2016-11-14",
    "2017-06-30",
    "2018-06-30",
    "2019-03-30",
    "2019-07-01-preview",
    "2019-10-01",
    "2020-03-13",
    "2020-05-31-preview",
    "2020-09-30",
    "2021-04-12",
];

/// Checks the API version in a request's query.
fn check_api_version(query: &str) -> Result<(), ApiError> {
    let found = query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        name.eq_ignore_ascii_case("api-version")
            .then(|| percent_decode_str(value).decode_utf8_lossy())
    });
    let problem = match &found {
        None => "the request has no api-version".to_owned(),
        Some(version) if API_VERSIONS.contains(&&**version) => return Ok(()),
        Some(version) => format!("unknown api-version '{version}'"),
    };
    Err(ApiError::new(
        StatusCode::BAD_REQUEST,
        "InvalidProtocolVersion",
        format!(
            "{problem}; the newest is {}",
            API_VERSIONS[API_VERSIONS.len() - 1]
        ),
    ))
}

fn authenticate(
    peer: &Peer,
    headers: &HeaderMap,
    id: &str,
) -> Result<AuthenticatedDevice, ApiError> {
    let token = headers
        .get(http::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let proof = match (token, &peer.certificate) {
        (Some(token), _) => Proof::Token(token),
        (None, Some(certificate)) => Proof::Certificate(certificate),
        (None, None) => {
            let text = "the request has neither an Authorization header nor a client certificate";
            return Err(ApiError::unauthorized(text));
        }
    };
    let device = peer.hub.authenticate_device(id, proof);
    device.map_err(|error| (&Refusal::from(&error)).into())
}

fn authorize(
    hub: &Hub,
    method: &http::Method,
    headers: &HeaderMap,
    path: &str,
    action: Action,
) -> Result<(), ApiError> {
    let token = headers
        .get(http::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token =
        token.ok_or_else(|| ApiError::unauthorized("the request has no Authorization header"))?;
    let grant = hub
        .authenticate(token)
        .map_err(|error| ApiError::unauthorized(error.to_string()))?;
    if grant.covers(path, action, hub.now_s()) {
        return Ok(());
    }
    Err(match &grant.holder {
        // The real hub's answer (github.com/Azure/azure-sdk-for-net/issues/21453).
        TokenHolder::Principal(principal) => ApiError::new(
            StatusCode::UNAUTHORIZED,
            "IotHubUnauthorized",
            format!(
                "Principal {} is not authorized for {method} on {path} due to no assigned permissions",
                principal.object_id
            ),
        ),
        TokenHolder::Policy { name, .. } => {
            ApiError::unauthorized(format!("the policy '{name}' does not allow this request"))
        }
    })
}

/// Waits for a permit of the throttle.
pub(crate) async fn admit(hub: &Hub, operation: Operation, count: u64) -> Result<(), ApiError> {
    match hub.admit(operation, count) {
        Admission::Now => Ok(()),
        Admission::After(wait) => {
            hub.counters.http_shaped.one();
            tokio::time::sleep(wait).await;
            Ok(())
        }
        Admission::Refused => {
            hub.counters.http_throttled.one();
            let retry_after_s = hub.faults.get().retry_after_s;
            Err(ApiError::throttled(operation.name(), retry_after_s))
        }
    }
}

/// A stream with bytes already read.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_need_a_known_api_version() {
        for query in [
            "api-version=2021-04-12",
            "top=5&api-version=2020-03-13&x",
            "Api-Version=2019%2D10%2D01",
            "api-version=2020-05-31-preview",
        ] {
            assert!(check_api_version(query).is_ok(), "{query}");
        }
        for (query, hint) in [
            ("", "has no api-version"),
            ("top=5&apiversion=2021-04-12", "has no api-version"),
            ("api-version", "unknown api-version ''"),
            ("api-version=", "unknown api-version ''"),
            ("api-version=2021-04-13", "unknown api-version '2021-04-13'"),
            (
                "api-version=2021-04-12-preview",
                "preview'; the newest is 2021-04-12",
            ),
            (
                "api-version=1999-01-01&api-version=2021-04-12",
                "1999-01-01",
            ),
        ] {
            let error = check_api_version(query).unwrap_err().to_string();
            assert!(error.contains(hint), "{query}: {error}");
        }
    }
}
