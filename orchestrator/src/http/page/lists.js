// The lists of all rollouts and all hubs.

import { el, table } from './dom.js';
import { failedDevices, globalOperationButtons } from './operations.js';
import {
  deviceClasses, formatNumber, formatTime, isEnded, localizeTimes, phaseLabel, phaseStyle, plural,
  toLabel,
} from './text.js';

const PHASES = [
  'accepted', 'planning', 'running', 'paused', 'halted', 'aborting',
  'aborted', 'succeeded', 'finished_with_failures', 'failed',
];

/** Shows a phase as symbol and text. */
export function badge(phase) {
  const { symbol, style } = phaseStyle(phase);
  return el('span', { class: `badge ${style}` },
    el('span', { 'aria-hidden': 'true' }, `${symbol} `),
    phaseLabel(phase));
}

/** Returns the number of all devices. */
export const totalDevices = (by_class) =>
  deviceClasses.reduce((total, name) => total + by_class[name], 0);

/** Returns the number of devices without a pending send. */
export const doneDevices = (by_class) => totalDevices(by_class) - by_class.pending;

/** Shows the number of done devices, with the figures beside the bar. */
export function progress(by_class) {
  const total = totalDevices(by_class);
  return total > 0 && el('span', { class: 'progress' },
    progressBar(by_class),
    `${formatNumber(doneDevices(by_class))} of ${formatNumber(total)}`);
}

/**
 * Shows devices by class as a bar, pending devices last. Screen readers ignore the bar, and read
 * the figures beside the bar.
 */
export function progressBar(by_class) {
  const barWidth = 100;
  const total = totalDevices(by_class);
  const segments = [];
  let x = 0;
  for (const name of deviceClasses.filter((name) => name !== 'pending')) {
    const width = total > 0 ? (by_class[name] / total) * barWidth : 0;
    if (width > 0) {
      segments.push(el('path', {
        class: name,
        d: `M${x.toFixed(2)} 0h${width.toFixed(2)}v10h-${width.toFixed(2)}z`,
      }));
    }
    x += width;
  }
  return el('svg', {
    class: 'bar',
    viewBox: `0 0 ${barWidth} 10`,
    preserveAspectRatio: 'none',
    'aria-hidden': 'true',
  }, segments);
}

/** Shows a time without a line break. */
export const timeElement = (timestamp) =>
  el('time', { datetime: timestamp }, formatTime(timestamp));

/** Returns the awaited condition, or the reason for the phase. */
export function waitReason({ reason, waits_for }) {
  return localizeTimes(waits_for ?? reason ?? '');
}

/** Shows a notice if all rollouts are stopped. */
function stopNotice(stopped) {
  return stopped && el('p', { class: 'notice', 'data-key': 'stopped' },
    'All rollouts are stopped since ',
    timeElement(stopped.since),
    `: ${stopped.reason}.`);
}

/** Returns the announcement of the beginning or end of a stop of all rollouts. */
function stopAnnouncement(before, now) {
  if (Boolean(before.stopped) === Boolean(now.stopped)) {
    return '';
  }
  return now.stopped
    ? `All rollouts are stopped: ${now.stopped.reason}.`
    : 'All rollouts are resumed.';
}

// --- rollouts

/**
 * The format of a page cursor: the list (active rollouts, ended rollouts, or rollouts in a phase)
 * and the last name on the previous page.
 */
const CURSOR = /^after-(active|ended|phase):(.*)$/;

export function rolloutsView() {
  let phaseFilter = '';
  /** The list that `after` belongs to. */
  let list = 'active';
  let after = '';
  return {
    section: 'rollouts',
    title: 'Rollouts',
    async load(request) {
      const loadPage = async (name, filter) => {
        const query = new URLSearchParams({
          limit: '100',
          ...filter,
          ...(list === name && after && { after }),
        });
        const page = await request(`/rollouts?${query}`);
        return { ...page, next: page.next && `after-${name}:${page.next}` };
      };
      if (phaseFilter) {
        return loadPage('phase', { phase: phaseFilter });
      }
      const active = list === 'ended' ? null : await loadPage('active', { ended: false });
      if (active?.next) {
        return active;
      }
      // All active rollouts come before the first ended rollout.
      const ended = await loadPage('ended', { ended: true });
      const concatenate = (property) => [...active?.[property] ?? [], ...ended[property] ?? []];
      return {
        ...ended,
        rollouts: concatenate('rollouts'),
        of_newer_release: concatenate('of_newer_release'),
        damaged: concatenate('damaged'),
      };
    },
    announcement: (before, now) =>
      [stopAnnouncement(before, now), phaseChanges(before.rollouts, now.rollouts)]
        .join(' ')
        .trim(),
    isEnded: () => false,
    /** Selects a phase (`phase`), the first page (`first`), or the next page (a cursor). */
    select(selection, value) {
      if (selection === 'phase') {
        phaseFilter = value;
      }
      const firstPage = ['', phaseFilter ? 'phase' : 'active', ''];
      [, list, after] = selection.match(CURSOR) ?? firstPage;
    },
    render: (data, user) => renderRollouts(data, user, phaseFilter, after),
  };
}

/** Describes the changes of phases in a list. */
function phaseChanges(before, now) {
  const phases = new Map(before.map((row) => [row.name, row.phase]));
  const changed = now.filter((row) => phases.has(row.name) && phases.get(row.name) !== row.phase);
  return changed.slice(0, 3).map((row) => `${row.name}: ${phaseLabel(row.phase)}.`).join(' ');
}

/** Sorts active rollouts first, then the newest. */
function sortRollouts(rollouts) {
  return [...rollouts].sort((left, right) =>
    isEnded(left.phase) - isEnded(right.phase) || right.created_at.localeCompare(left.created_at));
}

const COLUMNS = [
  { header: 'Name' }, { header: 'Phase' }, { header: 'Stage' }, { header: 'Done' },
  { header: 'Failed', numeric: true }, { header: 'Waits for, or reason' }, { header: 'Accepted' },
];

function renderRollouts(
  { rollouts, next, of_newer_release: newer = [], damaged = [], stopped },
  user,
  phaseFilter,
  after
) {
  const rows = sortRollouts(rollouts).map((row) => ({
    key: row.name,
    cells: [
      el('a', { href: `#/rollouts/${row.name}` }, row.name),
      badge(row.phase),
      row.stage ?? '',
      progress(row.by_class),
      row.devices > 0 ? formatNumber(failedDevices(row.by_class)) : '',
      waitReason(row),
      timeElement(row.created_at),
    ],
  }));
  const options = [['', 'all'], ...PHASES.map((phase) => [phase, phaseLabel(phase)])];
  return [
    el('div', { class: 'heading' },
      el('h1', { tabindex: '-1' }, 'Rollouts'),
      el('div', { class: 'buttons' }, globalOperationButtons(user))),
    stopNotice(stopped),
    el('p', { class: 'filter' },
      el('label', { for: 'phase' }, 'Phase'),
      el('select', { id: 'phase', 'data-selection': 'phase' },
        options.map(([value, label]) =>
          el('option', { value, selected: value === phaseFilter }, label)))),
    rows.length > 0
      ? table('Rollouts', COLUMNS, rows)
      : emptyMessage(phaseFilter || after),
    newer.length > 0 && el('p', { 'data-key': 'newer' },
      `Written by a newer release, not shown: ${newer.join(', ')}.`),
    damaged.length > 0 && el('p', { 'data-key': 'damaged' },
      `Damaged, not shown: ${damaged.join(', ')}.`),
    el('div', { class: 'buttons' },
      after && el('button', { type: 'button', class: 'secondary', 'data-selection': 'first' },
        'First page'),
      next && el('button', { type: 'button', class: 'secondary', 'data-selection': next },
        'Next page')),
  ];
}

function emptyMessage(isFiltered) {
  return isFiltered
    ? el('p', {}, 'No rollout is in this phase.')
    : el('p', {}, 'No rollouts yet. ', el('code', {}, 'twincast submit SPEC'), ' starts one.');
}

// --- hubs

export function hubsView() {
  return {
    section: 'hubs',
    title: 'Hubs',
    async load(request) {
      // Without the broker, dead letters are unavailable, and hubs are still available.
      const deadLetters = request('/dead-letters').catch((error) => {
        if (error.status === 503) {
          return { error: error.message };
        }
        throw error;
      });
      const [{ hubs, stopped }, { dead_letters, error }] = await Promise.all([
        request('/hubs'),
        deadLetters,
      ]);
      return { hubs, stopped, deadLetters: dead_letters, deadLettersError: error };
    },
    announcement(before, now) {
      const added = (now.deadLetters?.length ?? 0) - (before.deadLetters?.length ?? 0);
      return [stopAnnouncement(before, now), added > 0 && `${plural(added, 'new dead letter')}.`]
        .filter(Boolean)
        .join(' ');
    },
    isEnded: () => false,
    select() {},
    render: renderHubs,
  };
}

/** Formats a number; null means unknown. */
const formatCount = (value) =>
  value === null ? el('span', { class: 'muted' }, 'unknown') : formatNumber(value);

/** Formats a quota; null means unlimited. */
export function formatQuota(value) {
  return value === null ? 'no limit' : formatNumber(Math.floor(value));
}

/** Shows the current rate of the hub's limiter. */
function currentRate({ per_minute, paused_until }) {
  return paused_until ? ['paused until ', timeElement(paused_until)] : formatQuota(per_minute);
}

/** Shows the time of the last feedback, and the reason of an interruption. */
function feedbackStatus({ heard_until, obstacle }) {
  return [
    ...(heard_until ? ['received until ', timeElement(heard_until)] : []),
    ...(obstacle ? [` ${obstacle}`] : []),
  ];
}

/** Shows whether workers can send to the hub, and the reason if not. */
function linkStatus({ open, hindered, trouble, since }) {
  const openLinks = open ? `${open} open` : '';
  if (!trouble) return openLinks || '-';
  return [
    open ? `${openLinks}; ${hindered} blocked since ` : 'none open since ',
    timeElement(since),
    `: the hub ${trouble}`,
  ];
}

function renderHubs({ hubs, stopped, deadLetters, deadLettersError }) {
  const columns = [
    { header: 'Hub' },
    { header: 'Quota per minute', numeric: true }, { header: 'Quota per day', numeric: true },
    { header: 'Current rate', numeric: true }, { header: 'Rollouts' },
    { header: 'Batches waiting', numeric: true }, { header: 'Workers', numeric: true },
    { header: 'Links' }, { header: 'Feedback' },
  ];
  const rows = hubs.map((hub) => ({
    key: hub.name,
    cells: [
      hub.name, formatQuota(hub.messages_per_minute), formatQuota(hub.messages_per_day),
      currentRate(hub.permits), hub.permits.rollouts.join(', '),
      formatCount(hub.dispatches_waiting), formatCount(hub.workers),
      linkStatus(hub.links), feedbackStatus(hub.feedback),
    ],
  }));
  return [
    el('h1', { tabindex: '-1' }, 'Hubs'),
    stopNotice(stopped),
    el('p', { class: 'muted' },
      'For each hub: the quotas, the current rate and the rollouts that share it, the batches ' +
        'waiting for a worker, the workers and their open links, and the time until which all ' +
        'feedback was received.'),
    table('Hubs', columns, rows),
    el('section', { 'aria-labelledby': 'dead-letters' },
      el('h2', { id: 'dead-letters' }, 'Dead letters'),
      deadLetters
        ? renderDeadLetters(deadLetters)
        : el('p', {}, `Unavailable: ${deadLettersError}`)),
  ];
}

function renderDeadLetters(deadLetters) {
  if (deadLetters.length === 0) {
    return el('p', {}, 'No dead letters.');
  }
  const columns = [
    { header: 'Id' }, { header: 'When' }, { header: 'From' }, { header: 'Cause' },
    { header: 'Detail' }, { header: 'Message' },
  ];
  const rows = deadLetters.map(({ id, at, queue, cause, detail, body }) => ({
    key: String(id),
    cells: [
      el('code', {}, String(id)),
      at && timeElement(at),
      queue ?? '',
      toLabel(cause ?? ''),
      detail ?? '',
      el('details', {}, el('summary', {}, 'show'), el('pre', { tabindex: '0' }, body ?? '')),
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
