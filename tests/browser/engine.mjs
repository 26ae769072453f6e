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

const repository = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const target = process.env.CARGO_TARGET_DIR ?? join(repository, 'target');
const program = join(target, 'debug', 'twincast');
const services = join(repository, 'scripts', 'services');
const run = promisify(execFile);

/** Polls until the result is truthy, and returns the result. */
export async function eventually(description, poll, timeoutMs = 300_000) {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const result = await poll();
    if (result) {
      return result;
    }
    assert.ok(Date.now() < deadline, `${description}: not within ${timeoutMs / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** All running child processes, killed at the end of the test process. */
const runningProcesses = new Set();
process.on('exit', () => runningProcesses.forEach((child) => child.kill('SIGKILL')));
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.once(signal, () => process.exit(1));
}

export class Engine {
  #processes = [];
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
    const hubConfig = await eventually('the configuration of the hub', () =>
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
timeout = "60s"
[http]
listen = "127.0.0.1:0"
[api]
listen = "127.0.0.1:0"
tokens_file = "../tokens"
${hubConfig}`);
    this.orchestrator = this.startRole('orchestrator');
    this.startRole('worker');
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

  /** Starts an orchestrator or a worker. */
  startRole(role) {
    return this.spawn(role, ['--config', join('hub', 'engine.toml'), role]);
  }

  spawn(name, args) {
    const child = spawn(program, args, { cwd: this.#folder, stdio: ['ignore', 'pipe', 'pipe'] });
    const logFile = createWriteStream(join(this.#folder, `${name}.log`));
    let log = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (text) => {
        log += text;
        logFile.write(text);
      });
    }
    runningProcesses.add(child);
    const closed = new Promise((resolve) => child.once('close', resolve)).then(() =>
      runningProcesses.delete(child));
    const handle = { child, closed, name, log: () => log };
    this.#processes.push(handle);
    return handle;
  }

  async get(path) {
    return this.#request(path, {});
  }

  async post(path, body) {
    return this.#request(path, { method: 'POST', body: JSON.stringify(body) });
  }

  async #request(path, options) {
    const headers = { Authorization: `Bearer ${this.admin}`, 'Content-Type': 'application/json' };
    // On a busy machine, the API may answer 503. The requests of the tests are idempotent.
    const response = await eventually(path, async () => {
      const response = await fetch(`${this.address}/api/v1${path}`, { headers, ...options });
      return response.status === 503 ? null : response;
    });
    const text = await response.text();
    assert.ok(response.ok, `${path}: ${response.status}: ${text}`);
    return JSON.parse(text);
  }

  /** Ends a process with SIGTERM. */
  async terminate({ child, closed }) {
    child.kill('SIGTERM');
    await closed;
  }

  /** Returns the last part of the log of each process, for a failed test. */
  logs() {
    return this.#processes.map(({ name, log }) => `--- ${name}\n${log().slice(-3000)}`).join('\n');
  }

  async stop() {
    for (const { child, closed } of this.#processes) {
      child.kill('SIGKILL');
      await closed;
    }
    if (this.guard) {
      const closed = new Promise((resolve) => this.guard.once('close', resolve));
      this.guard.stdin.end();
      await closed;
    }
    await rm(this.#folder, { recursive: true, force: true });
  }
}
