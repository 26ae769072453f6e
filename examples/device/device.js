// A device app that takes signed updates, with Azure's own SDK. README.md beside it says how it is started.
//
// It waits for messages of the kind `update`, checks them, installs, and answers in the reported property `update`.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { Client } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');

const { UPDATE_NAME, UPDATE_HARDWARE, UPDATE_KEYS, STATE_FOLDER = '.', DEVICE_CONNECTION_STRING } = process.env;
const PAYLOAD_TYPE = 'application/vnd.twincast.update+json';
const LARGEST = 64 * 1024 * 1024;
const REMEMBERED = 100;
const inFolder = (name) => path.join(STATE_FOLDER, name);
const PREFIX = Buffer.from('302a300506032b6570032100', 'hex'); // of an ed25519 key (RFC 8410)
const KEYS = UPDATE_KEYS.split(',').map((key) => crypto.createPublicKey({
  key: Buffer.concat([PREFIX, Buffer.from(key, 'base64')]), format: 'der', type: 'spki',
}));

// What is wrong with an update: a code, and a text for people.
class Wrong extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

// To be replaced by what installs on this device; whatever it throws is told as the failure.
async function install(artifact, manifest) {
  fs.writeFileSync(inFolder('firmware.new'), artifact);
  fs.renameSync(inFolder('firmware.new'), inFolder('firmware'));
  console.log(`installed ${manifest.version}`);
}

// The manifest in an envelope that a trusted key has signed (DSSE).
function verified(body) {
  const { payload, payloadType: kind, signatures } = JSON.parse(body);
  const content = Buffer.from(payload, 'base64');
  const signed = Buffer.concat([Buffer.from(`DSSEv1 ${Buffer.byteLength(kind)} ${kind} ${content.length} `), content]);
  const good = signatures.some(({ sig }) => KEYS.some((key) => crypto.verify(null, signed, key, Buffer.from(sig, 'base64'))));
  if (!good) throw new Wrong('signature', 'no key that this device trusts has signed the update');
  if (kind !== PAYLOAD_TYPE) throw new Wrong('payload_type', `the payload is of the type ${kind}`);
  return JSON.parse(content);
}

function isNewer(version, running) {
  const [left, right] = [version, running].map((text) => (text.match(/\d+/g) ?? []).map(Number));
  const at = left.findIndex((number, index) => number !== (right[index] ?? -1));
  return at >= 0 && left[at] > (right[at] ?? -1);
}

function check({ schema, name, version, hardware = [UPDATE_HARDWARE], artifact, expires, force }, running) {
  const rules = [
    [schema === 1, 'schema', `the schema is ${schema}, not 1`],
    [name === UPDATE_NAME, 'name', `${name} is not ${UPDATE_NAME}`],
    [hardware.includes(UPDATE_HARDWARE), 'hardware', `it is not for ${UPDATE_HARDWARE}`],
    [expires === undefined || Date.parse(expires) > Date.now(), 'expired', `it has expired at ${expires}`],
    [force === true || isNewer(version, running), 'downgrade', `${version} is not newer than ${running}, which runs`],
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

const state = fs.existsSync(inFolder('state.json')) ? JSON.parse(fs.readFileSync(inFolder('state.json'))) : { version: '0', ends: {} };

// On the disk before it is told: an end is final.
function remember(id, end) {
  state.ends = Object.fromEntries([...Object.entries(state.ends), [id, end]].slice(-REMEMBERED));
  fs.writeFileSync(inFolder('state.new'), JSON.stringify(state), { flush: true });
  fs.renameSync(inFolder('state.new'), inFolder('state.json'));
}

async function update(id, body, report) {
  if (!(id in state.ends)) { // else it came again, and has its answer
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
  // What `twin.properties.reported.update` calls; a reported property of the name `update` takes its place there.
  const tell = (patch) => new Promise((resolve, reject) => {
    twin._updateReportedProperties(patch, (error) => (error ? reject(error) : resolve()));
  });
  const report = (id, word, version, error = null) => tell({
    update: { id, state: word, version, error, attempt: 1, at: new Date().toISOString() }, firmware: state.version,
  });
  let ready;
  let last = new Promise((resolve) => { ready = resolve; }); // one after the other
  // Before the client is open: later, it would miss what comes with the connection.
  client.on('message', (message) => {
    client.complete(message, () => {}); // over MQTT it has been on arrival
    if (message.properties.getValue('kind') !== 'update') return;
    last = last.then(() => update(message.messageId, message.getData(), report)).catch(console.error);
  });
  await client.open();
  twin = await client.getTwin();
  await tell({ firmware: state.version });
  ready();
}

main();
