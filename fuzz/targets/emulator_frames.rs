//! A client's bytes to the emulator, from the protocol header on, or on a connection with all
//! permissions.

#![no_main]

use std::sync::LazyLock;

use fe2o3_amqp_types::definitions::{Handle, ReceiverSettleMode, Role, SenderSettleMode};
use fe2o3_amqp_types::messaging::{Source, Target, TargetArchetype};
use fe2o3_amqp_types::performatives::{Attach, Begin, Flow, Open, Performative};
use twincast_emulator::fuzzing::Hub;
use twincast_emulator::{Fleet, HubConfig, Permissions, Policy, sign_token};
use twincast_fuzz::amqp::{AMQP, SASL, frame, frame_bodies, performative, split_frames};
use twincast_fuzz::split_mode;
use twincast_iothub::fuzzing::FrameFilter;

const RAW: u8 = 1;
const WITH_SASL: u8 = 2;
/// The position of the remaining bits of the mode: the size of the pieces passed to the emulator,
/// in units of 64 bytes, minus 1.
const PIECE: u8 = 2;

static CONFIG: LazyLock<HubConfig> = LazyLock::new(|| HubConfig {
    policies: vec![Policy {
        name: "owner".into(),
        primary_key: b"key".to_vec(),
        secondary_key: b"other".to_vec(),
        permissions: Permissions::OWNER,
    }],
    unlimited: true,
    ..HubConfig::with_fleet(Fleet::plain(3, "d-{index}").expect("a fleet"))
});

/// The start of a connection with all permissions: two sessions, the first with links for messages,
/// feedback and tokens.
static OPENING: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let token = sign_token("localhost", "owner", b"key", 32_503_680_000);
    let response = format!("\0owner@sas.root.localhost\0{token}");
    let mut init = vec![0, 0x53, 0x41, 0xd0];
    let mut fields = vec![0xa3, 5];
    fields.extend(b"PLAIN\xb0");
    fields.extend(u32::try_from(response.len()).expect("short").to_be_bytes());
    fields.extend(response.as_bytes());
    init.extend(
        u32::try_from(fields.len() + 4)
            .expect("short")
            .to_be_bytes(),
    );
    init.extend([0, 0, 0, 2]);
    init.extend(fields);
    let mut opening = SASL.to_vec();
    opening.extend(frame(1, 0, &init));
    opening.extend(AMQP);
    let open = Open {
        container_id: "fuzz".into(),
        hostname: Some("localhost".into()),
        max_frame_size: 65_536.into(),
        channel_max: 3.into(),
        idle_time_out: None,
        outgoing_locales: None,
        incoming_locales: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    };
    opening.extend(performative(0, &Performative::Open(open), &[]));
    for channel in 0..2 {
        let begin = Begin {
            remote_channel: None,
            next_outgoing_id: 0,
            incoming_window: 2048,
            outgoing_window: 2048,
            handle_max: Handle(7),
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        };
        opening.extend(performative(channel, &Performative::Begin(begin), &[]));
    }
    let links = [
        (Role::Sender, "/messages/devicebound"),
        (Role::Receiver, "/messages/serviceBound/feedback"),
        (Role::Sender, "$cbs"),
        (Role::Receiver, "$cbs"),
    ];
    for (handle, (role, address)) in (0..).zip(links) {
        let is_receiver = role == Role::Receiver;
        let source = Source::builder().address(if is_receiver { address } else { "here" });
        let target = Target::builder().address(if is_receiver { "here" } else { address });
        let attach = Attach {
            name: format!("link-{handle}"),
            handle: Handle(handle),
            role,
            snd_settle_mode: SenderSettleMode::Mixed,
            rcv_settle_mode: ReceiverSettleMode::First,
            source: Some(Box::new(source.build())),
            target: Some(Box::new(TargetArchetype::Target(target.build()))),
            unsettled: None,
            incomplete_unsettled: false,
            initial_delivery_count: Some(0),
            max_message_size: None,
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        };
        opening.extend(performative(0, &Performative::Attach(attach), &[]));
        if is_receiver {
            let flow = Flow {
                next_incoming_id: Some(0),
                incoming_window: 2048,
                next_outgoing_id: 0,
                outgoing_window: 2048,
                handle: Some(Handle(handle)),
                delivery_count: Some(0),
                link_credit: Some(10),
                available: None,
                drain: false,
                echo: false,
                properties: None,
            };
            opening.extend(performative(0, &Performative::Flow(flow), &[]));
        }
    }
    opening
});

twincast_fuzz::bytes!(|input| {
    let (mode, rest) = split_mode(input);
    let mut stream = Vec::new();
    let mut frames = Vec::new();
    if mode & RAW == 0 {
        stream.extend(&*OPENING);
        for (channel, body) in frame_bodies(rest) {
            frames.extend(frame(0, channel, body));
        }
        stream.extend(&frames);
    } else {
        stream.extend(if mode & WITH_SASL != 0 { SASL } else { AMQP });
        stream.extend(rest);
    }
    let pieces = stream.chunks(64 * (usize::from(mode >> PIECE) + 1));
    let answer = Hub::new(CONFIG.clone()).feed(pieces);
    _ = split_frames(&answer);
    if mode & RAW == 0 && is_sound(&frames) {
        let taken = FrameFilter::default().received(&answer, &mut Vec::new());
        assert_eq!(taken, Ok(()), "the client does not take the answer");
    }
});

/// Returns whether the client's filter passes all frames unchanged.
fn is_sound(frames: &[u8]) -> bool {
    let opening = [AMQP, &*frame(0, 0, b"\0\x53\x10\xc0\x04\x01\xa1\x01h")].concat();
    let mut filter = FrameFilter::default();
    let mut passed = Vec::new();
    let opened = filter.received(&opening, &mut passed);
    passed.clear();
    opened.is_ok() && filter.received(frames, &mut passed).is_ok() && passed == frames
}
