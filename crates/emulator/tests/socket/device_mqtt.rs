//! Devices over MQTT: connections and sessions, messages, twins, methods.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use reqwest::{Method, StatusCode};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{ConnectReturnCode, Packet, SubscribeReasonCode};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use twincast_emulator::{HubConfig, RunningHub, start};

use crate::client::{FAR_FUTURE_S, hub_with, plain_hub, token};
use crate::device_client::{ConnectOptions, Device, Identity, send, text, token_of, until};
use crate::http::{Rest, error_name};

async fn refused(hub: &RunningHub, change: impl FnOnce(&mut ConnectOptions)) -> ConnectReturnCode {
    let mut options = ConnectOptions::of(hub, "d1");
    change(&mut options);
    match Device::connect_as(hub, options).await {
        Ok(_) => ConnectReturnCode::Success,
        Err(code) => code,
    }
}

#[tokio::test]
async fn connect_return_codes_match_the_hub() {
    use ConnectReturnCode::{BadClientId, BadUserNamePassword, NotAuthorized, Success};
    let hub = plain_hub(3).await;
    let rest = Rest::new(&hub);
    let disabled = json!({ "deviceId": "d2", "status": "disabled" });
    let answer = rest.put_device(&disabled, Some("*")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(refused(&hub, |_| {}).await, Success);
    assert_eq!(
        refused(&hub, |options| options.user_name =
            "LOCALHOST:8883/d1/api-version=2019-10-01&x=y".to_owned())
        .await,
        Success
    );
    let policy = token(&hub, "device", FAR_FUTURE_S);
    assert_eq!(
        refused(&hub, |options| options.password = policy).await,
        Success
    );
    let service = token(&hub, "service", FAR_FUTURE_S);
    let expired = token_of(&hub, "d1", 1_000);
    let other = token_of(&hub, "d0", FAR_FUTURE_S);
    let user_name = |id: &str| format!("localhost/{id}/?api-version=2021-04-12");
    let as_device = |id: &str| {
        let id = id.to_owned();
        let name = user_name(&id);
        move |options: &mut ConnectOptions| {
            options.user_name = name;
            options.client_id = id;
        }
    };
    for (code, change) in [
        (
            NotAuthorized,
            Box::new(move |options: &mut ConnectOptions| options.password = service)
                as Box<dyn FnOnce(&mut ConnectOptions)>,
        ),
        (
            NotAuthorized,
            Box::new(move |options| options.password = expired),
        ),
        (
            NotAuthorized,
            Box::new(move |options| options.password = other),
        ),
        (
            NotAuthorized,
            Box::new(|options| options.password = String::new()),
        ),
        (NotAuthorized, Box::new(as_device("nobody"))),
        (NotAuthorized, Box::new(as_device("d1/module"))),
        (
            NotAuthorized,
            Box::new(|options| options.will = Some("devices/d0/messages/events/".to_owned())),
        ),
        (
            BadClientId,
            Box::new(|options| options.client_id = "d0".to_owned()),
        ),
        (
            BadUserNamePassword,
            Box::new(|options| options.user_name = "d1".to_owned()),
        ),
        (
            BadUserNamePassword,
            Box::new(|options| {
                options.user_name = "elsewhere/d1/?api-version=2021-04-12".to_owned();
            }),
        ),
    ] {
        assert_eq!(refused(&hub, change).await, code);
    }
    let password = token_of(&hub, "d2", FAR_FUTURE_S);
    let change = |options: &mut ConnectOptions| {
        as_device("d2")(options);
        options.password = password;
    };
    assert_eq!(refused(&hub, change).await, NotAuthorized);
    let summary = until(&hub, |summary| summary.connected_devices == 0).await;
    assert_eq!((summary.device_connections, summary.real_devices), (3, 1));
    hub.shutdown().await;
}

#[tokio::test]
async fn message_is_delivered_with_properties_and_acknowledged() {
    let hub = hub_with("groups: [{count: 2, id: 'd{index}'}]", |config| {
        config.feedback_interval = std::time::Duration::from_millis(10);
    })
    .await;
    let (mut device, present) = Device::connect(&hub, "d1").await;
    assert!(!present);
    send(&hub, "d1", "m-1", &[("odd /+&=ü", "a b%")], b"{\"x\":1}").await;
    // Delivery starts with the subscription.
    device.settle().await;
    device.subscribe_messages(QoS::ExactlyOnce).await;
    let publish = device.publication().await;
    let system = "%24.mid=m-1&%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound&%24.cid=c%2F1&%24.ct=application%2Fjson";
    assert_eq!(publish.qos, QoS::AtLeastOnce);
    assert!(!publish.dup);
    let (topic, own) = publish
        .topic
        .split_once("&iothub-ack=full")
        .map_or((publish.topic.as_str(), ""), |it| it);
    assert_eq!(
        topic
            .strip_prefix("devices/d1/messages/devicebound/")
            .unwrap(),
        system
    );
    assert_eq!(own, "&odd%20%2F%2B%26%3D%C3%BC=a%20b%25");
    assert_eq!(text(&publish.payload), "{\"x\":1}");
    assert_eq!(hub.hub().summary().pending, 1);
    let sessions = hub.hub().sessions();
    assert_eq!(sessions.len(), 1);
    assert_eq!(
        (
            sessions[0].device_id.as_str(),
            sessions[0].held,
            sessions[0].waiting
        ),
        ("d1", 1, 0)
    );
    device.acknowledge(&publish).await;
    device.settle().await;
    let summary = hub.hub().summary();
    assert_eq!((summary.delivered, summary.feedback_made), (1, 1));
    // A second acknowledgement has no effect.
    device.acknowledge(&publish).await;
    device.settle().await;
    assert_eq!(hub.hub().summary().delivered, 1);
    // Simulated devices are unaffected.
    send(&hub, "d0", "m-2", &[], b"").await;
    let summary = until(&hub, |summary| summary.delivered == 2).await;
    assert_eq!((summary.real_devices, summary.deliveries), (1, 1));
    device.disconnect().await;
    hub.shutdown().await;
}

#[tokio::test]
async fn session_is_resumed_with_pending_messages() {
    let hub = plain_hub(2).await;
    let (mut first, _) = Device::connect(&hub, "d1").await;
    first.subscribe_messages(QoS::AtLeastOnce).await;
    send(&hub, "d1", "a", &[], b"a").await;
    send(&hub, "d1", "b", &[], b"b").await;
    let held = first.publication().await;
    first.publication().await;
    first.acknowledge(&held).await;
    first.settle().await;
    // A second connection ends the first without a packet, and receives the unacknowledged messages
    // at once.
    let (mut second, present) = Device::connect(&hub, "d1").await;
    assert!(present);
    assert_eq!(first.next().await, None);
    let again = second.publication().await;
    assert_eq!((text(&again.payload), again.dup), ("b", true));
    second.acknowledge(&again).await;
    second.settle().await;
    assert_eq!(hub.hub().summary().device_replacements, 1);
    // The device disappears without a DISCONNECT, and a message arrives in the meantime.
    drop(second);
    until(&hub, |summary| summary.connected_devices == 0).await;
    send(&hub, "d1", "c", &[], b"c").await;
    let (mut third, present) = Device::connect(&hub, "d1").await;
    let publish = third.publication().await;
    assert_eq!(
        (present, text(&publish.payload), publish.dup),
        (true, "c", false)
    );
    third.acknowledge(&publish).await;
    third.settle().await;
    // A clean session drops the subscriptions.
    let mut clean = ConnectOptions::of(&hub, "d1");
    clean.clean = true;
    let (device, present) = Device::connect_as(&hub, clean).await.unwrap();
    assert!(!present);
    device.disconnect().await;
    let (mut device, present) = Device::connect(&hub, "d1").await;
    assert!(!present);
    // A subscription without acknowledgements completes each message on delivery.
    device.subscribe_messages(QoS::AtMostOnce).await;
    send(&hub, "d1", "d", &[], b"d").await;
    assert_eq!(device.publication().await.qos, QoS::AtMostOnce);
    let summary = until(&hub, |summary| summary.delivered == 4).await;
    assert_eq!((summary.pending, summary.repeats_by_message_id), (0, 0));
    hub.shutdown().await;
}

#[tokio::test]
async fn token_expiry_and_silence_end_a_connection() {
    let hub = plain_hub(2).await;
    // On a busy machine, a token may expire before the connection opens.
    let mut life_s = 2;
    let mut ends = loop {
        let mut options = ConnectOptions::of(&hub, "d1");
        let now = std::time::SystemTime::now();
        let now_s = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        options.password = token_of(&hub, "d1", now_s + life_s);
        match Device::connect_as(&hub, options).await {
            Ok((device, _)) => break device,
            Err(code) => assert!(life_s < 20, "{code:?}"),
        }
        life_s *= 4;
    };
    let mut options = ConnectOptions::of(&hub, "d0");
    options.keep_alive = 1;
    options.will = Some("devices/d0/messages/events/a=b".to_owned());
    let (mut silent, _) = Device::connect_as(&hub, options).await.unwrap();
    assert_eq!(ends.next().await, None);
    assert_eq!(silent.next().await, None);
    // The will counts as a message from the device.
    let summary = until(&hub, |summary| summary.connected_devices == 0).await;
    assert_eq!(summary.telemetry_messages, 1);
    hub.shutdown().await;
}

#[tokio::test]
async fn unsupported_publications_end_the_connection() {
    let hub = plain_hub(2).await;
    for (topic, qos) in [
        ("devices/d0/messages/events/", QoS::AtLeastOnce),
        ("devices/d1/messages/devicebound/", QoS::AtLeastOnce),
        ("somewhere", QoS::AtMostOnce),
        ("devices/d1/messages/events/", QoS::ExactlyOnce),
    ] {
        let (mut device, _) = Device::connect(&hub, "d1").await;
        device.publish(topic, qos, "x").await;
        assert_eq!(device.next().await, None, "{topic}");
    }
    let (mut device, _) = Device::connect(&hub, "d1").await;
    let answer = device
        .subscribe(&[
            ("devices/d0/messages/devicebound/#", QoS::AtLeastOnce),
            ("$iothub/methods/POST/#", QoS::AtMostOnce),
            ("$iothub/twin/res/#", QoS::ExactlyOnce),
        ])
        .await;
    assert_eq!(
        answer.return_codes,
        [
            SubscribeReasonCode::Failure,
            SubscribeReasonCode::Success(QoS::AtMostOnce),
            SubscribeReasonCode::Success(QoS::AtLeastOnce),
        ]
    );
    hub.shutdown().await;
}

#[tokio::test]
async fn telemetry_is_counted_and_acknowledged() {
    let hub = plain_hub(2).await;
    let (mut device, _) = Device::connect(&hub, "d1").await;
    let topic = "devices/d1/messages/events/%24.ct=a&x=1";
    device.publish(topic, QoS::AtLeastOnce, "body").await;
    assert!(matches!(device.next().await, Some(Packet::PubAck(ack)) if ack.pkid == 9));
    device.publish(topic, QoS::AtMostOnce, "body").await;
    device.settle().await;
    let summary = hub.hub().summary();
    assert_eq!(summary.telemetry_messages, 2);
    assert_eq!(summary.telemetry_bytes, 2 * (topic.len() as u64 + 4));
    device
        .publish(topic, QoS::AtLeastOnce, vec![0; 256 * 1024])
        .await;
    assert_eq!(device.next().await, None);
    hub.shutdown().await;
}

const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
const TWIN: &str = "$iothub/twin/res/#";

#[tokio::test]
async fn a_twin_is_read_reported_and_pushed() {
    let hub = hub_with(
        "groups: [{count: 2, id: 'd{index}', tags: {a: b}, reported: {firmware: '1'}}]",
        |_| {},
    )
    .await;
    let rest = Rest::new(&hub);
    let (mut device, _) = Device::connect(&hub, "d1").await;
    device
        .subscribe(&[(TWIN, QoS::AtMostOnce), (DESIRED, QoS::AtMostOnce)])
        .await;
    device
        .publish("$iothub/twin/GET/?$rid=a-1", QoS::AtMostOnce, " ")
        .await;
    let answer = device.publication().await;
    assert_eq!(answer.topic, "$iothub/twin/res/200/?$rid=a-1");
    let twin: Value = serde_json::from_slice(&answer.payload).unwrap();
    let expected =
        json!({ "desired": { "$version": 1 }, "reported": { "firmware": "1", "$version": 1 } });
    assert_eq!(twin, expected);
    let patch = json!({ "firmware": "2", "update": { "state": "applied" } }).to_string();
    let topic = "$iothub/twin/PATCH/properties/reported/?$rid=17";
    device.publish(topic, QoS::AtLeastOnce, patch).await;
    assert!(matches!(device.next().await, Some(Packet::PubAck(_))));
    let answer = device.publication().await;
    assert_eq!(answer.topic, "$iothub/twin/res/204/?$rid=17&$version=2");
    assert!(answer.payload.is_empty());
    device.publish(topic, QoS::AtMostOnce, "{\"a.b\":1}").await;
    let answer = device.publication().await;
    assert_eq!(answer.topic, "$iothub/twin/res/400/?$rid=17");
    let body: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(body["errorCode"], 400_004);
    let found = rest.get("/twins/d1").await;
    assert_eq!(
        found["properties"]["reported"]["update"]["state"],
        "applied"
    );
    assert_eq!(found["connectionState"], "Connected");
    assert_eq!(
        rest.get("/twins/d0").await["properties"]["reported"]["firmware"],
        "1"
    );
    // Queries show the properties of real devices among simulated devices.
    let query = "SELECT deviceId FROM devices WHERE properties.reported.firmware = '2'";
    assert_eq!(
        rest.rows(query, None).await.0,
        [json!({ "deviceId": "d1" })]
    );
    let patch = json!({ "properties": { "desired": { "update": { "cancel": "x" } } } });
    let patched = rest
        .request(Method::PATCH, "/twins/d1")
        .json(&patch)
        .send()
        .await
        .unwrap();
    assert_eq!(patched.status(), StatusCode::OK);
    let push = device.publication().await;
    assert_eq!(
        push.topic,
        "$iothub/twin/PATCH/properties/desired/?$version=2"
    );
    let body: Value = serde_json::from_slice(&push.payload).unwrap();
    assert_eq!(body, json!({ "update": { "cancel": "x" }, "$version": 2 }));
    let replacement = json!({ "properties": { "desired": { "other": 1 } } });
    rest.request(Method::PUT, "/twins/d1")
        .json(&replacement)
        .send()
        .await
        .unwrap();
    let push = device.publication().await;
    let body: Value = serde_json::from_slice(&push.payload).unwrap();
    assert_eq!(body, json!({ "other": 1, "update": null, "$version": 3 }));
    // A device receives no changes of tags.
    rest.request(Method::PATCH, "/twins/d1")
        .json(&json!({ "tags": { "x": 1 } }))
        .send()
        .await
        .unwrap();
    device.settle().await;
    hub.shutdown().await;
}

#[tokio::test]
async fn a_method_is_called_and_answered() {
    let hub = plain_hub(2).await;
    let rest = Rest::new(&hub);
    let call = |id: &str, body: Value| {
        let path = format!("/twins/{id}/methods");
        rest.request(Method::POST, &path).json(&body).send()
    };
    let body =
        json!({ "methodName": "reboot", "payload": { "in": 5 }, "responseTimeoutInSeconds": 60 });
    for (id, code) in [("d1", "DeviceNotOnline"), ("nobody", "DeviceNotFound")] {
        let (status, name, _) = error_name(call(id, body.clone()).await.unwrap()).await;
        assert_eq!((status, name.as_str()), (StatusCode::NOT_FOUND, code));
    }
    let (mut device, _) = Device::connect(&hub, "d1").await;
    let (status, _, _) = error_name(call("d1", body.clone()).await.unwrap()).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    device
        .subscribe(&[("$iothub/methods/POST/#", QoS::AtMostOnce)])
        .await;
    let answering = async {
        let received = device.publication().await;
        assert_eq!(text(&received.payload), "{\"in\":5}");
        let rid = received
            .topic
            .strip_prefix("$iothub/methods/POST/reboot/?")
            .unwrap();
        let topic = format!("$iothub/methods/res/202/?{rid}");
        device
            .publish(&topic, QoS::AtMostOnce, "{\"eta\":1.50}")
            .await;
        // A second answer finds no caller, and is not an error.
        device.publish(&topic, QoS::AtMostOnce, "null").await;
    };
    let (answer, ()) = tokio::join!(call("d1", body.clone()), answering);
    let answer = answer.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(
        answer.text().await.unwrap(),
        "{\"status\":202,\"payload\":{\"eta\":1.50}}"
    );
    // The connection ends while the device holds the call.
    let leaving = async {
        device.publication().await;
        drop(device);
    };
    let (answer, ()) = tokio::join!(call("d1", body), leaving);
    let (status, name, _) = error_name(answer.unwrap()).await;
    assert_eq!(
        (status, name.as_str()),
        (StatusCode::GATEWAY_TIMEOUT, "GatewayTimeout")
    );
    let summary = hub.hub().summary();
    assert_eq!((summary.methods, summary.methods_answered), (5, 1));
    hub.shutdown().await;
}

#[tokio::test]
async fn disabled_and_deleted_devices_are_disconnected() {
    let hub = plain_hub(3).await;
    let rest = Rest::new(&hub);
    let (mut disabled, _) = Device::connect(&hub, "d1").await;
    let (mut deleted, _) = Device::connect(&hub, "d2").await;
    let body = json!({ "deviceId": "d1", "status": "disabled" });
    assert_eq!(
        rest.put_device(&body, Some("*")).await.status(),
        StatusCode::OK
    );
    assert_eq!(disabled.next().await, None);
    let delete = rest
        .request(Method::DELETE, "/devices/d2")
        .header("If-Match", "*");
    assert_eq!(
        delete.send().await.unwrap().status(),
        StatusCode::NO_CONTENT
    );
    assert_eq!(deleted.next().await, None);
    let summary = until(&hub, |summary| summary.connected_devices == 0).await;
    assert_eq!(summary.real_devices, 1);
    let (mut other, _) = Device::connect(&hub, "d0").await;
    hub.hub().disconnect_devices();
    assert_eq!(other.next().await, None);
    let (mut stays, _) = Device::connect(&hub, "d0").await;
    let closing = async { assert_eq!(stays.next().await, None) };
    tokio::join!(hub.shutdown(), closing);
}

struct Authority(Issuer<'static, KeyPair>, String);

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "factory");
    let certificate = params.self_signed(&key).unwrap();
    Authority(Issuer::new(params, key), certificate.pem())
}

fn certificate(authority: &Authority, name: &str) -> Identity {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.0).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    (vec![certificate.der().clone()], key)
}

fn sha256(identity: &Identity) -> String {
    use std::fmt::Write as _;
    let digest = ring::digest::digest(&ring::digest::SHA256, &identity.0[0]);
    digest
        .as_ref()
        .iter()
        .fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02X}").unwrap();
            text
        })
}

#[tokio::test]
async fn certificates_authenticate_only_matching_devices() {
    let factory = authority();
    let bad = HubConfig {
        device_ca_pem: vec![factory.1.clone(), "nothing".to_owned()],
        ..HubConfig::default()
    };
    let refused = start(bad).await.map(drop).unwrap_err().to_string();
    assert!(refused.contains("text 2: no PEM certificate"), "{refused}");
    let hub = hub_with("groups: [{count: 3, id: 'd{index}'}]", |config| {
        config.device_ca_pem = vec![factory.1.clone()];
    })
    .await;
    let rest = Rest::new(&hub);
    let own = certificate(&authority(), "whatever");
    let thumbprint = json!({ "primaryThumbprint": sha256(&own) });
    for (id, authentication) in [
        (
            "d1",
            json!({ "type": "selfSigned", "x509Thumbprint": thumbprint }),
        ),
        ("d2", json!({ "type": "certificateAuthority" })),
    ] {
        let device = json!({ "deviceId": id, "authentication": authentication });
        assert_eq!(
            rest.put_device(&device, Some("*")).await.status(),
            StatusCode::OK
        );
    }
    let connect = async |id: &str, identity: Option<Identity>| {
        let options = ConnectOptions {
            user_name: format!("localhost/{id}/?api-version=2021-04-12"),
            client_id: id.to_owned(),
            password: String::new(),
            clean: true,
            keep_alive: 60,
            will: None,
            identity,
        };
        Device::connect_as(&hub, options).await.map(drop)
    };
    let denied = Err(ConnectReturnCode::NotAuthorized);
    let strange = certificate(&authority(), "d2");
    assert_eq!(connect("d1", Some(own)).await, Ok(()));
    assert_eq!(
        connect("d1", Some(certificate(&factory, "d1"))).await,
        denied
    );
    assert_eq!(
        connect("d2", Some(certificate(&factory, "d2"))).await,
        Ok(())
    );
    assert_eq!(
        connect("d2", Some(certificate(&factory, "d1"))).await,
        denied
    );
    assert_eq!(connect("d2", Some(strange)).await, denied);
    assert_eq!(connect("d2", None).await, denied);
    assert_eq!(
        connect("d0", Some(certificate(&factory, "d0"))).await,
        denied
    );
    hub.shutdown().await;
}

#[tokio::test]
async fn a_device_of_the_registry_alone_connects_as_well() {
    let hub = plain_hub(0).await;
    let rest = Rest::new(&hub);
    let key = STANDARD.encode([7; 32]);
    let keys = json!({ "primaryKey": key, "secondaryKey": key });
    let device =
        json!({ "deviceId": "new", "authentication": { "type": "sas", "symmetricKey": keys } });
    assert_eq!(
        rest.put_device(&device, None).await.status(),
        StatusCode::OK
    );
    send(&hub, "new", "early", &[], b"early").await;
    let (mut device, _) = Device::connect(&hub, "new").await;
    device.subscribe_messages(QoS::AtLeastOnce).await;
    assert_eq!(text(&device.publication().await.payload), "early");
    let twin = rest.get("/devices/new").await;
    assert_eq!(twin["connectionState"], "Connected");
    hub.shutdown().await;
}
