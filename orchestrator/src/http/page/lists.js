// The lists of all rollouts and all hubs.

import { el, table } from './dom.js';
import { buttonsForAll, failedOf } from './operations.js';
import {
  classes, isEnded, moment, number, onTheClock, phase, phaseLook, several,
} from './words.js';

const PHASES = [
  'accepted', 'planning', 'running', 'paused', 'halted', 'aborting',
  'aborted', 'succeeded', 'finished_with_failures', 'failed',
];

/** Shows a phase as sign and text. */
export function badge(name) {
  const { sign, look } = phaseLook(name);
  return el('span', { class: `badge ${look}` },
    el('span', { 'aria-hidden': 'true' }, `${sign} `),
    phase(name));
}

/** The number of all devices, and the number of devices without a pending send. */
export const allOf = (by_class) => classes.reduce((all, name) => all + by_class[name], 0);
export const doneOf = (by_class) => allOf(by_class) - by_class.pending;

/** Shows the number of done devices, with the figures beside the bar. */
export function progress(by_class) {
  const all = allOf(by_class);
  return all > 0 && el('span', { class: 'progress' },
    bar(by_class),
    `${number(doneOf(by_class))} of ${number(all)}`);
}

/** Shows devices by class as a bar, pending devices last. The figures are beside the bar. */
export function bar(by_class) {
  const inner = 100;
  const whole = allOf(by_class);
  const shapes = [];
  let from = 0;
  for (const look of classes.filter((name) => name !== 'pending')) {
    const width = whole > 0 ? (by_class[look] / whole) * inner : 0;
    if (width > 0) {
      shapes.push(el('path', {
        class: look,
        d: `M${from.toFixed(2)} 0h${width.toFixed(2)}v10h-${width.toFixed(2)}z`,
      }));
    }
    from += width;
  }
  return el('svg', {
    class: 'bar',
    viewBox: `0 0 ${inner} 10`,
    preserveAspectRatio: 'none',
    'aria-hidden': 'true',
  }, shapes);
}

/** Shows a time without a line break. */
export const when = (at) => el('time', { datetime: at }, moment(at));

/** Returns the reason of a standstill, or the awaited condition. */
export function standstill({ reason, waits_for }) {
  return onTheClock(waits_for ?? reason ?? '');
}

/** Shows that all rollouts are stopped, if so. */
function standingStill(stopped) {
  return stopped && el('p', { class: 'waits', 'data-key': 'stopped' },
    'All rollouts are stopped since ',
    when(stopped.since),
    `: ${stopped.reason}.`);
}

/** Returns the announcement of the beginning or end of such a stop. */
function newsOfStop(before, now) {
  if (Boolean(before.stopped) === Boolean(now.stopped)) {
    return '';
  }
  return now.stopped
    ? `All rollouts are stopped: ${now.stopped.reason}.`
    : 'All rollouts are resumed.';
}

// --- rollouts

/**
 * The choice of a next page: after a name, among the active or ended rollouts, or the rollouts in a
 * phase.
 */
const AFTER = /^after-(active|ended|phase):(.*)$/;

export function rolloutsView() {
  let wanted = '';
  let part = 'active';
  let after = '';
  return {
    of: 'rollouts',
    title: 'Rollouts',
    async load(ask) {
      const page = async (of, filter) => {
        const query = new URLSearchParams({
          limit: '100',
          ...filter,
          ...(part === of && after && { after }),
        });
        const found = await ask(`/rollouts?${query}`);
        return { ...found, next: found.next && `after-${of}:${found.next}` };
      };
      if (wanted) {
        return page('phase', { phase: wanted });
      }
      const active = part === 'ended' ? null : await page('active', { ended: false });
      if (active?.next) {
        return active;
      }
      // All active rollouts come before the first ended rollout.
      const ended = await page('ended', { ended: true });
      const both = (of) => [...active?.[of] ?? [], ...ended[of] ?? []];
      return {
        ...ended,
        rollouts: both('rollouts'),
        of_newer_release: both('of_newer_release'),
        damaged: both('damaged'),
      };
    },
    news: (before, now) =>
      [newsOfStop(before, now), changes(before.rollouts, now.rollouts)].join(' ').trim(),
    isOver: () => false,
    choose(choice, value) {
      if (choice === 'phase') {
        wanted = value;
      }
      const [, of, name] = choice.match(AFTER) ?? [choice, wanted ? 'phase' : 'active', ''];
      [part, after] = [of, name];
    },
    show: (data, who) => showRollouts(data, who, wanted, after),
  };
}

/** Describes the changes in a list. */
function changes(before, now) {
  const known = new Map(before.map((row) => [row.name, row.phase]));
  const changed = now.filter((row) => known.has(row.name) && known.get(row.name) !== row.phase);
  return changed.slice(0, 3).map((row) => `${row.name}: ${phase(row.phase)}.`).join(' ');
}

/** Sorts active rollouts first, then the newest. */
function inOrder(rollouts) {
  return [...rollouts].sort((one, other) =>
    isEnded(one.phase) - isEnded(other.phase) || other.created_at.localeCompare(one.created_at));
}

const COLUMNS = [
  { head: 'Name' }, { head: 'Phase' }, { head: 'Stage' }, { head: 'Done' },
  { head: 'Failed', number: true }, { head: 'Waits for, or reason' }, { head: 'Accepted' },
];

function showRollouts(
  { rollouts, next, of_newer_release: newer = [], damaged = [], stopped },
  who,
  wanted,
  after
) {
  const rows = inOrder(rollouts).map((row) => ({
    key: row.name,
    cells: [
      el('a', { href: `#/rollouts/${row.name}` }, row.name),
      badge(row.phase),
      row.stage ?? '',
      progress(row.by_class),
      row.devices > 0 ? number(failedOf(row.by_class)) : '',
      standstill(row),
      when(row.created_at),
    ],
  }));
  const options = [['', 'all'], ...PHASES.map((name) => [name, phase(name)])];
  return [
    el('div', { class: 'head' },
      el('h1', { tabindex: '-1' }, 'Rollouts'),
      el('div', { class: 'buttons' }, buttonsForAll(who))),
    standingStill(stopped),
    el('p', { class: 'choice' },
      el('label', { for: 'phase' }, 'Phase'),
      el('select', { id: 'phase', 'data-choice': 'phase' },
        options.map(([value, text]) => el('option', { value, selected: value === wanted }, text)))),
    rows.length > 0
      ? table('Rollouts', COLUMNS, rows)
      : nothing(wanted || after),
    newer.length > 0 && el('p', { 'data-key': 'newer' },
      `Written by a newer release, not shown: ${newer.join(', ')}.`),
    damaged.length > 0 && el('p', { 'data-key': 'damaged' },
      `Damaged, not shown: ${damaged.join(', ')}.`),
    el('div', { class: 'buttons' },
      after && el('button', { type: 'button', class: 'quiet', 'data-choice': 'first' },
        'First page'),
      next && el('button', { type: 'button', class: 'quiet', 'data-choice': next }, 'Next page')),
  ];
}

function nothing(isPart) {
  return isPart
    ? el('p', {}, 'No rollout is in this phase.')
    : el('p', {}, 'No rollouts yet. ', el('code', {}, 'twincast submit SPEC'), ' starts one.');
}

// --- hubs

export function hubsView() {
  return {
    of: 'hubs',
    title: 'Hubs',
    async load(ask) {
      // Without the broker, the dead letters are missing, but not the hubs.
      const letters = ask('/dead-letters').catch((error) => {
        if (error.status === 503) {
          return { missing: error.message };
        }
        throw error;
      });
      const [{ hubs, stopped }, { dead_letters, missing }] = await Promise.all([
        ask('/hubs'),
        letters,
      ]);
      return { hubs, stopped, letters: dead_letters, missing };
    },
    news(before, now) {
      const more = (now.letters?.length ?? 0) - (before.letters?.length ?? 0);
      return [newsOfStop(before, now), more > 0 && `${several(more, 'new dead letter')}.`]
        .filter(Boolean)
        .join(' ');
    },
    isOver: () => false,
    choose() {},
    show: showHubs,
  };
}

const unknown = () => el('span', { class: 'calm' }, 'unknown');

const count = (value) => (value === null ? unknown() : number(value));

function quota(value) {
  return value === null ? 'no limit' : number(Math.floor(value));
}

/** Shows the current rate of the hub's limiter. */
function given({ per_minute, paused_until }) {
  return paused_until ? ['paused until ', when(paused_until)] : quota(per_minute);
}

/** Shows the time of the last feedback, and the reason of an interruption. */
function heard({ heard_until, obstacle }) {
  return [
    ...(heard_until ? ['received until ', when(heard_until)] : []),
    ...(obstacle ? [` ${obstacle}`] : []),
  ];
}

/** Shows whether workers can send to the hub, and the reason if not. */
function sending({ open, hindered, trouble, since }) {
  const through = open ? `${open} open` : '';
  if (!trouble) return through || '-';
  return [
    open ? `${through}; ${hindered} blocked since ` : 'none open since ',
    when(since),
    `: the hub ${trouble}`,
  ];
}

function showHubs({ hubs, stopped, letters, missing }) {
  const columns = [
    { head: 'Hub' },
    { head: 'Quota per minute', number: true }, { head: 'Quota per day', number: true },
    { head: 'Current rate', number: true }, { head: 'Rollouts' },
    { head: 'Batches waiting', number: true }, { head: 'Workers', number: true },
    { head: 'Links' }, { head: 'Feedback' },
  ];
  const rows = hubs.map((hub) => ({
    key: hub.name,
    cells: [
      hub.name, quota(hub.messages_per_minute), quota(hub.messages_per_day),
      given(hub.permits), hub.permits.rollouts.join(', '),
      count(hub.dispatches_waiting), count(hub.workers), sending(hub.links), heard(hub.feedback),
    ],
  }));
  return [
    el('h1', { tabindex: '-1' }, 'Hubs'),
    standingStill(stopped),
    el('p', { class: 'calm' },
      'For each hub: the quotas, the current rate and the rollouts that share it, the batches ' +
        'waiting for a worker, the workers and their open links, and the time until which all ' +
        'feedback was received.'),
    table('Hubs', columns, rows),
    el('section', { 'aria-labelledby': 'letters' },
      el('h2', { id: 'letters' }, 'Dead letters'),
      letters ? showLetters(letters) : el('p', {}, `Unavailable: ${missing}`)),
  ];
}

function showLetters(letters) {
  if (letters.length === 0) {
    return el('p', {}, 'No dead letters.');
  }
  const columns = [
    { head: 'Id' }, { head: 'When' }, { head: 'From' }, { head: 'Cause' }, { head: 'Detail' },
    { head: 'Message' },
  ];
  const rows = letters.map((letter) => ({
    key: String(letter.id),
    cells: [
      el('code', {}, String(letter.id)),
      letter.at && when(letter.at),
      letter.queue ?? '',
      phase(letter.cause ?? ''),
      letter.detail ?? '',
      el('details', {}, el('summary', {}, 'show'), el('pre', { tabindex: '0' }, letter.body ?? '')),
    ],
  }));
  return [
    el('p', {},
      'The oldest 100 unusable messages. ',
      el('code', {}, 'twincast dead-letters'),
      ' replays or discards them.'),
    table('Dead letters', columns, rows),
  ];
}
