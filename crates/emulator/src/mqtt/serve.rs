//! A connection from its first byte to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mqtt_proto::v3::{Connack, Connect, ConnectReturnCode, Packet};
use mqtt_proto::{Error, Protocol};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::client::{Client, silence_max};
use super::io::{Broken, PacketStream};
use super::login::Login;
use super::registration::{self, Asked};
use super::topic;
use crate::faults::ConnectFault;
use crate::hub::{Admission, ClientCertificate, DevicePass, DeviceSession, Hub, Operation, Proof};

/// How long a client has for its CONNECT.
const CONNECT_TIME_OUT: Duration = Duration::from_secs(30);
/// How long a peer has to take what is still to be written when the hub closes.
const LINGER: Duration = Duration::from_secs(2);

/// Serves one connection until either side closes it. `read` is what was already read of it.
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
        served = converse(&mut io, certificate, &hub) => served,
    };
    if let Err(broken) = served {
        tracing::debug!(reason = %broken, "MQTT connection ended");
    }
    _ = tokio::time::timeout(LINGER, io.close()).await;
}

async fn converse<S: AsyncRead + AsyncWrite>(
    io: &mut PacketStream<S>,
    certificate: Option<ClientCertificate>,
    hub: &Arc<Hub>,
) -> Result<(), Broken> {
    let first = tokio::time::timeout(CONNECT_TIME_OUT, io.next(false)).await;
    let connect = match first {
        Ok(Ok(Packet::Connect(connect))) => connect,
        Ok(Err(Broken::Malformed(Error::UnexpectedProtocol(_) | Error::InvalidProtocol(..)))) => {
            return answer(io, ConnectReturnCode::UnacceptableProtocolVersion, false).await;
        }
        Ok(Err(broken)) => return Err(broken),
        // Something else first, or nothing.
        Ok(Ok(_)) | Err(_) => return Ok(()),
    };
    if let Some(Login::Provisioning {
        id_scope,
        registration_id,
    }) = connect.username.as_deref().and_then(Login::read)
    {
        let asked = Asked {
            id_scope,
            registration_id,
        };
        return registration::converse(io, &connect, asked, certificate.as_ref(), hub).await;
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
    let ends = session.pass.ends_s.map(|ends_s| {
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
        // The device is connected, as far as the hub knows, and nothing gets through in either direction.
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
) -> Result<(), Broken> {
    io.push(&Connack::new(session_present, code).into())?;
    io.flush().await
}

/// Judges a CONNECT packet, and connects the device.
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
        tracing::debug!(user_name, "no device's user name");
        return Err(ConnectReturnCode::BadUserNameOrPassword);
    };
    if *connect.client_id != *client_id {
        return Err(ConnectReturnCode::IdentifierRejected);
    }
    let host = host.split(':').next().unwrap_or_default();
    if !hub.names.iter().any(|name| name.eq_ignore_ascii_case(host)) {
        tracing::debug!(host, "the user name has another host");
        return Err(ConnectReturnCode::BadUserNameOrPassword);
    }
    let pass = authenticate(connect, client_id, certificate, hub)?;
    if let Some(will) = &connect.last_will
        && !topic::is_will(&will.topic_name, client_id)
    {
        return Err(ConnectReturnCode::NotAuthorized);
    }
    match hub.admit(Operation::DeviceConnect, 1) {
        Admission::Now => {}
        Admission::After(wait) => {
            hub.tallies.device_shaped.one();
            tokio::time::sleep(wait).await;
        }
        Admission::Refused => {
            hub.tallies.device_throttled.one();
            return Err(ConnectReturnCode::ServerUnavailable);
        }
    }
    let session = hub.attach(pass, Arc::clone(wake)).map_err(|denial| {
        tracing::debug!(reason = %denial, "device refused");
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
) -> Result<DevicePass, ConnectReturnCode> {
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
) -> Result<(), Broken> {
    let mut heard = Instant::now();
    let mut write_from = None;
    let sleep = tokio::time::sleep(silence_max);
    tokio::pin!(sleep);
    let left = loop {
        let pumped = client.pump();
        let had_output = io.has_output();
        for packet in client.out.drain(..) {
            io.push(&packet)?;
        }
        if let Err(leave) = pumped {
            break leave;
        }
        let now = Instant::now();
        if io.has_output() && !had_output {
            let delay = hub.faults.device_rules().delay;
            write_from = (!delay.is_zero()).then(|| now + delay);
        }
        write_from = write_from.filter(|from| *from > now);
        let deadline = [
            Some(heard + silence_max),
            ends,
            client.next_at(),
            write_from,
        ];
        let deadline = deadline.into_iter().flatten().min().unwrap_or(now);
        if sleep.deadline().into_std() != deadline {
            sleep.as_mut().reset(deadline.into());
        }
        // Each arm is cancel-safe: see `PacketStream::next`; a notification that is not taken stays.
        let done = tokio::select! {
            packet = io.next(write_from.is_none()) => {
                heard = Instant::now();
                client.on_packet(packet?)
            }
            () = wake.notified() => Ok(()),
            () = sleep.as_mut() => {
                let now = Instant::now();
                if now >= heard + silence_max || ends.is_some_and(|ends| now >= ends) {
                    tracing::debug!("the device is silent, or its token has ended");
                    return Ok(());
                }
                client.on_time(now)
            }
        };
        if let Err(leave) = done {
            break leave;
        }
    };
    tracing::debug!(reason = %left, "the device's connection ends");
    Ok(())
}

async fn half_open<S: AsyncRead + AsyncWrite>(
    io: &mut PacketStream<S>,
    client: Client,
    wake: &Notify,
) -> Result<(), Broken> {
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
