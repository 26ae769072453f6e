//! The enrolment file, which defines who may register. The objects have the form of the service's
//! own interface, as printed by `az iot dps enrollment list`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::attestation::Attestation;
use crate::fleet::check_id;
use crate::policy::seeded_key;

/// The name of the only group when no file is given.
const DEFAULT_GROUP: &str = "default";
/// The lengths of a symmetric key, in bytes, as in the hub's registry.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=64;

/// The reason for refusing a file of enrolments.
#[derive(Debug, thiserror::Error)]
pub enum EnrollmentError {
    /// The text is not a file of enrolments.
    #[error("cannot parse the enrolments: {0}")]
    Syntax(String),
    /// An enrolment is invalid.
    #[error("enrolment '{name}': {problem}")]
    Enrollment {
        /// The registration id, or the id of the group.
        name: String,
        /// The problem, and the allowed values.
        problem: String,
    },
}

/// The enrolments of the Device Provisioning Service.
///
/// ```yaml
/// idScope: 0ne00A1B2C3
/// enrollments:
///   - registrationId: fridge-1
///     deviceId: kitchen
///     attestation: { type: symmetricKey, symmetricKey: { primaryKey: …, secondaryKey: … } }
///     initialTwin: { tags: { kind: fridge }, properties: { desired: { interval: 60 } } }
///   - registrationId: fridge-2
///     attestation: { type: x509, x509: { clientCertificates: { primary: { certificate: "-----BEGIN …" } } } }
/// enrollmentGroups:
///   - enrollmentGroupId: fridges
///     attestation: { type: symmetricKey }
///     provisioningStatus: enabled
///   - enrollmentGroupId: fridges-with-certificates
///     attestation: { type: x509, x509: { signingCertificates: { primary: { certificate: "-----BEGIN …" } } } }
/// ```
///
/// Missing keys follow from the hub's seed. `provisioningStatus: disabled` is answered by
/// `disabled`, and `iotHubs` without this hub's name by `unassigned`.
#[derive(Clone)]
pub struct Enrollments {
    pub(crate) id_scope: String,
    pub(crate) enrollments: Vec<Enrollment>,
}

/// One enrolment, of a device or of a group.
#[derive(Clone)]
pub(crate) struct Enrollment {
    pub(crate) holder: EnrollmentHolder,
    pub(crate) attestation: Attestation,
    pub(crate) enabled: bool,
    pub(crate) edge: bool,
    /// The hubs for assignment; empty for this hub.
    pub(crate) hubs: Vec<String>,
    pub(crate) tags: Map<String, Value>,
    pub(crate) desired: Map<String, Value>,
}

/// The holder of an enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EnrollmentHolder {
    Device {
        registration_id: String,
        device_id: String,
    },
    Group(String),
}

impl std::fmt::Debug for Enrollments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys are never printed.
        f.debug_struct("Enrollments")
            .field("id_scope", &self.id_scope)
            .field("enrollments", &self.enrollments.len())
            .finish()
    }
}

impl Enrollments {
    /// Creates a single group with a symmetric key, named `default`, for any device; scope and key
    /// follow from the seed.
    #[must_use]
    pub fn of_one_group(seed: u64) -> Self {
        let group = Enrollment {
            holder: EnrollmentHolder::Group(DEFAULT_GROUP.to_owned()),
            attestation: Attestation::SymmetricKeys(seeded_keys(seed, DEFAULT_GROUP)),
            enabled: true,
            edge: false,
            hubs: Vec::new(),
            tags: Map::new(),
            desired: Map::new(),
        };
        Self {
            id_scope: seeded_scope(seed),
            enrollments: vec![group],
        }
    }

    /// Reads a file, YAML or JSON. Missing scope and keys follow from `seed`.
    ///
    /// # Errors
    ///
    /// An error names the invalid enrolment and the problem.
    pub fn read(text: &str, seed: u64) -> Result<Self, EnrollmentError> {
        let file: File = serde_saphyr::from_str(text)
            .map_err(|error| EnrollmentError::Syntax(error.to_string()))?;
        let enrollments = file.enrollments.into_iter().map(|spec| spec.check(seed));
        let groups = file
            .enrollment_groups
            .into_iter()
            .map(|spec| spec.check(seed));
        let enrollments = enrollments.chain(groups).collect::<Result<Vec<_>, _>>()?;
        for (at, enrollment) in enrollments.iter().enumerate() {
            let name = enrollment.holder.key();
            if enrollments[..at]
                .iter()
                .any(|other| other.holder.key() == name)
            {
                return Err(refused(name.1, "another enrolment has the same id"));
            }
        }
        Ok(Self {
            id_scope: file.id_scope.unwrap_or_else(|| seeded_scope(seed)),
            enrollments,
        })
    }

    /// Returns the id scope, as named by devices.
    #[must_use]
    pub fn id_scope(&self) -> &str {
        &self.id_scope
    }

    /// Returns the groups with symmetric keys, each with the primary key in base64. A device of the
    /// group has the key `base64(HMAC-SHA256(key, registrationId))`.
    pub fn group_keys(&self) -> impl Iterator<Item = (&str, String)> {
        self.enrollments.iter().filter_map(|enrollment| {
            match (&enrollment.holder, &enrollment.attestation) {
                (EnrollmentHolder::Group(name), Attestation::SymmetricKeys([primary, _])) => {
                    Some((name.as_str(), STANDARD.encode(primary)))
                }
                _ => None,
            }
        })
    }
}

impl EnrollmentHolder {
    /// Returns the unique key of an enrolment. Registration ids are case-insensitive, as in the
    /// service.
    fn key(&self) -> (bool, String) {
        match self {
            Self::Device {
                registration_id, ..
            } => (true, registration_id.to_ascii_lowercase()),
            Self::Group(name) => (false, name.to_ascii_lowercase()),
        }
    }
}

fn seeded_keys(seed: u64, name: &str) -> [Vec<u8>; 2] {
    ["primary", "secondary"].map(|which| seeded_key(seed, &["enrollment", name, which]))
}

/// Returns an id scope of eleven characters, as in the service.
fn seeded_scope(seed: u64) -> String {
    let bytes = seeded_key(seed, &["id scope"]);
    let digits: String = bytes
        .iter()
        .take(3)
        .map(|byte| format!("{byte:02X}"))
        .collect();
    format!("0ne00{digits}")
}

fn refused(name: impl Into<String>, problem: impl Into<String>) -> EnrollmentError {
    EnrollmentError::Enrollment {
        name: name.into(),
        problem: problem.into(),
    }
}

/// Whether a text is a registration id: 1 to 128 letters, digits and `-._:`, ending with a letter,
/// a digit or a dash.
pub(crate) fn is_registration_id(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let last = text.bytes().next_back();
    (1..=128).contains(&text.len())
        && text.bytes().all(good)
        && last.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

// === The file format ===

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    id_scope: Option<String>,
    #[serde(default)]
    enrollments: Vec<Individual>,
    #[serde(default)]
    enrollment_groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Individual {
    registration_id: String,
    device_id: Option<String>,
    #[serde(flatten)]
    common: Common,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    enrollment_group_id: String,
    #[serde(flatten)]
    common: Common,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Common {
    attestation: Attested,
    provisioning_status: Option<String>,
    #[serde(default)]
    initial_twin: InitialTwin,
    #[serde(default)]
    capabilities: Capabilities,
    #[serde(default)]
    iot_hubs: Vec<String>,
    /// All other fields: fields added by the service on reading, and fields for several hubs.
    #[serde(flatten)]
    others: std::collections::BTreeMap<String, IgnoredAny>,
}

/// Fields of the service's enrolments without an effect in the emulator.
const WITHOUT_EFFECT: [&str; 8] = [
    "etag",
    "createdDateTimeUtc",
    "lastUpdatedDateTimeUtc",
    "registrationState",
    "optionalDeviceInformation",
    "reprovisionPolicy",
    "allocationPolicy",
    "iotHubHostName",
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Capabilities {
    iot_edge: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct InitialTwin {
    tags: Map<String, Value>,
    properties: InitialProperties,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct InitialProperties {
    desired: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Attested {
    r#type: String,
    symmetric_key: Option<Keys>,
    x509: Option<X509>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Keys {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct X509 {
    client_certificates: Option<Certificates>,
    signing_certificates: Option<Certificates>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Certificates {
    primary: Option<Certificate>,
    secondary: Option<Certificate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Certificate {
    /// PEM, or the base64 of DER or PEM.
    certificate: Option<String>,
    info: Option<IgnoredAny>,
}

impl Individual {
    fn check(self, seed: u64) -> Result<Enrollment, EnrollmentError> {
        let id = self.registration_id;
        if !is_registration_id(&id) {
            let problem = "a registration id must have 1 to 128 of the characters A-Z, a-z, 0-9 and -._:, and must not end with one of ._:";
            return Err(refused(id, problem));
        }
        let device_id = self.device_id.unwrap_or_else(|| id.clone());
        check_id(&device_id).map_err(|problem| refused(&id, problem))?;
        let holder = EnrollmentHolder::Device {
            registration_id: id.clone(),
            device_id,
        };
        let enrollment = self.common.check(holder, &id, seed);
        enrollment.map_err(|problem| refused(id, problem))
    }
}

impl Group {
    fn check(self, seed: u64) -> Result<Enrollment, EnrollmentError> {
        let name = self.enrollment_group_id;
        let holder = EnrollmentHolder::Group(name.clone());
        let enrollment = self.common.check(holder, &name, seed);
        enrollment.map_err(|problem| refused(name, problem))
    }
}

impl Common {
    fn check(self, holder: EnrollmentHolder, name: &str, seed: u64) -> Result<Enrollment, String> {
        let mut others = self.others.keys();
        if let Some(unknown) = others.find(|key| !WITHOUT_EFFECT.contains(&key.as_str())) {
            return Err(format!("unknown field '{unknown}'"));
        }
        let is_group = matches!(holder, EnrollmentHolder::Group(_));
        let enabled = match self.provisioning_status.as_deref() {
            None => true,
            Some(status) if status.eq_ignore_ascii_case("enabled") => true,
            Some(status) if status.eq_ignore_ascii_case("disabled") => false,
            Some(status) => {
                return Err(format!(
                    "the provisioningStatus '{status}' is neither enabled nor disabled"
                ));
            }
        };
        Ok(Enrollment {
            attestation: self.attestation.check(is_group, name, seed)?,
            holder,
            enabled,
            edge: self.capabilities.iot_edge,
            hubs: self.iot_hubs,
            tags: self.initial_twin.tags,
            desired: self.initial_twin.properties.desired,
        })
    }
}

impl Attested {
    fn check(self, is_group: bool, name: &str, seed: u64) -> Result<Attestation, String> {
        match self.r#type.to_ascii_lowercase().as_str() {
            "symmetrickey" => {
                if self.x509.is_some() {
                    return Err(
                        "an attestation of the type symmetricKey must not have x509".to_owned()
                    );
                }
                let keys = self.symmetric_key.unwrap_or_default();
                let [primary, secondary] = seeded_keys(seed, name);
                Ok(Attestation::SymmetricKeys([
                    keys.primary_key.map_or(Ok(primary), |key| read_key(&key))?,
                    keys.secondary_key
                        .map_or(Ok(secondary), |key| read_key(&key))?,
                ]))
            }
            "x509" => {
                if self.symmetric_key.is_some() {
                    return Err(
                        "an attestation of the type x509 must not have symmetricKey".to_owned()
                    );
                }
                let x509 = self.x509.unwrap_or_default();
                let (certificates, other, field) = if is_group {
                    (
                        x509.signing_certificates,
                        x509.client_certificates,
                        "signingCertificates",
                    )
                } else {
                    (
                        x509.client_certificates,
                        x509.signing_certificates,
                        "clientCertificates",
                    )
                };
                if other.is_some() {
                    return Err(format!("only x509.{field} is allowed in this enrolment"));
                }
                let certificates = certificates.unwrap_or_default().read()?;
                if certificates.is_empty() {
                    return Err(format!("x509.{field} has no certificate"));
                }
                Ok(if is_group {
                    Attestation::SignedBy(certificates)
                } else {
                    Attestation::Certificates(certificates)
                })
            }
            other => Err(format!(
                "the attestation type '{other}' is neither symmetricKey nor x509"
            )),
        }
    }
}

impl Certificates {
    fn read(self) -> Result<Vec<CertificateDer<'static>>, String> {
        let given = [self.primary, self.secondary].into_iter().flatten();
        given
            .map(|given| {
                if given.info.is_some() && given.certificate.is_none() {
                    return Err(
                        "the field certificate is required; info alone is not sufficient"
                            .to_owned(),
                    );
                }
                read_certificate(&given.certificate.unwrap_or_default())
            })
            .collect()
    }
}

fn read_certificate(text: &str) -> Result<CertificateDer<'static>, String> {
    let wrong = || "a certificate is neither PEM nor DER in base64".to_owned();
    if text.contains("-----BEGIN") {
        return CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| wrong());
    }
    let der = STANDARD.decode(text.trim()).map_err(|_| wrong())?;
    // `az` writes the base64 of the PEM file.
    if der.starts_with(b"-----BEGIN") {
        return CertificateDer::from_pem_slice(&der).map_err(|_| wrong());
    }
    Ok(CertificateDer::from(der))
}

fn read_key(text: &str) -> Result<Vec<u8>, String> {
    match STANDARD.decode(text) {
        Err(_) => Err("a symmetric key is not base64".to_owned()),
        Ok(key) if !KEY_BYTES.contains(&key.len()) => Err(format!(
            "a symmetric key has {} bytes; {} to {} are allowed",
            key.len(),
            KEY_BYTES.start(),
            KEY_BYTES.end()
        )),
        Ok(key) => Ok(key),
    }
}
