//! The conformance suites of the ports: on a single Redis, on a cluster of three, and on servers
//! that refuse the commands refused by managed services.

mod plain {
    use twincast_testkit::conformance::{RegistrySubject, Subject};

    use crate::common;

    async fn make() -> Subject {
        let (store, clock) = common::on_one().await;
        Subject::new(store, clock)
    }

    async fn make_registry() -> RegistrySubject {
        let (store, clock) = common::on_one().await;
        RegistrySubject::new(store.clone(), store, clock)
    }

    twincast_testkit::store_conformance!(make);
    twincast_testkit::registry_conformance!(make_registry);
}

mod cluster {
    use twincast_testkit::conformance::{RegistrySubject, Subject};

    use crate::common;

    async fn make() -> Subject {
        let (store, clock) = common::on_three().await;
        Subject::new(store, clock)
    }

    async fn make_registry() -> RegistrySubject {
        let (store, clock) = common::on_three().await;
        RegistrySubject::new(store.clone(), store, clock)
    }

    twincast_testkit::store_conformance!(make);
    twincast_testkit::registry_conformance!(make_registry);
}

/// Servers without the commands that managed services refuse.
mod managed {
    use twincast_redis::Settings;
    use twincast_testkit::conformance::{RegistrySubject, Subject};

    use crate::common::{self, MANAGED};
    use crate::interposer::{self, Refusals};

    /// The answer of a server to an unknown command.
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

    async fn make_registry() -> RegistrySubject {
        let (store, clock) = common::on(settings().await).await;
        RegistrySubject::new(store.clone(), store, clock)
    }

    twincast_testkit::store_conformance!(make);
    twincast_testkit::registry_conformance!(make_registry);
}
