//! The contracts of the ports: on one Redis, on a cluster of three, and on servers that refuse what managed services
//! refuse.

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

/// Servers without the commands that managed services refuse.
mod managed {
    use twincast_redis::Settings;
    use twincast_testkit::conformance::{RosterSubject, Subject};

    use crate::common::{self, MANAGED};
    use crate::interposer::{self, Refusals};

    /// The words of a server that does not know a command.
    const UNKNOWN: Refusals = Refusals {
        commands: MANAGED,
        answer: |name| format!("-ERR unknown command '{name}', with args beginning with: \r\n"),
    };

    async fn settings() -> Settings {
        let address = interposer::start(common::as_documented().await, UNKNOWN).await;
        Settings::new(format!("redis://engine:secret@{address}"))
    }

    async fn make() -> Subject {
        let (store, clock) = common::on(settings().await).await;
        Subject::new(store, clock)
    }

    async fn make_roster() -> RosterSubject {
        let (store, clock) = common::on(settings().await).await;
        RosterSubject::new(store.clone(), store, clock)
    }

    twincast_testkit::store_conformance!(make);
    twincast_testkit::roster_conformance!(make_roster);
}
