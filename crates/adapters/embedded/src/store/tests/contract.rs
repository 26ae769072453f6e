//! The store's contract, in a file and in memory.

use std::sync::Arc;

use twincast_testkit::ManualClock;
use twincast_testkit::conformance::Subject;

use crate::EmbeddedStore;

mod in_a_file {
    use super::*;

    async fn make() -> Subject {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        let store = EmbeddedStore::open(dir.path(), Arc::new(clock.clone())).unwrap();
        Subject::new(Arc::new(store), clock).keeping(dir)
    }

    twincast_testkit::store_conformance!(make);
}

mod in_memory {
    use super::*;

    async fn make() -> Subject {
        let clock = ManualClock::default();
        let store = EmbeddedStore::open_in_memory(Arc::new(clock.clone())).unwrap();
        Subject::new(Arc::new(store), clock)
    }

    twincast_testkit::store_conformance!(make);
}
