//! A release replaces another release, process by process, as under Kubernetes: no message is lost
//! or repeated, and sending continues all the while.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::engine::{Engine, Member, get, scattered};
use crate::harness::{Hub, assert_same_ids};
use crate::pipeline::{about, start_with};
use crate::services::Access;
use crate::waiting::{long_or, poll_until};

const ROLLOUT: &str = "upgraded";
const WORKERS: usize = 3;
const ORCHESTRATORS: usize = 2;
/// Sends a minute, by the rollout's rate limit.
const RATE: u64 = 3_000;
/// The longest permitted pause in sending while processes are replaced.
const SILENCE: Duration = Duration::from_secs(9);
const TIME_LIMIT: Duration = Duration::from_secs(300);

#[test]
fn a_rollout_continues_while_all_processes_are_replaced() {
    let devices = long_or(30_000, 3_300);
    let hub = Hub::start(&scattered(devices), &["--tier", "S3"]);
    // A stopping process has answers to wait for.
    hub.faults(r#"{"disposition_delay_ms": 1000}"#);
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(ORCHESTRATORS, WORKERS);
    let mut pipeline = engine.pipeline();
    let stages = json!([
        { "name": "canary", "percent": "2%", "gate": { "success_at_least": "100%", "approval": {} } },
        { "name": "tenth", "percent": "10%", "gate": { "success_at_least": "90%" } },
        { "name": "half", "percent": "50%", "gate": { "failure_above": "5%" } },
        { "name": "most", "percent": "90%" },
    ]);
    let spec = json!({
        "batch_by": ["region", "site"],
        "stages": stages,
        "rate": format!("{RATE}/min"),
        "message": { "body": { "text": "hello" }, "ttl": "24h", "ack": "full" },
    });
    pipeline.command_ok(&start_with(ROLLOUT, spec));
    poll_until(TIME_LIMIT, "the gate to wait", || {
        let status = engine.status(ROLLOUT);
        let state = status["stages"][0]["state"].as_str()?;
        (state == "waits for an approval").then_some(())
    });

    // Replace a process of each kind while a gate waits, and the remaining processes while all
    // workers send.
    replace_oldest(&mut engine, Kind::Orchestrator, &mut Watch::default());
    replace_oldest(&mut engine, Kind::Worker, &mut Watch::default());
    assert_eq!(
        engine.status(ROLLOUT)["stages"][0]["state"],
        "waits for an approval"
    );
    pipeline.command_ok(&about("approve", ROLLOUT));
    engine.until_accepted(devices / 10, TIME_LIMIT);
    let mut watch = Watch::default();
    for round in 1..WORKERS {
        replace_oldest(&mut engine, Kind::Worker, &mut watch);
        if round < ORCHESTRATORS {
            replace_oldest(&mut engine, Kind::Orchestrator, &mut watch);
        }
    }
    let limit = Duration::from_secs(long_or(900, 600));
    poll_until(limit, "the last message", || {
        watch.look(&engine);
        (engine.accepted() >= devices).then_some(())
    });
    println!("nothing was sent for {:?} at the longest", watch.longest);
    assert!(watch.longest < SILENCE, "{:?}", watch.longest);

    let ended = engine.until_phase(ROLLOUT, "succeeded", TIME_LIMIT);
    assert_eq!(ended["devices"], devices);
    let counts = ended["counts"].as_object().expect("counts");
    let sent = ["enqueued", "delivered"].map(|outcome| counts.get(outcome)?.as_u64());
    assert_eq!(
        sent.into_iter().flatten().sum::<u64>(),
        devices,
        "{counts:?}"
    );
    let hub = &engine.hubs[0].1;
    assert_same_ids(&hub.message_log());
    let seen = hub.summary();
    assert_eq!(
        (seen.accepted, seen.transfers, seen.repeats_by_device),
        (devices, devices, 0),
        "no message is sent twice"
    );
    assert!(seen.uptime_ms > 60_000, "the measurement is too short");
    // After a pause of the hub, waiting messages arrive together.
    assert!(
        seen.accepted_in_any_minute_max <= RATE + RATE / 10,
        "{seen:?}"
    );
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Worker,
    Orchestrator,
}

/// Replaces the oldest process as a Kubernetes deployment does: the replacement is ready before the
/// oldest process is asked to stop. The stopping process reports not ready, so no client relies on
/// the process, and ends after finishing started work.
fn replace_oldest(engine: &mut Engine, kind: Kind, watch: &mut Watch) {
    let mut newcomer = match kind {
        Kind::Worker => engine.member("worker"),
        Kind::Orchestrator => engine.member("orchestrator"),
    };
    poll_until(TIME_LIMIT, "the newcomer to be ready", || {
        watch.look(engine);
        (newcomer.readiness().0 == 200).then_some(())
    });
    let members = match kind {
        Kind::Worker => &mut engine.workers,
        Kind::Orchestrator => &mut engine.orchestrators,
    };
    members.push(newcomer);
    let mut oldest: Member = members.remove(0);
    let probes = oldest.probes();
    let has_work = kind == Kind::Worker && watch.is_sending(engine);
    let (mut looked_at, mut had_gap) = (Instant::now(), false);
    oldest.ask_to_stop();
    let mut was_unready = false;
    poll_until(TIME_LIMIT, "the oldest process to end", || {
        watch.look(engine);
        let ready = get(probes, "/readyz").map(|(code, _)| code);
        was_unready |= ready.is_ok_and(|code| code == 503);
        had_gap |= looked_at.elapsed() > MAX_GAP;
        looked_at = Instant::now();
        oldest.is_over().then_some(())
    });
    oldest.stopped();
    assert!(
        was_unready || !has_work || had_gap,
        "a stopping process is not ready"
    );
}

/// The longest time between two looks that counts: on a busy machine, all processes pause now and
/// then.
const MAX_GAP: Duration = Duration::from_millis(500);

/// Observes the hub's messages during other actions.
#[derive(Debug, Default)]
struct Watch {
    /// The number of messages, and the time of the look.
    seen: Option<(u64, Instant)>,
    /// The time of the last new message.
    came_at: Option<Instant>,
    /// The current and the longest period without a new message.
    silence: Duration,
    longest: Duration,
}

impl Watch {
    fn look(&mut self, engine: &Engine) {
        let accepted = engine.accepted();
        let now = Instant::now();
        match self.seen.replace((accepted, now)) {
            Some((before, looked_at)) if before == accepted => {
                self.silence += (now - looked_at).min(MAX_GAP);
                self.longest = self.longest.max(self.silence);
            }
            before => {
                // Messages seen by the first observation may be old.
                self.came_at = before.map(|_| now).or(self.came_at);
                self.silence = Duration::ZERO;
            }
        }
    }

    /// Returns true if messages arrived recently.
    fn is_sending(&mut self, engine: &Engine) -> bool {
        self.look(engine);
        self.came_at.is_some_and(|at| at.elapsed() < MAX_GAP)
    }
}
