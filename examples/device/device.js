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
const LARGEST = 64 * 1024 * 1024;
const REMEMBERED = 100;
const inFolder = (name) => path.join(STATE_FOLDER, name);
// The prefix of an ed25519 key in DER (RFC 8410).
const PREFIX = Buffer.from('302a300506032b6570032100', 'hex');
const KEYS = UPDATE_KEYS.split(',').map((key) => crypto.createPublicKey({
  key: Buffer.concat([PREFIX, Buffer.from(key, 'base64')]), format: 'der', type: 'spki',
}));

// A problem of an update: a code, and a text for people.
class Wrong extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

// Installs the artefact. Replace this function; the app reports every exception of the function as
// a failure.
async function install(artifact, manifest) {
  fs.writeFileSync(inFolder('firmware.new'), artifact);
  fs.renameSync(inFolder('firmware.new'), inFolder('firmware'));
  console.log(`installed ${manifest.version}`);
}

// Returns the manifest of an envelope (DSSE) with a valid signature of a trusted key.
function verified(body) {
  const { payload, payloadType: kind, signatures } = JSON.parse(body);
  const content = Buffer.from(payload, 'base64');
  const signed = Buffer.concat([
    Buffer.from(`DSSEv1 ${Buffer.byteLength(kind)} ${kind} ${content.length} `),
    content,
  ]);
  const good = signatures.some(({ sig }) =>
    KEYS.some((key) => crypto.verify(null, signed, key, Buffer.from(sig, 'base64'))));
  if (!good) throw new Wrong('signature', 'no key that this device trusts has signed the update');
  if (kind !== PAYLOAD_TYPE) throw new Wrong('payload_type', `the payload is of the type ${kind}`);
  return JSON.parse(content);
}

function isNewer(version, running) {
  const [left, right] = [version, running].map((text) => (text.match(/\d+/g) ?? []).map(Number));
  const at = left.findIndex((number, index) => number !== (right[index] ?? -1));
  return at >= 0 && left[at] > (right[at] ?? -1);
}

function check(
  { schema, name, version, hardware = [UPDATE_HARDWARE], artifact, expires, force },
  running
) {
  const rules = [
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
    [artifact.size > 0 && artifact.size <= LARGEST, 'size', `at most ${LARGEST} bytes are taken`],
  ];
  for (const [good, code, text] of rules) if (!good) throw new Wrong(code, text);
}

async function download({ url, size, sha256 }) {
  const response = await fetch(url, { signal: AbortSignal.timeout(60_000) });
  if (!response.ok) throw new Wrong('download', `${url}: ${response.status}`);
  const parts = [];
  let length = 0;
  for await (const part of response.body) {
    parts.push(part);
    length += part.length;
    if (length > size) break;
  }
  const content = Buffer.concat(parts);
  if (length !== size || crypto.createHash('sha256').update(content).digest('hex') !== sha256) {
    throw new Wrong('sha256', 'what was downloaded is not what the manifest names');
  }
  return content;
}

const state = fs.existsSync(inFolder('state.json'))
  ? JSON.parse(fs.readFileSync(inFolder('state.json')))
  : { version: '0', ends: {} };

// Stores the end of an update on the disk. An end is final, so the app stores the end before
// reporting the end.
function remember(id, end) {
  state.ends = Object.fromEntries([...Object.entries(state.ends), [id, end]].slice(-REMEMBERED));
  fs.writeFileSync(inFolder('state.new'), JSON.stringify(state), { flush: true });
  fs.renameSync(inFolder('state.new'), inFolder('state.json'));
}

async function update(id, body, report) {
  if (!(id in state.ends)) { // a repeated message already has an answer
    let [version, end, code] = [null, 'refused', 'malformed'];
    try {
      const manifest = verified(body);
      ({ version } = manifest);
      check(manifest, state.version);
      [end, code] = ['failed', 'install'];
      await report(id, 'installing', version);
      await install(await download(manifest.artifact), manifest);
      state.version = version;
      remember(id, ['applied', version, null]);
    } catch (error) {
      const text = String(error.message).slice(0, 256);
      remember(id, [end, version, { code: error instanceof Wrong ? error.code : code, text }]);
    }
  }
  await report(id, ...state.ends[id]);
}

async function main() {
  const client = Client.fromConnectionString(DEVICE_CONNECTION_STRING, Mqtt);
  let twin;
  // The function behind `twin.properties.reported.update`: a reported property with the name
  // `update` hides the method.
  const tell = (patch) => new Promise((resolve, reject) => {
    twin._updateReportedProperties(patch, (error) => (error ? reject(error) : resolve()));
  });
  const report = (id, word, version, error = null) => tell({
    update: { id, state: word, version, error, attempt: 1, at: new Date().toISOString() },
    firmware: state.version,
  });
  let ready;
  let last = new Promise((resolve) => { ready = resolve; }); // one update at a time
  // Before the client is open: a handler set later misses waiting messages.
  client.on('message', (message) => {
    client.complete(message, () => {}); // over MQTT, the SDK has completed the message on arrival
    if (message.properties.getValue('kind') !== 'update') return;
    last = last
      .then(() => update(message.messageId, message.getData(), report))
      .catch(console.error);
  });
  await client.open();
  twin = await client.getTwin();
  await tell({ firmware: state.version });
  ready();
}

main();
