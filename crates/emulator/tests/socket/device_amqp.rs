//! Devices over AMQP, beyond the use by the official SDKs: several devices on a connection, and
//! refusals.

use std::time::Duration;

use fe2o3_amqp::{Receiver, Sender};
use fe2o3_amqp_types::messaging::{Body, Data, Message, Outcome};
use fe2o3_amqp_types::primitives::{Binary, Value};
use twincast_emulator::{MessageState, RunningHub};

use crate::client::{Cbs, Client, FAR_FUTURE_S, message, plain_hub, token};
use crate::device_client::{SOON, token_of};

async fn receiver(client: &mut Client, device: &str) -> Result<Receiver, String> {
    let address = format!("/devices/{device}/messages/devicebound");
    let attached = Receiver::attach(&mut client.session, format!("for {device}"), address).await;
    attached.map_err(|error| format!("{error:?}"))
}

/// Opens a connection with a token for each device.
async fn connected(hub: &RunningHub, devices: &[&str]) -> Client {
    let mut client = Client::connect(hub).await.unwrap();
    let mut cbs = Cbs::attach(&mut client).await.unwrap();
    for device in devices {
        let token = token_of(hub, device, FAR_FUTURE_S);
        let audience = format!("localhost/devices/{device}");
        assert_eq!(cbs.put_for(&audience, &token).await.unwrap(), 200);
    }
    client
}

async fn send(hub: &RunningHub, device: &str, id: &str) {
    let mut service = Client::authorised(hub).await.unwrap();
    let mut commands = service.commands().await.unwrap();
    let outcome = commands.send(message(device, id, "full")).await.unwrap();
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

/// Receives the next message, which stays unsettled.
async fn next(receiver: &mut Receiver) -> fe2o3_amqp::Delivery<Body<Value>> {
    let received = tokio::time::timeout(SOON, receiver.recv::<Body<Value>>());
    received.await.expect("a message in time").unwrap()
}

/// Waits for a state of a device's only message.
async fn until(hub: &RunningHub, device: &str, state: MessageState) {
    let waiting = async {
        while hub.hub().messages(device).unwrap()[0].state != state {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(SOON, waiting).await;
    assert!(ended.is_ok(), "{:?}", hub.hub().messages(device));
}

#[tokio::test]
async fn device_links_require_a_token_for_the_device() {
    let hub = plain_hub(2).await;
    let mut client = connected(&hub, &["d0"]).await;
    let mut other = Client::connect(&hub).await.unwrap();
    let mut cbs = Cbs::attach(&mut other).await.unwrap();
    for (audience, token, status) in [
        (
            "localhost/devices/d1",
            token_of(&hub, "d0", FAR_FUTURE_S),
            401,
        ),
        ("localhost/devices/d0", token_of(&hub, "d0", 1), 401),
        (
            "localhost/devices/nobody",
            token_of(&hub, "d0", FAR_FUTURE_S),
            404,
        ),
        (
            "localhost/devices/d0",
            token(&hub, "service", FAR_FUTURE_S),
            401,
        ),
        (
            "localhost%2Fdevices%2Fd0",
            token(&hub, "device", FAR_FUTURE_S),
            200,
        ),
        ("localhost/devices/d1", "nonsense".to_owned(), 401),
    ] {
        let found = cbs.put_for(audience, &token).await.unwrap();
        assert_eq!(found, status, "{audience} {token}");
    }
    assert!(receiver(&mut client, "d0").await.is_ok());
    let refused = receiver(&mut client, "d1").await.unwrap_err();
    let refused = refused.to_ascii_lowercase();
    assert!(refused.contains("unauthorized"), "{refused}");
    // A device cannot send to the node of messages to the device.
    let wrong_way = Sender::attach(&mut client.session, "x", "/devices/d0/messages/devicebound");
    assert!(wrong_way.await.is_err());
    hub.shutdown().await;
}

#[tokio::test]
async fn devices_sharing_a_connection_get_separate_messages() {
    let hub = plain_hub(2).await;
    let mut client = connected(&hub, &["d0", "d1"]).await;
    let mut first = receiver(&mut client, "d0").await.unwrap();
    let mut second = receiver(&mut client, "d1").await.unwrap();
    assert_eq!(hub.hub().summary().connected_devices, 2);
    send(&hub, "d1", "for d1").await;
    send(&hub, "d0", "for d0").await;
    // A released message comes again, and the delivery counts.
    let released = next(&mut first).await;
    first.release(&released).await.unwrap();
    let again = next(&mut first).await;
    assert_eq!(again.message().properties, released.message().properties);
    first.accept(&again).await.unwrap();
    until(&hub, "d0", MessageState::Delivered).await;
    let rejected = next(&mut second).await;
    second.reject(&rejected, None).await.unwrap();
    until(&hub, "d1", MessageState::Rejected).await;
    // A message unsettled at the end of a link returns, and the next link receives the message.
    send(&hub, "d0", "second").await;
    let _left = next(&mut first).await;
    first.close().await.unwrap();
    let mut later = receiver(&mut client, "d0").await.unwrap();
    let back = next(&mut later).await;
    later.accept(&back).await.unwrap();
    hub.shutdown().await;
}

#[tokio::test]
async fn telemetry_is_counted_and_a_new_connection_ends_the_old_links() {
    let hub = plain_hub(1).await;
    let mut client = connected(&hub, &["d0"]).await;
    let address = "/devices/d0/messages/events";
    let mut sender = Sender::attach(&mut client.session, "events", address)
        .await
        .unwrap();
    let body = Message::builder().body(Data(Binary::from(b"21.5".to_vec())));
    let outcome = sender.send(body.build()).await.unwrap();
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    assert_eq!(hub.hub().summary().telemetry_messages, 1);
    let mut old = receiver(&mut client, "d0").await.unwrap();
    let mut other = connected(&hub, &["d0"]).await;
    let mut new = receiver(&mut other, "d0").await.unwrap();
    let ended = tokio::time::timeout(SOON, old.recv::<Body<Value>>()).await;
    let ended = format!("{:?}", ended.expect("an end in time").unwrap_err());
    assert!(ended.contains("400027"), "{ended}");
    send(&hub, "d0", "to the new one").await;
    let received = next(&mut new).await;
    new.accept(&received).await.unwrap();
    until(&hub, "d0", MessageState::Delivered).await;
    hub.shutdown().await;
}
