// All rollouts, and all hubs with what waits for them.

import { el, table } from './dom.js';
import { buttonsForAll, failedOf } from './operations.js';
import { classes, isEnded, moment, number, onTheClock, phase, phaseLook, several } from './words.js';

const PHASES = [
  'accepted', 'planning', 'running', 'paused', 'halted', 'aborting',
  'aborted', 'succeeded', 'finished_with_failures', 'failed',
];

/** A phase, told by its sign and its word. */
export function badge(name) {
  const { sign, look } = phaseLook(name);
  return el('span', { class: `badge ${look}` }, el('span', { 'aria-hidden': 'true' }, `${sign} `), phase(name));
}

/** All devices, and those to which no send is owed any more. */
export const allOf = (ends) => classes.reduce((all, name) => all + ends[name], 0);
export const doneOf = (ends) => allOf(ends) - ends.pending;

/** How many devices are done, with the figures beside the bar. */
export function progress(ends) {
  const all = allOf(ends);
  return all > 0 && el('span', { class: 'progress' }, bar(ends), `${number(doneOf(ends))} of ${number(all)}`);
}

/** Devices by class, as a bar, what is pending last. The figures stand beside it. */
export function bar(ends) {
  const inner = 100;
  const whole = allOf(ends);
  const shapes = [];
  let from = 0;
  for (const look of classes.filter((name) => name !== 'pending')) {
    const width = whole > 0 ? (ends[look] / whole) * inner : 0;
    if (width > 0) {
      shapes.push(el('path', { class: look, d: `M${from.toFixed(2)} 0h${width.toFixed(2)}v10h-${width.toFixed(2)}z` }));
    }
    from += width;
  }
  return el('svg', { class: 'bar', viewBox: `0 0 ${inner} 10`, preserveAspectRatio: 'none', 'aria-hidden': 'true' }, shapes);
}

/** A moment, which no line breaks. */
export const when = (at) => el('time', { datetime: at }, moment(at));

/** Why it stands still, or what it waits for. */
export function standstill({ reason, waits_for }) {
  return onTheClock(waits_for ?? reason ?? '');
}

/** That nothing is sent by any rollout, if that is so. */
function standingStill(stopped) {
  return stopped && el('p', { class: 'waits', 'data-key': 'stopped' }, 'All rollouts are stopped since ', when(stopped.since), `: ${stopped.reason}.`);
}

/** The same, when it has begun or ended. */
function newsOfStop(before, now) {
  if (Boolean(before.stopped) === Boolean(now.stopped)) {
    return '';
  }
  return now.stopped ? `All rollouts are stopped: ${now.stopped.reason}.` : 'All rollouts may go on.';
}

// --- rollouts

/** A choice that begins so goes on after a name: among those that have not ended, have ended, or are in a phase. */
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
        const query = new URLSearchParams({ limit: '100', ...filter, ...(part === of && after && { after }) });
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
      // All of those that have not ended stand before the first that has.
      const ended = await page('ended', { ended: true });
      const both = (of) => [...active?.[of] ?? [], ...ended[of] ?? []];
      return { ...ended, rollouts: both('rollouts'), newer: both('newer'), damaged: both('damaged') };
    },
    news: (before, now) => [newsOfStop(before, now), changes(before.rollouts, now.rollouts)].join(' ').trim(),
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

/** What has changed in a list, in words. */
function changes(before, now) {
  const known = new Map(before.map((row) => [row.name, row.phase]));
  const changed = now.filter((row) => known.has(row.name) && known.get(row.name) !== row.phase);
  return changed.slice(0, 3).map((row) => `${row.name}: ${phase(row.phase)}.`).join(' ');
}

/** What is under way first, then the newest. */
function inOrder(rollouts) {
  return [...rollouts].sort((one, other) =>
    isEnded(one.phase) - isEnded(other.phase) || other.created_at.localeCompare(one.created_at));
}

const COLUMNS = [
  { head: 'Name' }, { head: 'Phase' }, { head: 'Stage' }, { head: 'Done' },
  { head: 'Failed', number: true }, { head: 'Waits for, or why' }, { head: 'Accepted' },
];

function showRollouts({ rollouts, next, newer = [], damaged = [], stopped }, who, wanted, after) {
  const rows = inOrder(rollouts).map((row) => ({
    key: row.name,
    cells: [
      el('a', { href: `#/rollouts/${row.name}` }, row.name),
      badge(row.phase),
      row.stage ?? '',
      progress(row.ends),
      row.devices > 0 ? number(failedOf(row.ends)) : '',
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
    newer.length > 0 && el('p', { 'data-key': 'newer' }, `Of a newer release, and not shown: ${newer.join(', ')}.`),
    damaged.length > 0 && el('p', { 'data-key': 'damaged' }, `Damaged, and not shown: ${damaged.join(', ')}.`),
    el('div', { class: 'buttons' },
      after && el('button', { type: 'button', class: 'quiet', 'data-choice': 'first' }, 'From the first'),
      next && el('button', { type: 'button', class: 'quiet', 'data-choice': next }, 'More')),
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
      // A broker that is away takes the letters with it, but not the hubs.
      const letters = ask('/dead-letters').catch((error) => {
        if (error.status === 503) {
          return { missing: error.message };
        }
        throw error;
      });
      const [{ hubs, stopped }, { dead_letters, missing }] = await Promise.all([ask('/hubs'), letters]);
      return { hubs, stopped, letters: dead_letters, missing };
    },
    news(before, now) {
      const more = (now.letters?.length ?? 0) - (before.letters?.length ?? 0);
      return [newsOfStop(before, now), more > 0 && `${several(more, 'new dead letter')}.`].filter(Boolean).join(' ');
    },
    isOver: () => false,
    choose() {},
    show: showHubs,
  };
}

const unknown = () => el('span', { class: 'calm' }, 'not known');

const count = (value) => (value === null ? unknown() : number(value));

function quota(value) {
  return value === null ? 'no limit' : number(Math.floor(value));
}

/** What its limiter gives in a minute now. */
function given({ per_minute, shut_until }) {
  return shut_until ? ['nothing until ', when(shut_until)] : quota(per_minute);
}

/** Until when its feedback was heard, and why no longer. */
function heard({ heard_until, in_the_way }) {
  return [...(heard_until ? ['heard until ', when(heard_until)] : []), ...(in_the_way ? [` ${in_the_way}`] : [])];
}

/** Whether workers can send through it, and why not. */
function sending({ open, hindered, trouble, since }) {
  const through = open ? `by ${open}` : '';
  if (!trouble) return through || '-';
  return [open ? `${through}; ${hindered} cannot since ` : 'nothing since ', when(since), `: it ${trouble}`];
}

function showHubs({ hubs, stopped, letters, missing }) {
  const columns = [
    { head: 'Hub' }, { head: 'A minute', number: true }, { head: 'A day', number: true },
    { head: 'Now', number: true }, { head: 'Wanted by' },
    { head: 'Batches waiting', number: true }, { head: 'Workers', number: true },
    { head: 'Sending' }, { head: 'Feedback' },
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
    el('p', { class: 'calm' }, 'What may be sent through each, what is given now and which rollouts want it, the batches that no worker has taken, the workers that take them, how many of them can send, and until when answers of devices were heard.'),
    table('Hubs', columns, rows),
    el('section', { 'aria-labelledby': 'letters' },
      el('h2', { id: 'letters' }, 'Dead letters'),
      letters ? showLetters(letters) : el('p', {}, `Not to be had: ${missing}`)),
  ];
}

function showLetters(letters) {
  if (letters.length === 0) {
    return el('p', {}, 'None: every message could be used.');
  }
  const columns = [
    { head: 'Id' }, { head: 'When' }, { head: 'From' }, { head: 'Cause' }, { head: 'Detail' }, { head: 'Message' },
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
    el('p', {}, 'Messages that could not be used, the oldest hundred. ', el('code', {}, 'twincast dead-letters'), ' puts them back, or away.'),
    table('Dead letters', columns, rows),
  ];
}
