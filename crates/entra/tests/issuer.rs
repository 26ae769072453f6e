//! Each identity against an emulated Entra ID: granted and refused tokens, and renewals.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::Certificate;
use serde_json::{Value, json};
use tempfile::TempDir;
use twincast_emulator::{Directory, Faults, HubConfig, RunningHub};
use twincast_entra::{HUB_SCOPE, Identity, IdentityError, ManagedId, Proof, TokenError, Tokens};
use twincast_oidc::TokenSigner;
use twincast_secret::{Secret, SecretSource};

const TENANT: &str = "11111111-2222-3333-4444-555555555555";
const CLUSTER: &str = "https://oidc.cluster.example";
const SUBJECT: &str = "system:serviceaccount:twincast:worker";

struct Entra {
    hub: RunningHub,
    folder: TempDir,
    cluster: TokenSigner,
}

impl Entra {
    async fn start(token_lifetime_s: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificate = certificate(folder.path(), "app");
        let cluster = TokenSigner::new("cluster");
        let directory = json!({
            "tenantId": TENANT,
            "tokenLifetimeSeconds": token_lifetime_s,
            "principals": [
                { "clientId": "with-secret", "clientSecrets": ["s3cr3t"] },
                { "clientId": "with-certificate", "certificates": [certificate] },
                { "clientId": "pod", "federatedCredentials": [
                    { "issuer": CLUSTER, "subject": SUBJECT, "keys": TokenSigner::key_set(&[&cluster]) },
                ] },
                { "clientId": "machine", "objectId": "machine-object", "managedIdentity": true },
                { "clientId": "user-assigned", "managedIdentity": true },
            ],
        });
        let config = HubConfig {
            directory: Some(Directory::read(&directory.to_string(), 1).unwrap()),
            ..HubConfig::default()
        };
        Self {
            hub: twincast_emulator::start(config).await.unwrap(),
            folder,
            cluster,
        }
    }

    fn tokens(&self, identity: &Identity) -> Result<Tokens, IdentityError> {
        _ = rustls::crypto::ring::default_provider().install_default();
        let ca = Certificate::from_pem(self.hub.ca_pem().as_bytes()).unwrap();
        let web = reqwest::Client::builder().no_proxy().tls_certs_only([ca]);
        let authority = format!("https://localhost:{}/", self.hub.https_addr().port());
        let metadata = format!("http://{}", self.hub.control_addr().unwrap());
        Tokens::new(
            identity,
            HUB_SCOPE,
            web.build().unwrap(),
            &|name| match name {
                "AZURE_AUTHORITY_HOST" => Some(authority.clone()),
                "AZURE_POD_IDENTITY_AUTHORITY_HOST" => Some(metadata.clone()),
                _ => None,
            },
        )
    }

    fn file(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A service account's token, as written by the kubelet.
    fn service_account(&self, subject: &str, audience: &str, expires_in_s: i64) -> String {
        let now = UNIX_EPOCH.elapsed().unwrap().as_secs();
        self.cluster.sign(&json!({
            "iss": CLUSTER, "sub": subject, "aud": audience, "exp": now.saturating_add_signed(expires_in_s),
        }))
    }
}

/// Writes a certificate with an RSA key to `NAME.pem`; returns the certificate alone.
fn certificate(folder: &Path, name: &str) -> String {
    let (key, crt) = (folder.join("key"), folder.join("crt"));
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
        ])
        .args(["-subj", "/CN=app", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&crt)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let (key, crt) = (
        std::fs::read_to_string(key).unwrap(),
        std::fs::read_to_string(crt).unwrap(),
    );
    std::fs::write(folder.join(format!("{name}.pem")), format!("{crt}{key}")).unwrap();
    crt
}

fn application(id: &str, proof: Proof) -> Identity {
    Identity::Application {
        tenant_id: Some(TENANT.to_owned()),
        client_id: Some(id.to_owned()),
        proof,
    }
}

fn secret_of(id: &str, secret: SecretSource) -> Identity {
    application(id, Proof::Secret(Some(secret)))
}

fn fixed(secret: &str) -> SecretSource {
    SecretSource::Fixed(Secret::new(secret))
}

/// Returns a claim of the token, signed by the emulator.
fn claim(token: &Secret, name: &str) -> String {
    use base64::Engine as _;
    let part = token.expose().split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part);
    let claims: Value = serde_json::from_slice(&claims.unwrap()).unwrap();
    claims[name].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_identity_kind_obtains_a_token() {
    let entra = Entra::start(3600).await;
    let pod = entra.service_account(SUBJECT, "api://AzureADTokenExchange", 600);
    let identities = [
        (secret_of("with-secret", fixed("s3cr3t")), "with-secret"),
        (
            application(
                "with-certificate",
                Proof::Certificate(Some(entra.folder.path().join("app.pem"))),
            ),
            "with-certificate",
        ),
        (
            application(
                "pod",
                Proof::FederatedToken(Some(entra.file("token", &pod))),
            ),
            "pod",
        ),
        (Identity::Managed(None), "machine"),
        (
            Identity::Managed(Some(ManagedId::ClientId("user-assigned".into()))),
            "user-assigned",
        ),
        (
            Identity::Managed(Some(ManagedId::ObjectId("machine-object".into()))),
            "machine",
        ),
    ];
    for (identity, app) in identities {
        let tokens = entra.tokens(&identity).unwrap();
        let token = tokens.token().await.unwrap();
        assert_eq!(claim(&token.token, "appid"), app);
        assert_eq!(claim(&token.token, "aud"), "https://iothubs.azure.net");
        let life = token.expires_at.duration_since(SystemTime::now()).unwrap();
        assert!((3_000..=3_600).contains(&life.as_secs()), "{life:?}");
        assert_eq!(token.object_id().unwrap(), claim(&token.token, "oid"));
        let again = tokens.token().await.unwrap();
        assert_eq!(again.token.expose(), token.token.expose());
        assert!(!format!("{tokens:?} {token:?}").contains(token.token.expose()));
    }
    entra.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_quote_entra_and_file_errors_are_transient() {
    let entra = Entra::start(3600).await;
    let certificate_of = |id: &str, file: &str| {
        application(id, Proof::Certificate(Some(entra.folder.path().join(file))))
    };
    let pod = |token: String| {
        let file = entra.file(&format!("token-{}", token.len()), &token);
        application("pod", Proof::FederatedToken(Some(file)))
    };
    certificate(entra.folder.path(), "other");
    entra.file("no.pem", "hello");
    let audience = "api://AzureADTokenExchange";
    let refused = [
        (
            secret_of("with-secret", fixed("s3cr4t")),
            "AADSTS7000215: Invalid client secret",
        ),
        (secret_of("stranger", fixed("s3cr3t")), "AADSTS700016"),
        (
            certificate_of("with-certificate", "other.pem"),
            "AADSTS700027",
        ),
        (
            pod(entra.service_account("system:serviceaccount:x:y", audience, 600)),
            "AADSTS700213",
        ),
        (
            pod(entra.service_account(SUBJECT, "sts", 600)),
            "AADSTS700212",
        ),
        (
            pod(entra.service_account(SUBJECT, audience, -600)),
            "AADSTS700024",
        ),
        (
            Identity::Managed(Some(ManagedId::ClientId("with-secret".into()))),
            "Identity not found",
        ),
    ];
    for (identity, says) in refused {
        let tokens = entra.tokens(&identity).unwrap();
        let error = tokens.token().await.unwrap_err();
        assert!(!error.is_transient(), "{says}");
        let text = error.to_string();
        assert!(text.contains(says) && !text.contains("Trace ID"), "{text}");
        assert!(text.contains(tokens.identity()), "{text}");
        assert!(!format!("{error:?}").contains("s3cr"), "{error:?}");
    }
    // Failures curable by a change of a file.
    for (identity, says) in [
        (
            certificate_of("with-certificate", "no.pem"),
            "no certificate",
        ),
        (
            certificate_of("with-certificate", "missing.pem"),
            "cannot read",
        ),
    ] {
        let error = entra.tokens(&identity).unwrap().token().await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert!(
            format!("{error:?}").contains(says) || chain(&error).contains(says),
            "{}",
            chain(&error)
        );
    }
    entra.hub.shutdown().await;
}

fn chain(error: &TokenError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        text.push_str(&format!(": {error}"));
        next = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_renewal_keeps_the_last_token_until_expiry() {
    let entra = Entra::start(4).await;
    let path = entra.file("secret", "s3cr3t\n");
    let source = SecretSource::File {
        setting: "client_secret_file".to_owned(),
        path: path.clone(),
    };
    let (tokens, first) = loop {
        std::fs::write(&path, "s3cr3t\n").unwrap();
        let identity = secret_of("with-secret", source.clone());
        let tokens = entra.tokens(&identity).unwrap();
        let first = tokens.token().await.unwrap();
        assert!(first.renew_at < first.expires_at);
        // A failed renewal has no effect while the last token is valid.
        std::fs::write(&path, "wrong").unwrap();
        wait_until(first.renew_at).await;
        let second = tokens.token().await;
        // On a busy machine, the token may have expired meanwhile.
        if SystemTime::now() < first.expires_at {
            assert_eq!(second.unwrap().token.expose(), first.token.expose());
            break (tokens, first);
        }
    };
    wait_until(first.expires_at).await;
    assert!(tokens.token().await.is_err());
    std::fs::write(&path, "s3cr3t").unwrap();
    let third = tokens.token().await.unwrap();
    assert_ne!(third.token.expose(), first.token.expose());
    entra.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_a_busy_endpoint_is_retried() {
    let entra = Entra::start(3600).await;
    entra.hub.hub().set_faults(Faults {
        http_503: twincast_emulator::Chance::next(1),
        ..Faults::default()
    });
    let tokens = entra
        .tokens(&secret_of("with-secret", fixed("s3cr3t")))
        .unwrap();
    assert!(tokens.token().await.is_ok());
    entra.hub.shutdown().await;
}

/// A caller that stops polling, as an arm of `select!` may, holds up no other caller, and all callers
/// share a request. On a single thread, the request makes no progress before the first wait.
#[tokio::test]
async fn an_unpolled_call_does_not_delay_other_calls() {
    let entra = Entra::start(3600).await;
    let tokens = entra.tokens(&Identity::Managed(None)).unwrap();
    let mut idle = Box::pin(tokens.token());
    assert!(futures::poll!(&mut idle).is_pending());
    drop(tokens.token());
    let limit = Duration::from_secs(30);
    let token = tokio::time::timeout(limit, tokens.token()).await;
    let token = token.unwrap().unwrap();
    assert_eq!(idle.await.unwrap().token.expose(), token.token.expose());
    entra.hub.shutdown().await;
}

async fn wait_until(time: SystemTime) {
    let left = time.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left + Duration::from_millis(5)).await;
}
