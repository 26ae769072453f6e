use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::super::core::{Hub, IncomingMessage};
use super::super::store::{Ack, MessageState};
use super::connection::DesiredPush;
use super::identity::AuthenticationError;
use super::*;
use crate::fleet::{Authentication, AuthenticationBody, Credentials, Fleet, Status};
use crate::sas::{TokenError, sign_device_token, sign_token};
use crate::{HubConfig, Policy};

const ID: &str = "d-1";

fn hub_of(config: HubConfig) -> Arc<Hub> {
    Arc::new(Hub::new(config, DeviceAuthorities::default()))
}

fn hub() -> Arc<Hub> {
    hub_of(config())
}

fn config() -> HubConfig {
    let fleet = "seed: 3\ngroups: [{count: 9, id: 'd-{index}', reported: {firmware: '1'}, reported_after_delivery: {firmware: '2'}}]";
    HubConfig {
        fleet: Fleet::from_yaml(fleet).unwrap(),
        unlimited: true,
        ..HubConfig::default()
    }
}

fn key_of(hub: &Hub, id: &str) -> Vec<u8> {
    let registry = hub.registry();
    let record = registry.record(registry.number(id).unwrap()).unwrap();
    match record.authentication {
        Authentication::Sas([primary, _]) => STANDARD.decode(primary).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn token_of(hub: &Hub, id: &str) -> String {
    let resource = format!("localhost/devices/{id}");
    sign_device_token(&resource, &key_of(hub, id), hub.now_s() + 60)
}

fn authenticated(hub: &Hub) -> AuthenticatedDevice {
    let token = token_of(hub, ID);
    hub.authenticate_device(ID, Proof::Token(&token)).unwrap()
}

fn connect(hub: &Arc<Hub>) -> DeviceSession {
    hub.attach(authenticated(hub), Arc::new(Notify::new()))
        .unwrap()
}

fn send(hub: &Hub, message_id: &str, ttl_ms: u64) {
    let message = IncomingMessage {
        device_id: ID,
        message_id,
        ack: Ack::Full,
        expiry_ms: Some(i64::try_from(hub.now_ms() + ttl_ms).unwrap()),
        system: b"",
        properties: b"",
        body: b"\x00\x53\x75\xa0\x02hi",
        size: 100,
    };
    hub.submit(&message).unwrap();
}

fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|it| it.message_id.as_str()).collect()
}

fn state_of(hub: &Hub, at: u32) -> MessageState {
    hub.state().store.message(at).unwrap().state
}

fn change(hub: &Hub, change: impl FnOnce(&mut crate::fleet::DeviceRecord)) -> u32 {
    let mut registry = hub.registry_mut();
    let number = registry.number(ID).unwrap();
    change(registry.record_mut(number).unwrap());
    number
}

#[test]
fn device_authentication_requires_a_matching_token() {
    let hub = hub();
    let (key, ends_s) = (key_of(&hub, ID), hub.now_s() + 60);
    let sign = |resource: &str| sign_device_token(resource, &key, ends_s);
    let policy = |name: &str| {
        let policies = Policy::defaults(0);
        let key = &policies
            .iter()
            .find(|it| it.name == name)
            .unwrap()
            .primary_key;
        sign_token("localhost", name, key, ends_s)
    };
    let check = |token: &str| hub.authenticate_device(ID, Proof::Token(token));
    let own = sign("localhost/devices/d-1");
    assert_eq!(check(&own).unwrap().ends_s, Some(ends_s));
    // The signature covers the resource as received, in either case of the percent-encoding.
    let resource = "LOCALHOST%2fdevices%2fd-1";
    let lower = {
        let whole = sign_device_token("x", &key, ends_s);
        assert!(whole.contains("sr=x"));
        signed_as(resource, &key, ends_s)
    };
    assert!(check(&lower).is_ok());
    assert!(check(&format!("{own}&skn=")).is_ok());
    assert!(check(&policy("device")).is_ok());
    assert!(check(&policy("iothubowner")).is_ok());
    let other = "localhost/devices/d-2";
    for (token, error) in [
        (
            policy("service"),
            AuthenticationError::Policy("service".to_owned()),
        ),
        (
            sign(other),
            AuthenticationError::OtherDevice(other.to_owned()),
        ),
        (
            sign("localhost"),
            AuthenticationError::OtherDevice("localhost".to_owned()),
        ),
        (
            sign("elsewhere/devices/d-1"),
            TokenError::OtherResource("elsewhere/devices/d-1".to_owned()).into(),
        ),
        (token_of(&hub, "d-2"), TokenError::BadSignature.into()),
        (
            sign_device_token("localhost/devices/d-1", &key, 5),
            TokenError::Expired(5).into(),
        ),
        ("nonsense".to_owned(), TokenError::NotASignature.into()),
    ] {
        assert_eq!(check(&token), Err(error), "{token}");
    }
    let unknown = hub.authenticate_device("nobody", Proof::Token(&own));
    assert_eq!(
        unknown,
        Err(AuthenticationError::Unknown("nobody".to_owned()))
    );
    change(&hub, |record| record.status = Status::Disabled);
    assert_eq!(
        check(&own),
        Err(AuthenticationError::Disabled(ID.to_owned()))
    );
}

fn signed_as(resource: &str, key: &[u8], ends_s: u64) -> String {
    use hmac::Mac as _;
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
    mac.update(format!("{resource}\n{ends_s}").as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let signature = signature
        .replace('+', "%2b")
        .replace('/', "%2F")
        .replace('=', "%3d");
    format!("SharedAccessSignature se={ends_s}&sig={signature}&sr={resource}")
}

struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "devices");
    let certificate = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    Authority {
        certificate,
        issuer,
    }
}

fn device_certificate(authority: &Authority, name: &str) -> ClientCertificate {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    ClientCertificate::new(&[certificate.der().clone()]).unwrap()
}

#[test]
fn device_authentication_requires_a_matching_certificate() {
    let (known, stranger) = (authority(), authority());
    let roots = crate::certificate::read_pem(&known.certificate.pem()).unwrap();
    let authorities = DeviceAuthorities::new(&roots).unwrap();
    let hub = Arc::new(Hub::new(config(), authorities));
    let own = device_certificate(&known, ID);
    let check = |certificate| hub.authenticate_device(ID, Proof::Certificate(certificate));
    assert!(matches!(
        check(&own),
        Err(AuthenticationError::OtherKind { kind: "sas", .. })
    ));
    let set = |body: Value| {
        let body: AuthenticationBody = serde_json::from_value(body).unwrap();
        let Ok(Credentials::Given(authentication)) = body.credentials() else {
            panic!("no credentials")
        };
        change(&hub, |record| record.authentication = authentication);
    };
    let [sha1, sha256] = own.thumbprints();
    let other = "0".repeat(40);
    for (primary, secondary, good) in [
        (sha1.to_uppercase(), None, true),
        (other.clone(), Some(sha256), true),
        (other, None, false),
    ] {
        let thumbprints = json!({ "primaryThumbprint": primary, "secondaryThumbprint": secondary });
        set(json!({ "type": "selfSigned", "x509Thumbprint": thumbprints }));
        let found = check(&own);
        assert_eq!(found.is_ok(), good, "{found:?}");
        assert!(good || matches!(found, Err(AuthenticationError::Thumbprint { .. })));
    }
    set(json!({ "type": "certificateAuthority" }));
    assert_eq!(check(&own).unwrap().ends_s, None);
    let of_another = device_certificate(&known, "d-2");
    let wrong = check(&of_another);
    assert!(
        matches!(wrong, Err(AuthenticationError::CommonName { .. })),
        "{wrong:?}"
    );
    let of_a_stranger = device_certificate(&stranger, ID);
    let strange = check(&of_a_stranger);
    assert!(
        matches!(strange, Err(AuthenticationError::Authority(_))),
        "{strange:?}"
    );
    let token = sign_device_token("localhost/devices/d-1", b"k", hub.now_s() + 60);
    let by_token = hub.authenticate_device(ID, Proof::Token(&token));
    assert!(matches!(
        by_token,
        Err(AuthenticationError::OtherKind { .. })
    ));
}

#[test]
fn connecting_device_replaces_the_simulated_device() {
    let hub = hub();
    let number = hub.registry().number(ID).unwrap();
    send(&hub, "simulated", 60_000);
    while hub.state().store.counts.delivered == 0 {
        hub.run_due();
    }
    send(&hub, "waits", 60_000);
    let session = connect(&hub);
    let twin = |hub: &Hub| {
        let registry = hub.registry();
        hub.twin_of(&registry, number, &registry.record(number).unwrap())
    };
    // The reported properties of the simulated device stay.
    assert_eq!(twin(&hub)["properties"]["reported"]["firmware"], "2");
    assert_eq!(twin(&hub)["connectionState"], "Connected");
    let taken = session.take(None);
    assert_eq!(ids(&taken), ["waits"]);
    // The simulated end is void: the message does not end without the device.
    let until = hub.now_ms() + 700;
    while hub.now_ms() < until {
        hub.run_due();
    }
    assert_eq!(state_of(&hub, 1), MessageState::Invisible);
    drop(session);
    assert_eq!(twin(&hub)["connectionState"], "Disconnected");
    assert_ne!(twin(&hub)["lastActivityTime"], "0001-01-01T00:00:00Z");
    send(&hub, "later", 60_000);
    let again = connect(&hub).take(None);
    assert_eq!(ids(&again), ["waits", "later"]);
    assert_eq!((again[0].deliveries, again[1].deliveries), (1, 0));
    let summary = hub.summary();
    assert_eq!((summary.real_devices, summary.connected_devices), (1, 0));
    assert_eq!((summary.delivered, summary.pending), (1, 2));
}

#[test]
fn second_connection_ends_the_first_and_gets_the_messages() {
    let hub = hub();
    let first = connect(&hub);
    send(&hub, "a", 60_000);
    let held = first.take(None);
    let second = connect(&hub);
    let ended = Some(DeviceEvent::Ended(EndReason::Replaced));
    assert_eq!((first.next_event(), second.next_event()), (ended, None));
    assert!(first.take(None).is_empty());
    let taken = second.take(None);
    assert_eq!((ids(&taken), taken[0].deliveries), (vec!["a"], 1));
    assert!(!first.settle(held[0].number, MessageSettlement::Completed));
    drop(first);
    assert_eq!(hub.summary().connected_devices, 1);
    assert!(second.settle(taken[0].number, MessageSettlement::Completed));
    assert!(!second.settle(taken[0].number, MessageSettlement::Completed));
    assert_eq!(hub.summary().delivered, 1);
    assert_eq!(hub.state().feedback.len(), 1);
}

#[test]
fn messages_come_in_order_and_no_more_than_a_device_may_hold() {
    let hub = hub_of(HubConfig {
        device_inflight_max: 2,
        delivery_count_max: 2,
        ..config()
    });
    let session = connect(&hub);
    ["a", "b", "c"].iter().for_each(|id| send(&hub, id, 60_000));
    let taken = session.take(None);
    assert_eq!(ids(&taken), ["a", "b"]);
    assert!(session.take(None).is_empty());
    assert!(session.settle(taken[1].number, MessageSettlement::Rejected));
    assert!(session.settle(taken[0].number, MessageSettlement::Abandoned));
    // An abandoned message comes again before later messages, and ends at the delivery limit.
    let taken = session.take(None);
    assert_eq!(ids(&taken), ["a", "c"]);
    assert!(session.settle(taken[0].number, MessageSettlement::Abandoned));
    assert_eq!(state_of(&hub, 0), MessageState::DeliveryCountExceeded);
    assert_eq!(state_of(&hub, 1), MessageState::Rejected);
    // The end of a connection counts as a failed delivery too.
    drop(session);
    let session = connect(&hub);
    assert_eq!(ids(&session.take(None)), ["c"]);
    drop(session);
    assert_eq!(state_of(&hub, 2), MessageState::DeliveryCountExceeded);
    assert_eq!(hub.state().feedback.len(), 3);
}

#[tokio::test]
async fn held_messages_past_expiry_expire_on_return() {
    let hub = hub();
    let session = connect(&hub);
    ["a", "b", "c"].iter().for_each(|id| send(&hub, id, 2_000));
    let expired = hub.now_ms() + 2_000;
    assert_eq!(session.take(None).len(), 3);
    send(&hub, "late", 20);
    while hub.now_ms() <= expired || hub.state().store.counts.expired == 0 {
        hub.run_due();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(hub.summary().expired, 1);
    assert!(session.settle(0, MessageSettlement::Completed));
    assert!(session.settle(1, MessageSettlement::Abandoned));
    drop(session);
    let summary = hub.summary();
    assert_eq!(
        (summary.delivered, summary.expired, summary.pending),
        (1, 3, 0)
    );
}

#[test]
fn message_is_redelivered_after_the_lock_expires() {
    let hub = hub_of(HubConfig {
        device_lock: Duration::from_millis(30),
        ..config()
    });
    let device = authenticated(&hub);
    hub.record_activity(&device).unwrap();
    ["a", "b"].iter().for_each(|id| send(&hub, id, 60_000));
    let first = hub.receive(device.number).unwrap();
    let second = hub.receive(device.number).unwrap();
    assert_eq!(ids(&[first.clone(), second.clone()]), ["a", "b"]);
    assert_eq!(hub.receive(device.number), None);
    let locks = [first.lock.unwrap(), second.lock.unwrap()];
    assert!(!hub.settle_lock(device.number + 1, locks[0], MessageSettlement::Completed));
    assert!(hub.settle_lock(device.number, locks[0], MessageSettlement::Completed));
    assert!(!hub.settle_lock(device.number, locks[0], MessageSettlement::Completed));
    let again = loop {
        hub.run_due();
        if let Some(again) = hub.receive(device.number) {
            break again;
        }
    };
    assert_eq!((again.message_id.as_str(), again.deliveries), ("b", 1));
    assert!(!hub.settle_lock(device.number, locks[1], MessageSettlement::Completed));
    assert!(hub.settle_lock(
        device.number,
        again.lock.unwrap(),
        MessageSettlement::Rejected
    ));
    // A device without a connection does not count as connected.
    assert_eq!(hub.summary().connected_devices, 0);
    assert_eq!(hub.summary().rejected_by_device, 1);
}

#[test]
fn reported_properties_are_merged_and_bounded() {
    let hub = hub();
    let session = connect(&hub);
    let before = session.twin().unwrap();
    let version = before["reported"]["$version"].as_u64().unwrap();
    let patch = br#"{"firmware":null,"update":{"id":"m","state":"applied"}}"#;
    assert_eq!(session.report(patch), Ok(version + 1));
    assert_eq!(
        session.report(br#"{"update":{"state":null}}"#),
        Ok(version + 2)
    );
    let twin = session.twin().unwrap();
    assert_eq!(
        twin["reported"],
        json!({ "update": { "id": "m" }, "$version": version + 2 })
    );
    assert_eq!(twin["desired"], json!({ "$version": 1 }));
    let mut deep = json!(1);
    (0..12).for_each(|_| deep = json!({ "a": deep }));
    let long: Vec<String> = (0..9).map(|_| "x".repeat(4000)).collect();
    for bad in [
        json!([1]),
        json!({ "a.b": 1 }),
        json!({ "$version": 7 }),
        json!({ "a": "x".repeat(4097) }),
        json!({ "a": 1u64 << 53 }),
        json!({ "a": long }),
        deep,
    ] {
        let refused = session.report(bad.to_string().as_bytes()).unwrap_err();
        assert_eq!(refused.code, 400_004, "{bad}");
    }
    assert_eq!(session.twin().unwrap(), twin);
}

#[test]
fn desired_changes_reach_only_subscribed_sessions() {
    let hub = hub();
    let session = connect(&hub);
    let patch = json!({ "a": 1 }).as_object().unwrap().clone();
    let device = session.device.number;
    hub.push_desired(device, &patch, 2);
    assert_eq!(session.next_event(), None);
    session.set_interest(Interest::Desired, true);
    hub.push_desired(device, &patch, 3);
    let push = DesiredPush {
        version: 3,
        patch: patch.clone(),
    };
    assert_eq!(session.next_event(), Some(DeviceEvent::Desired(push)));
    (0..100).for_each(|version| hub.push_desired(device, &patch, version));
    let ended = Some(DeviceEvent::Ended(EndReason::TooSlow));
    assert_eq!(session.next_event(), ended);
}

#[test]
fn deleting_a_device_ends_the_connection() {
    let hub = hub();
    let session = connect(&hub);
    send(&hub, "a", 60_000);
    let taken = session.take(None);
    let old = authenticated(&hub);
    {
        let mut registry = hub.registry_mut();
        registry.delete(session.device.number);
        hub.forget_device(session.device.number);
        let new = registry.new_record(ID, hub.now_ms());
        registry.put(new);
    }
    let ended = Some(DeviceEvent::Ended(EndReason::Deleted));
    assert_eq!(session.next_event(), ended);
    assert!(!session.settle(taken[0].number, MessageSettlement::Completed));
    assert!(session.report(b"{}").is_err());
    let denied = hub.attach(old, Arc::new(Notify::new())).map(drop);
    assert_eq!(denied, Err(AuthenticationError::Unknown(ID.to_owned())));
    drop(session);
    let summary = hub.summary();
    assert_eq!(
        (summary.lost_with_device, summary.connected_devices),
        (1, 0)
    );
    assert_eq!(summary.real_devices, 0);
}

fn invocation(response_ms: u64, connect_ms: u64) -> Invocation {
    Invocation {
        name: "reboot".to_owned(),
        payload: Bytes::from_static(b"{}"),
        response_time_out: Duration::from_millis(response_ms),
        connect_time_out: Duration::from_millis(connect_ms),
    }
}

#[tokio::test]
async fn method_call_waits_for_the_device_and_the_answer() {
    let hub = hub();
    let code = async |id: &str, invocation: Invocation| {
        let refused = hub.invoke(id, &invocation).await.map(drop);
        refused.map_err(|refusal| refusal.code)
    };
    assert_eq!(code("nobody", invocation(10, 10)).await, Err(404_001));
    assert_eq!(code(ID, invocation(10, 10)).await, Err(404_103));
    let session = connect(&hub);
    // Connected, but not ready for methods.
    assert_eq!(code(ID, invocation(10, 0)).await, Err(404_103));
    let waiting = {
        let hub = Arc::clone(&hub);
        tokio::spawn(async move { hub.invoke(ID, &invocation(60_000, 60_000)).await })
    };
    tokio::task::yield_now().await;
    session.set_interest(Interest::Methods, true);
    let call = loop {
        match session.next_event() {
            Some(DeviceEvent::Method(call)) => break call,
            Some(other) => panic!("{other:?}"),
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!(
        (call.name.as_str(), &call.payload[..]),
        ("reboot", &b"{}"[..])
    );
    let answer = MethodAnswer {
        status: 418,
        payload: Bytes::from_static(b"[1.50]"),
    };
    assert!(session.answer(call.id, answer.clone()));
    assert_eq!(waiting.await.unwrap(), Ok(answer.clone()));
    // No answer in time: a late answer finds no caller.
    assert_eq!(code(ID, invocation(10, 0)).await, Err(504_101));
    assert!(!session.answer(call.id + 1, answer));
    let hub_of_task = Arc::clone(&hub);
    let waiting = tokio::spawn(async move { hub_of_task.invoke(ID, &invocation(60_000, 0)).await });
    while session.next_event().is_none() {
        tokio::task::yield_now().await;
    }
    drop(session);
    assert_eq!(waiting.await.unwrap().map_err(|it| it.code), Err(504_101));
    let summary = hub.summary();
    assert_eq!((summary.methods, summary.methods_answered), (6, 1));
}

/// Returns the reported firmware of the device, in the twin or in the answer to a query.
fn firmware(hub: &Hub, queried: bool) -> Value {
    let registry = hub.registry();
    let number = registry.number(ID).unwrap();
    let record = registry.record(number).unwrap();
    let twin = match queried {
        true => hub.queried_twin(&registry, number, &record),
        false => hub.twin_of(&registry, number, &record),
    };
    twin["properties"]["reported"]["firmware"].clone()
}

#[test]
fn queries_show_reported_properties_of_before_the_lag() {
    let hub = hub_of(HubConfig {
        query_lag: Duration::from_secs(3_600),
        ..config()
    });
    let session = connect(&hub);
    for version in ["5", "6"] {
        let patch = format!("{{\"firmware\":\"{version}\"}}");
        session.report(patch.as_bytes()).unwrap();
        assert_eq!(firmware(&hub, false), version);
        assert_eq!(firmware(&hub, true), "1");
    }
}

#[test]
fn reported_properties_appear_in_queries_after_a_lag() {
    let hub = hub_of(HubConfig {
        query_lag: Duration::from_millis(300),
        ..config()
    });
    let session = connect(&hub);
    let earliest_ms = hub.now_ms() + 300;
    session.report(b"{\"firmware\":\"6\"}").unwrap();
    while firmware(&hub, true) != "6" {
        assert!(
            hub.now_ms() < earliest_ms + 60_000,
            "queries never show the property"
        );
    }
    assert!(hub.now_ms() >= earliest_ms);
}
