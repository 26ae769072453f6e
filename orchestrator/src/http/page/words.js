// What things are called, the same as on the command line.

/** Outcomes in words that say what to do about it. */
const OUTCOMES = {
  pending: 'not sent yet',
  attempting: 'not sent yet',
  unknown: 'no answer from the hub: the device may have the message or not',
  skipped: 'not to be sent to: the rollout was aborted, or the device has left its target',
  not_found: 'the hub does not know the device, or has it disabled',
  queue_full: '50 messages are waiting for the device already: it is away, or does not take them',
  refused: 'the hub refused the message',
  enqueued: 'the hub has the message for the device',
  expired: 'the device was away until the message’s time was over',
  rejected: 'the device rejected the message',
  undeliverable: 'the device was handed the message too often without taking it',
  purged: 'the device’s queue was purged',
  delivered: 'the device took the message',
  installing: 'the device is at work on what the message asks for',
  applied: 'the device has done what the message asks for',
  failed: 'the device could not do what the message asks for',
};

/** Why the hub refused a message, by its code. */
const CODES = {
  403012: 'the device is disabled',
  413001: 'the message is too large',
};

/** What became of devices, in the order in which people read it. */
const CLASSES = {
  applied: 'applied',
  taken: 'taken',
  sent: 'sent',
  silent: 'silent: the hub has the message, and no answer has come',
  pending: 'pending',
  not_applied: 'not applied: the device took the message, and could not do what it asks for',
  not_taken: 'not taken: the hub had the message',
  not_sent: 'not sent: the hub does not have the message, or it is not known that it does',
  skipped: 'skipped: the rollout was aborted first, or the device has left the target',
};

/** The outcomes of devices that were not sent the message, did not take it, or could not do what it asks for, by class. */
const FAILURES = {
  not_applied: ['failed'],
  not_taken: ['expired', 'rejected', 'undeliverable', 'purged'],
  not_sent: ['unknown', 'not_found', 'queue_full', 'refused'],
};

/** What a rollout spends time on. */
const ACTIVITIES = {
  queued: 'waiting to be planned',
  planning: 'planning',
  sending: 'sending',
  throttled: 'throttled by the hub',
  blocked: 'without a way to the hub',
  feedback: 'waiting for feedback',
  evidence: 'waiting to hear the hub',
  baking: 'baking',
  approval: 'waiting for an approval',
  outside_window: 'outside its window',
  joiners: 'waiting for devices to join',
  paused: 'paused',
  halted: 'stopped with all rollouts',
  aborting: 'aborting',
  over: 'over, until it was taken up again',
};

/** Signs of phases, for those who do not tell colours apart, and how they are coloured. */
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

/** What happened to a rollout. */
const EVENTS = {
  accepted: 'accepted',
  queued: 'waits for another rollout',
  planning_started: 'planning began',
  plan_completed: 'planned',
  planning_failed: 'could not be planned',
  pause_requested: 'paused',
  resume_requested: 'resumed',
  halt_requested: 'stopped with all rollouts',
  halt_lifted: 'all rollouts may go on',
  abort_requested: 'aborted',
  stage_sent: 'all of the stage was sent to',
  approval_awaited: 'only an approval is missing',
  approved: 'approved',
  promoted: 'promoted',
  stage_passed: 'stage passed',
  gate_failed: 'gate failed',
  retry_requested: 'a retry was asked for',
  retry_prepared: 'the retry begins',
  all_sent: 'every device was sent the message',
  not_heard: 'answers could not be heard',
  all_settled: 'nothing is left to do',
};

const plain = (name) => name.replaceAll('_', ' ');

export const classes = Object.keys(CLASSES);

/** A class in words that say what it means. */
export const classMeans = (name) => CLASSES[name];

export const className = (name) => plain(name);

export const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** The ways to fail, each with its class. */
export const failures = Object.entries(FAILURES).flatMap(([of, outcomes]) => outcomes.map((name) => ({ of, name })));

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

/** The words of a device that failed, if there are some. */
export const errorIn = (error) => error && ([error.code, error.text].filter(Boolean).join(': ') || 'the device does not say why');

export const outcomeName = (name) => plain(name);

export const activity = (name) => ACTIVITIES[name] ?? plain(name);

export const event = (name) => EVENTS[name] ?? plain(name);

const NUMBER = new Intl.NumberFormat('en');

export const number = (value) => NUMBER.format(value);

/** How many of something: `1 device`, `2 devices`. */
export const several = (count, of) => `${number(count)} ${of}${count === 1 ? '' : 's'}`;

export function share(part, whole) {
  return whole > 0 ? `${((part / whole) * 100).toFixed(1)} %` : '';
}

/** A span of time in its two largest units: `1h 5m`. */
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

/** A moment on the clock of whoever looks, with its day if that is not today. */
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

/** A sentence with its moments on the clock of whoever looks. */
export function onTheClock(text) {
  return text.replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, moment);
}

export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
