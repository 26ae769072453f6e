//! The directory: principals, the credentials of principals, and their roles at the hub.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use twincast_oidc::Keys;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::access::{Action, Role};
use crate::policy::seeded_key;

/// The audience of federated tokens, as required by Azure.
const FEDERATED_AUDIENCE: &str = "api://AzureADTokenExchange";
/// The default lifetime of a token. Entra draws 60 to 90 minutes.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// The reason for refusing a file of principals.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The text is not a file of principals.
    #[error("cannot parse the principals: {0}")]
    Syntax(String),
    /// A principal cannot be used.
    #[error("principal '{client_id}': {problem}")]
    Principal {
        /// The client id.
        client_id: String,
        /// The problem, and the allowed values.
        problem: String,
    },
}

/// The principals of one tenant, and their roles at the hub.
///
/// ```yaml
/// tenantId: 5b1f4f3a-…
/// tokenLifetimeSeconds: 3600
/// principals:
///   - clientId: 0d8a…
///     clientSecrets: [s3cr3t]
///     roles: [IoT Hub Data Contributor]
///   - clientId: 1e9b…
///     certificates: ["-----BEGIN CERTIFICATE-----…"]
///     roles: [Microsoft.Devices/IotHubs/twins/read]
///   - clientId: 2fac…
///     managedIdentity: true
///     federatedCredentials:
///       - { issuer: "https://oidc.example", subject: "system:serviceaccount:twincast:worker", keys: { keys: […] } }
///     roles: [IoT Hub Data Contributor]
/// ```
///
/// Missing ids follow from the hub's seed.
#[derive(Debug, Clone)]
pub struct Directory {
    pub(crate) tenant_id: String,
    pub(crate) token_lifetime: Duration,
    pub(crate) principals: Vec<Arc<Principal>>,
}

/// An application or a managed identity.
#[derive(Debug)]
pub(crate) struct Principal {
    pub(crate) client_id: String,
    pub(crate) object_id: String,
    pub(super) client_secrets: Vec<String>,
    pub(super) certificates: Vec<Certificate>,
    pub(super) federated: Vec<Federated>,
    /// Whether the metadata endpoint issues tokens for the principal.
    pub(super) is_managed: bool,
    roles: RwLock<Vec<Role>>,
}

/// A certificate with a key that signs assertions.
#[derive(Debug)]
pub(super) struct Certificate {
    /// The SHA-256 of the certificate in base64url, as in `x5t#S256`.
    pub(super) thumbprint: String,
    pub(super) key: Keys,
}

/// A federated credential: tokens of another issuer, accepted as proof of the principal.
#[derive(Debug)]
pub(super) struct Federated {
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) audience: String,
    pub(super) keys: Keys,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    tenant_id: Option<String>,
    token_lifetime_seconds: Option<u64>,
    principals: Vec<PrincipalSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PrincipalSpec {
    client_id: String,
    object_id: Option<String>,
    #[serde(default)]
    client_secrets: Vec<String>,
    #[serde(default)]
    certificates: Vec<String>,
    #[serde(default)]
    federated_credentials: Vec<FederatedSpec>,
    #[serde(default)]
    managed_identity: bool,
    #[serde(default)]
    roles: Vec<Role>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FederatedSpec {
    issuer: String,
    subject: String,
    audience: Option<String>,
    /// The issuer's JWK set.
    keys: Value,
}

impl Directory {
    /// Creates a directory with one principal: with the role IoT Hub Data Contributor, a client
    /// secret, and managed by this machine. Ids and secret follow from the seed.
    #[must_use]
    pub fn of_one(seed: u64) -> Self {
        let principal = Principal {
            client_id: seeded_id(seed, "client"),
            object_id: seeded_id(seed, "object"),
            client_secrets: vec![URL_SAFE_NO_PAD.encode(seeded_key(seed, &["client secret"]))],
            certificates: Vec::new(),
            federated: Vec::new(),
            is_managed: true,
            roles: RwLock::new(vec![
                Role::try_from("IoT Hub Data Contributor".to_owned()).expect("a built-in role"),
            ]),
        };
        Self {
            tenant_id: seeded_id(seed, "tenant"),
            token_lifetime: TOKEN_LIFETIME,
            principals: vec![Arc::new(principal)],
        }
    }

    /// Reads a file, YAML or JSON. Missing ids follow from `seed`.
    ///
    /// # Errors
    ///
    /// An error names the invalid principal and the problem.
    pub fn read(text: &str, seed: u64) -> Result<Self, DirectoryError> {
        let file: File = serde_saphyr::from_str(text)
            .map_err(|error| DirectoryError::Syntax(error.to_string()))?;
        let mut principals: Vec<Arc<Principal>> = Vec::new();
        for spec in file.principals {
            let client_id = spec.client_id.clone();
            let refused = |problem: String| DirectoryError::Principal {
                client_id: client_id.clone(),
                problem,
            };
            if principals
                .iter()
                .any(|known| known.client_id.eq_ignore_ascii_case(&spec.client_id))
            {
                let problem = "another principal has the same client id (case is ignored)";
                return Err(refused(problem.to_owned()));
            }
            principals.push(Arc::new(Principal::of(spec, seed).map_err(refused)?));
        }
        Ok(Self {
            tenant_id: file.tenant_id.unwrap_or_else(|| seeded_id(seed, "tenant")),
            token_lifetime: file
                .token_lifetime_seconds
                .map_or(TOKEN_LIFETIME, Duration::from_secs),
            principals,
        })
    }

    /// Returns the id of the tenant.
    #[must_use]
    pub fn tenant_id(&self) -> &str {
        &self.tenant_id
    }

    /// Returns the client ids, each with the first client secret.
    pub fn clients(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.principals.iter().map(|principal| {
            let secret = principal.client_secrets.first().map(String::as_str);
            (principal.client_id.as_str(), secret)
        })
    }

    pub(crate) fn principal(&self, client_id: &str) -> Option<&Arc<Principal>> {
        self.principals
            .iter()
            .find(|principal| principal.client_id.eq_ignore_ascii_case(client_id))
    }

    pub(super) fn by_object(&self, object_id: &str) -> Option<&Arc<Principal>> {
        self.principals
            .iter()
            .find(|principal| principal.object_id == object_id)
    }
}

impl Principal {
    fn of(spec: PrincipalSpec, seed: u64) -> Result<Self, String> {
        let certificates = spec.certificates.iter().map(|pem| Certificate::of(pem));
        let federated = spec.federated_credentials.into_iter().map(|spec| {
            let keys = Keys::read(spec.keys.to_string().as_bytes());
            Ok(Federated {
                issuer: spec.issuer,
                subject: spec.subject,
                audience: spec
                    .audience
                    .unwrap_or_else(|| FEDERATED_AUDIENCE.to_owned()),
                keys: keys.map_err(|error| format!("keys of a federated credential: {error}"))?,
            })
        });
        Ok(Self {
            object_id: spec
                .object_id
                .unwrap_or_else(|| seeded_id(seed, &spec.client_id)),
            client_secrets: spec.client_secrets,
            certificates: certificates.collect::<Result<_, String>>()?,
            federated: federated.collect::<Result<_, String>>()?,
            is_managed: spec.managed_identity,
            roles: RwLock::new(spec.roles),
            client_id: spec.client_id,
        })
    }

    pub(crate) fn may(&self, action: Action) -> bool {
        let roles = self.roles.read().unwrap_or_else(PoisonError::into_inner);
        roles.iter().any(|role| role.allows(action))
    }

    pub(crate) fn roles(&self) -> Vec<String> {
        let roles = self.roles.read().unwrap_or_else(PoisonError::into_inner);
        roles.iter().map(|role| role.name().to_owned()).collect()
    }

    /// Replaces the roles. The change takes effect at once, also for already issued tokens.
    pub(crate) fn set_roles(&self, roles: Vec<Role>) {
        *self.roles.write().unwrap_or_else(PoisonError::into_inner) = roles;
    }
}

impl Certificate {
    /// Reads a certificate in PEM. Entra accepts RSA keys only.
    fn of(pem: &str) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("a certificate is not PEM: {error}"))?;
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|error| format!("a certificate cannot be read: {error}"))?;
        let Ok(PublicKey::RSA(key)) = certificate.public_key().parsed() else {
            return Err("a certificate's key is not an RSA key".to_owned());
        };
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({ "kty": "RSA", "n": number(key.modulus), "e": number(key.exponent) });
        let keys = Keys::read(json!({ "keys": [jwk] }).to_string().as_bytes());
        Ok(Self {
            thumbprint: URL_SAFE_NO_PAD.encode(Sha256::digest(&der)),
            key: keys.map_err(|error| format!("key of a certificate: {error}"))?,
        })
    }
}

/// Derives an id from the seed.
fn seeded_id(seed: u64, name: &str) -> String {
    let key = seeded_key(seed, &["entra", name]);
    let bytes: [u8; 16] = std::array::from_fn(|at| key[at]);
    uuid::Builder::from_random_bytes(bytes)
        .into_uuid()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_file_is_read_and_errors_are_named() {
        let directory = Directory::read(
            "tokenLifetimeSeconds: 5\nprincipals: [{ clientId: a, clientSecrets: [s], roles: [IoT Hub Twin Contributor] }]",
            1,
        )
        .unwrap();
        assert!(uuid::Uuid::parse_str(directory.tenant_id()).is_ok());
        assert_eq!(directory.clients().collect::<Vec<_>>(), [("a", Some("s"))]);
        let principal = directory.principal("A").unwrap();
        assert!(principal.may(Action::WriteTwins) && !principal.may(Action::SendToDevices));
        principal.set_roles(Vec::new());
        assert!(!principal.may(Action::WriteTwins));
        for (text, named) in [
            ("principals: 7", "cannot parse"),
            (
                "principals: [{ clientId: a, roles: [Owner] }]",
                "built-in role",
            ),
            (
                "principals: [{ clientId: a }, { clientId: a }]",
                "same client id",
            ),
            (
                "principals: [{ clientId: a }, { clientId: A }]",
                "principal 'A': another principal has the same client id",
            ),
            (
                "principals: [{ clientId: a, certificates: [x] }]",
                "not PEM",
            ),
            (
                "principals: [{ clientId: a, federatedCredentials: [{ issuer: i, subject: s, keys: {} }] }]",
                "federated credential",
            ),
        ] {
            let error = Directory::read(text, 1).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
