// Tests a staged rollout on an emulated fleet, watched and operated in a real browser.

import assert from 'node:assert/strict';
import { mkdir, readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';

import { launch } from './browser.mjs';
import { Engine, eventually } from './engine.mjs';

const DEVICES = 400;
const WIDE = { width: 1280, height: 900 };
const NARROW = { width: 360, height: 740 };
const pictures = join(process.env.CARGO_TARGET_DIR ?? 'target', 'screenshots');
const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** A name of the maximum length. */
const SECOND = 'early-adopters-of-all-regions-that-have-a-maintenance-contract';

const spec = {
  name: 'firmware-1.4.2',
  description: 'Defrost cycle fix',
  target: { tags: { type: 'fridge' } },
  batch_by: ['region'],
  message: { body: { json: { command: 'update', version: '1.4.2' } }, ttl: '1m', ack: 'full' },
  rate: '4000/min',
  stages: [
    { name: 'canary', percent: '5%', gate: { counts: 'enqueued', approval: {} } },
    {
      name: SECOND,
      percent: '50%',
      gate: { counts: 'enqueued', failure_above: '5%', approval: {} },
    },
  ],
};

const began = Date.now();
const step = (what) =>
  console.log(`${((Date.now() - began) / 1000).toFixed(1).padStart(5)} s  ${what}`);

/** A browser window of a person. Errors and warnings of the browser fail the test at the end. */
class Visitor {
  static complaints = [];

  static async of(browser, address, settings = {}) {
    const visitor = new Visitor();
    visitor.context = await browser.newContext({ viewport: WIDE, baseURL: address, ...settings });
    await visitor.context.addInitScript(() => {
      addEventListener('securitypolicyviolation', (event) =>
        console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
    });
    visitor.page = await visitor.context.newPage();
    visitor.page.setDefaultTimeout(30_000);
    visitor.page.on('pageerror', (error) => Visitor.complaints.push(String(error)));
    visitor.page.on('console', (said) => {
      // The 401 before the sign-in is expected.
      const isExpected =
        /status of 401/.test(said.text()) && said.location().url.endsWith('/whoami');
      if (['error', 'warning'].includes(said.type()) && !isExpected) {
        Visitor.complaints.push(`${said.text()} (${said.location().url})`);
      }
    });
    visitor.page.on('request', (request) => {
      if (!request.url().startsWith(address)) {
        Visitor.complaints.push(`asked somewhere else: ${request.url()}`);
      }
    });
    return visitor;
  }

  async signIn(token) {
    await this.page.goto('/');
    await this.page.getByLabel('Token').fill(token);
    await this.page.getByRole('button', { name: 'Sign in' }).click();
    await this.page.getByRole('heading', { name: 'Rollouts' }).waitFor();
  }

  /** Takes screenshots, light and dark, wide and narrow; checks the width and the accessibility. */
  async look(name) {
    for (const [scheme, size, viewport] of [
      ['light', 'wide', WIDE],
      ['dark', 'wide', WIDE],
      ['light', 'narrow', NARROW],
      ['dark', 'narrow', NARROW],
    ]) {
      await this.page.emulateMedia({ colorScheme: scheme, reducedMotion: 'reduce' });
      await this.page.setViewportSize(viewport);
      await this.page.screenshot({
        path: join(pictures, `${name}-${size}-${scheme}.png`),
        fullPage: true,
      });
      const [inner, outer] = await this.page.evaluate(
        () => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
      assert.ok(inner <= outer, `${name}, ${size}: ${inner} px wide, and the window ${outer}`);
      // Evaluated outside the page's scripts, so the content security policy does not apply.
      const { violations } = await this.page.evaluate(
        `${axe}; axe.run({ resultTypes: ['violations'] })`);
      const told = violations.map(
        ({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html).join(' ')}`);
      assert.deepEqual(told, [], `${name}, ${size}, ${scheme}`);
    }
    await this.page.setViewportSize(WIDE);
    step(`looked at ${name}`);
  }
}

/** Presses Tab until the element with this text is focused. */
async function tabTo(page, name) {
  for (let presses = 0; presses < 40; presses += 1) {
    await page.keyboard.press('Tab');
    const focused = await page.evaluate(() => document.activeElement.textContent.trim());
    if (focused === name) {
      const outline = await page.evaluate(
        () => getComputedStyle(document.activeElement).outlineStyle);
      assert.notEqual(outline, 'none', `${name} is focused, and it is not to be seen`);
      return;
    }
  }
  assert.fail(`${name} cannot be reached with Tab`);
}

async function waitsFor(page, text) {
  await page.locator('.state', { hasText: text }).waitFor({ timeout: 60_000 });
}

async function watch(engine, browser) {
  const { page, ...ann } = await visit(engine, browser);
  step('signed in');
  await page.getByText('No rollouts yet.').waitFor();

  // The rollout appears without a reload.
  await engine.post('/rollouts', spec);
  await page.getByRole('link', { name: spec.name }).click();
  await page.getByRole('heading', { level: 1, name: spec.name }).waitFor();
  await waitsFor(page, 'Stage canary waits for an approval');
  step('the first gate waits');

  const viewer = await Visitor.of(browser, engine.address);
  await viewer.signIn(engine.viewer);
  await viewer.page.goto(`/#/rollouts/${spec.name}`);
  await waitsFor(viewer.page, 'Stage canary waits for an approval');
  assert.equal(
    await viewer.page.locator('button[data-operation]').count(),
    0,
    'who looks only has no buttons');

  // Approve by click, with a reason that looks like HTML.
  await page.getByRole('button', { name: 'Approve canary' }).click();
  await page.getByRole('dialog').getByLabel(/^Reason/).fill('looks <b>well</b>');
  await ann.look('dialog');
  await page.getByRole('dialog').getByRole('button', { name: 'Approve' }).click();
  await page.getByText('Done: approve.').waitFor({ state: 'attached' });
  await page.getByRole('cell', { name: 'ann: looks <b>well</b>' }).waitFor();
  step('approved by click');

  await page.getByRole('button', { name: 'Pause' }).click();
  await page.getByRole('dialog').getByLabel(/^Reason/).fill('lunch');
  await page.getByRole('dialog').getByRole('button', { name: 'Pause' }).click();
  await page.locator('.badge', { hasText: 'paused' }).waitFor();
  await page.getByText('lunch (pause by ann)').first().waitFor();
  await page.getByRole('button', { name: 'Resume' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Resume' }).click();
  await page.locator('.badge', { hasText: 'running' }).waitFor();
  step('paused and resumed by click');
  await page.locator('.chart .line').waitFor({ state: 'attached' });

  await waitsFor(page, `Stage ${SECOND} waits for an approval`);
  await ann.look('half');
  // More rollouts have ended than fit on a page of the list, and their names sort first.
  const names = Array.from({ length: 101 }, (_, n) => `archive-${n + 100}`);
  while (names.length > 0) {
    await Promise.all(names.splice(0, 10).map((name) =>
      engine.post('/rollouts', { ...spec, name, target: { tags: { type: 'none' } } })));
  }
  await eventually(
    'their end',
    async () => (await engine.get('/rollouts?ended=false')).rollouts.length === 1);
  await page.goto('/#/');
  await page.getByRole('link', { name: 'archive-199' }).waitFor();
  assert.match(
    await page.locator('tbody tr').first().textContent(),
    new RegExp(`^${spec.name}`),
    'what runs comes first');
  await ann.look('rollouts');
  await page.getByRole('button', { name: 'Next page' }).click();
  await page.getByRole('link', { name: 'archive-200' }).waitFor();
  await page.getByRole('button', { name: 'First page' }).click();
  await page.getByRole('link', { name: spec.name }).waitFor();
  await page.goto(`/#/rollouts/${spec.name}`);

  await byKeyboard(engine, browser);
  step('approved by keyboard');

  // Offline devices do not accept the message before it expires.
  await page.locator('.badge', { hasText: 'finished with failures' }).waitFor({ timeout: 180_000 });
  await page.locator('.figure', { hasText: `${DEVICES} of ${DEVICES} devices done` }).waitFor();
  await page.locator('.legend', { hasText: 'not taken: the hub had the message' }).waitFor();
  await page.getByRole('row', { name: /^not found not sent/ }).waitFor();
  await page.getByRole('rowheader', { name: 'not found' }).waitFor();
  await page.getByRole('cell', { name: 'the device is unknown to the hub, or disabled' }).waitFor();
  await page.locator('.devices code', { hasText: 'fridge-' }).first().waitFor();
  await page.getByText('devices per minute at most').waitFor();
  assert.equal(
    await page.locator('button[data-operation="abort"]').count(),
    0,
    'what is over cannot be aborted');
  const { phase, by_class } = await engine.get(`/rollouts/${spec.name}`);
  assert.equal(phase, 'finished_with_failures');
  assert.equal(by_class.pending, 0);
  const all = Object.values(by_class).reduce((sum, devices) => sum + devices, 0);
  assert.equal(all, DEVICES, 'classes add up to the devices');
  step('it has finished');
  await ann.look('finished');

  await page.locator('.devices a', { hasText: 'fridge-' }).first().click();
  await page.getByRole('rowheader', { name: 'Waits for' }).waitFor();
  await ann.look('device');

  await page.getByRole('link', { name: 'Hubs' }).click();
  await page.getByRole('rowheader', { name: 'emulator' }).waitFor();
  await ann.look('hubs');
  await page.goto('/#/rollouts/there-is-none');
  await page.getByText('there is no rollout there-is-none').waitFor();
  await page.goto(`/#/rollouts/${spec.name}/devices/100%`);
  await page.getByText('100%').first().waitFor();
  const unasked = Visitor.complaints.filter(
    (said) => !/status of 404.*(there-is-none|100%25)/.test(said));
  assert.deepEqual(unasked, [], 'what the browser complained of');

  // Outdated data are always marked.
  await page.goto('/#/');
  await page.getByRole('link', { name: 'archive-100' }).waitFor();
  await engine.end(engine.orchestrator);
  await page.getByRole('alert').filter({ hasText: 'No connection to the orchestrator.' }).waitFor();
  await ann.look('away');
  step('it says that nobody answers');
}

async function visit(engine, browser) {
  const ann = await Visitor.of(browser, engine.address);
  const { page } = ann;
  await page.goto('/');
  await page.getByLabel('Token').fill('twc_wrong');
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByText('The token is not known.').waitFor();
  await ann.look('sign-in');
  await ann.signIn(engine.admin);
  return { page, look: (name) => ann.look(name) };
}

/** Signs in and approves a gate with the keyboard alone. */
async function byKeyboard(engine, browser) {
  const { page, context } = await Visitor.of(browser, engine.address);
  await page.goto('/');
  await page.getByLabel('Token').waitFor();
  await page.keyboard.type(engine.admin);
  await page.keyboard.press('Enter');
  await page.getByRole('link', { name: spec.name }).waitFor();
  await tabTo(page, spec.name);
  await page.keyboard.press('Enter');
  await waitsFor(page, `Stage ${SECOND} waits for an approval`);
  await tabTo(page, `Approve ${SECOND}`);
  await page.keyboard.press('Enter');
  await page.getByRole('dialog').waitFor();
  await page.keyboard.press('Escape');
  await page.getByRole('dialog').waitFor({ state: 'hidden' });
  assert.equal(
    await page.evaluate(() => document.activeElement.textContent.trim()),
    `Approve ${SECOND}`,
    'back where one was');
  await page.keyboard.press('Enter');
  await page.keyboard.type('no complaints');
  await tabTo(page, 'Approve');
  await page.keyboard.press('Enter');
  await page.getByRole('cell', { name: 'ann: no complaints' }).waitFor();
  await page.getByRole('dialog').waitFor({ state: 'hidden' });
  // The button that opened the dialog is gone.
  await page.waitForFunction(() => document.activeElement.tagName === 'H1');
  await context.close();
}

await mkdir(pictures, { recursive: true });
const engine = await Engine.start({ devices: DEVICES, tier: 'S3' });
step(`the engine is up: ${engine.address}`);
let browser;
try {
  browser = await launch();
  await watch(engine, browser);
  step(`all well; pictures are in ${pictures}`);
} catch (error) {
  console.error(engine.logs(), Visitor.complaints);
  throw error;
} finally {
  await browser?.close();
  await engine.stop();
}
