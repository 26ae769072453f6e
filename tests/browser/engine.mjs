// The whole engine for a test: RabbitMQ, Redis, an emulated hub, an orchestrator and a worker, as
// private processes on free ports.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const target = process.env.CARGO_TARGET_DIR ?? join(root, 'target');
const program = join(target, 'debug', 'twincast');
const services = join(root, 'scripts', 'services');
const run = promisify(execFile);

/** Polls until there is a result. */
export async function eventually(what, look, within = 60_000) {
  const until = Date.now() + within;
  for (;;) {
    const found = await look();
    if (found) {
      return found;
    }
    assert.ok(Date.now() < until, `${what}: not within ${within / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** All started processes, killed at the end of the test process. */
const started = new Set();
process.on('exit', () => started.forEach((child) => child.kill('SIGKILL')));
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.once(signal, () => process.exit(1));
}

export class Engine {
  #children = [];
  #folder;

  /**
   * Starts the services and a hub of the given tier with `devices` refrigerators, without
   * orchestrator and worker.
   */
  static async start({ devices, tier }) {
    const engine = new Engine();
    try {
      await engine.#start(devices, tier);
    } catch (error) {
      await engine.stop();
      throw error;
    }
    return engine;
  }

  async #start(devices, tier) {
    this.#folder = await mkdtemp(join(tmpdir(), 'twincast-browser-'));
    // The guard kills the services after the end of this process, and removes the folder.
    this.guard = spawn(services, ['guard', join(this.#folder, 'services')], {
      stdio: ['pipe', 'inherit', 'inherit'],
    });
    const [rabbitmq, redis] = await Promise.all([
      this.#service('rabbitmq'),
      this.#service('redis'),
    ]);
    this.spawn('hub', [
      'hub', '--devices', String(devices), '--tier', tier, '--amqp-port', '0', '--out', 'hub',
    ]);
    const hub = await eventually('the hub', () =>
      readFile(join(this.#folder, 'hub', 'twincast.toml'), 'utf8').catch(() => null));
    const tokens = await Promise.all(
      [['ann', 'admin'], ['vic', 'viewer']].map(([name, role]) => this.token(name, role)));
    await writeFile(join(this.#folder, 'tokens'), tokens.map(({ line }) => `${line}\n`).join(''));
    [this.admin, this.viewer] = tokens.map(({ token }) => token);
    await writeFile(join(this.#folder, 'hub', 'engine.toml'), `
[amqp]
url = "amqp://guest:guest@127.0.0.1:${rabbitmq.port}"
[redis]
url = "redis://127.0.0.1:${redis.port}"
[http]
listen = "127.0.0.1:0"
[api]
listen = "127.0.0.1:0"
tokens_file = "../tokens"
${hub}`);
    this.orchestrator = this.work('orchestrator');
    this.work('worker');
    const [, address] = await eventually('the API', () =>
      this.orchestrator.log().match(/API: (http:\/\/\S+?)\/api\/v1/));
    this.address = address;
    await eventually('a worker', async () => (await this.get('/hubs')).hubs[0].workers === 1);
  }

  async #service(name) {
    const { stdout } = await run(services, [`${name}-start`, join(this.#folder, 'services', name)]);
    return Object.fromEntries(stdout.trim().split('\n').map((line) => line.split('=')));
  }

  async token(name, role) {
    const { stdout } = await run(program, ['--json', 'token', name, '--role', role]);
    return JSON.parse(stdout);
  }

  /** Starts a process of the engine. */
  work(role) {
    return this.spawn(role, ['--config', join('hub', 'engine.toml'), role]);
  }

  spawn(name, words) {
    const child = spawn(program, words, { cwd: this.#folder, stdio: ['ignore', 'pipe', 'pipe'] });
    const file = createWriteStream(join(this.#folder, `${name}.log`));
    let log = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (text) => {
        log += text;
        file.write(text);
      });
    }
    started.add(child);
    const over = new Promise((resolve) => child.once('close', resolve)).then(() =>
      started.delete(child));
    const member = { child, over, name, log: () => log };
    this.#children.push(member);
    return member;
  }

  async get(path) {
    return this.#ask(path, {});
  }

  async post(path, body) {
    return this.#ask(path, { method: 'POST', body: JSON.stringify(body) });
  }

  async #ask(path, request) {
    const headers = { Authorization: `Bearer ${this.admin}`, 'Content-Type': 'application/json' };
    // A busy machine may not answer in time; a repeated request has no second effect.
    const response = await eventually(path, async () => {
      const answer = await fetch(`${this.address}/api/v1${path}`, { headers, ...request });
      return answer.status === 503 ? null : answer;
    });
    const text = await response.text();
    assert.ok(response.ok, `${path}: ${response.status}: ${text}`);
    return JSON.parse(text);
  }

  /** Ends a process with SIGTERM. */
  async end({ child, over }) {
    child.kill('SIGTERM');
    await over;
  }

  /** Returns the ends of the processes' logs, for a failed test. */
  logs() {
    return this.#children.map(({ name, log }) => `--- ${name}\n${log().slice(-3000)}`).join('\n');
  }

  async stop() {
    for (const { child, over } of this.#children) {
      child.kill('SIGKILL');
      await over;
    }
    if (this.guard) {
      const over = new Promise((resolve) => this.guard.once('close', resolve));
      this.guard.stdin.end();
      await over;
    }
    await rm(this.#folder, { recursive: true, force: true });
  }
}
