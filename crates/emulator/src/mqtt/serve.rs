//! An MQTT connection from the first byte to the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mqtt_proto::v3::{Connack, Connect, ConnectReturnCode, Packet};
use mqtt_proto::{Error, Protocol};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::client::{Client, silence_max};
use super::io::{PacketStream, StreamError};
use super::login::Login;
use super::registration::{self, RegistrationName};
use super::topic;
use crate::faults::ConnectFault;
use crate::hub::{
    Admission, AuthenticatedDevice, ClientCertificate, DeviceSession, Hub, Operation, Proof,
};

/// The time allowed for a client's CONNECT.
const CONNECT_TIME_OUT: Duration = Duration::from_secs(30);
/// The time allowed for a peer to read the remaining output after the hub has closed.
const LINGER: Duration = Duration::from_secs(2);

/// Serves one connection until either side closes. `read` holds the bytes already read from the
/// connection.
pub(crate) async fn serve<S>(
    stream: S,
    read: BytesMut,
    certificate: Option<ClientCertificate>,
    hub: Arc<Hub>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite,
{
    let mut io = PacketStream::new(stream, read);
    let served = tokio::select! {
        () = stop.cancelled() => Ok(()),
        served = serve_device(&mut io, certificate, &hub) => served,
    };
    if let Err(error) = served {
        tracing::debug!(reason = %error, "MQTT connection ended");
    }
    _ = tokio::time::timeout(LINGER, io.close()).await;
}

async fn serve_device<S: AsyncRead + AsyncWrite>(
    io: &mut PacketStream<S>,
    certificate: Option<ClientCertificate>,
    hub: &Arc<Hub>,
) -> Result<(), StreamError> {
    let first = tokio::time::timeout(CONNECT_TIME_OUT, io.next(false)).await;
    let connect = match first {
        Ok(Ok(Packet::Connect(connect))) => connect,
        Ok(Err(StreamError::Malformed(
            Error::UnexpectedProtocol(_) | Error::InvalidProtocol(..),
        ))) => {
            return answer(io, ConnectReturnCode::UnacceptableProtocolVersion, false).await;
        }
        Ok(Err(error)) => return Err(error),
        // Another packet than CONNECT, or none in time.
        Ok(Ok(_)) | Err(_) => return Ok(()),
    };
    if let Some(Login::Provisioning {
        id_scope,
        registration_id,
    }) = connect.username.as_deref().and_then(Login::read)
    {
        let name = RegistrationName {
            id_scope,
            registration_id,
        };
        return registration::serve_registration(io, &connect, name, certificate.as_ref(), hub)
            .await;
    }
    let wake = Arc::new(Notify::new());
    let fault = hub.faults.on_device_connect();
    let accepted = match fault {
        Some(ConnectFault::Unavailable) => Err(ConnectReturnCode::ServerUnavailable),
        Some(ConnectFault::Unauthorized) => Err(ConnectReturnCode::NotAuthorized),
        Some(ConnectFault::HalfOpen) | None => {
            accept(&connect, certificate.as_ref(), hub, &wake).await
        }
    };
    let session = match accepted {
        Ok(session) => session,
        Err(code) => return answer(io, code, false).await,
    };
    let ends = session.device.ends_s.map(|ends_s| {
        let left_ms = (ends_s * 1000).saturating_sub(hub.now_ms());
        Instant::now() + Duration::from_millis(left_ms)
    });
    let will = connect
        .last_will
        .as_ref()
        .map(|will| will.topic_name.len() + will.message.len());
    let (client, was_present) = Client::new(session, !connect.clean_session, will);
    answer(io, ConnectReturnCode::Accepted, was_present).await?;
    if fault == Some(ConnectFault::HalfOpen) {
        // The hub considers the device connected, and no data passes in either direction.
        return half_open(io, client, &wake).await;
    }
    let silence_max = silence_max(connect.keep_alive);
    drop(connect);
    run(io, client, hub, &wake, silence_max, ends).await
}

pub(super) async fn answer<S: AsyncRead + AsyncWrite>(
    io: &mut PacketStream<S>,
    code: ConnectReturnCode,
    session_present: bool,
) -> Result<(), StreamError> {
    io.push(&Connack::new(session_present, code).into())?;
    io.flush().await
}

/// Authorizes a CONNECT packet and connects the device.
async fn accept(
    connect: &Connect,
    certificate: Option<&ClientCertificate>,
    hub: &Arc<Hub>,
    wake: &Arc<Notify>,
) -> Result<DeviceSession, ConnectReturnCode> {
    if connect.protocol != Protocol::V311 {
        return Err(ConnectReturnCode::UnacceptableProtocolVersion);
    }
    let user_name = connect.username.as_deref().unwrap_or_default();
    let Some(Login::Device {
        host,
        client_id,
        model_id,
    }) = Login::read(user_name)
    else {
        tracing::debug!(user_name, "the user name is not a device's user name");
        return Err(ConnectReturnCode::BadUserNameOrPassword);
    };
    if *connect.client_id != *client_id {
        return Err(ConnectReturnCode::IdentifierRejected);
    }
    let host = host.split(':').next().unwrap_or_default();
    if !hub.names.iter().any(|name| name.eq_ignore_ascii_case(host)) {
        tracing::debug!(host, "the user name names another host");
        return Err(ConnectReturnCode::BadUserNameOrPassword);
    }
    let device = authenticate(connect, client_id, certificate, hub)?;
    if let Some(will) = &connect.last_will
        && !topic::is_will(&will.topic_name, client_id)
    {
        return Err(ConnectReturnCode::NotAuthorized);
    }
    match hub.admit(Operation::DeviceConnect, 1) {
        Admission::Now => {}
        Admission::After(wait) => {
            hub.counters.device_shaped.one();
            tokio::time::sleep(wait).await;
        }
        Admission::Refused => {
            hub.counters.device_throttled.one();
            return Err(ConnectReturnCode::ServerUnavailable);
        }
    }
    let session = hub.attach(device, Arc::clone(wake)).map_err(|error| {
        tracing::debug!(reason = %error, "device refused");
        ConnectReturnCode::NotAuthorized
    })?;
    if let Some(model_id) = model_id {
        session.set_model(&model_id);
    }
    Ok(session)
}

fn authenticate(
    connect: &Connect,
    client_id: &str,
    certificate: Option<&ClientCertificate>,
    hub: &Hub,
) -> Result<AuthenticatedDevice, ConnectReturnCode> {
    let password = connect.password.as_deref().unwrap_or_default();
    let proof = match (password, certificate) {
        ([], Some(certificate)) => Proof::Certificate(certificate),
        (password, _) => Proof::Token(std::str::from_utf8(password).unwrap_or_default()),
    };
    hub.authenticate_device(client_id, proof)
        .map_err(|_| ConnectReturnCode::NotAuthorized)
}

async fn run<S: AsyncRead + AsyncWrite>(
    io: &mut PacketStream<S>,
    mut client: Client,
    hub: &Hub,
    wake: &Notify,
    silence_max: Duration,
    ends: Option<Instant>,
) -> Result<(), StreamError> {
    let mut last_received_at = Instant::now();
    let mut write_from = None;
    let sleep = tokio::time::sleep(silence_max);
    tokio::pin!(sleep);
    let reason = loop {
        let pumped = client.pump();
        let had_output = io.has_output();
        for packet in client.out.drain(..) {
            io.push(&packet)?;
        }
        if let Err(reason) = pumped {
            break reason;
        }
        let now = Instant::now();
        if io.has_output() && !had_output {
            let delay = hub.faults.device_rules().delay;
            write_from = (!delay.is_zero()).then(|| now + delay);
        }
        write_from = write_from.filter(|from| *from > now);
        let deadline = [
            Some(last_received_at + silence_max),
            ends,
            client.next_at(),
            write_from,
        ];
        let deadline = deadline.into_iter().flatten().min().unwrap_or(now);
        if sleep.deadline().into_std() != deadline {
            sleep.as_mut().reset(deadline.into());
        }
        // Each arm is cancel-safe: see `PacketStream::next`; an untaken notification stays.
        let done = tokio::select! {
            packet = io.next(write_from.is_none()) => {
                last_received_at = Instant::now();
                client.on_packet(packet?)
            }
            () = wake.notified() => Ok(()),
            () = sleep.as_mut() => {
                let now = Instant::now();
                if now >= last_received_at + silence_max || ends.is_some_and(|ends| now >= ends) {
                    tracing::debug!("closing the connection: the device is silent, or its token has expired");
                    return Ok(());
                }
                client.on_time(now)
            }
        };
        if let Err(reason) = done {
            break reason;
        }
    };
    tracing::debug!(reason = %reason, "device connection ended");
    Ok(())
}

async fn half_open<S: AsyncRead + AsyncWrite>(
    io: &mut PacketStream<S>,
    client: Client,
    wake: &Notify,
) -> Result<(), StreamError> {
    let replaced = async {
        while !client.has_ended() {
            wake.notified().await;
        }
    };
    tokio::select! {
        () = io.ignore() => {}
        () = replaced => {}
    }
    Ok(())
}
