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
const REFUSALS = {
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

/** The symbol of each phase, readable without colours, and the style of the badge. */
const PHASES = {
  accepted: ['…', 'muted'],
  planning: ['…', 'muted'],
  running: ['▸', 'info'],
  paused: ['‖', 'warning'],
  halted: ['■', 'warning'],
  aborting: ['×', 'danger'],
  aborted: ['×', 'danger'],
  succeeded: ['✓', 'success'],
  finished_with_failures: ['!', 'warning'],
  failed: ['×', 'danger'],
};

const ENDED_PHASES = ['aborted', 'succeeded', 'finished_with_failures', 'failed'];

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

/** Returns the name of an API value with spaces instead of underscores. */
export const toLabel = (name) => name.replaceAll('_', ' ');

export const deviceClasses = Object.keys(CLASSES);

/** Returns the name and the meaning of a device class. */
export const classDescription = (name) => CLASSES[name];

export const classLabel = (name) => toLabel(name);

export const capitalize = (text) => text[0].toUpperCase() + text.slice(1);

/** The outcomes of failed devices, each with the device class. */
export const failures = Object.entries(FAILURES).flatMap(([deviceClass, outcomes]) =>
  outcomes.map((outcome) => ({ deviceClass, outcome })));

export const phaseLabel = (name) => toLabel(name);

export function phaseStyle(name) {
  const [symbol, style] = PHASES[name] ?? ['·', 'muted'];
  return { symbol, style };
}

export const isEnded = (phase) => ENDED_PHASES.includes(phase);

export function outcomeDescription(name, code) {
  const text = (name === 'refused' && REFUSALS[code]) || OUTCOMES[name] || toLabel(name);
  return code ? `${text} (${code})` : text;
}

/** Returns the text of a device's error; null or undefined without an error. */
export const errorText = (error) =>
  error && ([error.code, error.text].filter(Boolean).join(': ') || 'the device gives no reason');

export const outcomeLabel = (name) => toLabel(name);

export const activityLabel = (name) => ACTIVITIES[name] ?? toLabel(name);

export const eventLabel = (name) => EVENTS[name] ?? toLabel(name);

const NUMBER_FORMAT = new Intl.NumberFormat('en');

export const formatNumber = (value) => NUMBER_FORMAT.format(value);

/** Formats a number with a noun: `1 device`, `2 devices`. */
export const plural = (count, noun) => `${formatNumber(count)} ${noun}${count === 1 ? '' : 's'}`;

export function formatPercentage(part, whole) {
  return whole > 0 ? `${((part / whole) * 100).toFixed(1)} %` : '';
}

/** Formats a duration in its two largest units: `1h 5m`. */
export function formatDuration(seconds) {
  const units = [['d', 86400], ['h', 3600], ['m', 60], ['s', 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) {
    return '0s';
  }
  let remaining = Math.round(seconds);
  const parts = [];
  for (const [unit, size] of units.slice(first, first + 2)) {
    const count = Math.floor(remaining / size);
    remaining -= count * size;
    if (count > 0) {
      parts.push(`${count}${unit}`);
    }
  }
  return parts.join(' ');
}

const TIME_FORMAT = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });
const DAY_FORMAT = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' });
const DATE_FORMAT = new Intl.DateTimeFormat('en-GB', {
  day: 'numeric', month: 'short', year: 'numeric',
});

/** Formats a time in the viewer's time zone, with the day unless today. */
export function formatTime(timestamp) {
  const date = new Date(timestamp);
  const now = new Date();
  const time = TIME_FORMAT.format(date);
  if (date.toDateString() === now.toDateString()) {
    return time;
  }
  const format = date.getFullYear() === now.getFullYear() ? DAY_FORMAT : DATE_FORMAT;
  return `${format.format(date)}, ${time}`;
}

/** Replaces the times in a text by times in the viewer's time zone. */
export function localizeTimes(text) {
  return text.replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, formatTime);
}

export const timeZone = Intl.DateTimeFormat().resolvedOptions().timeZone;
