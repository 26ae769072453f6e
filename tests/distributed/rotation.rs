//! A password changes in the middle of a rollout: no process ends, and all processes use the new
//! password, from a file or from Microsoft Entra ID.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::engine::{Engine, scattered};
use crate::harness::{Hub, assert_same_ids};
use crate::pipeline::{Pipeline, start_scattered};
use crate::services::{Access, OwnServices, wait};
use crate::waiting::{long_or, poll_until};

const ROLLOUT: &str = "rotated";
const TIME_LIMIT: Duration = Duration::from_secs(300);

#[test]
fn a_changed_rabbitmq_password_is_read_from_the_file() {
    let devices = long_or(10_000, 3_000);
    let services = OwnServices::start(&[]);
    let rabbitmq = &services.rabbitmq;
    wait(rabbitmq.ctl(&["add_user", "engine", "first"]));
    wait(rabbitmq.ctl(&["set_permissions", "engine", ".*", ".*", ".*"]));
    let url = |password: &str| format!("amqp://engine:{password}@{}", rabbitmq.address());
    let mounted = tempfile::tempdir().expect("a folder");
    symlink("..data/url", mounted.path().join("url")).expect("a link");
    mount(mounted.path(), "..1", &url("first"));

    let as_operator = services.access();
    let access = Access {
        amqp_url: mounted.path().join("url").display().to_string(),
        ..as_operator.clone()
    };
    let hub = Hub::start(&scattered(devices), &["--tier", "S3", "--units", "1"]);
    let mut engine = Engine::new(&access, vec![("north", hub)]);
    engine.grow(2, 2);
    Pipeline::connect(&as_operator).command_ok(&start_scattered(ROLLOUT));
    engine.until_accepted(devices / 4, TIME_LIMIT);

    wait(rabbitmq.ctl(&["change_password", "engine", "second"]));
    wait(rabbitmq.close_connections("rotated"));
    for member in engine.members() {
        let what = format!("{} to be refused", member.name);
        poll_until(TIME_LIMIT, &what, || {
            let (_, answer) = member.readiness();
            let why = answer["waiting_for"]["rabbitmq"].as_str()?;
            why.contains("refuses user \"engine\"").then_some(())
        });
    }
    mount(mounted.path(), "..2", &url("second"));
    engine.until_ready();

    engine.until_phase(ROLLOUT, "succeeded", TIME_LIMIT);
    let rows = engine.assert_reports_match_hubs(ROLLOUT);
    assert_eq!(rows.len() as u64, devices);
    assert_same_ids(&engine.hubs[0].1.message_log());
    assert_eq!(
        engine.repeats(),
        0,
        "an unavailable broker causes no repeats"
    );
    for member in engine.members() {
        assert!(!member.is_over(), "{} ended", member.name);
        let log = member.log();
        for secret in ["first@", "second@", ":first", ":second"] {
            assert!(!log.contains(secret), "{log}");
        }
    }
}

/// With `redis.auth`, access tokens of Microsoft Entra ID are the passwords of Redis, and the user is
/// the object id of the identity. The tokens expire many times during the rollout, and every
/// connection is cut once.
#[test]
fn access_tokens_open_redis() {
    const USER: &str = "engine-object";
    let devices = long_or(10_000, 3_000);
    let services = OwnServices::start(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    let principals = json!({
        "tenantId": "tenant",
        "tokenLifetimeSeconds": 4,
        "principals": [{ "clientId": "engine", "objectId": USER, "clientSecrets": ["s3cr3t"] }],
    });
    let file = folder.path().join("principals.json");
    std::fs::write(&file, principals.to_string()).expect("the folder is writable");
    let file = file.display().to_string();
    let flags = ["--tier", "S3", "--units", "1", "--entra-file", &file];
    let hub = Hub::start(&scattered(devices), &flags);
    let authority = format!("https://localhost:{}", hub.https_port());
    let authorities = hub.ca().display().to_string();
    let mut engine = Engine::new(&services.access(), vec![("north", hub)]);
    for (variable, value) in [
        ("TWINCAST__REDIS__AUTH__METHOD", "client_secret"),
        ("TWINCAST__REDIS__AUTH__AUTHORITY_HOST", &authority),
        ("TWINCAST__REDIS__AUTH__TENANT_ID", "tenant"),
        ("TWINCAST__REDIS__AUTH__CLIENT_ID", "engine"),
        ("TWINCAST__REDIS__AUTH__CLIENT_SECRET", "s3cr3t"),
        ("NO_PROXY", "localhost,127.0.0.1"),
        ("SSL_CERT_FILE", &authorities),
    ] {
        engine.set(variable, value);
    }

    // The user is unknown at first. A managed Redis checks the token; this Redis takes any password.
    let refused = engine.room.run(&["check"]).expect(9).stdout;
    assert!(refused.contains("refuses user or password"), "{refused}");
    let user = ["SETUSER", USER, "on", "nopass", "~*", "&*", "+@all"];
    wait(services.redis.command(&format!("ACL {}", user.join(" "))));
    wait(services.redis.command("ACL SETUSER default off"));
    engine.room.run(&["check"]).expect(0);

    engine.grow(2, 2);
    engine.pipeline().command_ok(&start_scattered(ROLLOUT));
    engine.until_accepted(devices / 4, TIME_LIMIT);
    services.to_redis.cut();
    engine.until_phase(ROLLOUT, "succeeded", TIME_LIMIT);
    let rows = engine.assert_reports_match_hubs(ROLLOUT);
    assert_eq!(rows.len() as u64, devices);
    assert_same_ids(&engine.hubs[0].1.message_log());
}

/// Replaces a mounted secret as the kubelet does: `..data` becomes a link to the new version in a
/// single step.
fn mount(folder: &Path, version: &str, secret: &str) {
    let put = || {
        let (version_at, link) = (folder.join(version), folder.join("..new"));
        std::fs::create_dir(&version_at)?;
        std::fs::write(version_at.join("url"), secret)?;
        symlink(version, &link)?;
        std::fs::rename(link, folder.join("..data"))
    };
    put().expect("the folder is writable");
}
