//! The cost of a device: memory and commands.

use twincast_core::outcome::Outcome;
use twincast_core::permits::PermitRequest;
use twincast_core::ports::{Part, Store};
use twincast_core::time::Timestamp;
use twincast_testkit::build::{TTL, batch, hub, lease_request, name, report, running};
use twincast_testkit::services::Redis;

use crate::common::{connect, random_batch, settings, verify};

const DEVICES: u32 = 50_000;

/// The whole life of 50,000 devices, on a Redis without other users. The smallest batches belong to
/// hubs too slow for the number of commands to matter.
#[tokio::test]
async fn a_device_costs_little_memory_and_few_commands() {
    for (devices, window, most) in [(100, 100, 0.3), (2_475, 128, 0.1), (10_000, 256, 0.1)] {
        let redis = Redis::start(&[]).await;
        let store = connect(&settings(&redis)).await;
        // The scripts belong to the memory in use before.
        running(&store, "first", vec![batch(0, 1)]).await;
        work(&store, "first", 0, 1).await;
        verify(&store, &name("first")).await;
        let empty = used_memory(&redis).await;

        let batches = DEVICES.div_ceil(devices);
        let plan = (0..batches).map(|id| random_batch(id, devices.min(DEVICES - id * devices)));
        running(&store, "r", plan.collect()).await;
        assert_eq!(redis.command("CONFIG RESETSTAT").await, "+OK\r\n");
        for id in 0..batches {
            work(&store, "r", id, window).await;
        }
        let commands_each = commands(&redis).await / f64::from(DEVICES);
        verify(&store, &name("r")).await;

        let bytes_each = (used_memory(&redis).await - empty) / f64::from(DEVICES);
        say(&format!(
            "batches of {devices}, windows of {window}: {bytes_each:.1} bytes and \
             {commands_each:.3} commands a device"
        ));
        assert!(bytes_each < 24.0, "{bytes_each} bytes a device");
        assert!(commands_each < most, "{commands_each} commands a device");
    }
}

/// Works on a batch as a worker does.
async fn work(store: &dyn Store, rollout: &str, id: u32, window: u32) {
    let permits = PermitRequest {
        hub: hub("a"),
        max_permits: window,
        per_minute: 60e6,
        rollout: name(rollout),
        weight: 1,
        limit: None,
    };
    let request = lease_request(&name(rollout), id, "w");
    let mut leased = store
        .lease_for_work(&request, Part::WithDevices)
        .await
        .unwrap()
        .unwrap();
    let devices = leased.header().devices;
    for first in (0..devices).step_by(window as usize) {
        store.take_permits(&permits).await.unwrap();
        let window = first..devices.min(first + window);
        let reports: Vec<_> = window.map(|i| report(i, Outcome::Enqueued)).collect();
        let recorded = store
            .record_leased(&mut leased, &reports, TTL, Timestamp(0))
            .await;
        recorded.unwrap();
    }
    store
        .release_leased(&mut leased, Timestamp(0))
        .await
        .unwrap();
}

/// Returns the number of all commands carried out by the server, including commands in scripts.
async fn commands(redis: &Redis) -> f64 {
    let info = redis.command("INFO commandstats").await;
    let lines = info.lines().filter(|line| !line.contains("cmdstat_config"));
    let calls = lines.filter_map(|line| line.split_once("calls=")?.1.split(',').next());
    calls.filter_map(|calls| calls.parse::<f64>().ok()).sum()
}

/// Returns the used memory without the buffers of connections and of the file, and without the
/// statistics of each command used since the last reset.
async fn used_memory(redis: &Redis) -> f64 {
    redis.command("CONFIG RESETSTAT").await;
    redis.command("CLIENT KILL TYPE normal").await;
    let info = redis.command("INFO memory").await;
    let bytes = |name| {
        let value = info.lines().find_map(|line| line.strip_prefix(name));
        let bytes = value.and_then(|value| value.trim().parse::<f64>().ok());
        bytes.expect("a number")
    };
    bytes("used_memory:") - bytes("mem_aof_buffer:")
}

#[expect(clippy::print_stdout, reason = "shown when it is asked for")]
fn say(line: &str) {
    println!("{line}");
}
