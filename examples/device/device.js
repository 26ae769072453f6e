// A device app for signed updates, with Azure's own SDK. The README.md in this folder explains the
// start.
//
// The app waits for messages of the kind `update`, checks and installs each update, and answers in
// the reported property `update`.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { Client } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');

const {
  UPDATE_NAME,
  UPDATE_HARDWARE,
  UPDATE_KEYS,
  STATE_FOLDER = '.',
  DEVICE_CONNECTION_STRING,
} = process.env;
const PAYLOAD_TYPE = 'application/vnd.twincast.update+json';
const MAX_ARTIFACT_BYTES = 64 * 1024 * 1024;
const MAX_STORED_ENDS = 100;
const statePath = (name) => path.join(STATE_FOLDER, name);
// The prefix of an ed25519 key in DER (RFC 8410).
const KEY_PREFIX = Buffer.from('302a300506032b6570032100', 'hex');
const KEYS = UPDATE_KEYS.split(',').map((key) => crypto.createPublicKey({
  key: Buffer.concat([KEY_PREFIX, Buffer.from(key, 'base64')]), format: 'der', type: 'spki',
}));

// The reason why an update is refused or has failed: a code, and a text for people.
class UpdateError extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

// Installs the artefact. Replace this function; the app reports every exception of the function as
// a failure.
async function install(artifact, manifest) {
  fs.writeFileSync(statePath('firmware.new'), artifact);
  fs.renameSync(statePath('firmware.new'), statePath('firmware'));
  console.log(`installed ${manifest.version}`);
}

// Verifies the signature of an envelope (DSSE) with the trusted keys, and returns the manifest.
function verifyEnvelope(body) {
  const { payload, payloadType, signatures } = JSON.parse(body);
  const content = Buffer.from(payload, 'base64');
  const signedData = Buffer.concat([
    Buffer.from(`DSSEv1 ${Buffer.byteLength(payloadType)} ${payloadType} ${content.length} `),
    content,
  ]);
  const isTrusted = signatures.some(({ sig }) =>
    KEYS.some((key) => crypto.verify(null, signedData, key, Buffer.from(sig, 'base64'))));
  if (!isTrusted) {
    throw new UpdateError('signature', 'no key that this device trusts has signed the update');
  }
  if (payloadType !== PAYLOAD_TYPE) {
    throw new UpdateError('payload_type', `the payload is of the type ${payloadType}`);
  }
  return JSON.parse(content);
}

function isNewer(version, running) {
  const [left, right] = [version, running].map((text) => (text.match(/\d+/g) ?? []).map(Number));
  const first = left.findIndex((number, index) => number !== (right[index] ?? -1));
  return first >= 0 && left[first] > (right[first] ?? -1);
}

function checkManifest(
  { schema, name, version, hardware = [UPDATE_HARDWARE], artifact, expires, force },
  running
) {
  const checks = [
    [schema === 1, 'schema', `the schema is ${schema}, not 1`],
    [name === UPDATE_NAME, 'name', `${name} is not ${UPDATE_NAME}`],
    [hardware.includes(UPDATE_HARDWARE), 'hardware', `it is not for ${UPDATE_HARDWARE}`],
    [
      expires === undefined || Date.parse(expires) > Date.now(),
      'expired',
      `it has expired at ${expires}`,
    ],
    [
      force === true || isNewer(version, running),
      'downgrade',
      `${version} is not newer than ${running}, which runs`,
    ],
    [
      artifact.size > 0 && artifact.size <= MAX_ARTIFACT_BYTES,
      'size',
      `at most ${MAX_ARTIFACT_BYTES} bytes are taken`,
    ],
  ];
  for (const [isValid, code, text] of checks) if (!isValid) throw new UpdateError(code, text);
}

async function download({ url, size, sha256 }) {
  const response = await fetch(url, { signal: AbortSignal.timeout(60_000) });
  if (!response.ok) throw new UpdateError('download', `${url}: ${response.status}`);
  const chunks = [];
  let length = 0;
  for await (const chunk of response.body) {
    chunks.push(chunk);
    length += chunk.length;
    if (length > size) break;
  }
  const content = Buffer.concat(chunks);
  if (length !== size || crypto.createHash('sha256').update(content).digest('hex') !== sha256) {
    throw new UpdateError('sha256', 'what was downloaded is not what the manifest names');
  }
  return content;
}

const state = fs.existsSync(statePath('state.json'))
  ? JSON.parse(fs.readFileSync(statePath('state.json')))
  : { version: '0', ends: {} };

// Stores the end of an update on the disk. An end is final, so the app stores the end before
// reporting the end.
function storeEnd(id, end) {
  const ends = [...Object.entries(state.ends), [id, end]];
  state.ends = Object.fromEntries(ends.slice(-MAX_STORED_ENDS));
  fs.writeFileSync(statePath('state.new'), JSON.stringify(state), { flush: true });
  fs.renameSync(statePath('state.new'), statePath('state.json'));
}

async function processUpdate(id, body, report) {
  if (!(id in state.ends)) { // a repeated message already has a stored end
    let [version, end, code] = [null, 'refused', 'malformed'];
    try {
      const manifest = verifyEnvelope(body);
      ({ version } = manifest);
      checkManifest(manifest, state.version);
      [end, code] = ['failed', 'install'];
      await report(id, 'installing', version);
      await install(await download(manifest.artifact), manifest);
      state.version = version;
      storeEnd(id, ['applied', version, null]);
    } catch (error) {
      const text = String(error.message).slice(0, 256);
      if (error instanceof UpdateError) code = error.code;
      storeEnd(id, [end, version, { code, text }]);
    }
  }
  await report(id, ...state.ends[id]);
}

async function main() {
  const client = Client.fromConnectionString(DEVICE_CONNECTION_STRING, Mqtt);
  let twin;
  // The function behind `twin.properties.reported.update`: a reported property with the name
  // `update` hides the method.
  const patchReported = (patch) => new Promise((resolve, reject) => {
    twin._updateReportedProperties(patch, (error) => (error ? reject(error) : resolve()));
  });
  const report = (id, updateState, version, error = null) => patchReported({
    update: { id, state: updateState, version, error, attempt: 1, at: new Date().toISOString() },
    firmware: state.version,
  });
  // The updates run one after the other, after the first report.
  let startUpdates;
  let updates = new Promise((resolve) => { startUpdates = resolve; });
  // The handler must be set before the client opens. A later handler misses waiting messages.
  client.on('message', (message) => {
    client.complete(message, () => {}); // over MQTT, the SDK has completed the message on arrival
    if (message.properties.getValue('kind') !== 'update') return;
    updates = updates
      .then(() => processUpdate(message.messageId, message.getData(), report))
      .catch(console.error);
  });
  await client.open();
  twin = await client.getTwin();
  await patchReported({ firmware: state.version });
  startUpdates();
}

main();
