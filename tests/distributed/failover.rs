//! A replica of Redis is promoted, or a password of Redis changes, in the middle of a rollout: no
//! process ends, no device is lost, and repeats stay within the bound.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use twincast_testkit::services::{Certificate, Redis, SentinelRedis};

use crate::engine::{Engine, SLOTS, WINDOW, scattered};
use crate::harness::{Hub, assert_same_ids};
use crate::pipeline::start_scattered;
use crate::repeats::{BatchLog, RepeatBudget};
use crate::services::{Access, wait};
use crate::waiting::{long_or, poll_for, poll_until};

const TIME_LIMIT: Duration = Duration::from_secs(300);
/// The lag of the replica at the death of the master: shorter than the time after which a write
/// counts as durable.
const LAG: Duration = Duration::from_secs(1);

/// The new master lacks a second of acknowledged writes. Sentinels and servers use TLS and
/// passwords.
#[test]
fn the_replica_takes_over_without_the_last_second() {
    let devices = long_or(30_000, 4_000);
    let redis = wait(SentinelRedis::start(&[]));
    wait(redis.set_down_after(Duration::from_secs(60)));
    let access = Access {
        redis_url: redis.url(),
        ..Access::shared()
    };
    let hub = Hub::start(&scattered(devices), &["--tier", "S3", "--units", "2"]);
    let mut engine = Engine::new(&access, vec![("north", hub)]);
    engine.set("TWINCAST__REDIS__SENTINEL_URL", &redis.sentinel_url());
    engine.set("TWINCAST__REDIS__TLS_NAME", Certificate::NAME);
    let ca = redis.ca().display().to_string();
    engine.set("TWINCAST__REDIS__CA_FILE", &ca);
    engine.grow(2, 2);
    engine.pipeline().command_ok(&start_scattered("watched"));
    engine.until_accepted(devices / 4, TIME_LIMIT);

    let [master, replica] = redis.servers();
    let before = engine.accepted();
    wait(replica.command("CONFIG SET masterauth wrong"));
    wait(replica.command("CLIENT KILL TYPE master"));
    wait(redis.set_down_after(SentinelRedis::DOWN_AFTER));
    poll_for(LAG, || {});
    wait(master.kill());
    let forgotten = engine.accepted() - before + in_flight(&engine);
    let mut budget = RepeatBudget::default();
    budget.permit_lost_records(touched(&engine, "watched"), forgotten);
    println!("the replica lacks {forgotten} sends at the most");
    poll_until(TIME_LIMIT, "the replica to take over", || {
        wait(replica.is_master()).then_some(())
    });
    engine.until_ready();
    ends_well(&mut engine, "watched", devices, budget);
}

/// The server has the new password first, and ends all connections; the file follows later.
#[test]
fn a_changed_redis_password_is_read_from_the_file() {
    let devices = long_or(10_000, 3_000);
    let redis = wait(Redis::start(&[]));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("url");
    rotate(&redis, "first", &file);
    let access = Access {
        redis_url: file.display().to_string(),
        ..Access::shared()
    };
    let hub = Hub::start(&scattered(devices), &["--tier", "S3", "--units", "2"]);
    let mut engine = Engine::new(&access, vec![("north", hub)]);
    engine.grow(2, 2);
    engine.pipeline().command_ok(&start_scattered("rotated"));
    engine.until_accepted(devices / 4, TIME_LIMIT);

    let nowhere = folder.path().join("not yet");
    rotate(&redis, "second", &nowhere);
    for member in engine.members() {
        member.until_waiting_for("redis");
    }
    std::fs::rename(&nowhere, &file).expect("the folder is writable");
    engine.until_ready();
    ends_well(&mut engine, "rotated", devices, RepeatBudget::default());
    for member in engine.members() {
        let log = member.log();
        assert!(!log.contains("first@") && !log.contains("second@"), "{log}");
    }
}

/// Gives the user another password, ends the user's connections, and writes the URL into a file.
fn rotate(redis: &Redis, password: &str, file: &Path) {
    let set = format!("ACL SETUSER engine on resetpass >{password} ~* &* +@all");
    assert_eq!(wait(redis.command(&set)), "+OK\r\n");
    wait(redis.command("CLIENT KILL USER engine"));
    let url = format!("redis://engine:{password}@{}\n", redis.address());
    std::fs::write(file, url).expect("the folder is writable");
}

/// Asserts that every device gets the message, and that repeats carry the same id and stay within
/// the budget.
#[track_caller]
fn ends_well(engine: &mut Engine, rollout: &str, devices: u64, mut budget: RepeatBudget) {
    engine.until_phase(rollout, "succeeded", 2 * TIME_LIMIT);
    let rows = engine.assert_reports_match_hubs(rollout);
    assert_eq!(rows.len() as u64, devices);
    for (_, hub) in &engine.hubs {
        assert_same_ids(&hub.message_log());
    }
    budget.assert_covers(engine, rollout);
    for member in engine.members() {
        assert!(!member.is_over(), "{} ended: {}", member.name, member.log());
    }
}

/// The largest number of sends without a record, by all workers together.
fn in_flight(engine: &Engine) -> u64 {
    engine.workers.len() as u64 * SLOTS * WINDOW
}

/// Returns the batches ever leased by a running worker.
fn touched(engine: &Engine, rollout: &str) -> BTreeSet<u32> {
    let batches = engine.workers.iter();
    let batches = batches.map(|worker| BatchLog::of(&worker.log(), rollout).touched);
    batches.flatten().collect()
}
