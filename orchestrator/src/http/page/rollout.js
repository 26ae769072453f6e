// A rollout: state, waiting state, rate, failures, and history.

import { el, table } from './dom.js';
import {
  badge, doneDevices, formatQuota, progress, progressBar, timeElement, totalDevices, waitReason,
} from './lists.js';
import { currentStage, operationButtons } from './operations.js';
import { rateChart, rateFor } from './rate.js';
import {
  activityLabel, capitalize, classDescription, classLabel, deviceClasses, errorText, eventLabel,
  failures, formatDuration, formatNumber, formatPercentage, formatTime, isEnded, localizeTimes,
  outcomeDescription, outcomeLabel, phaseLabel, plural,
} from './text.js';

/** The number of devices shown for each outcome of failed devices. */
const MAX_SAMPLES = 5;
/** The state of the hubs is requested again after this time, in milliseconds. */
const HUBS_MAX_AGE_MS = 10_000;
/**
 * With new failures and fewer samples than `MAX_SAMPLES`, samples are requested again after this
 * time.
 */
const FEW_SAMPLES_MAX_AGE_MS = 5_000;
/** With new failures and `MAX_SAMPLES` samples, samples are requested again after this time. */
const SAMPLES_MAX_AGE_MS = 60_000;
/** The number of recent events; older events are shown on request. */
const MAX_RECENT_EVENTS = 12;

export function rolloutView(name) {
  const path = `/rollouts/${encodeURIComponent(name)}`;
  const rate = rateFor(name);
  const samples = new Map();
  let hubs = { loadedAt: -Infinity, rows: [] };

  /** Requests samples of failures: few requests, and none without changes. */
  async function loadSamples(request, counts) {
    const now = performance.now();
    const isOutdated = ({ count, devices, loadedAt }, outcome) =>
      count !== counts[outcome] &&
      now - loadedAt >
        (devices.length < MAX_SAMPLES ? FEW_SAMPLES_MAX_AGE_MS : SAMPLES_MAX_AGE_MS);
    const outdated = failures.map(({ outcome }) => outcome).filter((outcome) => {
      const sample = samples.get(outcome);
      return counts[outcome] > 0 && (!sample || isOutdated(sample, outcome));
    });
    await Promise.all(outdated.map(async (outcome) => {
      const { devices } = await request(`${path}/devices?outcome=${outcome}&limit=${MAX_SAMPLES}`);
      samples.set(outcome, { count: counts[outcome], devices, loadedAt: now });
    }));
  }

  return {
    section: 'rollouts',
    title: name,
    async load(request) {
      const rollout = await request(path);
      if (!isEnded(rollout.phase)) {
        rate.addSample(performance.now(), doneDevices(rollout.by_class));
      }
      await loadSamples(request, rollout.counts);
      if (performance.now() - hubs.loadedAt > HUBS_MAX_AGE_MS) {
        hubs = { rows: (await request('/hubs')).hubs, loadedAt: performance.now() };
      }
      return { rollout, samples, rate, hubs: hubs.rows };
    },
    announcement,
    isEnded: ({ rollout }) => isEnded(rollout.phase),
    select() {},
    render,
  };
}

/** Returns the announcement for screen readers: changes of state, not of every figure. */
function announcement({ rollout: before }, { rollout: now }) {
  const parts = [];
  if (before.phase !== now.phase) {
    parts.push(`The rollout is ${phaseLabel(now.phase)}.`);
  }
  const stage = currentStage(now)?.name;
  if (now.stages.length > 1 && stage && stage !== currentStage(before)?.name) {
    parts.push(`Stage ${stage}.`);
  }
  // Times and figures change often, so only a change of the other text is announced.
  const withoutFigures = (text) => (text ?? '').replace(/[\d:.,TZ-]+/g, '');
  if (withoutFigures(before.waits_for) !== withoutFigures(now.waits_for) && now.waits_for) {
    parts.push(`The rollout waits for ${localizeTimes(now.waits_for)}.`);
  }
  return parts.join(' ');
}

function render({ rollout, samples, rate, hubs }, user) {
  const buttons = operationButtons(rollout, user);
  return [
    el('p', { class: 'breadcrumb' }, el('a', { href: '#/' }, 'All rollouts')),
    el('div', { class: 'heading' },
      el('h1', { tabindex: '-1' }, rollout.name),
      badge(rollout.phase),
      buttons.length > 0 && el('div',
        { class: 'buttons', role: 'group', 'aria-label': 'Operations' },
        buttons)),
    stateText(rollout),
    section('progress', 'Progress', renderProgress(rollout, rate, hubs)),
    rollout.spec.stages?.length > 0 &&
      rollout.stages.length > 0 &&
      section('stages', 'Stages', renderStages(rollout.stages)),
    el('div', { class: 'columns' },
      section('rate', 'Rate', renderRate(rollout, rate, hubs)),
      section('time', 'Time', renderTime(rollout.time_seconds))),
    section('failures', 'Failures', renderFailures(rollout, samples)),
    section('history', 'History', renderHistory(rollout.history)),
    section('spec', 'Spec', el('details', {},
      el('summary', {}, 'The submitted spec'),
      el('pre', { tabindex: '0' }, JSON.stringify(rollout.spec, null, 2)))),
  ];
}

function section(id, title, ...content) {
  return el('section', { 'data-key': id, 'aria-labelledby': `heading-${id}` },
    el('h2', { id: `heading-${id}` }, title),
    ...content);
}

/** Shows the awaited condition or the reason, and the time of the last change of phase. */
function stateText(rollout) {
  const { phase, waits_for, changed_at, created_at } = rollout;
  const stage = rollout.spec.stages?.length > 0 && currentStage(rollout)?.name;
  const since =
    (phase === 'accepted'
      ? 'since'
      : `accepted ${formatTime(created_at)}, ${phaseLabel(phase)} since`) +
    ` ${formatTime(changed_at)}`;
  const reason = waitReason(rollout);
  const text = waits_for ? `${stage ? `Stage ${stage} waits` : 'Waits'} for ${reason}` : reason;
  return el('p', { class: waits_for ? 'state notice' : 'state' },
    text && el('strong', {}, text), el('span', { class: 'muted' }, since));
}

// --- progress

function renderProgress(rollout, rate, hubs) {
  const { by_class } = rollout;
  if (totalDevices(by_class) === 0) {
    return [
      el('p', {},
        rollout.phase === 'planning'
          ? searchProgress(rollout.devices_found)
          : 'The rollout has no devices.'),
      ...planNotes(rollout.plan),
    ];
  }
  const shownClasses = deviceClasses.filter((name) => by_class[name] > 0);
  const legend = shownClasses.map((name) =>
    el('li', { 'data-key': name },
      el('span', { class: `swatch ${name}`, 'aria-hidden': 'true' }),
      `${formatNumber(by_class[name])} ${classDescription(name)}`));
  return [
    el('p', { class: 'metric' },
      el('strong', {}, formatNumber(doneDevices(by_class))),
      ` of ${plural(totalDevices(by_class), 'device')} done`,
      el('span', { class: 'muted' }, ` ${rateText(rollout, rate)}`)),
    el('div', { class: 'large' }, progressBar(by_class)),
    el('ul', { class: 'legend' }, legend),
    renderAnswers(rollout),
    hubTable(rollout, hubs),
    ...planNotes(rollout.plan),
  ];
}

function searchProgress(found) {
  return found > 0 ? `Finding devices: ${formatNumber(found)} so far.` : 'Finding devices.';
}

/** Shows the devices' answers so far. After the end, the answers are part of the outcomes. */
function renderAnswers({ phase, stages }) {
  const answers = stages.map((stage) => stage.answers).filter(Boolean);
  if (isEnded(phase) || answers.length === 0) {
    return false;
  }
  const sum = (state) =>
    formatNumber(answers.reduce((total, answer) => total + answer[state], 0));
  const queriedAt = answers.map(({ asked_at }) => asked_at).sort().at(-1);
  return el('p', { 'data-key': 'answers' },
    `Answers so far: ${sum('applied')} applied, ${sum('installing')} installing, ` +
      `${sum('failed')} failed.`,
    el('span', { class: 'muted' }, ` Queried at ${formatTime(queriedAt)}.`));
}

/** Shows duplicate devices and malformed rows. */
function planNotes(plan) {
  const { repeated = 0, malformed_rows: malformed } = plan ?? {};
  const moreRows = malformed ? malformed.rows - malformed.examples.length : 0;
  return [
    repeated > 0 && el('p', { 'data-key': 'repeated' },
      `${plural(repeated, 'duplicate')} in the list or in the hubs’ answers; ` +
        'each device counts once.'),
    malformed && el('div', { 'data-key': 'malformed-rows' },
      el('p', {}, `Left out: ${plural(malformed.rows, 'malformed row')} of the hubs’ answers.`),
      el('ul', { class: 'devices' },
        malformed.examples.map(({ hub, found, reason }, index) =>
          el('li', { 'data-key': String(index) },
            el('code', {}, found),
            ` of hub ${hub}: ${reason}`)),
        moreRows > 0 && el('li', { 'data-key': 'more' }, `and ${formatNumber(moreRows)} more`))),
  ];
}

/** Returns the rate and the remaining time. */
function rateText(rollout, rate) {
  const perMinute = rate.current();
  if (rollout.phase !== 'running' || rollout.waits_for || !perMinute) {
    return '';
  }
  const remaining = formatDuration((rollout.by_class.pending / perMinute) * 60);
  return `${formatNumber(Math.round(perMinute))}/min, ${remaining} left`;
}

/** Returns the columns of the classes with devices in any row of a table. */
function classColumns(rows) {
  const shown = deviceClasses.filter((name) => rows.some((by_class) => by_class[name] > 0));
  return {
    columns: shown.map((name) => ({ header: capitalize(classLabel(name)), numeric: true })),
    cells: (by_class) => shown.map((name) => formatNumber(by_class[name])),
  };
}

function hubTable(rollout, hubs) {
  const byClass = classColumns(Object.values(rollout.hubs).map(({ by_class }) => by_class));
  const columns = [
    { header: 'Hub' }, { header: 'Done' }, ...byClass.columns,
    { header: 'Quota per minute', numeric: true }, { header: 'Workers', numeric: true },
  ];
  const rows = Object.entries(rollout.hubs).map(([name, { by_class }]) => {
    const hub = hubs.find((hub) => hub.name === name);
    const quota = hub?.messages_per_minute;
    return {
      key: name,
      cells: [
        name,
        progress(by_class),
        ...byClass.cells(by_class),
        quota === undefined ? 'unknown' : formatQuota(quota),
        hub?.workers === null || !hub ? 'unknown' : formatNumber(hub.workers),
      ],
    };
  });
  return table('Progress by hub', columns, rows);
}

// --- stages

function renderStages(stages) {
  const byClass = classColumns(stages.map(({ by_class }) => by_class));
  const columns = [
    { header: 'Stage' },
    { header: 'State' },
    { header: 'Done' },
    ...byClass.columns,
    { header: 'Gate' },
  ];
  const rows = stages.map((stage) => ({
    key: stage.name,
    cells: [
      [
        stage.current && el('span', { class: 'current-marker', 'aria-hidden': 'true' }, '▸ '),
        stage.name,
      ],
      localizeTimes(stage.state),
      progress(stage.by_class),
      ...byClass.cells(stage.by_class),
      stage.gate ?? 'none',
    ],
  }));
  return table('Stages, in order', columns, rows);
}

// --- rate

function renderRate(rollout, rate, hubs) {
  const targetHubs = hubs.filter((hub) => hub.name in rollout.hubs);
  const isLimited =
    targetHubs.length > 0 && targetHubs.every((hub) => hub.messages_per_minute !== null);
  const quota = isLimited
    ? targetHubs.reduce((total, hub) => total + hub.messages_per_minute, 0)
    : null;
  const limits = [
    quota === null
      ? null
      : `${targetHubs.length === 1 ? 'Quota of the hub' : 'Quota of the hubs'}: ` +
        `${formatNumber(Math.floor(quota))} messages per minute.`,
    rollout.spec.rate ? `Rate limit of the rollout: ${rollout.spec.rate}.` : null,
  ];
  return [
    rateChart(rate, quota, isEnded(rollout.phase)),
    el('p', { class: 'muted' }, limits.filter(Boolean).join(' ')),
  ];
}

// --- failures

function renderFailures(rollout, samples) {
  const failed = failures.filter(({ outcome }) => rollout.counts[outcome] > 0);
  if (failed.length === 0) {
    return el('p', {}, 'No device has failed.');
  }
  const columns = [
    { header: 'Outcome' },
    { header: 'Class' },
    { header: 'Devices', numeric: true },
    { header: 'Reason' },
    { header: 'Examples' },
  ];
  const rows = failed.map(({ deviceClass, outcome }) => {
    const devices = samples.get(outcome)?.devices ?? [];
    const reasons = new Set(
      devices.map(({ code, error }) => errorText(error) ?? outcomeDescription(outcome, code ?? 0)));
    const shownReasons = reasons.size > 0 ? [...reasons] : [outcomeDescription(outcome, 0)];
    return {
      key: outcome,
      cells: [
        outcomeLabel(outcome),
        classLabel(deviceClass),
        formatNumber(rollout.counts[outcome]),
        shownReasons.join('; '),
        el('ul', { class: 'devices' },
          devices.map(({ device }) =>
            el('li', { 'data-key': device },
              el('a', { href: `#/rollouts/${rollout.name}/devices/${encodeURIComponent(device)}` },
                el('code', {}, device))))),
      ],
    };
  });
  return [
    table('Devices that failed, by outcome', columns, rows),
    el('p', { class: 'muted' },
      'All failed devices: ',
      el('code', {}, `twincast report ${rollout.name} --failed`)),
  ];
}

// --- time and history

function renderTime(time) {
  const { total, ...activities } = time;
  const entries = Object.entries(activities)
    .filter(([, seconds]) => seconds > 0)
    .sort(([, left], [, right]) => right - left);
  const totalSeconds = total || entries.reduce((sum, [, seconds]) => sum + seconds, 0);
  const columns = [
    { header: 'Activity' },
    { header: 'Time', numeric: true },
    { header: 'Share', numeric: true },
  ];
  const rows = entries.map(([name, seconds]) => ({
    key: name,
    cells: [
      activityLabel(name),
      formatDuration(seconds),
      formatPercentage(seconds, totalSeconds),
    ],
  }));
  return table('Time by activity', columns, [
    ...rows,
    { key: 'total', cells: ['total', formatDuration(totalSeconds), ''] },
  ]);
}

function renderHistory(history) {
  const entries = [...history].reverse();
  const older = entries.slice(MAX_RECENT_EVENTS);
  return [
    historyTable('History, newest first', entries.slice(0, MAX_RECENT_EVENTS)),
    older.length > 0 && el('details', {},
      el('summary', {}, plural(older.length, 'older event')),
      historyTable('Older events', older)),
  ];
}

function historyTable(caption, entries) {
  const columns = [{ header: 'When' }, { header: 'Event' }, { header: 'By, and reason' }];
  const rows = entries.map((entry) => ({
    key: `v${entry.version}-${entry.event}`,
    cells: [
      timeElement(entry.at),
      [
        eventLabel(entry.event),
        entry.stage && ` (${entry.stage})`,
        ...(entry.times ? [`, ${entry.times} times since `, timeElement(entry.since)] : []),
      ],
      actorAndReason(entry),
    ],
  }));
  return table(caption, columns, rows);
}

function actorAndReason({ by, reason, plan, behind, metric, samples }) {
  const measurement = metric && `${metric}: ${samples}`;
  const text = localizeTimes(
    reason ?? behind ?? measurement ?? (plan ? plural(plan.devices, 'device') : ''));
  return by && text ? `${by}: ${text}` : by ?? text;
}
