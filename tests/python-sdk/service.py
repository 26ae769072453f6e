"""The service side for tests of devices: Azure's own service SDK with the hub in the folder
`HUB`."""

import os
import pathlib
import threading
import time
import uuid

import uamqp
from azure.iot.hub import IoTHubHttpRuntimeManager, IoTHubRegistryManager

folder = pathlib.Path(os.environ["HUB"])
connection_string = (folder / "connection-string").read_text().strip()
host = dict(pair.split("=", 1) for pair in connection_string.split(";"))["HostName"]
os.environ["REQUESTS_CA_BUNDLE"] = str(folder / "ca.pem")
# The SDK's AMQP client has no setting for the certificate.
token_authentication = uamqp.authentication.JWTTokenAuth
uamqp.authentication.JWTTokenAuth = lambda *positional, **named: token_authentication(
    *positional, **named, verify=str(folder / "ca.pem")
)
registry = IoTHubRegistryManager.from_connection_string(connection_string)
notifications = IoTHubHttpRuntimeManager.from_connection_string(
    connection_string
).protocol.cloud_to_device_messages
sending, verdicts = threading.Lock(), {}


def receive_feedback():
    """Starts receiving feedback."""

    def receive():
        while True:
            response = notifications.receive_feedback_notification(raw=True).response
            if response.status_code != 200:
                time.sleep(0.1)
                continue
            for record in response.json():
                verdicts[record["originalMessageId"]] = record["statusCode"]
            notifications.complete_feedback_notification(response.headers["ETag"].strip('"'))

    threading.Thread(target=receive, daemon=True).start()


def eventually(what, look, seconds=120):
    """Polls `look` until the result is truthy, and returns the result."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: nothing within {seconds} s")


def send(device_id, properties=None, body="body", message_id=None):
    """Sends a message and returns its id."""
    message_id = message_id or f"m-{uuid.uuid4()}"
    fields = {
        "messageId": message_id,
        "correlationId": "correlation/1 %",
        "contentType": "application/json",
        "iothub-ack": "full",
    }
    with sending:
        registry.send_c2d_message(device_id, body, fields | (properties or {}))
    return message_id


def verdict(message_id):
    return eventually("feedback", lambda: verdicts.get(message_id))


def create(device_id, key):
    """Creates a device with a symmetric key, and returns the connection string."""
    registry.create_device_with_sas(device_id, key, key, "enabled")
    return f"HostName={host};DeviceId={device_id};SharedAccessKey={key}"
