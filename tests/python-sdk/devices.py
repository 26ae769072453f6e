"""Tests the hub emulator with Azure's own Python device SDK, over both transports.

    python devices.py prepare FOLDER
    HUB=FOLDER/hub python devices.py drive FOLDER

The first command creates certificates (`authority.pem`, `*.pem`) and enrolments
(`enrollments.json`) for the hub. The second prints a table of transports and features, and exits
with 1 if a cell failed. A dash marks features that the SDK does not support.
"""

import base64
import datetime
import hmac
import json
import os
import pathlib
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from azure.iot.device import (
    IoTHubDeviceClient,
    Message,
    MethodResponse,
    ProvisioningDeviceClient,
    X509,
)
from azure.iot.device.common.pipeline import pipeline_stages_base
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

action, folder = sys.argv[1], pathlib.Path(sys.argv[2])
TRANSPORTS = {"mqtt": False, "mqtt-ws": True}
ID_SCOPE = "0ne00PYTHON"
KEY = base64.b64encode(b"k" * 32).decode()
# MQTT allows only the acknowledgement of a message. The SDK has no call for it: paho acknowledges
# on arrival.
CANNOT = ["reject", "abandon"]

# --- before the hub starts ---


def certificate(name, issuer=None, authority=False):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    made = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / f"{name}.key").write_bytes(key.private_bytes(*form))
    return made, key


def prepare():
    authority = certificate("authority", authority=True)
    individual, signing = [], {"primary": {"certificate": (folder / "authority.pem").read_text()}}
    for transport in TRANSPORTS:
        certificate(f"own-{transport}")
        certificate(f"signed-{transport}", authority)
        certificate(f"individual-x509-{transport}")
        certificate(f"grouped-x509-{transport}", authority)
        keys = {"type": "symmetricKey", "symmetricKey": {"primaryKey": KEY}}
        name = f"individual-{transport}"
        individual.append(
            {"registrationId": name, "deviceId": f"device-of-{name}", "attestation": keys}
        )
        primary = {"certificate": (folder / f"individual-x509-{transport}.pem").read_text()}
        attestation = {"type": "x509", "x509": {"clientCertificates": {"primary": primary}}}
        individual.append(
            {"registrationId": f"individual-x509-{transport}", "attestation": attestation}
        )
    groups = [
        {
            "enrollmentGroupId": "keys",
            "attestation": {"type": "symmetricKey", "symmetricKey": {"primaryKey": KEY}},
        },
        {
            "enrollmentGroupId": "certificates",
            "attestation": {"type": "x509", "x509": {"signingCertificates": signing}},
        },
    ]
    enrollments = {"idScope": ID_SCOPE, "enrollments": individual, "enrollmentGroups": groups}
    (folder / "enrollments.json").write_text(json.dumps(enrollments))


if action == "prepare":
    prepare()
    sys.exit(0)

from service import (  # noqa: E402, the hub must be there
    create,
    eventually,
    receive_feedback,
    host,
    registry,
    send,
    verdict,
)

# --- the device's side ---

ca = (folder / "hub" / "ca.pem").read_text()


def common(transport):
    return {
        "server_verification_cert": ca,
        "websockets": TRANSPORTS[transport],
        "connection_retry": False,
    }


class Device:
    """A connected client, and its received messages."""

    def __init__(self, client):
        self.client, self.messages = client, []
        client.connect()
        client.on_message_received = self.messages.append

    def next(self):
        eventually("message", lambda: self.messages)
        return self.messages.pop(0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.shutdown()


def odd_properties():
    properties = {"empty": "", "plain": "value", "kind": "update"}
    properties |= {
        f"n{at}{character}x": f"v{character}{at}" for at, character in enumerate("!#$%&'*+-.^_`|~")
    }
    properties |= {f"v{at}": f"a{character}b" for at, character in enumerate(' "(),/:;<=>?@[\\]{}')}
    return properties | {
        "encoded": "%2F%25+%20",
        "query": "a=b&c=d#e?f/g",
        "unicode": "Kühlschrank ❄ 冷蔵庫",
    }


def round_trip(device, device_id):
    sent = send(device_id)
    # A message completed just before the renewal of a connection comes again.
    while device.next().message_id != sent:
        pass
    assert verdict(sent) == "Success"


def basics(transport, cell):
    device_id = f"py-{transport}"
    device = Device(
        IoTHubDeviceClient.create_from_connection_string(
            create(device_id, KEY), **common(transport)
        )
    )
    sent = None

    @cell("connect")
    def _():
        telemetry = Message("telemetry")
        telemetry.custom_properties["a"] = "b"
        device.client.send_message(telemetry)

    @cell("c2d")
    def _():
        nonlocal sent
        properties = odd_properties()
        sent = send(device_id, properties, "odd")
        message = device.next()
        assert message.data == b"odd", message.data
        assert message.message_id == sent, message.message_id
        assert message.correlation_id == "correlation/1 %", message.correlation_id
        assert message.content_type == "application/json", message.content_type
        assert message.ack == "full", message.ack
        assert message.custom_properties == properties, message.custom_properties

    @cell("complete")
    def _():
        assert verdict(sent) == "Success"

    @cell("twin")
    def _():
        patches = []
        device.client.on_twin_desired_properties_patch_received = patches.append
        assert device.client.get_twin()["desired"]["$version"] >= 1
        reported = {"update": {"state": "installing"}, "list": ["a", 1], "odd": "/ % + é"}
        device.client.patch_twin_reported_properties(reported)
        seen = registry.get_twin(device_id)
        assert {key: seen.properties.reported[key] for key in reported} == reported, seen
        assert seen.connection_state == "Connected", seen.connection_state
        registry.update_twin(
            device_id, Twin(properties=TwinProperties(desired={"interval": 5})), None
        )
        eventually("push", lambda: patches)
        assert patches[0]["interval"] == 5 and patches[0]["$version"] >= 2, patches

    @cell("method")
    def _():
        def answer(request):
            response = MethodResponse.create_from_method_request(
                request, 207, {"got": request.payload}
            )
            device.client.send_method_response(response)
            answered.append(True)

        answered = []
        device.client.on_method_request_received = answer
        payload = {"in": ["s", 5, None]}
        call = CloudToDeviceMethod(
            method_name="reboot",
            payload=payload,
            response_timeout_in_seconds=120,
            connect_timeout_in_seconds=120,
        )
        result = registry.invoke_device_method(device_id, call)
        assert (result.status, result.payload) == (207, {"got": payload}), result
        eventually("acknowledgement of the answer", lambda: answered)

    device.client.shutdown()


def renewal(transport, cell):
    device_id = f"py-{transport}-renewal"
    connection = create(device_id, KEY)

    @cell("renewal")
    def _():
        client = IoTHubDeviceClient.create_from_connection_string(
            connection, sastoken_ttl=30, **common(transport)
        )
        with Device(client) as device:
            end = time.monotonic() + 33
            while time.monotonic() < end:
                round_trip(device, device_id)
                time.sleep(0.3)


def eviction(transport, cell):
    device_id = f"py-{transport}-eviction"
    connection = create(device_id, KEY)

    @cell("eviction")
    def _():
        first = Device(
            IoTHubDeviceClient.create_from_connection_string(connection, **common(transport))
        )
        with Device(
            IoTHubDeviceClient.create_from_connection_string(connection, **common(transport))
        ) as second:
            eventually("disconnect of the first", lambda: not first.client.connected)
            assert second.client.connected
            round_trip(second, device_id)
        first.client.shutdown()


def with_certificate(transport, name, hub_name):
    proof = X509(cert_file=str(folder / f"{name}.pem"), key_file=str(folder / f"{name}.key"))
    client = IoTHubDeviceClient.create_from_x509_certificate(
        proof, hub_name, name, **common(transport)
    )
    with Device(client) as device:
        round_trip(device, name)


def certificates(transport, cell):
    @cell("x509")
    def _():
        name = f"own-{transport}"
        own = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        thumbprint = own.fingerprint(hashes.SHA256()).hex()
        registry.create_device_with_x509(name, thumbprint, thumbprint, "enabled")
        with_certificate(transport, name, host)

    @cell("x509-ca")
    def _():
        registry.create_device_with_certificate_authority(f"signed-{transport}", "enabled")
        with_certificate(transport, f"signed-{transport}", host)


def registrations(transport, cell):
    where = {"server_verification_cert": ca, "websockets": TRANSPORTS[transport]}

    def with_key(registration_id, key):
        client = ProvisioningDeviceClient.create_from_symmetric_key(
            host, registration_id, ID_SCOPE, key, **where
        )
        result = client.register()
        assert result.status == "assigned", result.status
        assert result.registration_state.assigned_hub == host, result.registration_state
        return result.registration_state.device_id

    def use_key(device_id, key):
        client = IoTHubDeviceClient.create_from_symmetric_key(
            key, host, device_id, **common(transport)
        )
        with Device(client) as device:
            round_trip(device, device_id)

    @cell("dps-key")
    def _():
        name = f"individual-{transport}"
        device_id = with_key(name, KEY)
        assert device_id == f"device-of-{name}", device_id
        use_key(device_id, KEY)

    @cell("dps-group")
    def _():
        name = f"grouped-{transport}"
        key = base64.b64encode(hmac.digest(base64.b64decode(KEY), name.encode(), "sha256")).decode()
        assert with_key(name, key) == name
        use_key(name, key)

    for feature, name in [
        ("dps-x509", f"individual-x509-{transport}"),
        ("dps-x509-group", f"grouped-x509-{transport}"),
    ]:

        @cell(feature)
        def _():
            proof = X509(
                cert_file=str(folder / f"{name}.pem"), key_file=str(folder / f"{name}.key")
            )
            client = ProvisioningDeviceClient.create_from_x509_certificate(
                host, name, ID_SCOPE, proof, **where
            )
            result = client.register()
            assert result.status == "assigned", result.status
            with_certificate(transport, name, result.registration_state.assigned_hub)


# --- the table ---

FEATURES = [
    "connect",
    "c2d",
    "complete",
    "reject",
    "abandon",
    "twin",
    "method",
    "renewal",
    "eviction",
]
FEATURES += ["x509", "x509-ca", "dps-key", "dps-group", "dps-x509", "dps-x509-group"]
table = {transport: {feature: "-" for feature in CANNOT} for transport in TRANSPORTS}


def cells(transport):
    def cell(feature):
        def run(what):
            try:
                what()
                table[transport][feature] = "yes"
            except Exception:
                table[transport][feature] = "FAILED"
                print(f"{transport} {feature}: {traceback.format_exc(limit=-4)}")

        return run

    return cell


# The SDK renews a token two minutes before the expiry, without a setting.
pipeline_stages_base.SasTokenStage.DEFAULT_TOKEN_UPDATE_MARGIN = 26
started = time.monotonic()
receive_feedback()
with ThreadPoolExecutor(max_workers=10) as pool:
    parts = [basics, renewal, eviction, certificates, registrations]
    running = [
        pool.submit(part, transport, cells(transport)) for transport in TRANSPORTS for part in parts
    ]
for part in running:
    if part.exception():
        print("".join(traceback.format_exception(part.exception())))
width = max(len(feature) for feature in FEATURES)
print(f"\n{'Python':{width}}  " + " ".join(f"{transport:8}" for transport in TRANSPORTS))
failed = 0
for feature in FEATURES:
    row = [table[transport].get(feature, "FAILED") for transport in TRANSPORTS]
    failed += row.count("FAILED")
    print(f"{feature:{width}}  " + " ".join(f"{value:8}" for value in row))
print(f"{failed} failed, in {time.monotonic() - started:.1f} s")
sys.stdout.flush()
# Remaining threads of the SDK are ignored.
os._exit(1 if failed else 0)
