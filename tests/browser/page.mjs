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
const screenshots = join(process.env.CARGO_TARGET_DIR ?? 'target', 'screenshots');
const { resolve } = createRequire(import.meta.url);
const axeSource = await readFile(resolve('axe-core/axe.min.js'), 'utf8');

/** The name of the second stage, of the maximum length. */
const SECOND_STAGE = 'early-adopters-of-all-regions-that-have-a-maintenance-contract';

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
      name: SECOND_STAGE,
      percent: '50%',
      gate: { counts: 'enqueued', failure_above: '5%', approval: {} },
    },
  ],
};

const startedAt = Date.now();
const step = (description) =>
  console.log(`${((Date.now() - startedAt) / 1000).toFixed(1).padStart(5)} s  ${description}`);

/** A browser session of a user. Errors and warnings of the browser fail the test at the end. */
class Session {
  static problems = [];

  static async open(browser, address) {
    const session = new Session();
    session.context = await browser.newContext({ viewport: WIDE, baseURL: address });
    await session.context.addInitScript(() => {
      addEventListener('securitypolicyviolation', (event) =>
        console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
    });
    session.page = await session.context.newPage();
    session.page.setDefaultTimeout(180_000);
    session.page.on('pageerror', (error) => Session.problems.push(String(error)));
    session.page.on('console', (message) => {
      // Expected: the 401 before the sign-in, and on a busy machine a 503, which the page repeats.
      const isExpected =
        (/status of 401/.test(message.text()) && message.location().url.endsWith('/whoami')) ||
        /status of 503/.test(message.text());
      if (['error', 'warning'].includes(message.type()) && !isExpected) {
        Session.problems.push(`${message.text()} (${message.location().url})`);
      }
    });
    session.page.on('request', (request) => {
      if (!request.url().startsWith(address)) {
        Session.problems.push(`request to another origin: ${request.url()}`);
      }
    });
    return session;
  }

  async signIn(token) {
    await this.page.goto('/');
    await this.page.getByLabel('Token').fill(token);
    await this.page.getByRole('button', { name: 'Sign in' }).click();
    await this.page.getByRole('heading', { name: 'Rollouts' }).waitFor();
  }

  /** Takes screenshots, light and dark, wide and narrow; checks the width and the accessibility. */
  async checkPage(name) {
    for (const [scheme, size, viewport] of [
      ['light', 'wide', WIDE],
      ['dark', 'wide', WIDE],
      ['light', 'narrow', NARROW],
      ['dark', 'narrow', NARROW],
    ]) {
      await this.page.emulateMedia({ colorScheme: scheme, reducedMotion: 'reduce' });
      await this.page.setViewportSize(viewport);
      await this.page.screenshot({
        path: join(screenshots, `${name}-${size}-${scheme}.png`),
        fullPage: true,
      });
      const [contentWidth, windowWidth] = await this.page.evaluate(
        () => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
      assert.ok(
        contentWidth <= windowWidth,
        `${name}, ${size}: the content has ${contentWidth} px, and the window ${windowWidth} px`);
      // Evaluated outside the page's scripts, so the content security policy does not apply.
      const { violations } = await this.page.evaluate(
        `${axeSource}; axe.run({ resultTypes: ['violations'] })`);
      const messages = violations.map(
        ({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html).join(' ')}`);
      assert.deepEqual(messages, [], `${name}, ${size}, ${scheme}`);
    }
    await this.page.setViewportSize(WIDE);
    step(`checked the page: ${name}`);
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
      assert.notEqual(outline, 'none', `the focus on ${name} is not visible`);
      return;
    }
  }
  assert.fail(`${name} cannot be reached with Tab`);
}

async function waitForState(page, text) {
  await page.locator('.state', { hasText: text }).waitFor({ timeout: 300_000 });
}

async function testRollout(engine, browser) {
  const admin = await openAdminSession(engine, browser);
  const { page } = admin;
  step('signed in');
  await page.getByText('No rollouts yet.').waitFor();

  // The rollout appears without a reload.
  await engine.post('/rollouts', spec);
  await page.getByRole('link', { name: spec.name }).click();
  await page.getByRole('heading', { level: 1, name: spec.name }).waitFor();
  await waitForState(page, 'Stage canary waits for an approval');
  step('the first gate waits for an approval');

  const viewer = await Session.open(browser, engine.address);
  await viewer.signIn(engine.viewer);
  await viewer.page.goto(`/#/rollouts/${spec.name}`);
  await waitForState(viewer.page, 'Stage canary waits for an approval');
  assert.equal(
    await viewer.page.locator('button[data-operation]').count(),
    0,
    'a viewer has no buttons');

  // Approve with the mouse; the reason contains HTML tags.
  await page.getByRole('button', { name: 'Approve canary' }).click();
  await page.getByRole('dialog').getByLabel(/^Reason/).fill('looks <b>well</b>');
  await admin.checkPage('dialog');
  await page.getByRole('dialog').getByRole('button', { name: 'Approve' }).click();
  await page.getByText('Done: approve.').waitFor({ state: 'attached' });
  await page.getByRole('cell', { name: 'ann: looks <b>well</b>' }).waitFor();
  step('approved with the mouse');

  await page.getByRole('button', { name: 'Pause' }).click();
  await page.getByRole('dialog').getByLabel(/^Reason/).fill('lunch');
  await page.getByRole('dialog').getByRole('button', { name: 'Pause' }).click();
  await page.locator('.badge', { hasText: 'paused' }).waitFor();
  await page.getByText('lunch (pause by ann)').first().waitFor();
  await page.getByRole('button', { name: 'Resume' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Resume' }).click();
  await page.locator('.badge', { hasText: 'running' }).waitFor();
  step('paused and resumed with the mouse');
  await page.locator('.chart .line').waitFor({ state: 'attached' });

  await waitForState(page, `Stage ${SECOND_STAGE} waits for an approval`);
  await admin.checkPage('second-gate');
  // The ended rollouts do not fit on a page of the list, and sort before the running rollout by
  // name.
  const names = Array.from({ length: 101 }, (_, n) => `archive-${n + 100}`);
  while (names.length > 0) {
    await Promise.all(names.splice(0, 10).map((name) =>
      engine.post('/rollouts', { ...spec, name, target: { tags: { type: 'none' } } })));
  }
  await eventually(
    'the end of the archived rollouts',
    async () => (await engine.get('/rollouts?ended=false')).rollouts.length === 1);
  await page.goto('/#/');
  await page.getByRole('link', { name: 'archive-199' }).waitFor();
  assert.match(
    await page.locator('tbody tr').first().textContent(),
    new RegExp(`^${spec.name}`),
    'the running rollout comes first');
  await admin.checkPage('rollouts');
  await page.getByRole('button', { name: 'Next page' }).click();
  await page.getByRole('link', { name: 'archive-200' }).waitFor();
  await page.getByRole('button', { name: 'First page' }).click();
  await page.getByRole('link', { name: spec.name }).waitFor();
  await page.goto(`/#/rollouts/${spec.name}`);

  await approveWithKeyboard(engine, browser);
  step('approved with the keyboard');

  // Offline devices do not accept the message before it expires.
  await page.locator('.badge', { hasText: 'finished with failures' }).waitFor({ timeout: 600_000 });
  await page.locator('.metric', { hasText: `${DEVICES} of ${DEVICES} devices done` }).waitFor();
  await page.locator('.legend', { hasText: 'not taken: the hub had the message' }).waitFor();
  await page.getByRole('row', { name: /^not found not sent/ }).waitFor();
  await page.getByRole('rowheader', { name: 'not found' }).waitFor();
  await page.getByRole('cell', { name: 'the device is unknown to the hub, or disabled' }).waitFor();
  await page.locator('.devices code', { hasText: 'fridge-' }).first().waitFor();
  await page.getByText('devices per minute at most').waitFor();
  assert.equal(
    await page.locator('button[data-operation="abort"]').count(),
    0,
    'an ended rollout cannot be aborted');
  const { phase, by_class } = await engine.get(`/rollouts/${spec.name}`);
  assert.equal(phase, 'finished_with_failures');
  assert.equal(by_class.pending, 0);
  const total = Object.values(by_class).reduce((sum, devices) => sum + devices, 0);
  assert.equal(total, DEVICES, 'the sum of all classes is the number of devices');
  step('the rollout has finished');
  await admin.checkPage('finished');

  await page.locator('.devices a', { hasText: 'fridge-' }).first().click();
  await page.getByRole('rowheader', { name: 'Waits for' }).waitFor();
  await admin.checkPage('device');

  await page.getByRole('link', { name: 'Hubs' }).click();
  await page.getByRole('rowheader', { name: 'emulator' }).waitFor();
  await admin.checkPage('hubs');
  await page.goto('/#/rollouts/there-is-none');
  await page.getByText('there is no rollout there-is-none').waitFor();
  await page.goto(`/#/rollouts/${spec.name}/devices/100%`);
  await page.getByText('100%').first().waitFor();
  const unexpected = Session.problems.filter(
    (problem) => !/status of 404.*(there-is-none|100%25)/.test(problem));
  assert.deepEqual(unexpected, [], 'errors and warnings of the browser');

  // Outdated data are always marked.
  await page.goto('/#/');
  await page.getByRole('link', { name: 'archive-100' }).waitFor();
  await engine.terminate(engine.orchestrator);
  await page.getByRole('alert').filter({ hasText: 'No connection to the orchestrator.' }).waitFor();
  await admin.checkPage('disconnected');
  step('the page reports the lost connection');
}

/** Checks the sign-in with a wrong token, and signs in as an admin. */
async function openAdminSession(engine, browser) {
  const session = await Session.open(browser, engine.address);
  const { page } = session;
  await page.goto('/');
  await page.getByLabel('Token').fill('twc_wrong');
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByText('The token is not known.').waitFor();
  await session.checkPage('sign-in');
  await session.signIn(engine.admin);
  return session;
}

/** Signs in and approves a gate with the keyboard alone. */
async function approveWithKeyboard(engine, browser) {
  const { page, context } = await Session.open(browser, engine.address);
  await page.goto('/');
  await page.getByLabel('Token').waitFor();
  await page.keyboard.type(engine.admin);
  await page.keyboard.press('Enter');
  await page.getByRole('link', { name: spec.name }).waitFor();
  await tabTo(page, spec.name);
  await page.keyboard.press('Enter');
  await waitForState(page, `Stage ${SECOND_STAGE} waits for an approval`);
  await tabTo(page, `Approve ${SECOND_STAGE}`);
  await page.keyboard.press('Enter');
  await page.getByRole('dialog').waitFor();
  await page.keyboard.press('Escape');
  await page.getByRole('dialog').waitFor({ state: 'hidden' });
  assert.equal(
    await page.evaluate(() => document.activeElement.textContent.trim()),
    `Approve ${SECOND_STAGE}`,
    'the focus returns to the button that opened the dialog');
  await page.keyboard.press('Enter');
  await page.keyboard.type('no complaints');
  await tabTo(page, 'Approve');
  await page.keyboard.press('Enter');
  await page.getByRole('cell', { name: 'ann: no complaints' }).waitFor();
  await page.getByRole('dialog').waitFor({ state: 'hidden' });
  // The button that opened the dialog is gone, so the heading has the focus.
  await page.waitForFunction(() => document.activeElement.tagName === 'H1');
  await context.close();
}

await mkdir(screenshots, { recursive: true });
const engine = await Engine.start({ devices: DEVICES, tier: 'S3' });
step(`the engine has started: ${engine.address}`);
let browser;
try {
  browser = await launch();
  await testRollout(engine, browser);
  step(`passed; screenshots are in ${screenshots}`);
} catch (error) {
  console.error(engine.logs(), Session.problems);
  throw error;
} finally {
  await browser?.close();
  await engine.stop();
}
