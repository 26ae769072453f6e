//! Configuration of this process's identity in Microsoft Entra ID.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::value::{MapAccessDeserializer, MapDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use twincast_entra::{Identity, ManagedId, Proof};

use super::values::{SecretText, source_of};

/// An identity: only the method, as in `auth = "managed_identity"`, or a table with the parameters
/// of the method.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(crate) struct AuthSettings(Table);

/// The method to prove the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AuthMethod {
    WorkloadIdentity,
    ManagedIdentity,
    ClientSecret,
    ClientCertificate,
    AzureCli,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    method: AuthMethod,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate_file: Option<PathBuf>,
}

impl<'de> Deserialize<'de> for AuthSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = AuthSettings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a method such as \"managed_identity\", or a table with a method")
            }

            fn visit_str<E: serde::de::Error>(self, method: &str) -> Result<AuthSettings, E> {
                let table = MapDeserializer::new(std::iter::once(("method", method)));
                Table::deserialize(table).map(AuthSettings)
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                map: A,
            ) -> Result<AuthSettings, A::Error> {
                Table::deserialize(MapAccessDeserializer::new(map)).map(AuthSettings)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl AuthSettings {
    /// Returns the problems: the key below the section's key, and the rule.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        use AuthMethod as M;
        let table = &self.0;
        let method = table.method;
        let given: [(_, _, &[M]); 9] = [
            (
                ".auth.authority_host",
                table.authority_host.is_some(),
                &M::APPLICATIONS,
            ),
            (
                ".auth.tenant_id",
                table.tenant_id.is_some(),
                &[M::APPLICATIONS.as_slice(), &[M::AzureCli]].concat(),
            ),
            (
                ".auth.client_id",
                table.client_id.is_some(),
                &[&[M::ManagedIdentity], M::APPLICATIONS.as_slice()].concat(),
            ),
            (
                ".auth.object_id",
                table.object_id.is_some(),
                &[M::ManagedIdentity],
            ),
            (
                ".auth.resource_id",
                table.resource_id.is_some(),
                &[M::ManagedIdentity],
            ),
            (
                ".auth.token_file",
                table.token_file.is_some(),
                &[M::WorkloadIdentity],
            ),
            (
                ".auth.client_secret",
                table.client_secret.is_some(),
                &[M::ClientSecret],
            ),
            (
                ".auth.client_secret_file",
                table.client_secret_file.is_some(),
                &[M::ClientSecret],
            ),
            (
                ".auth.client_certificate_file",
                table.client_certificate_file.is_some(),
                &[M::ClientCertificate],
            ),
        ];
        let mut problems: Vec<_> = given
            .iter()
            .filter(|(_, is_given, methods)| *is_given && !methods.contains(&method))
            .map(|(key, _, methods)| {
                let names: Vec<_> = methods.iter().map(|method| method.name()).collect();
                (
                    *key,
                    format!("is allowed only for the methods {}", names.join(", ")),
                )
            })
            .collect();
        if table.client_secret.is_some() && table.client_secret_file.is_some() {
            let what = "must have only one of client_secret and client_secret_file";
            problems.push((".auth", what.to_owned()));
        }
        let ids = [&table.client_id, &table.object_id, &table.resource_id];
        if method == M::ManagedIdentity && ids.iter().filter(|id| id.is_some()).count() > 1 {
            let what = "must have only one of client_id, object_id and resource_id";
            problems.push((".auth", what.to_owned()));
        }
        problems
    }

    /// Returns the token service, if different from the service of Azure's public cloud.
    pub(crate) fn authority_host(&self) -> Option<&str> {
        self.0.authority_host.as_deref()
    }

    /// Returns the identity. Relative paths are below `base`; `at` is the key of these settings.
    pub(crate) fn identity(&self, at: &str, base: &Path) -> Identity {
        let table = &self.0;
        let (tenant_id, client_id) = (table.tenant_id.clone(), table.client_id.clone());
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| base.join(path));
        let proof = match table.method {
            AuthMethod::ManagedIdentity => {
                let by_client = client_id.map(ManagedId::ClientId);
                let by_object = || table.object_id.clone().map(ManagedId::ObjectId);
                let by_resource = || table.resource_id.clone().map(ManagedId::ResourceId);
                return Identity::Managed(by_client.or_else(by_object).or_else(by_resource));
            }
            AuthMethod::AzureCli => return Identity::AzureCli { tenant_id },
            AuthMethod::WorkloadIdentity => Proof::FederatedToken(path(&table.token_file)),
            AuthMethod::ClientCertificate => {
                Proof::Certificate(path(&table.client_certificate_file))
            }
            AuthMethod::ClientSecret => Proof::Secret(source_of(
                &format!("{at}.client_secret"),
                table.client_secret.as_ref(),
                table.client_secret_file.as_deref(),
                base,
            )),
        };
        Identity::Application {
            tenant_id,
            client_id,
            proof,
        }
    }
}

impl AuthMethod {
    /// The methods of an application registration.
    const APPLICATIONS: [Self; 3] = [
        Self::WorkloadIdentity,
        Self::ClientSecret,
        Self::ClientCertificate,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::WorkloadIdentity => "workload_identity",
            Self::ManagedIdentity => "managed_identity",
            Self::ClientSecret => "client_secret",
            Self::ClientCertificate => "client_certificate",
            Self::AzureCli => "azure_cli",
        }
    }
}
