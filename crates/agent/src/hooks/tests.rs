use jiff::SignedDuration;

use super::*;

fn runner(folder: &Path, install: &str) -> Runner {
    let folder = folder.join("hooks");
    fs::create_dir_all(&folder).unwrap();
    let command = vec!["/bin/sh".to_owned(), "-c".to_owned(), install.to_owned()];
    let hooks = config::Hooks {
        install: Some(command.clone()),
        activate: Some(command),
        timeout: SignedDuration::from_secs(30),
        ..config::Hooks::default()
    };
    Runner {
        hooks,
        slots: None,
        health: None,
        folder,
    }
}

fn context() -> Context {
    Context {
        id: "fw.1/../x".to_owned(),
        name: "fridge".to_owned(),
        version: "1.4.2".to_owned(),
        previous: Some("1.4.1".to_owned()),
        artifact: PathBuf::from("/artifact"),
        reason: None,
    }
}

#[tokio::test]
async fn exit_codes_and_output() {
    let failed = |output: &str| HookResult::Failed(output.to_owned());
    for (script, hook, ends) in [
        ("exit 0", Hook::Install, HookResult::Done),
        (
            "echo no; echo space >&2; exit 1",
            Hook::Install,
            failed("no\nspace"),
        ),
        ("exit 9", Hook::Install, failed("exit code 9")),
        ("exit 3", Hook::Activate, HookResult::Restart),
        ("exit 3", Hook::Install, failed("exit code 3")),
        (
            "echo busy; exit 75",
            Hook::Install,
            HookResult::Retry("busy".to_owned()),
        ),
        ("exit 75", Hook::Activate, failed("exit code 75")),
        ("kill -9 $$", Hook::Install, failed("Killed")),
        (
            "echo $TWINCAST_HOOK $TWINCAST_VERSION $TWINCAST_PREVIOUS $TWINCAST_AGAIN $TWINCAST_ID; exit 1",
            Hook::Install,
            failed("install 1.4.2 1.4.1 0 fw.1/../x"),
        ),
        ("cat; exit 0", Hook::Install, HookResult::Done),
    ] {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            runner(folder.path(), script).run(hook, 1, &context()).await,
            ends,
            "{script}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let mut missing = runner(folder.path(), "");
    missing.hooks.install = Some(vec!["/no/such/program".to_owned()]);
    let HookResult::Failed(output) = missing.run(Hook::Install, 1, &context()).await else {
        panic!()
    };
    assert!(output.contains("/no/such/program"), "{output}");
}

#[tokio::test]
async fn timed_out_hook_is_killed_with_all_children() {
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child");
    let script = format!(
        "echo waiting; sleep 600 & echo $! >{}; sleep 600",
        child.display()
    );
    let mut runner = runner(folder.path(), &script);
    runner.hooks.timeout = SignedDuration::from_secs(5);
    let ended = runner.run(Hook::Install, 1, &context()).await;
    assert_eq!(
        ended,
        HookResult::Failed("timed out after 5s waiting".to_owned())
    );
    let pid = fs::read_to_string(child).unwrap();
    let is_gone = || {
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        state.is_err() || state.is_ok_and(|state| state.contains(" Z "))
    };
    let started_at = Instant::now();
    while !is_gone() {
        assert!(
            started_at.elapsed() < Duration::from_secs(30),
            "the child process is still running"
        );
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[tokio::test]
async fn hook_running_after_runner_exit_is_awaited_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let (log, hold) = (folder.path().join("log"), folder.path().join("hold"));
    fs::write(&hold, "").unwrap();
    let script = format!(
        "while test -e {}; do sleep 0.02; done; echo ran >>{}; exit 0",
        hold.display(),
        log.display()
    );
    let first = runner(folder.path(), &script);
    let cut = tokio::time::timeout(
        Duration::from_millis(150),
        first.run(Hook::Install, 1, &context()),
    )
    .await;
    assert!(cut.is_err(), "the hook is still running");
    // The first call waits for the running command; the second call finds the result.
    let again = async || {
        let next = runner(folder.path(), &script);
        next.run(Hook::Install, 1, &context()).await
    };
    let release = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        fs::remove_file(&hold).unwrap();
    };
    let (waited, ()) = tokio::join!(again(), release);
    assert_eq!(waited, HookResult::Done);
    assert_eq!(again().await, HookResult::Done);
    assert_eq!(fs::read_to_string(&log).unwrap(), "ran\n");
    // Another attempt is another run.
    assert_eq!(
        first.run(Hook::Install, 2, &context()).await,
        HookResult::Done
    );
    assert_eq!(fs::read_to_string(&log).unwrap(), "ran\nran\n");
}

#[tokio::test]
async fn hook_interrupted_by_a_power_cut_is_rerun_with_a_flag() {
    let folder = tempfile::tempdir().unwrap();
    let runner = runner(folder.path(), "exit $TWINCAST_AGAIN");
    let results = runner.folder.join(key(Hook::Install, 1, &context().id));
    fs::write(result_file(&results, "pid"), "1").unwrap();
    let ended = runner.run(Hook::Install, 1, &context()).await;
    assert_eq!(ended, HookResult::Failed("exit code 1".to_owned()));
    runner.clear();
    assert_eq!(
        runner.run(Hook::Install, 1, &context()).await,
        HookResult::Done
    );
}

#[tokio::test]
async fn output_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let runner = runner(
        folder.path(),
        "yes | head -c 3000000; sleep 0.3; echo the end; exit 1",
    );
    let HookResult::Failed(output) = runner.run(Hook::Install, 1, &context()).await else {
        panic!()
    };
    assert!(
        output.ends_with("the end") && output.len() <= 2_048,
        "{output}"
    );
    let kept = fs::metadata(result_file(
        &runner.folder.join(key(Hook::Install, 1, &context().id)),
        "out",
    ))
    .unwrap();
    assert!(kept.len() <= OUTPUT_MAX, "{}", kept.len());
}

#[tokio::test]
async fn health_check_is_repeated_until_success_or_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let mut runner = runner(folder.path(), "");
    let flag = folder.path().join("flag");
    for (script, within_s, ends) in [
        (
            format!("test -e {0} || {{ touch {0}; exit 1; }}", flag.display()),
            30,
            Ok(()),
        ),
        (
            "echo the compressor does not answer; exit 1".to_owned(),
            3,
            Err("the compressor does not answer".to_owned()),
        ),
        ("exit 7".to_owned(), 3, Err("exit code 7".to_owned())),
    ] {
        runner.health = Some(config::Health {
            command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
            within: SignedDuration::from_secs(within_s),
            every: SignedDuration::from_millis(20),
        });
        assert_eq!(runner.wait_until_healthy(&context()).await, ends);
    }
}
