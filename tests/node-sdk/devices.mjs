// Tests the hub emulator with Azure's own Node device SDKs, over all transports.
//
//   NODE_EXTRA_CA_CERTS=ca.pem DEVICES='{...}' node devices.mjs
//
// `DEVICES` contains the hub's address and credentials; `crates/emulator/tests/device_sdks.rs` sets
// the variable. Prints a table of transports and features, and exits with 1 if a test failed. A
// dash marks a feature that an SDK does not support; the reasons are in `unsupported`.

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

const config = JSON.parse(process.env.DEVICES);
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
const mqttReason = 'over MQTT a message can only be acknowledged; the SDK refuses';
const httpReason = 'HTTPS has no connection: the SDK refuses';
// The reasons for unsupported features. If the SDK refuses, the refusal is checked.
const unsupported = {
  mqtt: { reject: mqttReason, abandon: mqttReason },
  'mqtt-ws': { reject: mqttReason, abandon: mqttReason },
  amqp: {},
  'amqp-ws': {},
  http: { twin: httpReason, method: httpReason, eviction: 'HTTPS has no connection' },
};

const selectedTransports = process.argv.slice(2);
const startedAt = Date.now();
const results = {};

// Tests a feature over a transport. The test of an unsupported feature checks the refusal.
async function testFeature(transport, feature, action) {
  const featureStartedAt = Date.now();
  results[transport] ??= {};
  try {
    await withTimeout(180_000, feature, action());
    results[transport][feature] = unsupported[transport][feature] ? '-' : 'yes';
  } catch (error) {
    results[transport][feature] = 'FAILED';
    console.log(`${transport} ${feature}: ${formatError(error)}`);
  }
  const duration = Date.now() - featureStartedAt;
  if (process.env.VERBOSE) console.log(`${transport} ${feature}: ${duration} ms`);
}

function formatError(error) {
  const stack = (error?.stack ?? JSON.stringify(error)).split('\n');
  return [...stack.slice(0, 12), error?.innerError ? `because of ${error.innerError}` : '']
    .join('\n');
}

function withTimeout(ms, description, promise) {
  let timer;
  const timeout = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${description}: no result within ${ms} ms`)), ms);
  });
  return Promise.race([promise, timeout]).finally(() => clearTimeout(timer));
}

// --- service side ---

const registry = iothub.Registry.fromConnectionString(config.connectionString);
const service = iothub.Client.fromConnectionString(config.connectionString);
const feedbackHandlers = new Map();

async function openService() {
  await withTimeout(60_000, 'service', service.open());
  const { result, message } = await service.getFeedbackReceiver();
  const receiver = message ?? result ?? (await service.getFeedbackReceiver());
  receiver.on('errorReceived', (error) => console.log(`feedback receiver: ${error.message}`));
  receiver.on('message', (received) => {
    for (const record of JSON.parse(received.data.toString())) {
      feedbackHandlers.get(record.originalMessageId)?.(record);
    }
    receiver.complete(received, () => {});
  });
}

// Sends a message, and returns the message id and a promise of the feedback's status code.
async function send(deviceId, properties = {}, body = 'body') {
  const message = new messages.Message(body);
  message.messageId = `m-${randomUUID()}`;
  message.correlationId = 'correlation/1 %';
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.ack = 'full';
  for (const [key, value] of Object.entries(properties)) message.properties.add(key, value);
  const statusCode = new Promise((resolve) => {
    feedbackHandlers.set(message.messageId, (record) => resolve(record.statusCode));
  });
  await withTimeout(60_000, 'send', service.send(deviceId, message));
  return { id: message.messageId, statusCode };
}

// Tests the service SDK over each transport, with a key and with a token of the emulated Entra ID.
async function testServiceClients() {
  await createDevice('for-services');
  const credential = {
    async getToken() {
      const { authority, tenant, client, secret } = config.entra;
      const body = new URLSearchParams({
        grant_type: 'client_credentials',
        client_id: client,
        client_secret: secret,
        scope: 'https://iothubs.azure.net/.default',
      });
      const response = await fetch(`${authority}/${tenant}/oauth2/v2.0/token`, {
        method: 'POST',
        body,
      });
      const { access_token: token, expires_in: lifetime } = await response.json();
      return { token, expiresOnTimestamp: Date.now() + lifetime * 1000 };
    },
  };
  const connections = {
    'service, amqp-ws, key': () =>
      iothub.Client.fromConnectionString(config.connectionString, iothub.AmqpWs),
    'service, amqp, Entra ID': () =>
      iothub.Client.fromTokenCredential(config.host, credential, iothub.Amqp),
    'service, amqp-ws, Entra ID': () =>
      iothub.Client.fromTokenCredential(config.host, credential, iothub.AmqpWs),
  };
  let failed = 0;
  for (const [name, connect] of Object.entries(connections)) {
    const client = connect();
    try {
      await withTimeout(60_000, 'open', client.open());
      await withTimeout(60_000, 'send', client.send('for-services', new messages.Message('x')));
      console.log(`${name}: yes`);
    } catch (error) {
      failed += 1;
      console.log(`${name}: FAILED ${formatError(error)}`);
    } finally {
      client.close(() => {});
    }
  }
  const registryWithToken = iothub.Registry.fromTokenCredential(config.host, credential);
  const { responseBody: twin } = await registryWithToken.getTwin('for-services');
  assert.equal(twin.deviceId, 'for-services');
  return failed;
}

async function createDevice(deviceId, authentication) {
  const { responseBody } = await registry.create({ deviceId, authentication });
  const key = responseBody.authentication.symmetricKey?.primaryKey;
  return `HostName=${config.host};DeviceId=${deviceId};SharedAccessKey=${key}`;
}

// --- device side ---

class MessageReceiver {
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
    return withTimeout(60_000, 'message', new Promise((resolve) => this.waiting.push(resolve)));
  }
}

function openClient(connectionString, transport) {
  const client = device.Client.fromConnectionString(connectionString, transports[transport].device);
  return configureAndOpen(client, transport);
}

async function configureAndOpen(client, transport) {
  client.on('error', () => {});
  client.setRetryPolicy({ shouldRetry: () => false, nextRetryTimeout: () => 0 });
  if (transport === 'http') await client.setOptions({ http: { receivePolicy: { interval: 0.2 } } });
  await withTimeout(60_000, 'open', client.open());
  return client;
}

// Returns properties with all special characters allowed by the hub, in names and values; HTTPS
// sends both in headers.
function specialProperties(transport) {
  const properties = { empty: '', plain: 'value', kind: 'update' };
  const names = [..."!#$%&'*+-.^_`|~"];
  names.forEach((character, index) => {
    properties[`n${index}${character}x`] = `v${character}${index}`;
  });
  const values = [...' "(),/:;<=>?@[\\]{}'];
  values.forEach((character, index) => { properties[`v${index}`] = `a${character}b`; });
  properties.encoded = '%2F%25+%20';
  properties.query = 'a=b&c=d#e?f/g';
  if (transport !== 'http') properties.unicode = 'Kühlschrank ❄ 冷蔵庫';
  return properties;
}

// Over HTTPS, the SDK returns the lower-case header names; over MQTT, it also returns the hub's own
// properties.
function messageProperties(message, transport) {
  const entries = message.properties.propertyList.map(({ key, value }) => [key, value]);
  if (transport === 'http')
    return Object.fromEntries(
      entries.map(([key, value]) => [key.replace(/^iothub-app-/, ''), value]));
  return Object.fromEntries(
    entries.filter(([key]) => key !== 'iothub-ack' && !key.startsWith('$.')));
}

async function testConnection(transport) {
  const deviceId = `node-${transport}`;
  const connectionString = await createDevice(deviceId);
  let client;
  let receiver;
  await testFeature(transport, 'connect', async () => {
    client = await openClient(connectionString, transport);
    const telemetry = new device.Message('telemetry');
    telemetry.properties.add('a', 'b');
    await withTimeout(60_000, 'telemetry', client.sendEvent(telemetry));
    receiver = new MessageReceiver(client);
  });
  if (!client) return;
  let message;
  let statusCode;
  await testFeature(transport, 'c2d', async () => {
    const properties = specialProperties(transport);
    const sent = await send(deviceId, properties, 'special');
    statusCode = sent.statusCode;
    message = await receiver.next();
    assert.equal(message.getData().toString(), 'special');
    assert.equal(message.messageId, sent.id);
    assert.equal(message.correlationId, 'correlation/1 %');
    const lowerCaseNames = (map) =>
      Object.fromEntries(Object.entries(map).map(([key, value]) => [key.toLowerCase(), value]));
    const expected = transport === 'http' ? lowerCaseNames(properties) : properties;
    assert.deepEqual(messageProperties(message, transport), expected);
  });
  await testFeature(transport, 'complete', async () => {
    await client.complete(message);
    assert.equal(await withTimeout(60_000, 'feedback', statusCode), 'Success');
  });
  const canReject = !transport.startsWith('mqtt');
  await testFeature(transport, 'reject', async () => {
    const sent = await send(deviceId);
    const message = await receiver.next();
    if (!canReject)
      return assert.rejects(async () => client.reject(message), { name: 'NotImplementedError' });
    await client.reject(message);
    assert.equal(await withTimeout(60_000, 'feedback', sent.statusCode), 'Rejected');
  });
  await testFeature(transport, 'abandon', async () => {
    const sent = await send(deviceId);
    const message = await receiver.next();
    if (!canReject)
      return assert.rejects(async () => client.abandon(message), { name: 'NotImplementedError' });
    await client.abandon(message);
    const redelivered = await receiver.next();
    assert.equal(redelivered.messageId, sent.id);
    await client.complete(redelivered);
    assert.equal(await withTimeout(60_000, 'feedback', sent.statusCode), 'Success');
  });
  await testFeature(transport, 'twin', () => testTwin(deviceId, client, transport));
  await testFeature(transport, 'method', () => testMethod(deviceId, client, transport));
  await withTimeout(60_000, 'close', client.close());
}

async function testTwin(deviceId, client, transport) {
  if (transport === 'http')
    return assert.rejects(async () => client.getTwin(), { name: 'NotImplementedError' });
  const twin = await withTimeout(60_000, 'get', client.getTwin());
  const change = new Promise((resolve) => {
    twin.on('properties.desired', (delta) => { if (delta.interval === 5) resolve(delta); });
  });
  // Not `update`: in the SDK's object, a property of this name would replace the method.
  const reported = { progress: { state: 'installing' }, list: ['a', 1], special: '/ % + é' };
  await withTimeout(60_000, 'report', new Promise((resolve, reject) => {
    twin.properties.reported.update(reported, (error) => (error ? reject(error) : resolve()));
  }));
  const { responseBody: storedTwin } = await registry.getTwin(deviceId);
  assert.deepEqual(storedTwin.properties.reported.progress, reported.progress);
  assert.deepEqual(storedTwin.properties.reported.list, reported.list);
  assert.equal(storedTwin.properties.reported.special, reported.special);
  assert.equal(storedTwin.connectionState, 'Connected');
  // The SDK does not wait for the subscription, so the test repeats the change until the device
  // receives a change.
  let isReceived = false;
  change.then(() => { isReceived = true; });
  for (let n = 0; !isReceived && n < 50; n += 1) {
    await registry.updateTwin(deviceId, { properties: { desired: { interval: 5, n } } }, '*');
    await Promise.race([change, new Promise((resolve) => { setTimeout(resolve, 200); })]);
  }
  const delta = await withTimeout(60_000, 'push', change);
  assert.ok(delta.$version >= 2, JSON.stringify(delta));
  assert.equal(twin.properties.desired.interval, 5);
  // The hub refuses the update, and the SDK reports an error.
  const tooDeep = { deep: [...'abcdefghijkl'].reduce((inner, key) => ({ [key]: inner }), 1) };
  await assert.rejects(withTimeout(15_000, 'refusal', new Promise((resolve, reject) => {
    twin.properties.reported.update(tooDeep, (error) => (error ? reject(error) : resolve()));
  })), (error) => !(error instanceof TypeError));
}

async function testMethod(deviceId, client, transport) {
  if (transport === 'http')
    return assert.rejects(async () => client.onDeviceMethod('reboot', () => {}), {
      name: 'NotImplementedError',
    });
  client.onDeviceMethod('reboot', (request, response) => {
    response.send(207, { received: request.payload }, (error) => {
      if (error) console.log(`${transport} method: ${error}`);
    });
  });
  const parameters = {
    methodName: 'reboot',
    payload: { in: ['s', 5, null] },
    responseTimeoutInSeconds: 60,
    connectTimeoutInSeconds: 60,
  };
  const { result, message } = await withTimeout(
    60_000, 'call', service.invokeDeviceMethod(deviceId, parameters));
  const response = result ?? message;
  assert.deepEqual(response, { status: 207, payload: { received: { in: ['s', 5, null] } } });
}

// A token expires while the device receives messages, and no message is lost.
async function testRenewal(transport) {
  const deviceId = `node-${transport}-renewal`;
  const connectionString = await createDevice(deviceId);
  await testFeature(transport, 'renewal', async () => {
    const authentication = device.SharedAccessKeyAuthenticationProvider.fromConnectionString(
      connectionString, 20, 12);
    const client = device.Client.fromAuthenticationProvider(
      authentication, transports[transport].device);
    await configureAndOpen(client, transport);
    const receiver = new MessageReceiver(client);
    const loopStartedAt = Date.now();
    let rounds = 0;
    const seen = new Set();
    while (rounds < 3 || Date.now() - loopStartedAt < 22_000) {
      const sent = await send(deviceId);
      let message = await receiver.next();
      // After a reconnection between `next` and `complete`, the hub repeats a message.
      while (seen.has(message.messageId)) message = await receiver.next();
      seen.add(message.messageId);
      assert.equal(message.messageId, sent.id);
      await client.complete(message);
      assert.equal(await withTimeout(60_000, 'feedback', sent.statusCode), 'Success');
      rounds += 1;
      await new Promise((resolve) => { setTimeout(resolve, 300); });
    }
    await client.close();
  });
}

// The second connection of a device ends the first.
async function testEviction(transport) {
  const deviceId = `node-${transport}-eviction`;
  const connectionString = await createDevice(deviceId);
  await testFeature(transport, 'eviction', async () => {
    if (transport === 'http') return;
    const first = await openClient(connectionString, transport);
    new MessageReceiver(first);
    const disconnected = new Promise((resolve) => { first.on('disconnect', resolve); });
    await withTimeout(60_000, 'telemetry', first.sendEvent(new device.Message('first')));
    const second = await openClient(connectionString, transport);
    const receiver = new MessageReceiver(second);
    await withTimeout(60_000, 'telemetry', second.sendEvent(new device.Message('second')));
    await withTimeout(60_000, 'disconnect of the first', disconnected);
    const sent = await send(deviceId);
    const message = await receiver.next();
    assert.equal(message.messageId, sent.id);
    await second.complete(message);
    assert.equal(await withTimeout(60_000, 'feedback', sent.statusCode), 'Success');
    await second.close();
  });
}

async function testCertificate(transport, feature, { name, cert, key }, authentication) {
  await testFeature(transport, feature, async () => {
    await registry.create({ deviceId: name, authentication });
    await receiveWithCertificate(transport, name, { cert, key }, config.host);
  });
}

async function receiveWithCertificate(transport, deviceId, { cert, key }, host) {
  const connectionString = `HostName=${host};DeviceId=${deviceId};x509=true`;
  const client = device.Client.fromConnectionString(connectionString, transports[transport].device);
  client.setOptions({ cert, key });
  await configureAndOpen(client, transport);
  const receiver = new MessageReceiver(client);
  const sent = await send(deviceId);
  const message = await receiver.next();
  assert.equal(message.messageId, sent.id);
  await client.complete(message);
  assert.equal(await withTimeout(60_000, 'feedback', sent.statusCode), 'Success');
  await client.close();
}

async function register(transport, security) {
  const client = provisioning.ProvisioningDeviceClient.create(
    config.host, config.idScope, new transports[transport].provisioning(), security);
  return withTimeout(60_000, 'registration', new Promise((resolve, reject) => {
    client.register((error, result) => (error ? reject(error) : resolve(result)));
  }));
}

async function connectWithKey(transport, deviceId, key, host) {
  const client = await openClient(
    `HostName=${host};DeviceId=${deviceId};SharedAccessKey=${key}`, transport);
  await withTimeout(60_000, 'telemetry', client.sendEvent(new device.Message('provisioned')));
  await client.close();
}

async function testProvisioning(transport) {
  await testFeature(transport, 'dps-key', async () => {
    const { key } = config.individual;
    const registrationId = `individual-${transport}`;
    const security = new symmetric.SymmetricKeySecurityClient(registrationId, key);
    const result = await register(transport, security);
    assert.equal(result.deviceId, `device-of-${registrationId}`);
    assert.equal(result.assignedHub, config.host);
    await connectWithKey(transport, result.deviceId, key, result.assignedHub);
    const wrongKey = new symmetric.SymmetricKeySecurityClient(
      registrationId, Buffer.alloc(32).toString('base64'));
    await assert.rejects(register(transport, wrongKey));
  });
  await testFeature(transport, 'dps-group', async () => {
    const registrationId = `grouped-${transport}`;
    const key = createHmac('sha256', Buffer.from(config.groupKey, 'base64'))
      .update(registrationId)
      .digest('base64');
    const security = new symmetric.SymmetricKeySecurityClient(registrationId, key);
    const result = await register(transport, security);
    assert.equal(result.deviceId, registrationId);
    assert.equal(result.status, 'assigned');
    await connectWithKey(transport, result.deviceId, key, result.assignedHub);
    const { responseBody: twin } = await registry.getTwin(registrationId);
    assert.equal(twin.tags.from, 'group');
    assert.equal(twin.properties.desired.interval, 60);
  });
  for (const [feature, certificate] of [
    ['dps-x509', config.certificates[`individual-x509-${transport}`]],
    ['dps-x509-group', config.certificates[`grouped-x509-${transport}`]],
  ]) {
    await testFeature(transport, feature, async () => {
      const { name, cert, key } = certificate;
      const result = await register(transport, new x509.X509Security(name, { cert, key }));
      assert.equal(result.deviceId, name);
      await receiveWithCertificate(transport, name, { cert, key }, result.assignedHub);
    });
  }
}

async function testCertificates(transport) {
  const selfSigned = config.certificates[`own-${transport}`];
  const { thumbprint } = selfSigned;
  await testCertificate(transport, 'x509', selfSigned, {
    type: 'selfSigned',
    x509Thumbprint: { primaryThumbprint: thumbprint, secondaryThumbprint: thumbprint },
  });
  const signed = config.certificates[`signed-${transport}`];
  await testCertificate(transport, 'x509-ca', signed, { type: 'certificateAuthority' });
}

process.on('unhandledRejection', (error) => {
  console.log(`unhandled: ${error?.stack ?? error}`);
  process.exitCode = 1;
});

await openService();
const tested = selectedTransports.length
  ? Object.keys(transports).filter((name) => selectedTransports.includes(name))
  : Object.keys(transports);
await Promise.all(tested.flatMap((transport) => [
  testConnection(transport),
  testRenewal(transport),
  testEviction(transport),
  testCertificates(transport),
  testProvisioning(transport),
].map((test) => test.catch((error) => {
  results[transport] ??= {};
  results[transport].other = 'FAILED';
  console.log(`${transport}: ${error.stack ?? error}`);
}))));

const nameWidth = Math.max(...features.map((name) => name.length));
console.log(`\n${'Node'.padEnd(nameWidth)}  ${tested.map((name) => name.padEnd(8)).join(' ')}`);
let failed = selectedTransports.length ? 0 : await testServiceClients();
for (const feature of features) {
  const row = tested.map((transport) => results[transport]?.[feature] ?? 'FAILED');
  failed += row.filter((value) => value === 'FAILED').length;
  console.log(`${feature.padEnd(nameWidth)}  ${row.map((value) => value.padEnd(8)).join(' ')}`);
}
failed += tested.filter((transport) => results[transport]?.other).length;
console.log(`${failed} failed, in ${((Date.now() - startedAt) / 1000).toFixed(1)} s`);
process.exit(failed || process.exitCode ? 1 : 0);
