// Takes the screenshot of the README: a staged rollout with half of the messages sent.
// `tests/browser/run picture` writes docs/images/rollout.png.

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';

import { launch } from './browser.mjs';
import { Engine, eventually } from './engine.mjs';

const images = join(import.meta.dirname, '..', '..', 'docs', 'images');
const spec = {
  name: 'firmware-1.4.2',
  description: 'Defrost cycle fix',
  target: { tags: { type: 'fridge' } },
  batch_by: ['region'],
  message: { body: { json: { command: 'update', version: '1.4.2' } }, ttl: '1h', ack: 'full' },
  rate: '4000/min',
  stages: [
    { name: 'canary', tags: { ring: 'canary' }, gate: { counts: 'enqueued', approval: {} } },
    { name: 'early', percent: '20%', gate: { counts: 'enqueued', failure_above: '5%' } },
  ],
};

await mkdir(images, { recursive: true });
const engine = await Engine.start({ devices: 3_000, tier: 'S3' });
let browser;
try {
  browser = await launch();
  await engine.post('/rollouts', spec);
  const getRollout = () => engine.get(`/rollouts/${spec.name}`);
  await eventually('the gate of the stage canary', async () =>
    (await getRollout()).waits_for?.startsWith('an approval'));
  await engine.post(`/rollouts/${spec.name}/approve`, { stage: 'canary', reason: 'no complaints' });
  const page = await browser.newPage({
    viewport: { width: 1120, height: 820 },
    baseURL: engine.address,
  });
  await page.goto('/');
  await page.getByLabel('Token').fill(engine.admin);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByRole('link', { name: spec.name }).click();
  await eventually('the sends to half of the devices', async () => {
    const { counts, devices } = await getRollout();
    return devices && (counts?.pending ?? 0) < devices / 2;
  });
  await page.waitForTimeout(1_500);
  await page.screenshot({ path: join(images, 'rollout.png') });
} catch (error) {
  console.error(engine.logs());
  throw error;
} finally {
  await browser?.close();
  await engine.stop();
}
