use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use super::attestation::derived_key;
use super::*;
use crate::HubConfig;
use crate::fleet::{Authentication, DeviceRecord, Fleet};
use crate::hub::{ClientCertificate, DeviceAuthorities, Hub, Proof};
use crate::sas::sign_device_token;

const SCOPE: &str = "0ne00TEST";
const KEY: [u8; 32] = [7; 32];

/// Returns an authority's certificate in PEM, and a certificate for `name` signed by the authority.
fn signed(name: &str) -> (String, ClientCertificate) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = ca.self_signed(&ca_key).unwrap().pem();
    let leaf_key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(Vec::<String>::new()).unwrap();
    leaf.distinguished_name.push(DnType::CommonName, name);
    let leaf = leaf.signed_by(&leaf_key, &Issuer::new(ca, ca_key)).unwrap();
    (pem, ClientCertificate::new(&[leaf.der().clone()]).unwrap())
}

/// Returns a self-signed certificate for `name`, in PEM and in the presented form.
fn unsigned(name: &str) -> (String, ClientCertificate) {
    let mut leaf = CertificateParams::new(Vec::<String>::new()).unwrap();
    leaf.distinguished_name.push(DnType::CommonName, name);
    let leaf = leaf.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let certificate = ClientCertificate::new(&[leaf.der().clone()]).unwrap();
    (leaf.pem(), certificate)
}

fn hub(enrollments: &Value) -> Hub {
    let config = HubConfig {
        fleet: Fleet::from_yaml("groups: [{count: 3, id: 'd-{index}'}]").unwrap(),
        enrollments: Some(Enrollments::read(&enrollments.to_string(), 1).unwrap()),
        ..HubConfig::default()
    };
    Hub::new(config, DeviceAuthorities::default())
}

/// An enrolment of each kind.
fn enrollments() -> Value {
    let keys = json!({ "primaryKey": STANDARD.encode(KEY), "secondaryKey": STANDARD.encode(KEY) });
    let attestation = json!({ "type": "symmetricKey", "symmetricKey": keys });
    json!({
        "idScope": SCOPE,
        "enrollments": [
            {
                "registrationId": "own", "deviceId": "kitchen", "attestation": attestation, "etag": "x",
                "initialTwin": { "tags": { "a": 1 }, "properties": { "desired": { "b": { "c": 2 } } } },
            },
            { "registrationId": "off", "attestation": attestation, "provisioningStatus": "disabled" },
            { "registrationId": "away", "attestation": attestation, "iotHubs": ["other.azure-devices.net"] },
            { "registrationId": "d-1", "attestation": attestation },
        ],
        "enrollmentGroups": [{ "enrollmentGroupId": "group", "attestation": attestation }],
    })
}

fn token(hub: &Hub, resource: &str, key: &[u8]) -> String {
    let token = sign_device_token(resource, key, hub.now_s() + 60);
    format!("{token}&skn=registration")
}

fn ask(hub: &Hub, id: &str, proof: Option<Proof<'_>>, operation: Operation<'_>) -> Answer {
    let request = Request {
        id_scope: SCOPE,
        registration_id: id,
        proof,
        operation,
    };
    hub.provisioning.handle(hub, request)
}

/// Registers with a proof, and asks for the result.
fn register(hub: &Hub, id: &str, proof: Proof<'_>) -> Value {
    let first = ask(hub, id, Some(proof), Operation::Register(b"{}"));
    if first.status != 202 {
        return first.body;
    }
    assert_eq!(first.body["status"], "assigning");
    let operation = first.body["operationId"].as_str().unwrap();
    let second = ask(hub, id, Some(proof), Operation::Status(operation));
    assert_eq!((second.status, second.retry_after_s), (200, None));
    second.body
}

fn register_with_key(hub: &Hub, id: &str, key: &[u8]) -> Value {
    let token = token(hub, &format!("{SCOPE}/registrations/{id}"), key);
    register(hub, id, Proof::Token(&token))
}

fn record(hub: &Hub, id: &str) -> DeviceRecord {
    let registry = hub.registry();
    registry.record(registry.number(id).unwrap()).unwrap()
}

#[test]
fn registration_assigns_the_hub_and_the_enrolment_keys() {
    let hub = hub(&enrollments());
    let answer = register_with_key(&hub, "own", &KEY);
    let state = &answer["registrationState"];
    assert_eq!(answer["status"], "assigned");
    assert_eq!(state["assignedHub"], "localhost");
    assert_eq!(state["deviceId"], "kitchen");
    let made = record(&hub, "kitchen");
    let key = STANDARD.encode(KEY);
    assert_eq!(made.authentication, Authentication::Sas([key.clone(), key]));
    assert_eq!(Value::Object(made.tags), json!({ "a": 1 }));
    assert_eq!(Value::Object(made.desired), json!({ "b": { "c": 2 } }));
    assert!(made.desired_metadata.contains_key("b"));
    // A repeated registration finds the same device and changes nothing.
    let again = register_with_key(&hub, "OWN", &KEY);
    assert_eq!(again["operationId"], answer["operationId"]);
    assert_eq!(
        again["registrationState"]["createdDateTimeUtc"],
        state["createdDateTimeUtc"]
    );
    let same = record(&hub, "kitchen");
    assert_eq!(
        (same.generation, same.device_version),
        (made.generation, made.device_version)
    );
}

#[test]
fn device_of_a_group_has_a_key_derived_from_the_group_key() {
    let hub = hub(&enrollments());
    let key = derived_key(&KEY, "fridge-7");
    let answer = register_with_key(&hub, "fridge-7", &key);
    assert_eq!(answer["status"], "assigned");
    assert_eq!(
        answer["registrationState"]["symmetricKey"]["enrollmentGroupId"],
        "group"
    );
    let key = STANDARD.encode(key);
    let made = record(&hub, "fridge-7");
    assert_eq!(made.authentication, Authentication::Sas([key.clone(), key]));
}

#[test]
fn registration_of_a_fleet_device_replaces_only_the_keys() {
    let hub = hub(&enrollments());
    let before = record(&hub, "d-1");
    assert_eq!(register_with_key(&hub, "d-1", &KEY)["status"], "assigned");
    let after = record(&hub, "d-1");
    assert_ne!(after.authentication, before.authentication);
    assert_eq!(after.generation, before.generation);
}

#[test]
fn unassignable_devices_get_a_status_and_an_error_code() {
    let hub = hub(&enrollments());
    for (id, status) in [("off", "disabled"), ("away", "unassigned")] {
        let answer = register_with_key(&hub, id, &KEY);
        assert_eq!(answer["status"], status);
        assert_eq!(answer["registrationState"]["status"], status);
        assert!(
            answer["registrationState"]["errorCode"].is_u64(),
            "{answer}"
        );
        assert_eq!(hub.registry().number(id), None);
    }
}

#[test]
fn invalid_proofs_are_refused_without_details() {
    let hub = hub(&enrollments());
    let good = token(&hub, &format!("{SCOPE}/registrations/own"), &KEY);
    let of_other = token(&hub, &format!("{SCOPE}/registrations/d-1"), &KEY);
    let of_scope = token(&hub, "0ne00OTHER/registrations/own", &KEY);
    let wrong = token(&hub, &format!("{SCOPE}/registrations/own"), &[8; 32]);
    let ended = sign_device_token(&format!("{SCOPE}/registrations/own"), &KEY, hub.now_s());
    let (_, certificate) = unsigned("own");
    for (id, proof) in [
        ("own", None),
        ("own", Some(Proof::Token(&of_other))),
        ("own", Some(Proof::Token(&of_scope))),
        ("own", Some(Proof::Token(&wrong))),
        ("own", Some(Proof::Token(&ended))),
        ("own", Some(Proof::Token("nonsense"))),
        ("own", Some(Proof::Certificate(&certificate))),
        // The group's own key belongs to no device.
        ("unknown", Some(Proof::Token(&good))),
    ] {
        let answer = ask(&hub, id, proof, Operation::Register(b"{}"));
        assert_eq!(answer.status, 401, "{id} {proof:?}");
        assert_eq!(answer.body["errorCode"], 401_002);
        assert_eq!(answer.body["message"], "Unauthorized");
    }
    assert_eq!(hub.registry().number("kitchen"), None);
    let elsewhere = Request {
        id_scope: "0ne00OTHER",
        registration_id: "own",
        proof: Some(Proof::Token(&of_scope)),
        operation: Operation::Register(b"{}"),
    };
    assert_eq!(hub.provisioning.handle(&hub, elsewhere).status, 401);
}

#[test]
fn invalid_registration_requests_are_refused() {
    let hub = hub(&enrollments());
    let good = token(&hub, &format!("{SCOPE}/registrations/own"), &KEY);
    let proof = Some(Proof::Token(&good));
    let large = format!("{{\"payload\": \"{}\"}}", "x".repeat(70_000));
    for (id, operation, status) in [
        ("own", Operation::Register(b"{}"), 202),
        (
            "own",
            Operation::Register(b"{\"registrationId\": \"Own\"}"),
            202,
        ),
        (
            "own",
            Operation::Register(b"{\"registrationId\": \"d-1\"}"),
            400,
        ),
        ("own", Operation::Register(b""), 400),
        ("own", Operation::Register(large.as_bytes()), 400),
        ("own", Operation::Status("4.nonsense"), 404),
        ("not/one", Operation::Register(b"{}"), 400),
        ("ends-with.", Operation::Register(b"{}"), 400),
    ] {
        let answer = ask(&hub, id, proof, operation);
        assert_eq!(answer.status, status, "{id} {operation:?}: {}", answer.body);
    }
    // Without a registration, the operation does not exist.
    let hub = self::hub(&enrollments());
    let first = ask(&hub, "own", proof, Operation::Status("4.x"));
    assert_eq!(first.status, 404);
}

#[test]
fn certificates_must_match_the_enrolment_or_authority() {
    let (own_pem, own) = unsigned("own");
    let (_, other) = unsigned("own");
    let (ca_pem, of_group) = signed("grouped");
    let (_, stranger) = signed("grouped");
    let primary = |pem: &str| json!({ "primary": { "certificate": pem } });
    let hub = hub(&json!({
        "idScope": SCOPE,
        "enrollments": [{ "registrationId": "own",
            "attestation": { "type": "x509", "x509": { "clientCertificates": primary(&own_pem) } } }],
        "enrollmentGroups": [
            { "enrollmentGroupId": "keys", "attestation": { "type": "symmetricKey" } },
            { "enrollmentGroupId": "group",
            "attestation": { "type": "x509", "x509": { "signingCertificates": primary(&STANDARD.encode(&ca_pem)) } } },
        ],
    }));
    for (id, certificate, expected) in [
        ("own", &own, true),
        ("own", &other, false),
        ("own", &of_group, false),
        ("grouped", &of_group, true),
        // The common name differs.
        ("elsewhere", &of_group, false),
        ("grouped", &stranger, false),
        ("grouped", &own, false),
    ] {
        let answer = register(&hub, id, Proof::Certificate(certificate));
        assert_eq!(answer["status"] == "assigned", expected, "{id}: {answer}");
        if expected {
            let [_, sha256] = certificate.thumbprints();
            let made = record(&hub, id).authentication;
            assert_eq!(made, Authentication::SelfSigned([Some(sha256), None]));
        }
    }
}

#[test]
fn invalid_enrolments_are_refused_with_the_reason() {
    let key = json!({ "type": "symmetricKey" });
    let one = |fields: Value| {
        let mut one = json!({ "registrationId": "d", "attestation": key });
        one.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        json!({ "enrollments": [one] })
    };
    for (file, expected) in [
        (json!({ "scope": "x" }), "unknown field"),
        (
            one(json!({ "registrationId": "a b" })),
            "a registration id must have 1 to 128",
        ),
        (
            one(json!({ "registrationID": "d" })),
            "unknown field 'registrationID'",
        ),
        (one(json!({ "deviceId": "a b" })), "'d'"),
        (
            one(json!({ "provisioningStatus": "on" })),
            "neither enabled nor disabled",
        ),
        (
            one(json!({ "attestation": { "type": "tpm" } })),
            "neither symmetricKey nor x509",
        ),
        (
            one(json!({ "attestation": { "type": "x509" } })),
            "clientCertificates has no certificate",
        ),
        (
            one(
                json!({ "attestation": { "type": "symmetricKey", "symmetricKey": { "primaryKey": "c2hvcnQ=" } } }),
            ),
            "has 5 bytes; 16 to 64",
        ),
        (
            one(
                json!({ "attestation": { "type": "x509", "x509": { "signingCertificates": {} } } }),
            ),
            "only x509.clientCertificates",
        ),
        (
            one(
                json!({ "attestation": { "type": "x509", "x509": { "clientCertificates": { "primary": { "certificate": "!" } } } } }),
            ),
            "neither PEM nor",
        ),
        (
            json!({ "enrollments": [
                { "registrationId": "d", "attestation": key }, { "registrationId": "D", "attestation": key },
            ] }),
            "another enrolment has the same id",
        ),
    ] {
        let error = Enrollments::read(&file.to_string(), 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{file}: {error}");
    }
}

#[test]
fn missing_keys_are_derived_from_the_seed() {
    let keys = |seed| {
        let file =
            "enrollmentGroups: [{ enrollmentGroupId: g, attestation: { type: symmetricKey } }]";
        let read = Enrollments::read(file, seed).unwrap();
        let keys: Vec<String> = read.group_keys().map(|(_, key)| key).collect();
        (read.id_scope().to_owned(), keys)
    };
    assert_eq!(keys(1), keys(1));
    assert_ne!(keys(1), keys(2));
    let default = Enrollments::of_one_group(1);
    assert_eq!(default.id_scope(), keys(1).0);
    assert_eq!(default.group_keys().count(), 1);
}
