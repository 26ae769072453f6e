//! What the program prints, word for word.

use crate::harness::{Fleet, Hub, Room};

const HELP: &str = "\
Rolls a cloud-to-device message out to a fleet of devices behind Azure IoT Hub

Usage: twincast [OPTIONS] [COMMAND]

Commands:
  check         Try everything that is configured: hubs, RabbitMQ, Redis, Prometheus
  run           Roll a message out from this machine; run it again to go on after an interruption
  plan          Show what a rollout would do, without sending anything
  validate      Check a rollout's spec and its files
  report        Show what became of each device
  explain       Show where a device is in a rollout, why, and what it waits for
  hubs          Show the hubs: their quotas, what may be sent now, and what waits for it
  hub           Run an IoT Hub emulator that the official SDKs accept
  demo          See it all at work: canaries stop a bad build, and its fix reaches an emulated fleet
  schema        Print the JSON Schema of a rollout's spec
  token         Make a token for the HTTP API
  agent         Run the device agent: take signed updates, install them, say what became of them
  sign          Sign updates for device agents
  completions   Print what makes a shell complete this command line
  man           Write man pages into a folder
  orchestrator  Plan and drive rollouts that arrive on the command queue (RabbitMQ and Redis)
  worker        Send to the devices of batches that orchestrators release (RabbitMQ and Redis)
  submit        Put a rollout on the command queue; the same one again changes nothing
  status        Show all rollouts, or one
  watch         Watch a rollout until it ends; the exit code says how
  pause         Send nothing more of a rollout for now
  resume        Let a paused rollout go on
  abort         End a rollout; what was not sent is skipped
  delete        Remove a rollout that has ended; its name is free then
  approve       Say yes to a stage's gate
  reject        Say no to a stage's gate: the rollout is paused or aborted, as the gate says
  promote       Take a stage's gate for passed, whatever it says, and go on
  retry         Send to devices again that failed; a rollout that had ended goes on
  stop-all      Send nothing of any rollout, and start none, until resume-all
  resume-all    Let all rollouts go on that stop-all has stopped
  dead-letters  List, show, replay or discard messages that could not be used
  help          Print this message or the help of the given subcommand(s)

Options:
      --config <FILE>  A configuration file (TOML or YAML) [env: TWINCAST_CONFIG=]
      --state <DIR>    The folder where rollouts are kept. Default: twincast-state
      --server <URL>   The server whose HTTP API is asked, with the token that TWINCAST_TOKEN has
                       [env: TWINCAST_SERVER=]
      --json           Results as one JSON object on standard output
      --log <FILTER>   What to log to standard error: warn, info, debug, or a filter like
                       twincast=debug
      --print-config   Shows the configuration that is in force, without secrets, and ends
  -h, --help           Print help
  -V, --version        Print version

Exit codes:
  0    done; of a rollout: all sent, and none known to have failed
  1    something unexpected
  2    wrong command line
  3    refused input: spec, configuration, device list, key, token, role, name taken, empty target
  4    finished, but some devices were not sent the message, did not take it, or failed
  5    hub cannot be reached, or its certificate is not trusted
  6    hub refuses the key, or takes nothing
  7    state folder in use, damaged, full or not writable
  8    the rollout was aborted, is paused or halted, or nobody works on it
  9    RabbitMQ, Redis or the server cannot be used, or no orchestrator answers
  130  interrupted; the same command goes on from there
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
  Begun now, it is over at TIME
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
         29  the hub does not know the device, or has it disabled  (d-000102, d-000124, d-000164, ...)
";

const FAILED: &str = "\
device                           hub          outcome        class      group                        reason
d-000102                         emulator     not_found      not_sent   region=eu-north              the hub does not know the device, or has it disabled
d-000124                         emulator     not_found      not_sent   region=eu-north              the hub does not know the device, or has it disabled
";

/// Puts `word` in the place of what follows `marker`, to the end of its line.
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
    assert_eq!(hide(&plan, "it is over at ", "TIME"), PLAN);
    let run = room.run(&["run", "golden.yaml"]).expect(4);
    let (summary, times) = run.stdout.split_once("\n  time ").expect("a time account");
    assert_eq!(hide(summary, "; took ", "TIME"), SUMMARY);
    assert!(times.contains("\n  sending "), "{times}");
    assert_eq!(run.stderr, "", "a short run has nothing to add");
    let failed = room.run(&["report", "golden", "--failed"]).expect(0).stdout;
    assert!(failed.starts_with(FAILED), "{failed}");
    assert_eq!(failed.lines().count(), 1 + 29);
    let not_sent = ["report", "golden", "--class", "not_sent,silent"];
    assert_eq!(room.run(&not_sent).expect(0).stdout, failed);
}

#[test]
fn help_tells_commands_and_exit_codes() {
    let room = Room::bare();
    let help = room.run(&["--help"]).expect(0);
    assert_eq!(help.stdout, HELP);
}

#[test]
fn the_readme_has_the_same_exit_codes_and_commands() {
    let readme = include_str!("../../README.md");
    let cells = |line: &str| -> Option<(String, String)> {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        Some((cells.next()?.to_owned(), cells.next()?.to_owned()))
    };
    let rows: Vec<_> = readme.lines().filter_map(cells).collect();
    let codes: Vec<_> = rows
        .iter()
        .filter(|(code, _)| code.parse::<u8>().is_ok())
        .map(|(code, meaning)| format!("  {code:<3}  {meaning}"))
        .collect();
    let (_, table) = HELP.split_once("Exit codes:\n").expect("a table");
    assert_eq!(codes, table.lines().collect::<Vec<_>>());

    // A row may have several, the first of them in full: `twincast pause NAME`, `resume`.
    let mut told: Vec<_> = rows
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
    told.sort_unstable();
    commands.sort_unstable();
    assert_eq!(told, commands);
}
