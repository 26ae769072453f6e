"""Tests the hub emulator with Azure's own Python service SDK.

    REQUESTS_CA_BUNDLE=ca.pem python drive.py CONNECTION_STRING DEVICE_ID

The device must be connected and complete its messages, and the hub must deliver feedback soon.
Prints a JSON object per check, and exits with 1 if any check failed.
"""

import base64
import json
import os
import sys
import time

import uamqp
from azure.iot.hub import (
    IoTHubConfigurationManager,
    IoTHubHttpRuntimeManager,
    IoTHubJobManager,
    IoTHubRegistryManager,
)
from azure.iot.hub.models import CloudToDeviceMethod, QuerySpecification, Twin, TwinProperties
from azure.iot.hub.protocol.models import AuthenticationMechanism, ExportImportDevice, SymmetricKey
from msrest.exceptions import HttpOperationError

connection_string, connected = sys.argv[1:]
host = dict(pair.split("=", 1) for pair in connection_string.split(";"))["HostName"]
port = int(host.partition(":")[2] or 5671)

# The SDK's HTTPS client honours a port in the host name. The AMQP client has no setting for the
# port or the certificate; both are set here.
token_authentication = uamqp.authentication.JWTTokenAuth
uamqp.authentication.JWTTokenAuth = lambda *positional, **named: token_authentication(
    *positional, **named, port=port, verify=os.environ["REQUESTS_CA_BUNDLE"]
)

registry = IoTHubRegistryManager.from_connection_string(connection_string)
runtime = IoTHubHttpRuntimeManager.from_connection_string(connection_string)
failed = 0


def check(name):
    def run(action):
        global failed
        started = time.monotonic()
        try:
            action()
            print(
                json.dumps(
                    {"check": name, "ok": True, "ms": round((time.monotonic() - started) * 1000)}
                )
            )
        except Exception as error:  # any error of the SDK
            failed += 1
            print(
                json.dumps(
                    {"check": name, "ok": False, "error": f"{type(error).__name__}: {error}"}
                )
            )

    return run


def refused(status, action, *arguments, **named):
    try:
        action(*arguments, **named)
    except HttpOperationError as error:
        assert error.response.status_code == status, error
        return error
    raise AssertionError(f"not refused: {action.__name__}{arguments}")


def key(fill):
    return base64.b64encode(bytes([fill]) * 32).decode()


def thumbprint(fill):
    return fill * 40


def rows(query):
    # The SDK converts all rows to twins: fields of a twin are attributes, other fields are in
    # `additional_properties`.
    answer = registry.query_iot_hub(QuerySpecification(query=query)).items
    return [
        row.additional_properties | ({"deviceId": row.device_id} if row.device_id else {})
        for row in answer
    ]


# --- the registry ---


@check("create with keys")
def _():
    made = registry.create_device_with_sas("py-sas", key(1), key(2), "enabled", status_reason="new")
    assert made.authentication.type == "sas", made
    assert made.authentication.symmetric_key.primary_key == key(1), made
    assert made.status_reason == "new", made
    assert made.connection_state == "Disconnected", made


@check("create with thumbprints")
def _():
    made = registry.create_device_with_x509("py-x509", thumbprint("a"), thumbprint("b"), "enabled")
    assert made.authentication.type == "selfSigned", made
    assert made.authentication.x509_thumbprint.secondary_thumbprint == thumbprint("b"), made


@check("create with a certificate authority, as an edge device")
def _():
    made = registry.create_device_with_certificate_authority("py-ca", "enabled", iot_edge=True)
    assert made.authentication.type == "certificateAuthority", made
    assert made.capabilities.iot_edge is True, made
    found = registry.get_device("py-ca")
    assert found.authentication.type == "certificateAuthority", found
    assert found.capabilities.iot_edge is True, found
    twin = registry.get_twin("py-ca")
    assert twin.authentication_type == "certificateAuthority", twin
    assert twin.capabilities.iot_edge is True, twin


@check("keys that are none are refused")
def _():
    refused(400, registry.create_device_with_sas, "py-bad", "not base64", "not base64", "enabled")
    refused(400, registry.create_device_with_sas, "py-bad", key(1), "", "enabled")
    refused(400, registry.create_device_with_x509, "py-bad", "ab", "cd", "enabled")
    refused(404, registry.get_device, "py-bad")


@check("an update says all, and needs the etag")
def _():
    before = registry.get_device("py-sas")
    after = registry.update_device_with_sas("py-sas", before.etag, key(3), key(4), "disabled")
    assert after.status == "disabled" and after.status_reason is None, after
    refused(412, registry.update_device_with_sas, "py-sas", before.etag, key(3), key(4), "enabled")


@check("bulk")
def _():
    def device(number):
        keys = AuthenticationMechanism(
            type="sas", symmetric_key=SymmetricKey(primary_key=key(5), secondary_key=key(6))
        )
        return ExportImportDevice(
            id=f"py-bulk-{number}",
            import_mode="create",
            status="enabled",
            authentication=keys,
            tags={"kind": "bulk"},
        )

    assert registry.bulk_create_or_update_devices([device(1), device(2)]).is_successful
    found = rows("SELECT devices.deviceId FROM devices WHERE tags.kind = 'bulk'")
    assert found == [{"deviceId": "py-bulk-1"}, {"deviceId": "py-bulk-2"}], found


# --- twins and queries ---


@check("a twin's values have bounds")
def _():
    twin = registry.update_twin(
        "py-ca",
        Twin(tags={"n": 4503599627370495}, properties=TwinProperties(desired={"a": 1})),
        None,
    )
    assert twin.tags == {"n": 4503599627370495}, twin
    refused(400, registry.update_twin, "py-ca", Twin(tags={"n": 4503599627370496}), None)
    updated = twin.properties.desired["$metadata"]["a"]["$lastUpdated"]
    found = rows(
        "SELECT deviceId, properties.desired.$metadata.$lastUpdated AS t FROM devices"
        f" WHERE properties.desired.$metadata.a.$lastUpdated >= '{updated}'"
    )
    assert found == [{"deviceId": "py-ca", "t": updated}], found


@check("groups")
def _():
    query = (
        "SELECT tags.kind AS kind, COUNT() AS n FROM devices"
        " WHERE tags.kind = 'bulk' GROUP BY tags.kind"
    )
    assert rows(query) == [{"kind": "bulk", "n": 2}], rows(query)


@check("what the emulator has not is said")
def _():
    configurations = IoTHubConfigurationManager.from_connection_string(connection_string)
    jobs = IoTHubJobManager.from_connection_string(connection_string)
    for action, *arguments in [
        (registry.get_modules, "py-ca"),
        (configurations.get_configurations,),
        (jobs.get_import_export_jobs,),
    ]:
        error = refused(501, action, *arguments)
        assert "emulator" in error.response.json()["Message"], error.response.text


@check("a method of a device that is not connected")
def _():
    method = CloudToDeviceMethod(method_name="reboot", payload={}, response_timeout_in_seconds=5)
    error = refused(404, registry.invoke_device_method, "py-ca", method)
    assert (
        "404103" in error.response.text or "DeviceNotOnline" in error.response.text
    ), error.response.text


# --- messages and their feedback ---

notifications = runtime.protocol.cloud_to_device_messages


def next_feedback():
    """Returns the next feedback. The SDK's call returns the response only with `raw`."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        response = notifications.receive_feedback_notification(raw=True).response
        if response.status_code == 200:
            return response.headers["ETag"].strip('"'), response.json()
        assert response.status_code == 204, response.status_code
        time.sleep(0.05)
    raise AssertionError("no feedback came")


@check("nothing to tell is no error")
def _():
    assert runtime.receive_feedback_notification() is None


@check("a message waits for a device that is not connected, and is purged")
def _():
    registry.send_c2d_message("py-ca", "hello", {"messageId": "waits"})
    assert registry.get_device("py-ca").cloud_to_device_message_count == 1
    purged = notifications.purge_cloud_to_device_message_queue("py-ca")
    assert purged.total_messages_purged == 1, purged
    assert registry.get_device("py-ca").cloud_to_device_message_count == 0


@check("feedback is abandoned and completed")
def _():
    registry.send_c2d_message(connected, "hello", {"messageId": "py-1", "iothub-ack": "full"})
    lock, records = next_feedback()
    assert [(one["originalMessageId"], one["statusCode"]) for one in records] == [
        ("py-1", "Success")
    ], records
    assert runtime.receive_feedback_notification() is None
    runtime.abandon_feedback_notification(lock)
    refused(412, runtime.complete_feedback_notification, lock)
    again, same = next_feedback()
    assert same == records and again != lock, (again, same)
    runtime.complete_feedback_notification(again)
    refused(412, runtime.abandon_feedback_notification, again)
    response = notifications.receive_feedback_notification(raw=True).response
    assert response.status_code == 204, response.text


@check("delete")
def _():
    for device in ["py-sas", "py-x509", "py-ca", "py-bulk-1", "py-bulk-2"]:
        registry.delete_device(device)
        refused(404, registry.get_device, device)


sys.exit(1 if failed else 0)
