//! Devices over HTTPS, and MQTT over WebSockets on the same port.

use futures::{SinkExt as _, StreamExt as _};
use reqwest::{Method, Response, StatusCode};
use rumqttc::mqttbytes::QoS;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use twincast_emulator::RunningHub;

use crate::client::{FAR_FUTURE_S, hub_with, plain_hub};
use crate::device_client::{ConnectOptions, Device, dial, send, text, token_of, until};
use crate::http::{Rest, error_name};

const MESSAGES: &str = "/devices/d1/messages/devicebound";

struct Device1<'a>(Rest<'a>, String);

impl<'a> Device1<'a> {
    fn new(hub: &'a RunningHub) -> Self {
        Self(Rest::new(hub), token_of(hub, "d1", FAR_FUTURE_S))
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let port = self.0.hub.https_addr().port();
        let url = format!("https://localhost:{port}{path}");
        let request = self.0.http.request(method, url);
        request.header("Authorization", &self.1)
    }

    async fn ask(&self, method: Method, path: &str) -> Response {
        let path = format!("{path}api-version=2021-04-12");
        self.request(method, &path).send().await.unwrap()
    }
}

#[tokio::test]
async fn messages_are_received_and_settled_over_https() {
    let hub = plain_hub(2).await;
    let device = Device1::new(&hub);
    let receive = || device.ask(Method::GET, "/devices/d1/messages/devicebound?");
    assert_eq!(receive().await.status(), StatusCode::NO_CONTENT);
    for id in ["a", "b", "c"] {
        send(&hub, "d1", id, &[("kind", "test")], id.as_bytes()).await;
    }
    let mut locks = Vec::new();
    for id in ["a", "b", "c"] {
        let answer = receive().await;
        assert_eq!(answer.status(), StatusCode::OK);
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("iothub-messageid"), id);
        assert_eq!(header("iothub-correlationid"), "c/1");
        assert_eq!(header("iothub-contenttype"), "application/json");
        assert_eq!(header("iothub-app-kind"), "test");
        assert_eq!(header("iothub-ack"), "full");
        assert_eq!(header("iothub-deliverycount"), "0");
        assert_eq!(header("iothub-to"), "/devices/d1/messages/deviceBound");
        locks.push(header("etag").trim_matches('"').to_owned());
        assert_eq!(answer.text().await.unwrap(), id);
    }
    assert_eq!(receive().await.status(), StatusCode::NO_CONTENT);
    for (method, path) in [
        (Method::DELETE, format!("{MESSAGES}/{}?", locks[0])),
        (Method::DELETE, format!("{MESSAGES}/{}?reject&", locks[1])),
        (Method::POST, format!("{MESSAGES}/{}/abandon?", locks[2])),
    ] {
        let answer = device.ask(method.clone(), &path).await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT, "{path}");
        let (status, name, _) = error_name(device.ask(method, &path).await).await;
        assert_eq!(
            (status, name.as_str()),
            (StatusCode::PRECONDITION_FAILED, "DeviceMessageLockLost")
        );
    }
    let again = receive().await;
    assert_eq!(again.headers()["iothub-deliverycount"], "1");
    let summary = hub.hub().summary();
    assert_eq!(
        (
            summary.delivered,
            summary.rejected_by_device,
            summary.pending
        ),
        (1, 1, 1)
    );
    assert_eq!((summary.real_devices, summary.connected_devices), (1, 0));
    hub.shutdown().await;
}

#[tokio::test]
async fn telemetry_is_taken_over_https() {
    let hub = plain_hub(2).await;
    let device = Device1::new(&hub);
    let path = "/devices/d1/messages/events?api-version=2021-04-12";
    let one = device
        .request(Method::POST, path)
        .header("iothub-app-a", "bcd")
        .body("body");
    assert_eq!(one.send().await.unwrap().status(), StatusCode::NO_CONTENT);
    let items = json!([{ "body": "aGVsbG8=", "properties": { "a": "b" } }, { "body": "plain", "base64Encoded": false }]);
    let batch = |body: String| {
        let request = device.request(Method::POST, path);
        request
            .header("Content-Type", "application/vnd.microsoft.iothub.json")
            .body(body)
            .send()
    };
    let answer = batch(items.to_string()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    let summary = hub.hub().summary();
    assert_eq!(
        (summary.telemetry_messages, summary.telemetry_bytes),
        (3, 8 + 7 + 5)
    );
    let bad = batch("[{\"body\":\"%\"}]".to_owned()).await.unwrap();
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
    let other = device
        .ask(Method::POST, "/devices/d0/messages/events?")
        .await;
    assert_eq!(other.status(), StatusCode::UNAUTHORIZED);
    let files = device.ask(Method::POST, "/devices/d1/files?").await;
    assert_eq!(files.status(), StatusCode::NOT_IMPLEMENTED);
    hub.shutdown().await;
}

#[tokio::test]
async fn message_is_redelivered_after_the_lock_expires() {
    let hub = hub_with("groups: [{count: 2, id: 'd{index}'}]", |config| {
        config.device_lock = std::time::Duration::from_millis(50);
    })
    .await;
    let device = Device1::new(&hub);
    let receive = || device.ask(Method::GET, "/devices/d1/messages/devicebound?");
    assert_eq!(receive().await.status(), StatusCode::NO_CONTENT);
    send(&hub, "d1", "a", &[], b"a").await;
    assert_eq!(receive().await.status(), StatusCode::OK);
    let again = loop {
        let answer = receive().await;
        if answer.status() == StatusCode::OK {
            break answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(again.headers()["iothub-deliverycount"], "1");
    hub.shutdown().await;
}

#[tokio::test]
async fn mqtt_is_served_over_websockets_in_frames_of_any_size() {
    let hub = plain_hub(2).await;
    let tls = dial(&hub, hub.https_addr(), None).await;
    let url = "wss://localhost/$iothub/websocket?iothub-no-client-cert=true";
    let mut request = url.into_client_request().unwrap();
    let protocol = "mqtt".parse().unwrap();
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", protocol);
    let (mut frames, answer) = tokio_tungstenite::client_async(request, tls).await.unwrap();
    assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "mqtt");
    // The test device reads and writes bytes. This task carries the bytes, with one byte per frame
    // to the hub.
    let (near, far) = tokio::io::duplex(64 * 1024);
    let carrying = tokio::spawn(async move {
        let (mut reader, mut writer) = tokio::io::split(far);
        let mut byte = [0u8; 1];
        loop {
            tokio::select! {
                read = tokio::io::AsyncReadExt::read(&mut reader, &mut byte) => {
                    if read.unwrap_or(0) == 0 {
                        let _ = frames.close(None).await;
                        return;
                    }
                    let frame = Message::binary(byte.to_vec());
                    if frames.send(frame).await.is_err() {
                        return;
                    }
                }
                frame = frames.next() => match frame {
                    Some(Ok(Message::Binary(bytes))) => writer.write_all(&bytes).await.unwrap(),
                    Some(Ok(_)) => {}
                    None | Some(Err(_)) => return,
                },
            }
        }
    });
    let (mut device, _) = Device::connect_over(near, ConnectOptions::of(&hub, "d1"))
        .await
        .unwrap();
    device.subscribe_messages(QoS::AtLeastOnce).await;
    send(&hub, "d1", "a", &[], &[b'x'; 5_000]).await;
    let publish = device.publication().await;
    assert_eq!(text(&publish.payload), "x".repeat(5_000));
    device.acknowledge(&publish).await;
    device.settle().await;
    assert_eq!(hub.hub().summary().delivered, 1);
    drop(device);
    carrying.await.unwrap();
    until(&hub, |summary| summary.connected_devices == 0).await;
    hub.shutdown().await;
}

#[tokio::test]
async fn amqp_is_served_over_websockets() {
    let hub = plain_hub(1).await;
    let tls = dial(&hub, hub.amqp_addr(), None).await;
    let mut request = "wss://localhost/$iothub/websocket"
        .into_client_request()
        .unwrap();
    let protocol = "AMQPWSB10".parse().unwrap();
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", protocol);
    let (mut frames, _) = tokio_tungstenite::client_async(request, tls).await.unwrap();
    let header = b"AMQP\x00\x01\x00\x00";
    frames.send(Message::binary(header.to_vec())).await.unwrap();
    let answer = frames.next().await.unwrap().unwrap();
    assert_eq!(&answer.into_data()[..8], header);
    hub.shutdown().await;
}

#[tokio::test]
async fn control_interface_shows_sessions_and_connection_strings() {
    let hub = plain_hub(2).await;
    let control = hub.control_addr().unwrap();
    let http = reqwest::Client::new();
    let get = async |path: &str| {
        let answer = http
            .get(format!("http://{control}{path}"))
            .send()
            .await
            .unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    let (status, text) = get("/devices/d1/connection-string").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(text.trim_end(), hub.device_connection_string("d1").unwrap());
    assert!(text.starts_with("HostName=localhost;DeviceId=d1;SharedAccessKey="));
    let (status, _) = get("/devices/nobody/connection-string").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(get("/sessions").await.1, "[]");
    let (mut device, _) = Device::connect(&hub, "d1").await;
    assert!(get("/sessions").await.1.contains("\"deviceId\":\"d1\""));
    let cut = http
        .post(format!("http://{control}/faults/disconnect-devices"))
        .send()
        .await;
    assert_eq!(cut.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(device.next().await, None);
    hub.shutdown().await;
}
