// Sends a message to each device in turn with Azure's own Node service SDK, and awaits each send.
// The benchmark compares Twincast with this simple script.
//
//   NODE_EXTRA_CA_CERTS=ca.pem node sending.mjs <folder with node_modules> <connection string> \
//     <count> <body> <rollout>

import { createRequire } from 'node:module';
import path from 'node:path';

const [folder, connectionString, count, body, rollout] = process.argv.slice(2);
const require = createRequire(path.join(path.resolve(folder), 'package.json'));
const { Client } = require('azure-iothub');
const { Message } = require('azure-iothub/dist/common-core/message.js');

const client = Client.fromConnectionString(connectionString);
await client.open();
for (let index = 0; index < Number(count); index += 1) {
  const message = new Message(body);
  message.messageId = `${rollout}.0.${index.toString(36)}.1`;
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.expiryTimeUtc = Date.now() + 24 * 3600 * 1000;
  message.properties.add('kind', 'firmware');
  await client.send(`fridge-${String(index).padStart(7, '0')}`, message);
}
await client.close();
