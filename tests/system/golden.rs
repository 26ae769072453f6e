//! The exact output of the program.

use crate::harness::{Fleet, Hub, Room};

const HELP: &str = "\
Rolls a cloud-to-device message out to a fleet of devices behind Azure IoT Hub

Usage: twincast [OPTIONS] [COMMAND]

Commands:
  check         Test all configured services: hubs, RabbitMQ, Redis, Prometheus
  run           Run a rollout from this machine; the same command continues after an interruption
  plan          Preview a rollout; send nothing
  validate      Check a rollout's spec and its files
  report        Show the outcome of each device
  explain       Show the state of one device in a rollout, with reasons and the current wait
  hubs          Show the hubs: quotas, current rate, and waiting batches
  hub           Run an IoT Hub emulator that works with the official SDKs
  demo          Run a demo: canaries stop a faulty build, and the fix reaches an emulated fleet
  schema        Print the JSON Schema of a rollout's spec
  token         Create a token for the HTTP API
  agent         Run the device agent: receive signed updates, install updates, report the results
  sign          Sign updates for device agents
  completions   Print a completion script for a shell
  man           Write man pages into a folder
  orchestrator  Plan and drive rollouts that arrive on the command queue (RabbitMQ and Redis)
  worker        Send to the devices of batches that orchestrators release (RabbitMQ and Redis)
  submit        Submit a rollout to the command queue; repeating the command changes nothing
  status        Show all rollouts, or one rollout in full
  watch         Watch a rollout until its end; the exit code shows the result
  pause         Pause a rollout: send nothing more until it is resumed
  resume        Resume a paused rollout
  abort         End a rollout; devices not sent to are skipped
  delete        Delete an ended rollout; the name becomes free
  approve       Approve a stage's gate
  reject        Reject a stage's gate: the rollout is paused or aborted, as set by the gate
  promote       Pass a stage's gate regardless of its verdict, and continue
  retry         Send to failed devices again; an ended rollout runs again
  stop-all      Stop all rollouts, present and future, until resume-all
  resume-all    Resume all rollouts stopped by stop-all
  dead-letters  List, show, replay or discard unusable messages
  help          Print this message or the help of the given subcommand(s)

Options:
      --config <FILE>  Configuration file (TOML or YAML) [env: TWINCAST_CONFIG=]
      --state <DIR>    State folder for rollouts. Default: twincast-state
      --server <URL>   Server with the HTTP API; token from TWINCAST_TOKEN [env: TWINCAST_SERVER=]
      --json           Write the result as one JSON object to standard output
      --log <FILTER>   Log level for standard error: warn, info, debug, or a filter like
                       twincast=debug
      --print-config   Print the effective configuration without secrets, and exit
  -h, --help           Print help
  -V, --version        Print version

Exit codes:
  0    success; for a rollout: every device was sent the message, and none is known to have failed
  1    unexpected error
  2    wrong command line
  3    refused input: spec, configuration, device list, key, token, role, used name, empty target
  4    rollout finished, but some devices were not sent the message, did not accept it, or failed
  5    the hub cannot be reached, or the certificate of the hub is not trusted
  6    the hub refuses the key or accepts no messages
  7    the state folder is in use, damaged, full or not writable
  8    the rollout was aborted, is paused or halted, or no process works on the rollout
  9    RabbitMQ, Redis or the server is unavailable, or no orchestrator answers
  130  interrupted; the same command continues
";

const FLEET: &str = "\
seed: 5
groups:
  - name: fridges
    count: 1000
    id: \"d-{index:06}\"
    tags:
      type: fridge
      region: { $weighted: { eu-north: 40, eu-south: 25, us-east: 20, us-west: 15 } }
      ring: { $weighted: { canary: 2, main: 98 } }
    behaviour: { disabled: 3% }
";

const SPEC: &str = "\
name: golden
target:
  tags: { type: fridge }
  exclude: [{ tags: { ring: canary }, reason: have it already }]
batch_by: [region]
message: { body: { text: hello } }
";

const PLAN: &str = "\
golden: 980 devices in 4 batches
  message: 5 bytes: hello

  hub       devices  batches        pace  takes  of a day's quota
  emulator      980        4  49,500/min   1.2s              0.0%

  hub       group            devices  batches
  emulator  region=eu-north      393        1
  emulator  region=eu-south      243        1
  emulator  region=us-east       194        1
  emulator  region=us-west       150        1

  Left out:
         20  tags.ring = 'canary': have it already

  Sending takes 1.2s at this pace. Nothing was sent.
  Started now, the rollout ends at TIME
  plan digest DIGEST
";

const SUMMARY: &str = "\
golden finished with failures: 980 devices: 951 sent, 29 not sent; took TIME

  group            devices  sent  not sent
  region=eu-north      393   386         7
  region=eu-south      243   232        11
  region=us-east       194   190         4
  region=us-west       150   143         7

  Not sent:
         29  the device is unknown to the hub, or disabled  (d-000102, d-000124, d-000164, ...)
";

const FAILED: &str = "\
device                           hub          outcome        class      group                        reason
d-000102                         emulator     not_found      not_sent   region=eu-north              the device is unknown to the hub, or disabled
d-000124                         emulator     not_found      not_sent   region=eu-north              the device is unknown to the hub, or disabled
";

/// Replaces the text between `marker` and the end of the line with `word`.
fn hide(text: &str, marker: &str, word: &str) -> String {
    let (before, after) = text
        .split_once(marker)
        .unwrap_or_else(|| panic!("{marker:?} is not in {text}"));
    let rest = after.find('\n').map_or("", |end| &after[end..]);
    format!("{before}{marker}{word}{rest}")
}

#[test]
fn plan_run_and_report_for_people() {
    let hub = Hub::start(&Fleet::written(FLEET), &["--tier", "S3", "--units", "10"]);
    let room = Room::with(&hub);
    room.write("golden.yaml", SPEC);
    let plan = room.run(&["plan", "golden.yaml"]).expect(0);
    let plan = hide(&plan.stdout, "plan digest ", "DIGEST");
    assert_eq!(hide(&plan, "the rollout ends at ", "TIME"), PLAN);
    let run = room.run(&["run", "golden.yaml"]).expect(4);
    let (summary, times) = run.stdout.split_once("\n  time ").expect("a time account");
    assert_eq!(hide(summary, "; took ", "TIME"), SUMMARY);
    assert!(times.contains("\n  sending "), "{times}");
    // On a busy machine, connecting may take long enough for a note.
    let mut notes = run.stderr.lines();
    assert!(
        notes.all(|line| line.starts_with("waiting: hub emulator")),
        "a short run prints no notes: {run}"
    );
    let failed = room.run(&["report", "golden", "--failed"]).expect(0).stdout;
    assert!(failed.starts_with(FAILED), "{failed}");
    assert_eq!(failed.lines().count(), 1 + 29);
    let not_sent = ["report", "golden", "--class", "not_sent,silent"];
    assert_eq!(room.run(&not_sent).expect(0).stdout, failed);
}

#[test]
fn help_lists_commands_and_exit_codes() {
    let room = Room::bare();
    let help = room.run(&["--help"]).expect(0);
    assert_eq!(help.stdout, HELP);
}

#[test]
fn the_reference_has_the_same_exit_codes_and_commands() {
    let reference = include_str!("../../docs/reference/cli.md");
    let cells = |line: &str| -> Option<(String, String)> {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        Some((cells.next()?.to_owned(), cells.next()?.to_owned()))
    };
    let rows: Vec<_> = reference.lines().filter_map(cells).collect();
    let codes: Vec<_> = rows
        .iter()
        .filter(|(code, _)| code.parse::<u8>().is_ok())
        .map(|(code, meaning)| format!("  {code:<3}  {meaning}"))
        .collect();
    let (_, table) = HELP.split_once("Exit codes:\n").expect("a table");
    assert_eq!(codes, table.lines().collect::<Vec<_>>());

    // A row may have several commands, the first in full: `twincast pause NAME`, `resume`.
    let mut reported: Vec<_> = rows
        .iter()
        .filter(|(commands, _)| commands.starts_with("`twincast "))
        .flat_map(|(commands, _)| commands.split('`').skip(1).step_by(2))
        .filter_map(|command| command.trim_start_matches("twincast ").split(' ').next())
        .collect();
    let (_, list) = HELP.split_once("Commands:\n").expect("a list");
    let mut commands: Vec<_> = list
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    reported.sort_unstable();
    commands.sort_unstable();
    assert_eq!(reported, commands);
}
