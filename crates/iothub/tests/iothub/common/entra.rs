//! A hub with a directory of Microsoft Entra ID identities, and a client with such an identity.

use twincast_emulator::{Directory, Faults, HubConfig, RunningHub};
use twincast_entra::{HUB_SCOPE, Identity, Proof, Tokens};
use twincast_iothub::{Client, Credentials, HubAddress};
use twincast_secret::{Secret, SecretSource};

use super::{config, options};

/// A hub without shared access keys, and with one client secret.
pub(crate) async fn entra_hub(token_lifetime_s: u64, roles: &str) -> RunningHub {
    let directory = format!(
        "tenantId: t\ntokenLifetimeSeconds: {token_lifetime_s}\nprincipals:\n  - clientId: c\n    clientSecrets: [s3cr3t]\n    roles: [{roles}]"
    );
    let config = HubConfig {
        directory: Some(Directory::read(&directory, 1).unwrap()),
        local_auth: false,
        ..config(10, Faults::default())
    };
    twincast_emulator::start(config).await.unwrap()
}

pub(crate) fn entra_client(hub: &RunningHub) -> Client {
    let tls = twincast_tls::client_config(&options(hub).roots).unwrap();
    let web = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(rustls::ClientConfig::clone(&tls));
    let identity = Identity::Application {
        tenant_id: Some("t".to_owned()),
        client_id: Some("c".to_owned()),
        proof: Proof::Secret(Some(SecretSource::Fixed(Secret::new("s3cr3t")))),
    };
    let authority = format!("https://localhost:{}", hub.https_addr().port());
    let env = |name: &str| (name == "AZURE_AUTHORITY_HOST").then(|| authority.clone());
    let tokens = Tokens::new(&identity, HUB_SCOPE, web.build().unwrap(), &env).unwrap();
    let address: HubAddress = format!("localhost:{}", hub.amqp_addr().port())
        .parse()
        .unwrap();
    Client::with_credentials(&address, Credentials::Entra(tokens), options(hub)).unwrap()
}
