// Display texts, the same as on the command line.

/** The texts of outcomes. */
const OUTCOMES = {
  pending: 'not sent yet',
  attempting: 'not sent yet',
  unknown: 'no answer from the hub: the device may have the message or not',
  skipped: 'not sent: the rollout was aborted, or the device has left the target',
  not_found: 'the device is unknown to the hub, or disabled',
  queue_full:
    '50 messages are already waiting for the device: it is offline, or does not accept messages',
  refused: 'the hub refused the message',
  enqueued: 'the hub holds the message for the device',
  expired: 'the message expired before the device accepted it',
  rejected: 'the device rejected the message',
  undeliverable: 'the message was delivered too often without being accepted',
  purged: 'the device’s queue was purged',
  delivered: 'the device accepted the message',
  installing: 'the device is processing the request',
  applied: 'the device has fulfilled the request',
  failed: 'the device could not fulfil the request',
};

/** The hub's reasons for refusing a message, by code. */
const CODES = {
  403012: 'the device is disabled',
  413001: 'the message is too large',
};

/** The texts of device classes, in display order. */
const CLASSES = {
  applied: 'applied',
  taken: 'taken',
  sent: 'sent',
  silent: 'silent: the hub has the message, and the device has not answered',
  pending: 'pending',
  not_applied: 'not applied: the device accepted the message, and could not fulfil the request',
  not_taken: 'not taken: the hub had the message, and the device did not accept it',
  not_sent: 'not sent: the hub does not have the message, or it is unknown whether it does',
  skipped: 'skipped: the rollout was aborted, or the device has left the target',
};

/** The outcomes of failed devices, by class. */
const FAILURES = {
  not_applied: ['failed'],
  not_taken: ['expired', 'rejected', 'undeliverable', 'purged'],
  not_sent: ['unknown', 'not_found', 'queue_full', 'refused'],
};

/** The activities of a rollout, for the time account. */
const ACTIVITIES = {
  queued: 'waiting to be planned',
  planning: 'planning',
  sending: 'sending',
  throttled: 'throttled by the hub',
  blocked: 'no hub available for sends',
  feedback: 'waiting for feedback',
  evidence: 'waiting for evidence',
  baking: 'baking',
  approval: 'waiting for an approval',
  outside_window: 'outside its window',
  late_joiners: 'waiting for devices to join',
  paused: 'paused',
  halted: 'stopped with all rollouts',
  aborting: 'aborting',
  over: 'ended, until it was continued',
};

/** The signs of phases, readable without colours, and their colours. */
const PHASES = {
  accepted: ['…', 'calm'],
  planning: ['…', 'calm'],
  running: ['▸', 'busy'],
  paused: ['‖', 'warn'],
  halted: ['■', 'warn'],
  aborting: ['×', 'bad'],
  aborted: ['×', 'bad'],
  succeeded: ['✓', 'good'],
  finished_with_failures: ['!', 'warn'],
  failed: ['×', 'bad'],
};

const ENDED = ['aborted', 'succeeded', 'finished_with_failures', 'failed'];

/** The texts of a rollout's events. */
const EVENTS = {
  accepted: 'accepted',
  queued: 'waits for another rollout',
  planning_started: 'planning started',
  plan_completed: 'planned',
  planning_failed: 'planning failed',
  pause_requested: 'paused',
  resume_requested: 'resumed',
  halt_requested: 'stopped with all rollouts',
  halt_lifted: 'all rollouts resumed',
  abort_requested: 'aborted',
  stage_sent: 'stage sent',
  approval_awaited: 'waits only for an approval',
  approved: 'approved',
  promoted: 'promoted',
  stage_passed: 'stage passed',
  gate_failed: 'gate failed',
  retry_requested: 'retry requested',
  retry_prepared: 'retry started',
  all_sent: 'message sent to all devices',
  answers_unavailable: 'answers unavailable',
  all_settled: 'all devices settled',
};

const plain = (name) => name.replaceAll('_', ' ');

export const classes = Object.keys(CLASSES);

/** The text of a class with its meaning. */
export const classMeans = (name) => CLASSES[name];

export const className = (name) => plain(name);

export const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** The kinds of failure, each with its class. */
export const failures = Object.entries(FAILURES).flatMap(([of, outcomes]) =>
  outcomes.map((name) => ({ of, name })));

export const phase = (name) => plain(name);

export function phaseLook(name) {
  const [sign, look] = PHASES[name] ?? ['·', 'calm'];
  return { sign, look };
}

export const isEnded = (name) => ENDED.includes(name);

export function outcome(name, code) {
  const words = (name === 'refused' && CODES[code]) || OUTCOMES[name] || plain(name);
  return code ? `${words} (${code})` : words;
}

/** The error of a failed device, if known. */
export const errorIn = (error) =>
  error && ([error.code, error.text].filter(Boolean).join(': ') || 'the device gives no reason');

export const outcomeName = (name) => plain(name);

export const activity = (name) => ACTIVITIES[name] ?? plain(name);

export const event = (name) => EVENTS[name] ?? plain(name);

const NUMBER = new Intl.NumberFormat('en');

export const number = (value) => NUMBER.format(value);

/** Formats a number with a noun: `1 device`, `2 devices`. */
export const several = (count, of) => `${number(count)} ${of}${count === 1 ? '' : 's'}`;

export function share(part, whole) {
  return whole > 0 ? `${((part / whole) * 100).toFixed(1)} %` : '';
}

/** Formats a duration in its two largest units: `1h 5m`. */
export function span(seconds) {
  const units = [['d', 86400], ['h', 3600], ['m', 60], ['s', 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) {
    return '0s';
  }
  let left = Math.round(seconds);
  const parts = [];
  for (const [unit, size] of units.slice(first, first + 2)) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count > 0) {
      parts.push(`${count}${unit}`);
    }
  }
  return parts.join(' ');
}

const CLOCK = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });
const DAY = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' });
const YEAR = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short', year: 'numeric' });

/** Formats a time in the viewer's time zone, with the day unless today. */
export function moment(at) {
  const then = new Date(at);
  const now = new Date();
  const clock = CLOCK.format(then);
  if (then.toDateString() === now.toDateString()) {
    return clock;
  }
  const day = then.getFullYear() === now.getFullYear() ? DAY : YEAR;
  return `${day.format(then)}, ${clock}`;
}

/** Replaces the times in a text by times in the viewer's time zone. */
export function onTheClock(text) {
  return text.replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, moment);
}

export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
