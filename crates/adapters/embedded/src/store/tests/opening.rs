//! Opening valid states, and files that are not valid states.

use std::io;
use std::path::Path;
use std::sync::Arc;

use redb::{Database, TableDefinition};
use twincast_core::outcome::Outcome;
use twincast_core::ports::{Batches as _, Rollouts as _, StoreError};
use twincast_testkit::ManualClock;
use twincast_testkit::build::{TTL, batch, hub, leased, name, report, running};
use twincast_testkit::conformance::run;

use super::sim::Dice;
use crate::{EmbeddedStore, OpenError};

fn open_store(dir: &Path) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(dir, Arc::new(ManualClock::default()))
}

/// Creates a folder with a state.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = open_store(dir.path()).unwrap();
        running(&store, "r", vec![batch(0, 4_000), batch(1, 3)]).await;
        let lease = leased(&store, &name("r"), 0, "w").await;
        let reports = [report(7, Outcome::Enqueued)];
        store.record(&lease, &reports, TTL).await.unwrap();
    });
    dir
}

#[test]
fn answered_writes_survive_reopening() {
    let dir = folder();
    run(async {
        let store = open_store(dir.path()).unwrap();
        store.verify(&name("r")).await.unwrap();
        let statuses = store
            .open_batches(
                &name("r"),
                &hub("a"),
                twincast_testkit::build::ALL_STAGES,
                9,
            )
            .await
            .unwrap();
        assert_eq!(statuses.len(), 2);
        assert!(statuses.iter().all(|status| status.held.is_none()));
        assert_eq!(statuses[0].counts.get(Outcome::Enqueued), 1);
    });
}

#[test]
fn a_lease_of_an_earlier_opening_is_fenced() {
    let dir = folder();
    run(async {
        let store = open_store(dir.path()).unwrap();
        let old = leased(&store, &name("r"), 0, "w").await;
        drop(store);
        let store = open_store(dir.path()).unwrap();
        let refused = store.record(&old, &[], TTL).await;
        assert!(matches!(refused, Err(StoreError::Superseded { .. })));
    });
}

#[test]
fn closed_store_releases_folder_and_refuses_calls() {
    let dir = folder();
    run(async {
        let store = open_store(dir.path()).unwrap();
        store.close().await;
        store.close().await;
        let refused = store.rollouts().await;
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })));
        open_store(dir.path()).unwrap();
    });
}

#[test]
fn second_open_is_refused_as_in_use() {
    let dir = folder();
    let _first = open_store(dir.path()).unwrap();
    let error = open_store(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    assert!(error.to_string().ends_with("is in use by another process"));
}

#[test]
fn concurrent_readers_leave_the_file_unchanged() {
    let dir = folder();
    let file = dir.path().join("state.redb");
    let before = std::fs::read(&file).unwrap();
    let open = || EmbeddedStore::open_read_only(dir.path(), Arc::new(ManualClock::default()));
    run(async {
        let (first, second) = (open().unwrap(), open().unwrap());
        for store in [&first, &second] {
            store.verify(&name("r")).await.unwrap();
            let rollout = store.rollout(&name("r")).await.unwrap().unwrap();
            let refused = store.save(&rollout, rollout.revision()).await;
            assert!(
                matches!(refused, Err(StoreError::NotWritable { .. })),
                "{refused:?}"
            );
        }
        let error = open_store(dir.path()).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    });
    assert_eq!(std::fs::read(&file).unwrap(), before);
    let worker = open_store(dir.path()).unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    drop(worker);
}

#[test]
fn unclosed_state_is_readable_and_left_unchanged() {
    let dir = folder();
    let copy = tempfile::tempdir().unwrap();
    run(async {
        let store = open_store(dir.path()).unwrap();
        let lease = leased(&store, &name("r"), 1, "w").await;
        let reports = [report(1, Outcome::Enqueued)];
        store.record(&lease, &reports, TTL).await.unwrap();
        // As after a kill: the file is open, and not marked as closed.
        std::fs::copy(
            dir.path().join("state.redb"),
            copy.path().join("state.redb"),
        )
        .unwrap();
        let before = std::fs::read(copy.path().join("state.redb")).unwrap();
        let clock = Arc::new(ManualClock::default());
        let seen = EmbeddedStore::open_read_only(copy.path(), clock).unwrap();
        seen.verify(&name("r")).await.unwrap();
        assert_eq!(
            seen.tallies(&name("r")).await.unwrap(),
            store.tallies(&name("r")).await.unwrap()
        );
        drop(seen);
        let after = std::fs::read(copy.path().join("state.redb")).unwrap();
        assert_eq!(after, before);
    });
}

#[test]
fn non_folder_path_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = open_store(&path).unwrap_err();
        assert!(matches!(error, OpenError::NotAFolder { .. }), "{error:?}");
    }
}

#[test]
fn foreign_file_is_refused_and_left_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    for content in ["hello".to_owned(), "hello\n".repeat(10_000)] {
        std::fs::write(&path, &content).unwrap();
        let error = open_store(dir.path()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
}

#[test]
fn a_database_of_another_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::create(dir.path().join("state.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let foreign_table: TableDefinition<'_, u64, u64> = TableDefinition::new("meta");
    transaction
        .open_table(foreign_table)
        .unwrap()
        .insert(1, 1)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = open_store(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
}

#[test]
fn a_newer_format_is_refused() {
    let dir = folder();
    let database = Database::create(dir.path().join("state.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut table = transaction.open_table(super::super::tables::META).unwrap();
    table.insert(super::super::tables::meta::FORMAT, 9).unwrap();
    drop(table);
    transaction.commit().unwrap();
    drop(database);
    let error = open_store(dir.path()).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::TooNew {
                found: 9,
                known: 8,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn damage_is_detected_on_open() {
    let dir = folder();
    let path = dir.path().join("state.redb");
    let good = std::fs::read(&path).unwrap();
    let (mut found, mut dice) = (0, Dice(1));
    for _ in 0..40 {
        let mut bad = good.clone();
        let start = dice.below(good.len() as u64 - 64) as usize;
        bad[start..start + 64].fill(0xA5);
        std::fs::write(&path, &bad).unwrap();
        match open_store(dir.path()) {
            Err(OpenError::Damaged { .. }) => found += 1,
            Err(error) => panic!("damage at {start} is {error:?}"),
            // The damage was in an unused page, or in the header of the older commit.
            Ok(store) => run(async { store.verify(&name("r")).await.unwrap() }),
        }
    }
    assert!(found > 0, "no damage was found");
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    let error = open_store(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
}

#[test]
fn io_errors_are_classified() {
    let open_error = |kind: io::ErrorKind| OpenError::from_io("x".into(), kind.into());
    for kind in [
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::ReadOnlyFilesystem,
    ] {
        let error = open_error(kind);
        assert!(matches!(error, OpenError::NotWritable { .. }), "{error:?}");
    }
    let full = open_error(io::ErrorKind::StorageFull);
    assert_eq!(full.to_string(), "no room on the disk for the state in x");
    let other = open_error(io::ErrorKind::TimedOut);
    assert!(matches!(other, OpenError::System { .. }), "{other:?}");
}

#[test]
fn leftover_of_an_interrupted_creation_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.new"), [0; 5_000]).unwrap();
    drop(open_store(dir.path()).unwrap());
    assert!(!dir.path().join("state.new").exists());
}
