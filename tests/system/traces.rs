//! The exported spans of a rollout run from a single machine. No rollout waits for the collector.

use std::time::{Duration, Instant};

use wiremock::http::HeaderValue;

use crate::harness::{Collector, Fleet, Hub, ReceivedSpan, Room};

const DEVICES: u64 = 400;

#[test]
fn a_run_is_one_trace_and_a_hanging_collector_causes_no_delay() {
    let caller = "4bf92f3577b34da6a3ce929d0e0e4736";
    let collector = Collector::start();
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    let room = Room::with(&hub)
        .set("TWINCAST__OTLP__URL", &collector.address())
        .set("TWINCAST__OTLP__TOKEN", "as%2Bit%20is")
        .set("TRACEPARENT", &format!("00-{caller}-00f067aa0ba902b7-01"));
    let spec = room.rollout("traced", "");
    let ended = room.run(&["--log", "debug", "run", &spec]).expect(0);
    assert!(
        ended.stderr.contains(&format!("trace_id={caller}")),
        "{ended}"
    );
    let spans = ended
        .stderr
        .lines()
        .map(|line| line.matches("trace_id=").count());
    assert!(
        spans.max() == Some(1),
        "a line names its trace once: {ended}"
    );
    let spans = collector.received();
    let process = &spans.first().expect("spans").process;
    assert!(spans.iter().all(|span| span.process == *process));
    let token = HeaderValue::from_static("Bearer as%2Bit%20is");
    assert!(spans.iter().all(|span| span.shown.as_ref() == Some(&token)));
    assert!(spans.iter().all(ReceivedSpan::is_in_order), "{spans:#?}");
    let one = |name: &str| {
        let found = spans.iter().find(|span| span.name() == name);
        found.unwrap_or_else(|| panic!("no span {name}: {spans:#?}"))
    };
    assert!(
        spans.iter().all(|span| span.trace() == caller),
        "{spans:#?}"
    );
    let command = one("command");
    assert_eq!(command.service, "twincast-run");
    assert_eq!(command.parent(), "00f067aa0ba902b7");
    for name in ["plan", "stage", "rollout"] {
        assert_eq!(one(name).parent(), command.id(), "{name}");
    }
    let batches = spans.iter().filter(|span| span.name() == "batch");
    let sent: u64 = batches
        .inspect(|batch| assert_eq!(batch.parent(), one("stage").id()))
        .map(|batch| batch.attribute("twincast.outcome.enqueued"))
        .map(|sent| sent.parse::<u64>().expect("a number"))
        .sum();
    assert_eq!(sent, DEVICES);

    let hanging = Collector::hanging();
    let room = room.set("TWINCAST__OTLP__URL", &hanging.address());
    let spec = room.rollout("untraced", "");
    let started = Instant::now();
    room.run(&["run", &spec]).expect(0);
    // The last spans have a limit of 3 s.
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "the run took {took:?}");
    assert_eq!(hub.summary().accepted, 2 * DEVICES);
}

/// A platform may set the variables for all programs.
#[test]
fn standard_variables_apply_and_invalid_values_are_warned_of() {
    let collector = Collector::start();
    let hub = Hub::unlimited(&Fleet::of(10));
    let at = format!("{}/v1/traces", collector.address());
    let run = |name: &str, variables: &[(&str, &str)]| {
        let before = collector.received().len();
        let mut room = Room::with(&hub);
        for (variable, value) in variables {
            room.set_for_all(variable, value);
        }
        let spec = room.rollout(name, "");
        let ended = room.run(&["run", &spec]).expect(0);
        (ended.stderr, collector.received().split_off(before))
    };
    let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*at);
    let sampled = (
        "TRACEPARENT",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    );

    let shown = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20them");
    let (_, spans) = run("sampled", &[traces, shown, sampled]);
    assert!(!spans.is_empty());
    let token = HeaderValue::from_static("Bearer them");
    assert!(spans.iter().all(|span| span.shown.as_ref() == Some(&token)));
    let ours = ("TWINCAST__OTLP__TOKEN", "us");
    let (_, spans) = run("ours", &[traces, shown, ours]);
    let token = HeaderValue::from_static("Bearer us");
    assert!(!spans.is_empty());
    assert!(spans.iter().all(|span| span.shown.as_ref() == Some(&token)));

    for (name, variable) in [
        ("off", ("OTEL_TRACES_SAMPLER", "always_off")),
        ("none", ("OTEL_TRACES_EXPORTER", "none")),
        ("disabled", ("OTEL_SDK_DISABLED", "true")),
    ] {
        let (said, spans) = run(name, &[traces, sampled, variable]);
        assert!(spans.is_empty(), "{name}: {spans:#?}");
        assert!(!said.contains("OTEL_"), "{name}: {said}");
    }

    for (name, variable) in [
        ("pressed", ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd")),
        ("other", ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")),
    ] {
        let (said, spans) = run(name, &[traces, variable]);
        assert!(!spans.is_empty(), "{name}: {said}");
    }
    let senseless = ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318");
    let unknown = ("OTEL_TRACES_SAMPLER", "by_chance");
    for (name, variables, says) in [
        ("senseless", &[senseless][..], "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ("unknown", &[traces, unknown], "OTEL_TRACES_SAMPLER is"),
    ] {
        let (said, _) = run(name, variables);
        assert!(
            said.contains("WARN") && said.contains(says),
            "{name}: {said}"
        );
    }
}
