//! Commands on test doubles: effects, repetitions, and refusals.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use twincast_core::ids::CommandKey;
use twincast_core::ports::{Clock, RolloutRegistry, Rollouts as _};
use twincast_core::rollout::{Commands, Event, Phase, Rollout};
use twincast_core::spec::RolloutSpec;
use twincast_core::time::Timestamp;
use twincast_core::trace::Tracer;
use twincast_orchestrator::command::{Answer, Cause, Refusal};
use twincast_orchestrator::command_executor::{CommandError, CommandExecutor};
use twincast_orchestrator::retention::Retention;
use twincast_testkit::{ManualClock, MemoryStore, build};

fn executor() -> (CommandExecutor, MemoryStore) {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
    let store = MemoryStore::new(Arc::clone(&clock));
    let executor = CommandExecutor {
        store: Arc::new(store.clone()),
        registry: Some(Arc::new(store.clone())),
        hubs: BTreeSet::from([build::hub("a"), build::hub("b")]),
        has_metric_source: false,
        tracer: Tracer::default(),
        clock,
    };
    (executor, store)
}

fn spec(name: &str) -> Value {
    json!({"name": name, "target": {"all": true}, "message": {"body": {"text": "hi"}}})
}

async fn done(executor: &CommandExecutor, command: Value) -> Answer {
    match executor.handle(command.to_string().as_bytes(), None).await {
        Ok(answer) => answer,
        Err(error) => panic!("{command}: {error:?}"),
    }
}

async fn refused(executor: &CommandExecutor, command: Value) -> Refusal {
    match executor.handle(command.to_string().as_bytes(), None).await {
        Err(CommandError::Refused(refusal)) => refusal,
        other => panic!("{command}: {other:?}"),
    }
}

/// Starts a rollout and brings the rollout into the phase `running`.
async fn run(executor: &CommandExecutor, store: &MemoryStore, name: &str) {
    done(
        executor,
        json!({"command": "start", "spec": spec(name), "by": "pipeline"}),
    )
    .await;
    let rollout = store.rollout(&build::name(name)).await.unwrap().unwrap();
    let rollout = build::apply(store, &rollout, Event::PlanningStarted).await;
    build::apply(store, &rollout, build::plan_completed(5)).await;
}

async fn phase(store: &MemoryStore, name: &str) -> Phase {
    store
        .rollout(&build::name(name))
        .await
        .unwrap()
        .unwrap()
        .phase
}

#[tokio::test]
async fn repeated_starts_create_one_rollout() {
    let (executor, store) = executor();
    let start = json!({"command": "start", "spec": spec("r")});
    let all = futures::future::join_all((0..100).map(|_| done(&executor, start.clone()))).await;
    assert_eq!(all.iter().filter(|answer| answer.changed).count(), 1);
    assert_eq!(store.rollouts().await.unwrap(), [build::name("r")]);
    assert_eq!(all[99].rollouts[0].phase, "accepted");

    let mut other = spec("r");
    other["message"]["body"]["text"] = "ho".into();
    let refusal = refused(&executor, json!({"command": "start", "spec": other})).await;
    assert_eq!(refusal.cause, Cause::Conflict);
    assert_eq!(refusal.details, ["message.body.text: \"hi\" became \"ho\""]);
}

async fn last_event(store: &MemoryStore, name: &str) -> Value {
    let rollout = store.rollout(&build::name(name)).await.unwrap().unwrap();
    serde_json::to_value(&rollout.history.last().unwrap().event).unwrap()
}

#[tokio::test]
async fn commands_change_a_rollout_and_repeats_have_no_effect() {
    let (executor, store) = executor();
    run(&executor, &store, "r").await;
    let first = store.rollout(&build::name("r")).await.unwrap().unwrap();
    let first = serde_json::to_value(&first.history[0].event).unwrap();
    assert_eq!(first, json!({"event": "accepted", "by": "pipeline"}));
    let change = async |command: &str| {
        let command = json!({"command": command, "rollout": "r", "reason": "smoke", "by": "ann"});
        let first = done(&executor, command.clone()).await;
        let second = done(&executor, command).await;
        (
            first.changed,
            second.changed,
            second.rollouts[0].phase.clone(),
        )
    };
    assert_eq!(change("pause").await, (true, false, "paused".into()));
    let reason = "smoke (pause by ann)".to_owned();
    assert_eq!(phase(&store, "r").await, Phase::Paused { reason });
    assert_eq!(change("resume").await, (true, false, "running".into()));
    let attribution = json!({"event": "resume_requested", "by": "ann", "reason": "smoke"});
    assert_eq!(last_event(&store, "r").await, attribution);
    assert_eq!(change("abort").await, (true, false, "aborting".into()));
    let late = refused(&executor, json!({"command": "resume", "rollout": "r"})).await;
    assert_eq!(late.cause, Cause::NotPossible);
    let unknown = refused(&executor, json!({"command": "resume", "rollout": "s"})).await;
    assert_eq!(unknown.cause, Cause::UnknownRollout);
}

#[tokio::test]
async fn a_command_with_a_key_changes_a_rollout_once() {
    let (executor, store) = executor();
    run(&executor, &store, "r").await;
    let command = |command: &str, key: &str| json!({"command": command, "rollout": "r", "key": key, "reason": "smoke"});
    let version = async || {
        store
            .rollout(&build::name("r"))
            .await
            .unwrap()
            .unwrap()
            .version
    };
    let before = version().await;
    let pause = command("pause", "k-1");
    let all = futures::future::join_all((0..20).map(|_| done(&executor, pause.clone()))).await;
    assert!(
        all.iter().all(|answer| answer.changed),
        "each repetition gets the first answer"
    );
    assert_eq!(version().await.0, before.0 + 1);

    // A late repetition must not undo a later command.
    assert!(done(&executor, command("resume", "k-2")).await.changed);
    let late = done(&executor, pause).await;
    assert_eq!((late.changed, &*late.rollouts[0].phase), (true, "running"));
    let another = done(&executor, command("pause", "k-3")).await;
    assert_eq!(another.rollouts[0].phase, "paused");

    // A repetition ignores the present state.
    done(&executor, json!({"command": "stop-all"})).await;
    assert!(done(&executor, command("resume", "k-2")).await.changed);
    assert_eq!(
        refused(&executor, command("resume", "k-4")).await.cause,
        Cause::NotPossible
    );

    let mixed_up = refused(&executor, command("abort", "k-1")).await;
    assert_eq!(mixed_up.cause, Cause::InvalidCommand);
    assert_eq!(
        mixed_up.error,
        r#"the key k-1 was already used for another command: {"command":"pause"}; this command is {"command":"abort"}"#
    );
    assert_eq!(phase(&store, "r").await.as_str(), "paused");
}

#[tokio::test]
async fn the_number_of_known_keys_is_limited() {
    let (executor, store) = executor();
    run(&executor, &store, "r").await;
    let command = |n: usize| {
        let command = ["pause", "resume"][n % 2];
        json!({"command": command, "rollout": "r", "key": format!("k-{n}")})
    };
    for n in 0..=Commands::MAX {
        assert!(done(&executor, command(n)).await.changed, "{n}");
    }
    let commands = store.commands(&build::name("r")).await.unwrap();
    assert_eq!(commands.len(), Commands::MAX);
    let known = |n: usize| {
        let key = CommandKey::new(format!("k-{n}")).unwrap();
        commands.find(&key).is_some()
    };
    assert!(!known(0) && known(1) && known(Commands::MAX));
}

#[tokio::test]
async fn resume_all_resumes_only_rollouts_halted_by_stop_all() {
    let (executor, store) = executor();
    for name in ["a", "b", "c"] {
        run(&executor, &store, name).await;
    }
    done(&executor, json!({"command": "pause", "rollout": "b"})).await;
    done(&executor, json!({"command": "start", "spec": spec("new")})).await;
    for changed in [true, false] {
        let stop = json!({"command": "stop-all", "reason": "wrong build"});
        let answer = done(&executor, stop).await;
        assert_eq!((answer.changed, answer.rollouts.len()), (changed, 4));
    }
    let phases = async || {
        let mut phases = Vec::new();
        for name in ["a", "b", "c", "new"] {
            phases.push(phase(&store, name).await.as_str());
        }
        phases
    };
    assert_eq!(phases().await, ["halted", "paused", "halted", "accepted"]);
    assert_eq!(store.halted().await.unwrap().unwrap().reason, "wrong build");
    let one = refused(&executor, json!({"command": "resume", "rollout": "a"})).await;
    assert_eq!(one.cause, Cause::NotPossible);
    // A rollout paused before the stop does not start to send, either.
    let paused = refused(&executor, json!({"command": "resume", "rollout": "b"})).await;
    assert_eq!(paused.cause, Cause::NotPossible);
    assert!(paused.error.contains("wrong build"), "{}", paused.error);

    done(&executor, json!({"command": "resume-all", "by": "ann"})).await;
    let attribution = json!({"event": "halt_lifted", "by": "ann"});
    assert_eq!(last_event(&store, "a").await, attribution);
    assert_eq!(phases().await, ["running", "paused", "running", "accepted"]);
    assert_eq!(store.halted().await.unwrap(), None);
}

#[tokio::test]
async fn an_unknown_hub_is_refused_with_the_known_hubs() {
    let (executor, _store) = executor();
    let mut spec = spec("r");
    spec["target"]["hubs"] = json!(["a", "mars"]);
    let refusal = refused(&executor, json!({"command": "start", "spec": spec})).await;
    assert_eq!(refusal.cause, Cause::UnknownHub);
    assert!(
        refusal.error.contains("mars") && refusal.error.contains("a, b"),
        "{}",
        refusal.error
    );
}

/// A rollout in a phase, with the stages `canary`, which has passed, `tenth`, and `rest`.
fn in_phase(name: &str, phase: Phase) -> Rollout {
    let mut spec = spec(name);
    spec["stages"] = json!([
        {"name": "canary", "percent": "1%", "gate": {"approval": {}}},
        {"name": "tenth", "percent": "10%", "gate": {"bake": "1h"}},
    ]);
    let spec = RolloutSpec::read("test", &spec.to_string()).unwrap();
    let mut rollout = Rollout::accepted(spec, Default::default(), Timestamp(1));
    if !matches!(
        phase,
        Phase::Accepted | Phase::Planning | Phase::Failed { .. }
    ) {
        let events = [
            Event::PlanningStarted,
            build::plan_completed(5),
            build::stage_passed("canary"),
        ];
        rollout = events
            .into_iter()
            .fold(rollout, |rollout, event| build::after(&rollout, event));
    }
    rollout.phase = phase;
    rollout
}

fn phases() -> [Phase; 10] {
    let reason = || "lunch".to_owned();
    [
        Phase::Accepted,
        Phase::Planning,
        Phase::Running,
        Phase::Paused { reason: reason() },
        Phase::Halted { reason: reason() },
        Phase::Aborting { reason: reason() },
        Phase::Aborted { reason: reason() },
        Phase::Succeeded,
        Phase::FinishedWithFailures,
        Phase::Failed { reason: reason() },
    ]
}

#[tokio::test]
async fn refusals_contain_no_internal_terms() {
    let asks = [
        ("pause", &[None] as &[_]),
        ("resume", &[None]),
        ("abort", &[None]),
        (
            "approve",
            &[
                None,
                Some("canary"),
                Some("tenth"),
                Some("rest"),
                Some("moon"),
            ],
        ),
        (
            "reject",
            &[
                None,
                Some("canary"),
                Some("tenth"),
                Some("rest"),
                Some("moon"),
            ],
        ),
        (
            "promote",
            &[Some("canary"), Some("tenth"), Some("rest"), Some("moon")],
        ),
        (
            "retry",
            &[
                None,
                Some("canary"),
                Some("tenth"),
                Some("rest"),
                Some("moon"),
            ],
        ),
    ];
    let mut refusals = 0;
    for phase in phases() {
        for (command, stage) in asks
            .iter()
            .flat_map(|(command, of)| of.iter().map(move |stage| (command, stage)))
        {
            let (executor, store) = executor();
            store.create(&in_phase("r", phase.clone())).await.unwrap();
            let mut body = json!({"command": command, "rollout": "r", "reason": "smoke"});
            if let Some(stage) = stage {
                body["stage"] = json!(stage);
            }
            let Err(CommandError::Refused(refusal)) =
                executor.handle(body.to_string().as_bytes(), None).await
            else {
                continue;
            };
            refusals += 1;
            let error = refusal.error;
            let of = stage.map_or_else(String::new, |stage| format!(" stage {stage} of"));
            let head = format!("cannot {command}{of}");
            assert!(
                error.starts_with(&head) && error.contains(" rollout r: "),
                "{error}"
            );
            let plain = |sign: char| !"_{}\"'".contains(sign);
            assert!(
                error.chars().all(plain) && !error.contains("event"),
                "{error}"
            );
        }
    }
    assert!(refusals > 100, "{refusals}");
}

#[tokio::test]
async fn a_refusal_states_the_phase_and_the_next_step() {
    let cases = [
        (
            Phase::Aborting {
                reason: "bad".to_owned(),
            },
            json!({"command": "pause"}),
            "cannot pause rollout r: it is being aborted (bad); a rollout can be paused until it \
             ends or is aborted; to send again, start a rollout with another name",
        ),
        (
            Phase::Running,
            json!({"command": "reject", "stage": "canary"}),
            "cannot reject stage canary of rollout r: the rollout is at stage tenth, and only this \
             stage can be judged; canary passed at 1970-01-01T00:00:00.002Z, and stays passed",
        ),
        (
            Phase::Running,
            json!({"command": "approve"}),
            "cannot approve stage tenth of rollout r: its gate requires no approval; to override \
             the gate, promote the stage",
        ),
        (
            Phase::Running,
            json!({"command": "promote", "stage": "rest", "reason": "known"}),
            "cannot promote stage rest of rollout r: stage rest has no gate; stages with gates: \
             canary, tenth",
        ),
        (
            Phase::Running,
            json!({"command": "retry", "stage": "rest"}),
            "cannot retry stage rest of rollout r: stage rest has not started yet; wait for its \
             start",
        ),
        (
            Phase::Paused {
                reason: "lunch".to_owned(),
            },
            json!({"command": "reject"}),
            "cannot reject stage tenth of rollout r: it is paused (lunch); a stage can be rejected while its rollout is \
             running; resume it first, or abort it",
        ),
        (
            Phase::FinishedWithFailures,
            json!({"command": "resume"}),
            "cannot resume rollout r: it has finished, with failures; a rollout can be resumed \
             while it is paused; to send to failed devices again, retry it",
        ),
        (
            Phase::Failed {
                reason: "no device".to_owned(),
            },
            json!({"command": "retry"}),
            "cannot retry rollout r: it could not be planned (no device); a rollout can be retried once it is planned, \
             unless it is aborted; start it again: nothing was sent",
        ),
    ];
    for (phase, mut command, expected) in cases {
        let (executor, store) = executor();
        store.create(&in_phase("r", phase)).await.unwrap();
        command["rollout"] = json!("r");
        assert_eq!(refused(&executor, command).await.error, expected);
    }
}

#[tokio::test]
async fn a_pause_before_planning_is_recorded_and_revocable() {
    let (executor, store) = executor();
    done(&executor, json!({"command": "start", "spec": spec("r")})).await;
    let pause = json!({"command": "pause", "rollout": "r", "reason": "not yet", "by": "ann"});
    for changed in [true, false] {
        let answer = done(&executor, pause.clone()).await;
        let state = &answer.rollouts[0];
        assert_eq!((answer.changed, state.to_be_paused), (changed, true));
        let reason = "is paused once it is planned: not yet (pause by ann)";
        assert_eq!(
            (&*state.phase, state.reason.as_deref()),
            ("accepted", Some(reason))
        );
    }
    let answer = done(&executor, json!({"command": "resume", "rollout": "r"})).await;
    let state = &answer.rollouts[0];
    assert_eq!((state.to_be_paused, &state.reason), (false, &None));
    assert_eq!(phase(&store, "r").await.as_str(), "accepted");
}

#[tokio::test]
async fn a_resume_during_stop_all_is_refused_with_the_reason() {
    let (executor, store) = executor();
    run(&executor, &store, "r").await;
    done(&executor, json!({"command": "pause", "rollout": "r"})).await;
    done(&executor, json!({"command": "stop-all", "reason": "fire"})).await;
    let refusal = refused(&executor, json!({"command": "resume", "rollout": "r"})).await;
    assert_eq!(
        refusal.error,
        "cannot resume rollout r: all rollouts are stopped (fire); run resume-all first"
    );
}

/// An ended rollout is removed, and the name is free for another rollout. A repeated deletion does
/// nothing.
#[tokio::test]
async fn only_ended_rollouts_are_deleted() {
    let (executor, store) = executor();
    let delete =
        json!({"command": "delete", "rollout": "r", "reason": "audit is over", "by": "ann"});
    run(&executor, &store, "r").await;
    let refusal = refused(&executor, delete.clone()).await;
    assert_eq!(refusal.cause, Cause::NotPossible);
    assert_eq!(
        refusal.error,
        "rollout r is running; only ended rollouts can be deleted: abort the rollout, or wait for \
         its end"
    );

    done(&executor, json!({"command": "abort", "rollout": "r"})).await;
    let aborting = store.rollout(&build::name("r")).await.unwrap().unwrap();
    let counts = Default::default();
    let ended = build::apply(&store, &aborting, Event::AllSettled { counts }).await;
    let refusal = refused(&executor, delete.clone()).await;
    assert!(refusal.error.contains("its end is still being published"));

    store
        .deactivate(&ended.spec.name, ended.version)
        .await
        .unwrap();
    let answer = done(&executor, delete.clone()).await;
    assert!(answer.changed);
    assert_eq!(answer.rollouts[0].phase, "aborted");
    assert!(store.rollouts().await.unwrap().is_empty());
    let again = done(&executor, delete).await;
    assert_eq!(
        (again.changed, again.note.as_deref()),
        (false, Some("there is no rollout r"))
    );

    let mut other = spec("r");
    other["message"]["body"]["text"] = "ho".into();
    let answer = done(&executor, json!({"command": "start", "spec": other})).await;
    assert!(answer.changed);
}

/// Running rollouts, recently ended rollouts, and rollouts with unpublished events are kept.
#[tokio::test]
async fn retention_deletes_only_old_ended_rollouts() {
    let (executor, store) = executor();
    let now = executor.clock.now();
    let hours_ago = |hours: u64| now.minus(Duration::from_secs(hours * 3_600));
    for (name, phase, hours, is_published) in [
        ("older", Phase::Succeeded, 60, true),
        ("old", Phase::FinishedWithFailures, 49, true),
        ("recent", Phase::Succeeded, 47, true),
        ("runs", Phase::Running, 90, false),
        ("unpublished", Phase::Succeeded, 90, false),
    ] {
        let mut rollout = in_phase(name, phase);
        rollout.changed_at = hours_ago(hours);
        store.create(&rollout).await.unwrap();
        if is_published {
            let name = &rollout.spec.name;
            store.deactivate(name, rollout.version).await.unwrap();
        }
    }
    let rule = |keep_at_least| Retention {
        keep: Duration::from_secs(48 * 3_600),
        keep_at_least,
    };
    let left = async || -> Vec<String> {
        let names = store.rollouts().await.unwrap();
        names.iter().map(ToString::to_string).collect()
    };
    let pass = async |keep_at_least| {
        rule(keep_at_least)
            .apply_once(&executor, Duration::ZERO)
            .await
            .unwrap()
    };
    assert_eq!(pass(2).await, 1);
    assert_eq!(left().await, ["old", "recent", "runs", "unpublished"]);
    assert_eq!(pass(0).await, 1);
    assert_eq!(left().await, ["recent", "runs", "unpublished"]);
    assert_eq!(pass(0).await, 0);
}
