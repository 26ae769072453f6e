//! A RabbitMQ of three nodes, tolerating the loss of any node: clients continue over another node,
//! and every queue has members on all nodes.

use std::time::Duration;

use twincast_amqp::Amqp;
use twincast_secret::SecretSource;
use twincast_testkit::services::{RabbitMq, RabbitMqCluster, Redis};

use crate::engine::{Engine, Member, scattered};
use crate::harness::{Hub, assert_same_ids};
use crate::pipeline::start_scattered;
use crate::repeats::RepeatBudget;
use crate::services::{Access, wait};
use crate::waiting::{long_or, poll_until};

const ROLLOUT: &str = "clustered";
const TIME_LIMIT: Duration = Duration::from_secs(300);

#[test]
fn a_node_of_the_cluster_may_die_in_the_middle_of_a_rollout() {
    let devices = long_or(20_000, 3_000);
    let (cluster, redis) =
        wait(async { tokio::join!(RabbitMqCluster::start(), Redis::start(&[])) });
    let access = Access {
        amqp_url: cluster.urls(),
        redis_url: redis.url(),
        prefix: "twincast".to_owned(),
    };
    let hub = || Hub::start(&scattered(devices), &["--tier", "S3", "--units", "1"]);
    let mut engine = Engine::new(&access, vec![("north", hub()), ("south", hub())]);
    engine.grow(2, 3);
    // A client of the first node; the node is needed until the command is done.
    let first = Access {
        amqp_url: cluster.nodes()[0].url(),
        ..access.clone()
    };
    crate::pipeline::Pipeline::connect(&first).command_ok(&start_scattered(ROLLOUT));

    for part in [1, 3] {
        engine.until_accepted(2 * devices * part / 6, TIME_LIMIT);
        let dying = node_of(&cluster, &engine.workers[0]);
        println!("{} dies", dying.address());
        wait(dying.kill());
        poll_until(
            TIME_LIMIT,
            "the worker to be connected to another node",
            || {
                let node = node_of(&cluster, &engine.workers[0]);
                (node.address() != dying.address()).then_some(())
            },
        );
        engine.until_ready();
        // Queues are declared and used while the node is down.
        let prefix = format!("late{part}");
        poll_until(TIME_LIMIT, "a command on a new queue", || {
            let late = wait(Amqp::connect(twincast_amqp::Settings {
                prefix: prefix.clone(),
                ..twincast_amqp::Settings::new(SecretSource::Fixed(access.amqp_url.as_str().into()))
            }));
            let late = late.ok()?;
            let sent = late.send_command(b"{}".to_vec(), twincast_amqp::COMMAND_TYPE, None);
            let sent = wait(sent);
            wait(late.close());
            sent.ok()
        });
        wait(dying.start_stopped());
        assert_on_all_nodes(&cluster, &["twincast", &prefix]);
    }

    engine.until_phase(ROLLOUT, "succeeded", 3 * TIME_LIMIT);
    let rows = engine.assert_reports_match_hubs(ROLLOUT);
    assert_eq!(rows.len() as u64, 2 * devices);
    for (_, hub) in &engine.hubs {
        assert_same_ids(&hub.message_log());
    }
    let mut budget = RepeatBudget::default();
    budget.assert_covers(&engine, ROLLOUT);
}

/// Returns the node of a process's latest connection.
fn node_of<'a>(cluster: &'a RabbitMqCluster, member: &Member) -> &'a RabbitMq {
    let log = member.log();
    let connected = log
        .lines()
        .rfind(|line| line.contains("connected to the broker"));
    let connected = connected.expect("the log names a connection");
    let at = |node: &&RabbitMq| connected.contains(&format!("@{} ", node.address()));
    let node = cluster.nodes().iter().find(at);
    node.unwrap_or_else(|| panic!("{connected:?} names no node"))
}

/// Asserts that all queues with these prefixes have a member on each running node.
fn assert_on_all_nodes(cluster: &RabbitMqCluster, prefixes: &[&str]) {
    let mut last = String::new();
    poll_until(TIME_LIMIT, "all members of all queues", || {
        last = wait(cluster.nodes()[0].ctl(&["list_queues", "name", "online"]));
        let ours = last.lines().filter(|line| {
            let is_of = |prefix: &&str| line.starts_with(&format!("{prefix}."));
            prefixes.iter().any(is_of)
        });
        let nodes: Vec<_> = ours.map(|line| line.matches("twincast-").count()).collect();
        let all = nodes.len() >= 2 * prefixes.len() && nodes.iter().all(|nodes| *nodes == 3);
        all.then_some(())
    });
}
