//! The workload's identity.

use std::path::PathBuf;
use std::sync::Arc;

use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::TokenCredential;
use azure_core::http::{ClientOptions, ExponentialRetryOptions, RetryOptions, Transport};
use azure_core::time::Duration;
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertionCredential,
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
};
use twincast_secret::{Secret, SecretSource};
use url::Url;

use crate::assertion::{CertificateAssertion, FileAssertion};
use crate::error::IdentityError;
use crate::transport::Http;

/// Entra's authority in Azure's public cloud.
const PUBLIC_CLOUD: &str = "https://login.microsoftonline.com";

/// The workload's identity. Each `None` is filled from the environment variables common to Azure's
/// SDKs and set by workload identity in a pod: `AZURE_TENANT_ID`, `AZURE_CLIENT_ID`,
/// `AZURE_FEDERATED_TOKEN_FILE`, `AZURE_CLIENT_SECRET`, `AZURE_CLIENT_CERTIFICATE_PATH`,
/// `AZURE_AUTHORITY_HOST`.
#[derive(Debug, Clone)]
pub enum Identity {
    /// An application, or a user-assigned managed identity, with a proof of identity.
    Application {
        /// The tenant.
        tenant_id: Option<String>,
        /// The application's client id.
        client_id: Option<String>,
        /// The proof of identity.
        proof: Proof,
    },
    /// A managed identity of the machine or the App Service: system-assigned, unless an id is
    /// given.
    Managed(Option<ManagedId>),
    /// The account logged in with `az login`, on a developer's machine.
    AzureCli {
        /// The tenant, if other than the account's own.
        tenant_id: Option<String>,
    },
}

/// An application's proof of identity.
#[derive(Debug, Clone)]
pub enum Proof {
    /// The token of a Kubernetes service account, in this file (Microsoft Entra Workload ID).
    FederatedToken(Option<PathBuf>),
    /// A client secret.
    Secret(Option<SecretSource>),
    /// A PEM file with a certificate and its RSA key.
    Certificate(Option<PathBuf>),
}

/// A user-assigned managed identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagedId {
    /// By its client id.
    ClientId(String),
    /// By its object (principal) id.
    ObjectId(String),
    /// By its Azure resource id.
    ResourceId(String),
}

/// An identity with all values filled in.
pub(crate) struct Resolved {
    /// The identity's description: "workload identity (client …, tenant …)".
    pub(crate) name: String,
    kind: ResolvedKind,
    authority: String,
}

enum ResolvedKind {
    Application {
        tenant_id: String,
        client_id: String,
        proof: ResolvedProof,
    },
    Managed(Option<ManagedId>),
    Cli(Option<String>),
}

enum ResolvedProof {
    FederatedToken(PathBuf),
    Secret(SecretSource),
    Certificate(PathBuf),
}

/// Reads an environment variable; empty variables count as unset.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Identity {
    /// Completes the identity from the environment.
    pub(crate) fn resolve(&self, env: Env<'_>) -> Result<Resolved, IdentityError> {
        let authority = env("AZURE_AUTHORITY_HOST").unwrap_or_else(|| PUBLIC_CLOUD.to_owned());
        if !Url::parse(&authority).is_ok_and(|url| url.scheme() == "https") {
            return Err(IdentityError::Invalid {
                identity: self.kind(),
                setting: "AZURE_AUTHORITY_HOST",
                found: authority,
                allowed: "it must be an address such as https://login.microsoftonline.com",
            });
        }
        let (name, kind) = match self {
            Self::Application {
                tenant_id,
                client_id,
                proof,
            } => {
                let id = |given: &Option<String>, what, setting, variable| {
                    let id = self.value(given.clone(), env, what, setting, variable)?;
                    self.check_id(setting, &id)?;
                    Ok::<_, IdentityError>(id)
                };
                let tenant_id = id(tenant_id, "the tenant", "tenant_id", "AZURE_TENANT_ID")?;
                let client_id = id(client_id, "the client", "client_id", "AZURE_CLIENT_ID")?;
                let name = format!("{} (client {client_id}, tenant {tenant_id})", self.kind());
                let proof = self.proof(proof, env)?;
                let kind = ResolvedKind::Application {
                    tenant_id,
                    client_id,
                    proof,
                };
                (name, kind)
            }
            Self::Managed(id) => {
                let which = match id {
                    None => "system-assigned".to_owned(),
                    Some(ManagedId::ClientId(id)) => format!("client {id}"),
                    Some(ManagedId::ObjectId(id)) => format!("object {id}"),
                    Some(ManagedId::ResourceId(id)) => format!("resource {id}"),
                };
                (
                    format!("{} ({which})", self.kind()),
                    ResolvedKind::Managed(id.clone()),
                )
            }
            Self::AzureCli { tenant_id } => {
                if let Some(tenant) = tenant_id {
                    self.check_id("tenant_id", tenant)?;
                }
                (self.kind().to_owned(), ResolvedKind::Cli(tenant_id.clone()))
            }
        };
        Ok(Resolved {
            name,
            kind,
            authority,
        })
    }

    fn proof(&self, proof: &Proof, env: Env<'_>) -> Result<ResolvedProof, IdentityError> {
        Ok(match proof {
            Proof::FederatedToken(file) => ResolvedProof::FederatedToken(self.value(
                file.clone(),
                env,
                "the service account's token",
                "token_file",
                "AZURE_FEDERATED_TOKEN_FILE",
            )?),
            Proof::Secret(Some(secret)) => ResolvedProof::Secret(secret.clone()),
            Proof::Secret(None) => {
                let (setting, variable) = ("client_secret_file", "AZURE_CLIENT_SECRET");
                let secret: String = self.value(None, env, "a client secret", setting, variable)?;
                ResolvedProof::Secret(SecretSource::Fixed(Secret::new(secret)))
            }
            Proof::Certificate(file) => ResolvedProof::Certificate(self.value(
                file.clone(),
                env,
                "a certificate",
                "client_certificate_file",
                "AZURE_CLIENT_CERTIFICATE_PATH",
            )?),
        })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Application { proof, .. } => match proof {
                Proof::FederatedToken(_) => "workload identity",
                Proof::Secret(_) => "client secret",
                Proof::Certificate(_) => "client certificate",
            },
            Self::Managed(_) => "managed identity",
            Self::AzureCli { .. } => "Azure CLI login",
        }
    }

    fn value<T: From<String>>(
        &self,
        given: Option<T>,
        env: Env<'_>,
        what: &'static str,
        setting: &'static str,
        variable: &'static str,
    ) -> Result<T, IdentityError> {
        given
            .or_else(|| env(variable).map(T::from))
            .ok_or(IdentityError::Missing {
                identity: self.kind(),
                value: what,
                setting,
                variable,
            })
    }

    fn check_id(&self, setting: &'static str, id: &str) -> Result<(), IdentityError> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if !id.is_empty() && id.len() <= 253 && id.chars().all(is_allowed) {
            return Ok(());
        }
        Err(IdentityError::Invalid {
            identity: self.kind(),
            setting,
            found: id.chars().take(80).collect(),
            allowed: "it must be an id of letters, digits, '-' and '.'",
        })
    }
}

impl Resolved {
    /// Creates a credential without a cache: it requests a new token, and reads the secret again.
    pub(crate) fn credential(
        &self,
        web: &Http,
        metadata: &Http,
    ) -> Result<Arc<dyn TokenCredential>, Box<dyn std::error::Error + Send + Sync>> {
        let client_options = |http: &Http| ClientOptions {
            transport: Some(Transport::new(Arc::new(http.clone()))),
            retry: RetryOptions::exponential(ExponentialRetryOptions {
                max_retries: 2,
                max_total_elapsed: Duration::seconds(20),
                ..Default::default()
            }),
            cloud: Some(Arc::new(CloudConfiguration::from({
                let mut cloud = CustomConfiguration::default();
                cloud.authority_host.clone_from(&self.authority);
                cloud
            }))),
            ..ClientOptions::default()
        };
        Ok(match &self.kind {
            ResolvedKind::Application {
                tenant_id,
                client_id,
                proof,
            } => {
                let (tenant, client) = (tenant_id.clone(), client_id.clone());
                let client_options = client_options(web);
                let by_assertion = ClientAssertionCredentialOptions {
                    client_options: client_options.clone(),
                };
                match proof {
                    ResolvedProof::FederatedToken(path) => ClientAssertionCredential::new(
                        tenant,
                        client,
                        FileAssertion { path: path.clone() },
                        Some(by_assertion),
                    )?,
                    ResolvedProof::Certificate(path) => {
                        let authority = self.authority.trim_end_matches('/');
                        let assertion = CertificateAssertion {
                            path: path.clone(),
                            client_id: client_id.clone(),
                            audience: format!("{authority}/{tenant_id}/oauth2/v2.0/token"),
                        };
                        ClientAssertionCredential::new(
                            tenant,
                            client,
                            assertion,
                            Some(by_assertion),
                        )?
                    }
                    ResolvedProof::Secret(secret) => ClientSecretCredential::new(
                        tenant_id,
                        client,
                        secret.read()?.expose().to_owned().into(),
                        Some(ClientSecretCredentialOptions { client_options }),
                    )?,
                }
            }
            ResolvedKind::Managed(id) => {
                ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                    user_assigned_id: id.clone().map(|id| match id {
                        ManagedId::ClientId(id) => UserAssignedId::ClientId(id),
                        ManagedId::ObjectId(id) => UserAssignedId::ObjectId(id),
                        ManagedId::ResourceId(id) => UserAssignedId::ResourceId(id),
                    }),
                    client_options: client_options(metadata),
                }))?
            }
            ResolvedKind::Cli(tenant_id) => {
                AzureCliCredential::new(Some(AzureCliCredentialOptions {
                    tenant_id: tenant_id.clone(),
                    ..AzureCliCredentialOptions::default()
                }))?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Identity {
        Identity::Application {
            tenant_id: None,
            client_id: None,
            proof: Proof::FederatedToken(None),
        }
    }

    #[test]
    fn environment_variables_fill_missing_fields() {
        let env = |name: &str| match name {
            "AZURE_TENANT_ID" => Some("t".to_owned()),
            "AZURE_CLIENT_ID" => Some("c".to_owned()),
            "AZURE_FEDERATED_TOKEN_FILE" => Some("/var/run/token".to_owned()),
            _ => None,
        };
        let resolved = workload().resolve(&env).unwrap();
        assert_eq!(resolved.name, "workload identity (client c, tenant t)");
        assert_eq!(resolved.authority, PUBLIC_CLOUD);
        let set = Identity::Application {
            tenant_id: Some("other".to_owned()),
            client_id: None,
            proof: Proof::Secret(Some(SecretSource::Fixed(Secret::new("s")))),
        };
        let resolved = set.resolve(&env).unwrap();
        assert_eq!(resolved.name, "client secret (client c, tenant other)");
    }

    #[test]
    fn missing_and_invalid_settings_are_named() {
        let none = |_: &str| None;
        let error = workload().resolve(&none).err().unwrap().to_string();
        assert!(
            error.contains("tenant_id") && error.contains("AZURE_TENANT_ID"),
            "{error}"
        );
        let plain = |name: &str| (name == "AZURE_AUTHORITY_HOST").then(|| "http://x".to_owned());
        let error = workload().resolve(&plain).err().unwrap().to_string();
        assert!(error.contains("AZURE_AUTHORITY_HOST"), "{error}");
        let odd = Identity::AzureCli {
            tenant_id: Some("a b; rm".to_owned()),
        };
        let error = odd.resolve(&none).err().unwrap().to_string();
        assert!(error.contains("tenant_id"), "{error}");
    }
}
