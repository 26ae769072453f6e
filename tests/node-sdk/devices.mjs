// Tests the hub emulator with Azure's own Node device SDKs, over all transports.
//
//   NODE_EXTRA_CA_CERTS=ca.pem DEVICES='{...}' node devices.mjs
//
// `DEVICES` has the hub's address and credentials, set by `crates/emulator/tests/device_sdks.rs`.
// Prints a table of transports and features, and exits with 1 if a cell failed. A dash marks a
// feature that an SDK does not support; the reasons are in `cannot`.

import assert from 'node:assert/strict';
import { createHmac, randomUUID } from 'node:crypto';
import device from 'azure-iot-device';
import deviceAmqp from 'azure-iot-device-amqp';
import deviceHttp from 'azure-iot-device-http';
import deviceMqtt from 'azure-iot-device-mqtt';
import iothub from 'azure-iothub';
import messages from 'azure-iothub/dist/common-core/message.js';
import provisioning from 'azure-iot-provisioning-device';
import provisioningAmqp from 'azure-iot-provisioning-device-amqp';
import provisioningHttp from 'azure-iot-provisioning-device-http';
import provisioningMqtt from 'azure-iot-provisioning-device-mqtt';
import symmetric from 'azure-iot-security-symmetric-key';
import x509 from 'azure-iot-security-x509';

const hub = JSON.parse(process.env.DEVICES);
const transports = {
  mqtt: { device: deviceMqtt.Mqtt, provisioning: provisioningMqtt.Mqtt },
  'mqtt-ws': { device: deviceMqtt.MqttWs, provisioning: provisioningMqtt.MqttWs },
  amqp: { device: deviceAmqp.Amqp, provisioning: provisioningAmqp.Amqp },
  'amqp-ws': { device: deviceAmqp.AmqpWs, provisioning: provisioningAmqp.AmqpWs },
  http: { device: deviceHttp.Http, provisioning: provisioningHttp.Http },
};
const features = [
  'connect', 'c2d', 'complete', 'reject', 'abandon', 'twin', 'method', 'renewal', 'eviction',
  'x509', 'x509-ca', 'dps-key', 'dps-group', 'dps-x509', 'dps-x509-group',
];
const overMqtt = 'over MQTT a message can only be acknowledged; the SDK refuses';
const overHttp = 'HTTPS has no connection: the SDK refuses';
// The reasons for unsupported cells. If the SDK refuses, the refusal is checked.
const cannot = {
  mqtt: { reject: overMqtt, abandon: overMqtt },
  'mqtt-ws': { reject: overMqtt, abandon: overMqtt },
  amqp: {},
  'amqp-ws': {},
  http: { twin: overHttp, method: overHttp, eviction: 'HTTPS has no connection' },
};

const only = process.argv.slice(2);
const started = Date.now();
const table = {};

// Runs a cell. An unsupported cell may run too, to check the refusal.
async function cell(transport, feature, action) {
  const begun = Date.now();
  table[transport] ??= {};
  try {
    await within(40_000, feature, action());
    table[transport][feature] = cannot[transport][feature] ? '-' : 'yes';
  } catch (error) {
    table[transport][feature] = 'FAILED';
    console.log(`${transport} ${feature}: ${told(error)}`);
  }
  if (process.env.VERBOSE) console.log(`${transport} ${feature}: ${Date.now() - begun} ms`);
}

function told(error) {
  const stack = (error?.stack ?? JSON.stringify(error)).split('\n');
  return [...stack.slice(0, 12), error?.innerError ? `because of ${error.innerError}` : '']
    .join('\n');
}

function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// --- service side ---

const registry = iothub.Registry.fromConnectionString(hub.connectionString);
const service = iothub.Client.fromConnectionString(hub.connectionString);
const feedback = new Map();

async function openService() {
  await within(30_000, 'service', service.open());
  const { result, message } = await service.getFeedbackReceiver();
  const receiver = message ?? result ?? (await service.getFeedbackReceiver());
  receiver.on('errorReceived', (error) => console.log(`feedback receiver: ${error.message}`));
  receiver.on('message', (received) => {
    for (const record of JSON.parse(received.data.toString())) {
      feedback.get(record.originalMessageId)?.(record);
    }
    receiver.complete(received, () => {});
  });
}

// Sends a message, and returns the id and a promise of the verdict.
async function send(deviceId, properties = {}, body = 'body') {
  const message = new messages.Message(body);
  message.messageId = `m-${randomUUID()}`;
  message.correlationId = 'correlation/1 %';
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.ack = 'full';
  for (const [key, value] of Object.entries(properties)) message.properties.add(key, value);
  const verdict = new Promise((resolve) => {
    feedback.set(message.messageId, (record) => resolve(record.statusCode));
  });
  await within(30_000, 'send', service.send(deviceId, message));
  return { id: message.messageId, verdict };
}

// Tests the service SDK over each transport, with a key and with a token of the emulated Entra ID.
async function services() {
  await create('for-services');
  const credential = {
    async getToken() {
      const { authority, tenant, client, secret } = hub.entra;
      const body = new URLSearchParams({
        grant_type: 'client_credentials',
        client_id: client,
        client_secret: secret,
        scope: 'https://iothubs.azure.net/.default',
      });
      const answer = await fetch(`${authority}/${tenant}/oauth2/v2.0/token`, {
        method: 'POST',
        body,
      });
      const { access_token: token, expires_in: life } = await answer.json();
      return { token, expiresOnTimestamp: Date.now() + life * 1000 };
    },
  };
  const ways = {
    'service, amqp-ws, key': () =>
      iothub.Client.fromConnectionString(hub.connectionString, iothub.AmqpWs),
    'service, amqp, Entra ID': () =>
      iothub.Client.fromTokenCredential(hub.host, credential, iothub.Amqp),
    'service, amqp-ws, Entra ID': () =>
      iothub.Client.fromTokenCredential(hub.host, credential, iothub.AmqpWs),
  };
  let failed = 0;
  for (const [name, connect] of Object.entries(ways)) {
    const client = connect();
    try {
      await within(30_000, 'open', client.open());
      await within(30_000, 'send', client.send('for-services', new messages.Message('x')));
      console.log(`${name}: yes`);
    } catch (error) {
      failed += 1;
      console.log(`${name}: FAILED ${told(error)}`);
    } finally {
      client.close(() => {});
    }
  }
  const twins = iothub.Registry.fromTokenCredential(hub.host, credential);
  const { responseBody: twin } = await twins.getTwin('for-services');
  assert.equal(twin.deviceId, 'for-services');
  return failed;
}

async function create(deviceId, authentication) {
  const { responseBody } = await registry.create({ deviceId, authentication });
  const key = responseBody.authentication.symmetricKey?.primaryKey;
  return `HostName=${hub.host};DeviceId=${deviceId};SharedAccessKey=${key}`;
}

// --- device side ---

class Received {
  constructor(client) {
    this.waiting = [];
    this.messages = [];
    client.on('message', (message) => {
      const next = this.waiting.shift();
      if (next) next(message);
      else this.messages.push(message);
    });
  }

  next() {
    if (this.messages.length) return this.messages.shift();
    return within(15_000, 'message', new Promise((resolve) => this.waiting.push(resolve)));
  }
}

function open(connection, transport) {
  const client = device.Client.fromConnectionString(connection, transports[transport].device);
  return opened(client, transport);
}

async function opened(client, transport) {
  client.on('error', () => {});
  client.setRetryPolicy({ shouldRetry: () => false, nextRetryTimeout: () => 0 });
  if (transport === 'http') await client.setOptions({ http: { receivePolicy: { interval: 0.2 } } });
  await within(30_000, 'open', client.open());
  return client;
}

// Returns properties with all special characters allowed by the hub, in names and values; HTTPS
// sends both in headers.
function oddProperties(transport) {
  const properties = { empty: '', plain: 'value', kind: 'update' };
  const names = [..."!#$%&'*+-.^_`|~"];
  names.forEach((character, at) => { properties[`n${at}${character}x`] = `v${character}${at}`; });
  const values = [...' "(),/:;<=>?@[\\]{}'];
  values.forEach((character, at) => { properties[`v${at}`] = `a${character}b`; });
  properties.encoded = '%2F%25+%20';
  properties.query = 'a=b&c=d#e?f/g';
  if (transport !== 'http') properties.unicode = 'Kühlschrank ❄ 冷蔵庫';
  return properties;
}

// Over HTTPS, the SDK returns the lower-case header names; over MQTT, it also returns the hub's own
// properties.
function propertiesOf(message, transport) {
  const entries = message.properties.propertyList.map(({ key, value }) => [key, value]);
  if (transport === 'http')
    return Object.fromEntries(
      entries.map(([key, value]) => [key.replace(/^iothub-app-/, ''), value]));
  return Object.fromEntries(
    entries.filter(([key]) => key !== 'iothub-ack' && !key.startsWith('$.')));
}

async function basics(transport) {
  const deviceId = `node-${transport}`;
  const connection = await create(deviceId);
  let client;
  let received;
  await cell(transport, 'connect', async () => {
    client = await open(connection, transport);
    const telemetry = new device.Message('telemetry');
    telemetry.properties.add('a', 'b');
    await within(15_000, 'telemetry', client.sendEvent(telemetry));
    received = new Received(client);
  });
  if (!client) return;
  let message;
  let verdict;
  await cell(transport, 'c2d', async () => {
    const properties = oddProperties(transport);
    const sent = await send(deviceId, properties, 'odd');
    verdict = sent.verdict;
    message = await received.next();
    assert.equal(message.getData().toString(), 'odd');
    assert.equal(message.messageId, sent.id);
    assert.equal(message.correlationId, 'correlation/1 %');
    const lower = (map) =>
      Object.fromEntries(Object.entries(map).map(([key, value]) => [key.toLowerCase(), value]));
    const expected = transport === 'http' ? lower(properties) : properties;
    assert.deepEqual(propertiesOf(message, transport), expected);
  });
  await cell(transport, 'complete', async () => {
    await client.complete(message);
    assert.equal(await within(15_000, 'feedback', verdict), 'Success');
  });
  const settles = !transport.startsWith('mqtt');
  await cell(transport, 'reject', async () => {
    const sent = await send(deviceId);
    const message = await received.next();
    if (!settles)
      return assert.rejects(async () => client.reject(message), { name: 'NotImplementedError' });
    await client.reject(message);
    assert.equal(await within(15_000, 'feedback', sent.verdict), 'Rejected');
  });
  await cell(transport, 'abandon', async () => {
    const sent = await send(deviceId);
    const message = await received.next();
    if (!settles)
      return assert.rejects(async () => client.abandon(message), { name: 'NotImplementedError' });
    await client.abandon(message);
    const again = await received.next();
    assert.equal(again.messageId, sent.id);
    await client.complete(again);
    assert.equal(await within(15_000, 'feedback', sent.verdict), 'Success');
  });
  await cell(transport, 'twin', () => twin(deviceId, client, transport));
  await cell(transport, 'method', () => method(deviceId, client, transport));
  await within(15_000, 'close', client.close());
}

async function twin(deviceId, client, transport) {
  if (transport === 'http')
    return assert.rejects(async () => client.getTwin(), { name: 'NotImplementedError' });
  const twin = await within(15_000, 'get', client.getTwin());
  const change = new Promise((resolve) => {
    twin.on('properties.desired', (delta) => { if (delta.interval === 5) resolve(delta); });
  });
  // Not `update`: in the SDK's object, a property of this name would replace the method.
  const reported = { progress: { state: 'installing' }, list: ['a', 1], odd: '/ % + é' };
  await within(15_000, 'report', new Promise((resolve, reject) => {
    twin.properties.reported.update(reported, (error) => (error ? reject(error) : resolve()));
  }));
  const { responseBody: seen } = await registry.getTwin(deviceId);
  assert.deepEqual(seen.properties.reported.progress, reported.progress);
  assert.deepEqual(seen.properties.reported.list, reported.list);
  assert.equal(seen.properties.reported.odd, reported.odd);
  assert.equal(seen.connectionState, 'Connected');
  // The SDK does not wait for the subscription, so the change is repeated until a change arrives.
  let heard = false;
  change.then(() => { heard = true; });
  for (let n = 0; !heard && n < 50; n += 1) {
    await registry.updateTwin(deviceId, { properties: { desired: { interval: 5, n } } }, '*');
    await Promise.race([change, new Promise((resolve) => { setTimeout(resolve, 200); })]);
  }
  const delta = await within(15_000, 'push', change);
  assert.ok(delta.$version >= 2, JSON.stringify(delta));
  assert.equal(twin.properties.desired.interval, 5);
  // A refusal by the hub is an error here.
  const wrong = { deep: [...'abcdefghijkl'].reduce((inner, key) => ({ [key]: inner }), 1) };
  await assert.rejects(within(15_000, 'refusal', new Promise((resolve, reject) => {
    twin.properties.reported.update(wrong, (error) => (error ? reject(error) : resolve()));
  })), (error) => !(error instanceof TypeError));
}

async function method(deviceId, client, transport) {
  if (transport === 'http')
    return assert.rejects(async () => client.onDeviceMethod('reboot', () => {}), {
      name: 'NotImplementedError',
    });
  client.onDeviceMethod('reboot', (request, response) => {
    response.send(207, { got: request.payload }, (error) => {
      if (error) console.log(`${transport} method: ${error}`);
    });
  });
  const parameters = {
    methodName: 'reboot',
    payload: { in: ['s', 5, null] },
    responseTimeoutInSeconds: 15,
    connectTimeoutInSeconds: 15,
  };
  const { result, message } = await within(
    20_000, 'call', service.invokeDeviceMethod(deviceId, parameters));
  const answer = result ?? message;
  assert.deepEqual(answer, { status: 207, payload: { got: { in: ['s', 5, null] } } });
}

// A token expires during the work of the device, and nothing is lost.
async function renewal(transport) {
  const deviceId = `node-${transport}-renewal`;
  const connection = await create(deviceId);
  await cell(transport, 'renewal', async () => {
    const authentication = device.SharedAccessKeyAuthenticationProvider.fromConnectionString(
      connection, 10, 5);
    const raw = device.Client.fromAuthenticationProvider(
      authentication, transports[transport].device);
    const client = await opened(raw, transport);
    const received = new Received(client);
    const begun = Date.now();
    let rounds = 0;
    while (Date.now() - begun < 12_000) {
      const sent = await send(deviceId);
      const message = await received.next();
      assert.equal(message.messageId, sent.id);
      await client.complete(message);
      assert.equal(await within(15_000, 'feedback', sent.verdict), 'Success');
      rounds += 1;
      await new Promise((resolve) => { setTimeout(resolve, 300); });
    }
    assert.ok(rounds >= 3, `${rounds} rounds`);
    await client.close();
  });
}

// The second connection of a device ends the first.
async function eviction(transport) {
  const deviceId = `node-${transport}-eviction`;
  const connection = await create(deviceId);
  await cell(transport, 'eviction', async () => {
    if (transport === 'http') return;
    const first = await open(connection, transport);
    new Received(first);
    const gone = new Promise((resolve) => { first.on('disconnect', resolve); });
    await within(15_000, 'telemetry', first.sendEvent(new device.Message('first')));
    const second = await open(connection, transport);
    const received = new Received(second);
    await within(15_000, 'telemetry', second.sendEvent(new device.Message('second')));
    await within(15_000, 'disconnect of the first', gone);
    const sent = await send(deviceId);
    const message = await received.next();
    assert.equal(message.messageId, sent.id);
    await second.complete(message);
    assert.equal(await within(15_000, 'feedback', sent.verdict), 'Success');
    await second.close();
  });
}

async function withCertificate(transport, feature, { name, cert, key }, authentication) {
  await cell(transport, feature, async () => {
    await registry.create({ deviceId: name, authentication });
    await useCertificate(transport, name, { cert, key }, hub.host);
  });
}

async function useCertificate(transport, deviceId, { cert, key }, host) {
  const connection = `HostName=${host};DeviceId=${deviceId};x509=true`;
  const raw = device.Client.fromConnectionString(connection, transports[transport].device);
  raw.setOptions({ cert, key });
  const client = await opened(raw, transport);
  const received = new Received(client);
  const sent = await send(deviceId);
  const message = await received.next();
  assert.equal(message.messageId, sent.id);
  await client.complete(message);
  assert.equal(await within(15_000, 'feedback', sent.verdict), 'Success');
  await client.close();
}

async function register(transport, security) {
  const client = provisioning.ProvisioningDeviceClient.create(
    hub.host, hub.idScope, new transports[transport].provisioning(), security);
  return within(20_000, 'registration', new Promise((resolve, reject) => {
    client.register((error, result) => (error ? reject(error) : resolve(result)));
  }));
}

async function useKey(transport, deviceId, key, host) {
  const client = await open(
    `HostName=${host};DeviceId=${deviceId};SharedAccessKey=${key}`, transport);
  await within(15_000, 'telemetry', client.sendEvent(new device.Message('provisioned')));
  await client.close();
}

async function registrations(transport) {
  await cell(transport, 'dps-key', async () => {
    const { key } = hub.individual;
    const registrationId = `individual-${transport}`;
    const security = new symmetric.SymmetricKeySecurityClient(registrationId, key);
    const result = await register(transport, security);
    assert.equal(result.deviceId, `device-of-${registrationId}`);
    assert.equal(result.assignedHub, hub.host);
    await useKey(transport, result.deviceId, key, result.assignedHub);
    const wrong = new symmetric.SymmetricKeySecurityClient(
      registrationId, Buffer.alloc(32).toString('base64'));
    await assert.rejects(register(transport, wrong));
  });
  await cell(transport, 'dps-group', async () => {
    const registrationId = `grouped-${transport}`;
    const key = createHmac('sha256', Buffer.from(hub.groupKey, 'base64'))
      .update(registrationId)
      .digest('base64');
    const security = new symmetric.SymmetricKeySecurityClient(registrationId, key);
    const result = await register(transport, security);
    assert.equal(result.deviceId, registrationId);
    assert.equal(result.status, 'assigned');
    await useKey(transport, result.deviceId, key, result.assignedHub);
    const { responseBody: twin } = await registry.getTwin(registrationId);
    assert.equal(twin.tags.from, 'group');
    assert.equal(twin.properties.desired.interval, 60);
  });
  for (const [feature, certificate] of [
    ['dps-x509', hub.certificates[`individual-x509-${transport}`]],
    ['dps-x509-group', hub.certificates[`grouped-x509-${transport}`]],
  ]) {
    await cell(transport, feature, async () => {
      const { name, cert, key } = certificate;
      const result = await register(transport, new x509.X509Security(name, { cert, key }));
      assert.equal(result.deviceId, name);
      await useCertificate(transport, name, { cert, key }, result.assignedHub);
    });
  }
}

async function certificates(transport) {
  const own = hub.certificates[`own-${transport}`];
  const { thumbprint } = own;
  await withCertificate(transport, 'x509', own, {
    type: 'selfSigned',
    x509Thumbprint: { primaryThumbprint: thumbprint, secondaryThumbprint: thumbprint },
  });
  const signed = hub.certificates[`signed-${transport}`];
  await withCertificate(transport, 'x509-ca', signed, { type: 'certificateAuthority' });
}

process.on('unhandledRejection', (error) => {
  console.log(`unhandled: ${error?.stack ?? error}`);
  process.exitCode = 1;
});

await openService();
const chosen = Object.keys(transports).filter((name) => !only.length || only.includes(name));
await Promise.all(chosen.flatMap((transport) => [
  basics(transport),
  renewal(transport),
  eviction(transport),
  certificates(transport),
  registrations(transport),
].map((part) => part.catch((error) => {
  table[transport] ??= {};
  table[transport].other = 'FAILED';
  console.log(`${transport}: ${error.stack ?? error}`);
}))));

const width = Math.max(...features.map((name) => name.length));
console.log(`\n${'Node'.padEnd(width)}  ${chosen.map((name) => name.padEnd(8)).join(' ')}`);
let failed = only.length ? 0 : await services();
for (const feature of features) {
  const row = chosen.map((transport) => table[transport]?.[feature] ?? 'FAILED');
  failed += row.filter((value) => value === 'FAILED').length;
  console.log(`${feature.padEnd(width)}  ${row.map((value) => value.padEnd(8)).join(' ')}`);
}
failed += chosen.filter((transport) => table[transport]?.other).length;
console.log(`${failed} failed, in ${((Date.now() - started) / 1000).toFixed(1)} s`);
process.exit(failed || process.exitCode ? 1 : 0);
