"""Tests the device apps of `examples/device` with the hub in the folder `HUB`: `python example.py`.

Each app receives a signed update, installs the artefact from a file server, and reports in its
twin. Repeated updates, updates without a valid signature, and artefacts not matching the manifest
are not installed.
"""

import base64
import functools
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from service import create, eventually, folder, registry, send

ROOT = pathlib.Path(__file__).resolve().parents[2]
APPS = {"python": [sys.executable, "device.py"], "node": ["node", "device.js"]}
KEY = base64.b64encode(b"e" * 32).decode()
ARTIFACT = b"firmware " * 1000
signer = Ed25519PrivateKey.generate()
public = signer.public_key().public_bytes(
    serialization.Encoding.Raw, serialization.PublicFormat.Raw
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def envelope(url, key=signer, **changes):
    kind = "application/vnd.twincast.update+json"
    artifact = {"url": url, "size": len(ARTIFACT), "sha256": hashlib.sha256(ARTIFACT).hexdigest()}
    manifest = {
        "schema": 1,
        "name": "fridge-firmware",
        "version": "1.4.2",
        "hardware": ["fridge-a"],
        "artifact": artifact,
    }
    payload = json.dumps(manifest | changes).encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    signature = {
        "keyid": hashlib.sha256(public).hexdigest()[:16],
        "sig": base64.b64encode(key.sign(signed)).decode(),
    }
    return json.dumps(
        {
            "payloadType": kind,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [signature],
        }
    )


def drive(language, room, url):
    device_id, home = f"example-{language}", room / language
    home.mkdir()
    environment = os.environ | {
        "DEVICE_CONNECTION_STRING": create(device_id, KEY),
        "UPDATE_NAME": "fridge-firmware",
        "UPDATE_HARDWARE": "fridge-a",
        "UPDATE_KEYS": base64.b64encode(public).decode(),
        "STATE_FOLDER": str(home),
        "HUB_CA_FILE": str(folder / "ca.pem"),
        "NODE_EXTRA_CA_CERTS": str(folder / "ca.pem"),
        "NODE_PATH": str(ROOT / "tests/node-sdk/node_modules"),
    }

    def start():
        return subprocess.Popen(
            APPS[language],
            cwd=ROOT / "examples/device",
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    def reported():
        return registry.get_twin(device_id).properties.reported

    def answer(message_id):
        def end():
            update = reported().get("update", {})
            return (
                update
                if update.get("id") == message_id and update["state"] != "installing"
                else None
            )

        return eventually(f"answer of {language}", end)

    def expect_report(body, state, code=None, message_id=None):
        message_id = send(device_id, {"kind": "update"}, body, message_id)
        update = answer(message_id)
        assert (update["state"], update.get("error", {}).get("code")) == (state, code), update
        return message_id

    app = start()
    try:
        eventually("connection", lambda: reported().get("firmware") == "0")
        expect_report("nonsense", "refused", "malformed")
        expect_report(envelope(url, key=Ed25519PrivateKey.generate()), "refused", "signature")
        expect_report(envelope(url, hardware=["oven"]), "refused", "hardware")
        expect_report(envelope(url, name="oven"), "refused", "name")
        expect_report(envelope(url, schema=2), "refused", "schema")
        expect_report(envelope(url, expires="2020-01-01T00:00:00Z"), "refused", "expired")
        other = {"url": url, "size": len(ARTIFACT), "sha256": "0" * 64}
        expect_report(envelope(url, artifact=other), "failed", "sha256")
        assert not (home / "firmware").exists()
        first = expect_report(envelope(url), "applied")
        assert (home / "firmware").read_bytes() == ARTIFACT
        assert reported()["firmware"] == "1.4.2"
        expect_report(envelope(url, version="1.4.1"), "refused", "downgrade")
        # The update arrives again after a restart of the app: reported, and not installed again.
        app.terminate()
        printed = app.communicate()[0]
        app = start()
        expect_report(envelope(url), "applied", message_id=first)
        expect_report(envelope(url, version="1.4.1", force=True), "applied")
    finally:
        app.terminate()
        rest = app.communicate()[0]
    installed = [line for line in (printed + rest).splitlines() if line.startswith("installed")]
    assert installed == ["installed 1.4.2", "installed 1.4.1"], installed
    print(f"examples/device, {language}: ok")


with tempfile.TemporaryDirectory() as temporary:
    room = pathlib.Path(temporary)
    (room / "served").mkdir()
    (room / "served" / "firmware.bin").write_bytes(ARTIFACT)
    handler = functools.partial(Quiet, directory=room / "served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for language in APPS:
        drive(language, room, f"http://127.0.0.1:{server.server_port}/firmware.bin")
