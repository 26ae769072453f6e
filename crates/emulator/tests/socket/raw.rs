//! Protocol details beyond the client library.

use anyhow::Result;
use fe2o3_amqp_types::definitions::{Handle, Role};
use fe2o3_amqp_types::messaging::{Source, Target, TargetArchetype};
use fe2o3_amqp_types::performatives::{Attach, Begin, Close, Disposition, Flow, Open, Transfer};
use fe2o3_amqp_types::primitives::{Binary, Symbol};
use fe2o3_amqp_types::sasl::SaslInit;
use twincast_emulator::{Faults, RunningHub};

use crate::client::{FAR_FUTURE_S, message, plain_hub, token};
use crate::wire::{Wire, encoded};

const AMQP: &[u8] = b"AMQP\x00\x01\x00\x00";
const SASL: &[u8] = b"AMQP\x03\x01\x00\x00";
const FLOW: u8 = 0x13;
const DISPOSITION: u8 = 0x15;
const CLOSE: u8 = 0x18;
const OUTCOME: u8 = 0x44;

async fn sasl(hub: &RunningHub, mechanism: &str, response: Option<String>) -> Result<(Wire, u8)> {
    let mut wire = Wire::dial(hub).await?;
    wire.bytes(SASL).await?;
    assert_eq!(wire.header().await?, SASL);
    let (_, offer) = wire.receive().await?;
    let offer = String::from_utf8_lossy(&offer).into_owned();
    for name in ["PLAIN", "ANONYMOUS", "MSSBCBS", "EXTERNAL"] {
        assert!(offer.contains(name), "{offer}");
    }
    let init = SaslInit {
        mechanism: Symbol::from(mechanism),
        initial_response: response.map(|text| Binary::from(text.into_bytes())),
        hostname: None,
    };
    wire.frame(1, &init, &[]).await?;
    let outcome = wire.receive_until(OUTCOME).await?;
    let code = *outcome.last().expect("a code");
    Ok((wire, code))
}

fn open(idle_time_out: Option<u32>) -> Open {
    Open {
        container_id: "raw".to_owned(),
        hostname: Some("localhost".to_owned()),
        max_frame_size: 512.into(),
        channel_max: 10.into(),
        idle_time_out,
        outgoing_locales: None,
        incoming_locales: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

/// Logs in with PLAIN and attaches a sender.
async fn sender(hub: &RunningHub) -> Result<Wire> {
    let login = format!(
        "\0service@sas.root.localhost\0{}",
        token(hub, "service", FAR_FUTURE_S)
    );
    let (mut wire, code) = sasl(hub, "PLAIN", Some(login)).await?;
    assert_eq!(code, 0);
    wire.bytes(AMQP).await?;
    assert_eq!(wire.header().await?, AMQP);
    wire.frame(0, &open(None), &[]).await?;
    let begin = Begin {
        remote_channel: None,
        next_outgoing_id: u32::MAX - 1,
        incoming_window: 100,
        outgoing_window: 100,
        handle_max: Handle(7),
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    };
    wire.frame(0, &begin, &[]).await?;
    let target = Target::builder().address("/messages/devicebound").build();
    let attach = Attach {
        name: "raw".to_owned(),
        handle: Handle(3),
        role: Role::Sender,
        snd_settle_mode: Default::default(),
        // As requested by Python; the hub settles first nevertheless.
        rcv_settle_mode: fe2o3_amqp_types::definitions::ReceiverSettleMode::Second,
        source: Some(Box::new(Source::default())),
        target: Some(Box::new(TargetArchetype::Target(target))),
        unsettled: None,
        incomplete_unsettled: false,
        initial_delivery_count: Some(u32::MAX),
        max_message_size: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    };
    wire.frame(0, &attach, &[]).await?;
    Ok(wire)
}

fn transfer(id: u32, more: bool) -> Transfer {
    Transfer {
        handle: Handle(3),
        delivery_id: Some(id),
        delivery_tag: Some(Binary::from(id.to_be_bytes().to_vec())),
        message_format: Some(0),
        settled: None,
        more,
        rcv_settle_mode: None,
        state: None,
        resume: false,
        aborted: false,
        batchable: false,
    }
}

fn read<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> T {
    serde_amqp::from_slice(body).unwrap()
}

#[tokio::test]
async fn sasl_accepts_only_valid_credentials() {
    let hub = plain_hub(1).await;
    let token = token(&hub, "service", FAR_FUTURE_S);
    for (mechanism, response, code) in [
        ("ANONYMOUS", None, 0),
        ("MSSBCBS", Some(String::new()), 0),
        (
            "PLAIN",
            Some(format!("\0service@sas.root.localhost\0{token}")),
            0,
        ),
        (
            "PLAIN",
            Some(format!("\0iothubowner@sas.root.localhost\0{token}")),
            1,
        ),
        (
            "PLAIN",
            Some(format!("\0service@sas.root.elsewhere\0{token}")),
            1,
        ),
        ("PLAIN", Some("nonsense".to_owned()), 1),
        ("EXTERNAL", None, 1),
    ] {
        let (_, found) = sasl(&hub, mechanism, response.clone()).await.unwrap();
        assert_eq!(found, code, "{mechanism} {response:?}");
    }
    hub.shutdown().await;
}

#[tokio::test]
async fn messages_in_pieces_aborted_and_settled_in_advance() {
    let hub = plain_hub(4).await;
    let mut wire = sender(&hub).await.unwrap();
    let flow: Flow = read(&wire.receive_until(FLOW).await.unwrap());
    assert_eq!(
        (flow.link_credit, flow.delivery_count),
        (Some(1000), Some(u32::MAX))
    );
    assert_eq!(
        (flow.next_incoming_id, flow.incoming_window),
        (Some(u32::MAX - 1), 5000)
    );
    // A message in three pieces.
    let whole = encoded(message("d0", "pieces", "none"));
    let (first, rest) = whole.split_at(10);
    let (second, third) = rest.split_at(20);
    wire.frame(0, &transfer(0, true), first).await.unwrap();
    let again = |more| Transfer {
        delivery_id: None,
        delivery_tag: None,
        ..transfer(0, more)
    };
    wire.frame(0, &again(true), second).await.unwrap();
    wire.frame(0, &again(false), third).await.unwrap();
    let answer: Disposition = read(&wire.receive_until(DISPOSITION).await.unwrap());
    assert_eq!(
        (answer.role, answer.first, answer.settled),
        (Role::Receiver, 0, true)
    );
    // Begun and aborted: never answered.
    wire.frame(0, &transfer(1, true), first).await.unwrap();
    wire.frame(
        0,
        &Transfer {
            aborted: true,
            ..again(false)
        },
        &[],
    )
    .await
    .unwrap();
    // A message settled in advance: enqueued, never answered.
    let settled = Transfer {
        settled: Some(true),
        ..transfer(2, false)
    };
    wire.frame(0, &settled, &encoded(message("d1", "settled", "none")))
        .await
        .unwrap();
    // A single disposition answers two valid messages sent in one write.
    wire.frame(
        0,
        &transfer(3, false),
        &encoded(message("d2", "last", "none")),
    )
    .await
    .unwrap();
    let answer: Disposition = read(&wire.receive_until(DISPOSITION).await.unwrap());
    assert_eq!(answer.first, 3);
    assert_eq!(hub.hub().messages("d0").unwrap()[0].message_id, "pieces");
    assert_eq!(hub.hub().messages("d1").unwrap().len(), 1);
    assert_eq!(hub.hub().summary().accepted, 3);
    hub.shutdown().await;
}

#[tokio::test]
async fn credit_is_filled_up_and_the_fault_leaves_the_next_id_out() {
    let hub = plain_hub(200).await;
    let mut wire = sender(&hub).await.unwrap();
    wire.receive_until(FLOW).await.unwrap();
    for (round, expected) in [(0u32, Some(98)), (1, None)] {
        if round == 1 {
            let faults = Faults {
                flow_without_next_incoming_id: true,
                ..Faults::default()
            };
            hub.hub().set_faults(faults);
        }
        for n in 0..100 {
            let id = round * 100 + n;
            let body = encoded(message(&format!("d{id}"), "1", "none"));
            wire.frame(0, &transfer(id, false), &body).await.unwrap();
        }
        let flow: Flow = read(&wire.receive_until(FLOW).await.unwrap());
        assert_eq!(
            (flow.next_incoming_id, flow.link_credit),
            (expected, Some(1000)),
            "{flow:?}"
        );
        assert_eq!(
            flow.delivery_count,
            Some(u32::MAX.wrapping_add((round + 1) * 100))
        );
    }
    hub.shutdown().await;
}

#[tokio::test]
async fn an_idle_peer_gets_heartbeats_and_a_silent_fault_closes() {
    let hub = plain_hub(1).await;
    let mut wire = Wire::dial(&hub).await.unwrap();
    wire.bytes(AMQP).await.unwrap();
    assert_eq!(wire.header().await.unwrap(), AMQP);
    wire.frame(0, &open(Some(200)), &[]).await.unwrap();
    let (_, body) = wire.receive().await.unwrap();
    let opened: Open = read(&body);
    assert_eq!(
        (opened.idle_time_out, opened.max_frame_size.0),
        (Some(240_000), 65_536)
    );
    for _ in 0..3 {
        let (code, _) = wire.receive().await.unwrap();
        assert_eq!(code, None, "an empty frame");
    }
    hub.hub().set_faults(Faults {
        idle_close_ms: Some(1),
        ..Faults::default()
    });
    let close: Close = read(&wire.receive_until(CLOSE).await.unwrap());
    let error = close.error.expect("an error");
    assert!(
        error
            .description
            .as_deref()
            .unwrap_or_default()
            .contains("inactive"),
        "{error:?}"
    );
    hub.shutdown().await;
}

#[tokio::test]
async fn malformed_input_ends_only_the_offending_connection() {
    let hub = plain_hub(1).await;
    let open_frame = serde_amqp::to_vec(&open(None)).unwrap();
    let framed = |body: &[u8]| {
        let mut frame = u32::try_from(body.len() + 8)
            .unwrap()
            .to_be_bytes()
            .to_vec();
        frame.extend([2, 0, 0, 0]);
        frame.extend(body);
        frame
    };
    for malformed in [
        vec![0xff; 64],
        framed(&[0x00, 0x53, 0x14, 0xc0, 0x01, 0x00]),
        framed(&[0x00, 0x53, 0x99, 0x45]),
        framed(&[0x00, 0x53, 0x12, 0xc0, 0xff, 0x01]),
        vec![0, 0, 0, 9, 200, 0, 0, 0, 0],
        framed(&open_frame),
    ] {
        let mut wire = Wire::dial(&hub).await.unwrap();
        wire.bytes(AMQP).await.unwrap();
        wire.bytes(&framed(&open_frame)).await.unwrap();
        wire.bytes(&malformed).await.unwrap();
        wire.header().await.unwrap();
        let close: Close = read(&wire.receive_until(CLOSE).await.unwrap());
        assert!(close.error.is_some(), "{malformed:02x?}");
    }
    // Input other than AMQP after the first four bytes.
    let mut wire = Wire::dial(&hub).await.unwrap();
    wire.bytes(b"AMQP\x07\x07\x07\x07").await.unwrap();
    assert_eq!(wire.header().await.unwrap(), AMQP);
    assert!(wire.receive().await.is_err());
    hub.shutdown().await;
}
