// Tests the hub emulator with Azure's own Node service SDK.
//
//   NODE_EXTRA_CA_CERTS=ca.pem node drive.mjs <connection string> <device id prefix>
//
// The fleet must have at least 250 devices "<prefix>000" and up, with the tag `kind` "fridge",
// completing all messages. Prints a JSON object per check, and exits with 1 if any check failed.

import assert from 'node:assert/strict';
import https from 'node:https';
import iothub from 'azure-iothub';
import messages from 'azure-iothub/dist/common-core/message.js';

const { Client, Registry } = iothub;
const { Message } = messages;

const [connectionString, prefix] = process.argv.slice(2);
assert.ok(connectionString && prefix, 'usage: drive.mjs <connection string> <device id prefix>');
const [host, port] = /HostName=([^;]+)/.exec(connectionString)[1].split(':');

// Opens connections to host and port separately. The SDK's REST client uses the whole host name,
// including the port, as a DNS name.
class PortAgent extends https.Agent {
  createConnection(options, callback) {
    return super.createConnection(
      { ...options, host, servername: host, port: Number(port ?? 443) }, callback);
  }
}

let failed = 0;
async function check(name, action) {
  const started = Date.now();
  try {
    const detail = await action();
    console.log(JSON.stringify({ check: name, ok: true, ms: Date.now() - started, ...detail }));
  } catch (error) {
    failed += 1;
    console.log(
      JSON.stringify({ check: name, ok: false, error: `${error.name}: ${error.message}` }));
  }
}

function withTimeout(ms, description, promise) {
  let timer;
  const timeout = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${description}: no result within ${ms} ms`)), ms);
  });
  return Promise.race([promise, timeout]).finally(() => clearTimeout(timer));
}

const deviceId = (n) => `${prefix}${String(n).padStart(3, '0')}`;
const client = Client.fromConnectionString(connectionString);
const registry = Registry.fromConnectionString(connectionString);
registry._restApiClient.setOptions({ http: { agent: new PortAgent({ keepAlive: true }) } });

// --- sending and feedback ---

// The expected feedback: a check of each record, by message id.
const expectedFeedback = new Map();
let resolveFeedback;
const allFeedback = new Promise((resolve) => { resolveFeedback = resolve; });

await check('open', () => withTimeout(30_000, 'open', client.open()));

await check('feedback receiver', async () => {
  const { result, message } = await withTimeout(30_000, 'receiver', client.getFeedbackReceiver());
  const receiver = message ?? result ?? (await client.getFeedbackReceiver());
  receiver.on('errorReceived', (error) =>
    console.log(JSON.stringify({ note: 'receiver', error: error.message })));
  receiver.on('message', (received) => {
    for (const record of JSON.parse(received.data.toString())) {
      expectedFeedback.get(record.originalMessageId)?.(record);
      expectedFeedback.delete(record.originalMessageId);
    }
    receiver.complete(received, () => { if (expectedFeedback.size === 0) resolveFeedback(); });
  });
});

for (const [n, ack] of ['none', 'positive', 'negative', 'full'].entries()) {
  await check(`send with ack ${ack}`, async () => {
    const message = new Message(JSON.stringify({ ack }));
    // The SDK encodes an id in the form of a UUID as a UUID.
    message.messageId = ack === 'full' ? 'a1b2c3d4-0000-4000-8000-0123456789ab' : `node-${ack}`;
    message.ack = ack;
    message.contentType = 'application/json';
    message.properties.add('n', String(n));
    message.expiryTimeUtc = Date.now() + 60_000;
    if (ack === 'positive' || ack === 'full') {
      expectedFeedback.set(message.messageId, (record) => {
        assert.equal(record.statusCode, 'Success');
        assert.equal(record.deviceId, deviceId(n));
      });
    }
    const { message: outcome } = await withTimeout(
      30_000, 'send', client.send(deviceId(n), message));
    return { outcome: outcome?.constructor?.name };
  });
}

await check('send to an unknown device fails', async () => {
  await assert.rejects(withTimeout(30_000, 'send', client.send('nobody', new Message('x'))), {
    name: 'DeviceNotFoundError',
  });
});

await check('send of a too large message fails', async () => {
  const large = new Message(Buffer.alloc(70_000));
  await assert.rejects(withTimeout(30_000, 'send', client.send(deviceId(0), large)), {
    name: 'MessageTooLargeError',
  });
});

await check('many sends at once', async () => {
  const sends = [];
  for (let n = 0; n < 2500; n += 1) {
    const message = new Message('burst');
    message.messageId = `burst-${n}`;
    sends.push(client.send(deviceId(n % 250), message));
  }
  await withTimeout(60_000, 'burst', Promise.all(sends));
  return { sends: sends.length };
});

await check('feedback arrives and is completed', () =>
  withTimeout(30_000, 'feedback', allFeedback));

// --- queries ---

await check('query with pages', async () => {
  const query = registry.createQuery(`SELECT * FROM devices WHERE tags.kind = 'fridge'`, 100);
  const ids = new Set();
  let pages = 0;
  while (query.hasMoreResults) {
    const { result } = await withTimeout(30_000, 'page', query.nextAsTwin());
    pages += 1;
    for (const twin of result) {
      assert.equal(twin.tags.kind, 'fridge');
      ids.add(twin.deviceId);
    }
  }
  assert.ok(ids.size >= 250 && pages >= 3, `${ids.size} devices in ${pages} pages`);
  return { devices: ids.size, pages };
});

await check('query with count', async () => {
  const query = registry.createQuery(`SELECT COUNT() AS n FROM devices WHERE tags.kind = 'fridge'`);
  const { result } = await withTimeout(30_000, 'count', query.next());
  assert.ok(result[0].n >= 250);
  return { count: result[0].n };
});

await check('query with groups', async () => {
  const query = registry.createQuery(
    'SELECT devices.tags.kind AS kind, COUNT() AS n FROM devices GROUP BY tags.kind');
  const { result } = await withTimeout(30_000, 'groups', query.next());
  assert.ok(result.find((row) => row.kind === 'fridge').n >= 250);
});

await check('query with the name of the collection', async () => {
  const query = registry.createQuery(`SELECT TOP 1 devices.deviceId FROM devices`);
  const { result } = await withTimeout(30_000, 'page', query.next());
  assert.match(result[0].deviceId, /./);
});

await check('an invalid query is refused', async () => {
  const query = registry.createQuery('SELECT * FROM devices WHERE');
  await assert.rejects(query.next());
});

// --- registry and twins ---

const testDevice = 'node-sdk@1';

await check('create', async () => {
  const { responseBody } = await registry.create({ deviceId: testDevice, status: 'enabled' });
  assert.equal(responseBody.deviceId, testDevice);
  assert.ok(responseBody.authentication.symmetricKey.primaryKey);
});

await check('create again fails', () =>
  assert.rejects(registry.create({ deviceId: testDevice }), { name: 'DeviceAlreadyExistsError' }));

await check('get', async () => {
  const { responseBody } = await registry.get(testDevice);
  assert.equal(responseBody.status, 'enabled');
});

await check('list', async () => {
  const { responseBody } = await registry.list();
  assert.ok(responseBody.length >= 250);
});

await check('update', async () => {
  const { responseBody } = await registry.update({
    deviceId: testDevice,
    status: 'disabled',
    authentication: (await registry.get(testDevice)).responseBody.authentication,
  });
  assert.equal(responseBody.status, 'disabled');
});

await check('update twin', async () => {
  const { responseBody: before } = await registry.getTwin(testDevice);
  const patch = {
    tags: { kind: 'test', room: { floor: 3 } },
    properties: { desired: { interval: 5 } },
  };
  const { responseBody: after } = await registry.updateTwin(testDevice, patch, before.etag);
  assert.equal(after.tags.room.floor, 3);
  assert.equal(after.properties.desired.interval, 5);
  await assert.rejects(registry.updateTwin(testDevice, patch, before.etag));
  const { result } = await registry
    .createQuery(`SELECT deviceId FROM devices WHERE tags.room.floor >= 3`)
    .next();
  assert.deepEqual(result, [{ deviceId: testDevice }]);
});

await check('bulk add and remove', async () => {
  const devices = [{ deviceId: 'bulk-1' }, { deviceId: 'bulk-2' }];
  assert.equal((await registry.addDevices(devices)).responseBody.isSuccessful, true);
  assert.equal((await registry.removeDevices(devices, true)).responseBody.isSuccessful, true);
});

await check('statistics', async () => {
  const { responseBody } = await registry.getRegistryStatistics();
  assert.ok(responseBody.totalDeviceCount >= 251);
  return responseBody;
});

const authentications = {
  thumbprint: { x509Thumbprint: { primaryThumbprint: 'ab'.repeat(20), secondaryThumbprint: '' } },
  authority: { type: 'certificateAuthority' },
};

await check('create with certificates, as an edge device', async () => {
  const capabilities = { iotEdge: true };
  for (const [deviceId, authentication] of Object.entries(authentications)) {
    await registry.create({ deviceId, statusReason: 'new', authentication, capabilities });
    const { responseBody: identity } = await registry.get(deviceId);
    assert.equal(identity.authentication.type, authentication.type ?? 'selfSigned');
    assert.equal(
      identity.authentication.x509Thumbprint.primaryThumbprint,
      authentication.x509Thumbprint?.primaryThumbprint ?? null);
    assert.deepEqual(identity.capabilities, capabilities);
    const { responseBody: twin } = await registry.getTwin(deviceId);
    assert.equal(twin.authenticationType, identity.authentication.type);
    // An update replaces the whole identity: a missing reason or capability is removed.
    const { responseBody: updated } = await registry.update({ deviceId, authentication });
    assert.equal(updated.statusReason, null);
    assert.deepEqual(updated.capabilities, { iotEdge: false });
    await registry.delete(deviceId);
  }
});

await check('keys that are not base64 are refused', async () => {
  const symmetricKey = { primaryKey: 'not base64!', secondaryKey: 'not base64!' };
  await assert.rejects(
    registry.create({ deviceId: 'invalid-keys', authentication: { symmetricKey } }),
    { name: 'ArgumentError' });
  await assert.rejects(registry.get('invalid-keys'), { name: 'DeviceNotFoundError' });
});

await check('integers beyond 52 bits are refused', async () => {
  const { responseBody: twin } = await registry.updateTwin(
    testDevice, { tags: { n: 4503599627370495 } }, '*');
  assert.equal(twin.tags.n, 4503599627370495);
  await assert.rejects(registry.updateTwin(testDevice, { tags: { n: 4503599627370496 } }, '*'), {
    name: 'ArgumentError',
  });
});

await check('twins have the times of their updates', async () => {
  const { responseBody: twin } = await registry.getTwin(testDevice);
  const time = twin.properties.desired.$metadata.interval.$lastUpdated;
  const query =
    'SELECT deviceId FROM devices ' +
    `WHERE properties.desired.$metadata.interval.$lastUpdated >= '${time}'`;
  assert.deepEqual((await registry.createQuery(query).next()).result, [{ deviceId: testDevice }]);
});

await check('unsupported operations report the emulator', async () => {
  const unsupported = [
    () => registry.getModulesOnDevice(testDevice),
    () => registry.getConfigurations(),
    () => registry.listJobs(),
  ];
  for (const call of unsupported) {
    await assert.rejects(
      call(),
      (error) => error.response.statusCode === 501 && /emulator/.test(error.responseBody));
  }
});

await check('a device created over REST is disconnected', async () => {
  const offlineDevice = 'offline';
  const { responseBody: created } = await registry.create({ deviceId: offlineDevice });
  assert.equal(created.connectionState, 'Disconnected');
  const message = new Message('waits');
  message.messageId = 'waits';
  await withTimeout(30_000, 'send', client.send(offlineDevice, message));
  assert.equal((await registry.get(offlineDevice)).responseBody.cloudToDeviceMessageCount, 1);
  const { responseBody: twin } = await registry.getTwin(offlineDevice);
  assert.equal(twin.cloudToDeviceMessageCount, 1);
  await registry.delete(offlineDevice);
});

await check('file notifications do not disturb the connection', async () => {
  let failure = null;
  client.on('disconnect', () => { failure = 'disconnected'; });
  const { result, message } = await withTimeout(
    30_000, 'receiver', client.getFileNotificationReceiver());
  const receiver = message ?? result ?? (await client.getFileNotificationReceiver());
  receiver.on('errorReceived', (error) => { failure = error; });
  // The first response shows that the hub has read all data of the new link. The other sends need
  // the connection.
  for (const n of [1, 2, 3]) {
    const message = new Message('after the receiver');
    message.messageId = `after-${n}`;
    await withTimeout(30_000, 'send', client.send(deviceId(7), message));
  }
  assert.equal(failure, null);
});

await check('delete', async () => {
  await registry.delete(testDevice);
  await assert.rejects(registry.get(testDevice), { name: 'DeviceNotFoundError' });
});

await check('close', () => withTimeout(30_000, 'close', client.close()));
process.exit(failed === 0 ? 0 : 1);
