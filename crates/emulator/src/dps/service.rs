//! Deciding registrations.

use std::collections::HashMap;
use std::sync::Mutex;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::attestation::{RegistrationAttempt, RegistrationDenied};
use super::enrollment::{Enrollment, EnrollmentHolder, Enrollments, is_registration_id};
use crate::amqp::tracking_id;
use crate::fleet::{
    Authentication, DESIRED_BYTES_MAX, Stamp, TAGS_BYTES_MAX, check_section, iso_time, touch,
};
use crate::hub::{Hub, Proof};
use crate::lock;

/// The time for a device to wait before asking for the result of a registration. The real service
/// asks for three seconds.
const RETRY_AFTER_S: u32 = 1;
/// The largest body of a registration. The `payload` in the body is accepted and ignored.
pub(crate) const BODY_BYTES_MAX: usize = 64 * 1024;

/// A request from a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) id_scope: &'a str,
    pub(crate) registration_id: &'a str,
    pub(crate) proof: Option<Proof<'a>>,
    pub(crate) operation: Operation<'a>,
}

/// The requested operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    /// Register the device; the body is JSON.
    Register(&'a [u8]),
    /// Return the state of the operation with this id.
    Status(&'a str),
}

/// The answer to a device: an HTTP status, also used by the other protocols, and JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The time to wait before asking again.
    pub(crate) retry_after_s: Option<u32>,
    pub(crate) body: Value,
}

/// A completed registration.
#[derive(Debug, Clone)]
struct Registration {
    device_id: String,
    created_ms: u64,
    updated_ms: u64,
}

/// The service.
#[derive(Debug)]
pub(crate) struct Provisioning {
    enrollments: Enrollments,
    /// By registration id in lower case. The capacity of the registry bounds the number of entries:
    /// an entry is added once the device is in the registry.
    registrations: Mutex<HashMap<String, Registration>>,
}

/// The reason why an authenticated device is not assigned to a hub.
struct Failure {
    status: &'static str,
    code: u32,
    text: String,
}

impl Provisioning {
    pub(crate) fn new(enrollments: Enrollments) -> Self {
        Self {
            enrollments,
            registrations: Mutex::default(),
        }
    }

    pub(crate) fn enrollments(&self) -> &Enrollments {
        &self.enrollments
    }

    /// Whether the proof allows the registration.
    pub(crate) fn admits(
        &self,
        id_scope: &str,
        registration_id: &str,
        proof: Proof<'_>,
        now_s: u64,
    ) -> bool {
        let checked = self.authenticate(id_scope, registration_id, Some(proof), now_s);
        if let Err(denied) = &checked {
            tracing::debug!(registration = registration_id, reason = %denied, "registration denied");
        }
        checked.is_ok()
    }

    /// Decides a request. A repeated request gets the same operation id and the same device.
    pub(crate) fn handle(&self, hub: &Hub, request: Request<'_>) -> Answer {
        if !is_registration_id(request.registration_id) {
            let text =
                "The registration ID is invalid: 1 to 128 of A-Z, a-z, 0-9 and -._: are allowed.";
            return Answer::error(400, 400_203, text);
        }
        let checked = self.authenticate(
            request.id_scope,
            request.registration_id,
            request.proof,
            hub.now_s(),
        );
        let (enrollment, authentication) = match checked {
            Ok(found) => found,
            Err(denied) => {
                // As in the real service, the client does not learn the reason.
                tracing::debug!(registration = request.registration_id, reason = %denied, "registration denied");
                return Answer::error(401, 401_002, "Unauthorized");
            }
        };
        let operation_id = operation_id(request.id_scope, request.registration_id);
        match request.operation {
            Operation::Register(body) => {
                if let Err(text) = check_body(body, request.registration_id) {
                    return Answer::error(400, 400_000, text);
                }
                match self.assign(hub, enrollment, authentication, request.registration_id) {
                    Ok(()) => Answer {
                        status: 202,
                        retry_after_s: Some(RETRY_AFTER_S),
                        body: json!({ "operationId": operation_id, "status": "assigning" }),
                    },
                    Err(failure) => failure.answer(&operation_id, request.registration_id),
                }
            }
            Operation::Status(requested) if requested == operation_id => self
                .assigned(hub, enrollment, request, &operation_id)
                .unwrap_or_else(|| Answer::error(404, 404_204, "There is no such operation.")),
            Operation::Status(_) => Answer::error(404, 404_204, "There is no such operation."),
        }
    }

    /// Returns the enrolment for a request: the device's individual enrolment, or otherwise a group
    /// accepting the proof.
    fn authenticate(
        &self,
        requested_scope: &str,
        requested_id: &str,
        proof: Option<Proof<'_>>,
        now_s: u64,
    ) -> Result<(&Enrollment, Authentication), RegistrationDenied> {
        let Enrollments {
            id_scope,
            enrollments,
        } = &self.enrollments;
        if !requested_scope.eq_ignore_ascii_case(id_scope) {
            return Err(RegistrationDenied::Scope(requested_scope.to_owned()));
        }
        let attempt = RegistrationAttempt {
            id_scope,
            registration_id: requested_id,
            proof: proof.ok_or(RegistrationDenied::Nothing)?,
            now_s,
        };
        let own = enrollments.iter().find(|one| {
            matches!(&one.holder, EnrollmentHolder::Device { registration_id, .. }
                if registration_id.eq_ignore_ascii_case(requested_id))
        });
        if let Some(own) = own {
            return Ok((own, own.attestation.check(attempt, false)?));
        }
        let mut denied = RegistrationDenied::NoEnrollment;
        for group in enrollments {
            if !matches!(group.holder, EnrollmentHolder::Group(_))
                || !group.attestation.takes(attempt.proof)
            {
                continue;
            }
            match group.attestation.check(attempt, true) {
                Ok(authentication) => return Ok((group, authentication)),
                Err(reason) => denied = reason,
            }
        }
        Err(denied)
    }

    /// Puts the device into the registry with the enrolment's authentication.
    fn assign(
        &self,
        hub: &Hub,
        enrollment: &Enrollment,
        authentication: Authentication,
        registration_id: &str,
    ) -> Result<(), Failure> {
        if !enrollment.enabled {
            return Err(Failure {
                status: "disabled",
                code: 401_003,
                text: "The enrollment is disabled.".to_owned(),
            });
        }
        let here = &hub.config.host_name;
        if !enrollment.hubs.is_empty()
            && !enrollment
                .hubs
                .iter()
                .any(|name| name.eq_ignore_ascii_case(here))
        {
            return Err(Failure {
                status: "unassigned",
                code: 404_101,
                text: format!("None of the enrollment's IoT hubs is '{here}'."),
            });
        }
        let now_ms = hub.now_ms();
        let mut registrations = lock(&self.registrations);
        let key = registration_id.to_ascii_lowercase();
        let device_id = match (&enrollment.holder, registrations.get(&key)) {
            (EnrollmentHolder::Device { device_id, .. }, _) => device_id.clone(),
            // The spelling of the first registration stays.
            (EnrollmentHolder::Group(_), Some(known)) => known.device_id.clone(),
            (EnrollmentHolder::Group(_), None) => registration_id.to_owned(),
        };
        put_device(hub, enrollment, &device_id, authentication, now_ms)?;
        registrations
            .entry(key)
            .and_modify(|known| known.updated_ms = now_ms)
            .or_insert(Registration {
                device_id,
                created_ms: now_ms,
                updated_ms: now_ms,
            });
        Ok(())
    }

    /// Returns the answer for a registered device.
    fn assigned(
        &self,
        hub: &Hub,
        enrollment: &Enrollment,
        request: Request<'_>,
        operation_id: &str,
    ) -> Option<Answer> {
        let key = request.registration_id.to_ascii_lowercase();
        let known = lock(&self.registrations).get(&key).cloned()?;
        let mut state = json!({
            "registrationId": request.registration_id,
            "createdDateTimeUtc": iso_time(known.created_ms),
            "assignedHub": hub.config.host_name,
            "deviceId": known.device_id,
            "status": "assigned",
            "substatus": "initialAssignment",
            "lastUpdatedDateTimeUtc": iso_time(known.updated_ms),
            "etag": format!("\"{:016x}\"", known.updated_ms),
        });
        match (&enrollment.holder, request.proof) {
            (_, Some(Proof::Certificate(certificate))) => {
                let [sha1, sha256] = certificate.thumbprints().map(|text| text.to_uppercase());
                let info = json!({ "sha1Thumbprint": sha1, "sha256Thumbprint": sha256 });
                state["x509"] = json!({ "certificateInfo": info });
            }
            (EnrollmentHolder::Group(name), _) => {
                state["symmetricKey"] = json!({ "enrollmentGroupId": name });
            }
            (EnrollmentHolder::Device { .. }, _) => {}
        }
        Some(Answer {
            status: 200,
            retry_after_s: None,
            body: json!({
                "operationId": operation_id,
                "status": "assigned",
                "registrationState": state,
            }),
        })
    }
}

/// Creates the device, or updates the authentication of an existing device.
fn put_device(
    hub: &Hub,
    enrollment: &Enrollment,
    device_id: &str,
    authentication: Authentication,
    now_ms: u64,
) -> Result<(), Failure> {
    let failed = |code, text| Failure {
        status: "failed",
        code,
        text,
    };
    let mut registry = hub.registry_mut();
    let known = registry
        .number(device_id)
        .and_then(|number| registry.record(number));
    let record = match known {
        Some(record) if record.authentication == authentication => return Ok(()),
        Some(mut record) => {
            record.authentication = authentication;
            record.device_version += 1;
            record
        }
        None => {
            let mut record = registry.new_record(device_id, now_ms);
            record.authentication = authentication;
            record.edge = enrollment.edge;
            check_section("tags", &enrollment.tags, TAGS_BYTES_MAX)
                .and_then(|()| {
                    check_section("desired properties", &enrollment.desired, DESIRED_BYTES_MAX)
                })
                .map_err(|problem| {
                    failed(400_000, format!("The initial twin is refused: {problem}"))
                })?;
            record.tags = enrollment.tags.clone();
            record.desired = enrollment.desired.clone();
            let stamp = Stamp {
                at_ms: now_ms,
                version: Some(record.desired_version),
            };
            touch(&mut record.desired_metadata, &enrollment.desired, stamp);
            record
        }
    };
    match registry.put(record) {
        Some(_) => Ok(()),
        None => Err(failed(
            403_102,
            "The IoT hub holds as many devices as it can.".to_owned(),
        )),
    }
}

/// Checks a registration's body. A registration id in the body must be the request's registration
/// id.
fn check_body(body: &[u8], registration_id: &str) -> Result<(), String> {
    if body.len() > BODY_BYTES_MAX {
        return Err(format!(
            "The body has {} bytes; at most {BODY_BYTES_MAX} are allowed.",
            body.len()
        ));
    }
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| format!("The body is not a registration: {error}."))?;
    match body.get("registrationId") {
        None => Ok(()),
        Some(Value::String(said)) if said.eq_ignore_ascii_case(registration_id) => Ok(()),
        Some(_) => Err("The body's registrationId is not the one that is registered.".to_owned()),
    }
}

/// Returns the id of a registration's operation. The id is derived from the registration, so that
/// no operation needs to be stored.
fn operation_id(id_scope: &str, registration_id: &str) -> String {
    let named = format!("{id_scope}/{registration_id}").to_ascii_lowercase();
    let hash = Sha256::digest(named.as_bytes());
    let text: String = hash
        .iter()
        .take(24)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let (head, tail) = text.split_at(16);
    let uuid = [
        &tail[..8],
        &tail[8..12],
        &tail[12..16],
        &tail[16..20],
        &tail[20..],
    ]
    .join("-");
    format!("4.{head}.{uuid}")
}

impl Failure {
    /// Returns the answer, with `failed`, `disabled` or `unassigned` in place of `assigned`.
    fn answer(self, operation_id: &str, registration_id: &str) -> Answer {
        Answer {
            status: 200,
            retry_after_s: None,
            body: json!({
                "operationId": operation_id,
                "status": self.status,
                "registrationState": {
                    "registrationId": registration_id,
                    "status": self.status,
                    "errorCode": self.code,
                    "errorMessage": self.text,
                },
            }),
        }
    }
}

impl Answer {
    pub(crate) fn error(status: u16, code: u32, text: impl Into<String>) -> Self {
        Self {
            status,
            retry_after_s: None,
            body: json!({
                "errorCode": code,
                "trackingId": tracking_id(),
                "message": text.into(),
                "timestampUtc": jiff::Timestamp::now().to_string(),
            }),
        }
    }
}
