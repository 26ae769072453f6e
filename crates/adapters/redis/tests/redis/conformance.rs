//! The contracts of the ports, on one Redis and on a cluster of three.

mod plain {
    use twincast_testkit::conformance::{RosterSubject, Subject};

    use crate::common;

    async fn make() -> Subject {
        let (store, clock) = common::on_one().await;
        Subject::new(store, clock)
    }

    async fn make_roster() -> RosterSubject {
        let (store, clock) = common::on_one().await;
        RosterSubject::new(store.clone(), store, clock)
    }

    twincast_testkit::store_conformance!(make);
    twincast_testkit::roster_conformance!(make_roster);
}

mod cluster {
    use twincast_testkit::conformance::{RosterSubject, Subject};

    use crate::common;

    async fn make() -> Subject {
        let (store, clock) = common::on_three().await;
        Subject::new(store, clock)
    }

    async fn make_roster() -> RosterSubject {
        let (store, clock) = common::on_three().await;
        RosterSubject::new(store.clone(), store, clock)
    }

    twincast_testkit::store_conformance!(make);
    twincast_testkit::roster_conformance!(make_roster);
}
