"""A device app for signed updates, with Azure's own SDK.

The README.md in this folder explains the start.

The app waits for messages of the kind `update`, checks and installs each update, and answers in the
reported property `update`.
"""

import base64
import datetime
import hashlib
import json
import os
import pathlib
import queue
import re
import urllib.request

from azure.iot.device import IoTHubDeviceClient
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NAME, HARDWARE = os.environ["UPDATE_NAME"], os.environ["UPDATE_HARDWARE"]
KEYS = [
    Ed25519PublicKey.from_public_bytes(base64.b64decode(key))
    for key in os.environ["UPDATE_KEYS"].split(",")
]
FOLDER = pathlib.Path(os.environ.get("STATE_FOLDER", "."))
PAYLOAD_TYPE = "application/vnd.twincast.update+json"
MAX_ARTIFACT_BYTES, MAX_STORED_ENDS = 64 << 20, 100


class UpdateError(Exception):
    """The reason why an update is refused or has failed: a code, and a text for people."""


def install(artifact: bytes, manifest: dict) -> None:
    """Installs the artefact. Replace this function; the app reports every exception of the
    function as a failure."""
    (FOLDER / "firmware.new").write_bytes(artifact)
    os.replace(FOLDER / "firmware.new", FOLDER / "firmware")
    print(f"installed {manifest['version']}", flush=True)


def verify_envelope(body: bytes) -> dict:
    """Verifies the signature of an envelope (DSSE) with the trusted keys, and returns the
    manifest."""
    envelope = json.loads(body)
    payload_type = envelope["payloadType"].encode()
    payload = base64.b64decode(envelope["payload"], validate=True)
    signed_data = b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type, len(payload), payload)
    for key, signature in (
        (key, signature) for key in KEYS for signature in envelope["signatures"]
    ):
        try:
            key.verify(base64.b64decode(signature["sig"]), signed_data)
        except InvalidSignature:
            continue
        if envelope["payloadType"] == PAYLOAD_TYPE:
            return json.loads(payload)
        raise UpdateError("payload_type", f"the payload is of the type {envelope['payloadType']}")
    raise UpdateError("signature", "no key that this device trusts has signed the update")


def check_manifest(manifest: dict, running: str) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    numbers = lambda version: [int(n) for n in re.findall(r"\d+", version)]
    expires = manifest.get("expires", "9999-12-31T00:00:00Z").replace("Z", "+00:00")
    is_newer = manifest.get("force", False) or numbers(manifest["version"]) > numbers(running)
    for is_valid, code, text in [
        (manifest["schema"] == 1, "schema", f"the schema is {manifest['schema']}, not 1"),
        (manifest["name"] == NAME, "name", f"{manifest['name']} is not {NAME}"),
        (HARDWARE in manifest.get("hardware", [HARDWARE]), "hardware", f"it is not for {HARDWARE}"),
        (datetime.datetime.fromisoformat(expires) > now, "expired", f"it has expired at {expires}"),
        (is_newer, "downgrade", f"{manifest['version']} is not newer than {running}, which runs"),
        (
            0 < manifest["artifact"]["size"] <= MAX_ARTIFACT_BYTES,
            "size",
            f"at most {MAX_ARTIFACT_BYTES} bytes are taken",
        ),
    ]:
        if not is_valid:
            raise UpdateError(code, text)


def download(artifact: dict) -> bytes:
    with urllib.request.urlopen(artifact["url"], timeout=60) as response:
        content = response.read(artifact["size"] + 1)
    if (
        len(content) != artifact["size"]
        or hashlib.sha256(content).hexdigest() != artifact["sha256"]
    ):
        raise UpdateError("sha256", "what was downloaded is not what the manifest names")
    return content


class App:
    def __init__(self, client):
        self.client, self.file = client, FOLDER / "state.json"
        self.state = (
            json.loads(self.file.read_text())
            if self.file.exists()
            else {"version": "0", "ends": {}}
        )

    def report(self, message_id, state, version, error=None):
        at = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        update = {
            "id": message_id,
            "state": state,
            "version": version,
            "error": error,
            "attempt": 1,
            "at": at,
        }
        self.client.patch_twin_reported_properties(
            {"update": update, "firmware": self.state["version"]}
        )

    def store_end(self, message_id, end):
        """Stores the end of an update on the disk. An end is final, so the app stores the end
        before reporting the end."""
        self.state["ends"] = dict(
            list((self.state["ends"] | {message_id: end}).items())[-MAX_STORED_ENDS:]
        )
        with open(FOLDER / "state.new", "w") as file:
            json.dump(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(FOLDER / "state.new", self.file)

    def process_update(self, message_id, body):
        if message_id not in self.state["ends"]:  # a repeated message already has a stored end
            version, end, code = None, "refused", "malformed"
            try:
                manifest = verify_envelope(body)
                version = manifest["version"]
                check_manifest(manifest, self.state["version"])
                end, code = "failed", "install"
                self.report(message_id, "installing", version)
                install(download(manifest["artifact"]), manifest)
                self.state["version"], result = version, ["applied", version, None]
            except Exception as error:
                code, text = error.args if isinstance(error, UpdateError) else (code, repr(error))
                result = [end, version, {"code": code, "text": text[:256]}]
            self.store_end(message_id, result)
        self.report(message_id, *self.state["ends"][message_id])


def main():
    ca = os.environ.get("HUB_CA_FILE")  # the certificate authority of an emulated hub
    options = {"server_verification_cert": pathlib.Path(ca).read_text()} if ca else {}
    client = IoTHubDeviceClient.create_from_connection_string(
        os.environ["DEVICE_CONNECTION_STRING"], **options
    )
    app, messages = App(client), queue.Queue(maxsize=100)
    # The client connects when the handler is set. A later handler misses waiting messages.
    client.on_message_received = messages.put
    client.patch_twin_reported_properties({"firmware": app.state["version"]})
    while True:  # the updates run one after the other
        message = messages.get()
        if message.custom_properties.get("kind") == "update":
            app.process_update(message.message_id, message.data)


main()
