// A rollout: state, waiting state, rate, failures, and history.

import { el, table } from './dom.js';
import { allOf, badge, bar, doneOf, progress, standstill, when } from './lists.js';
import { buttonsFor, currentStage } from './operations.js';
import { chart, rateOf } from './rate.js';
import {
  activity, capital, classMeans, className, classes, event, failures, isEnded, moment, number,
  onTheClock, outcome, errorIn, outcomeName, phase, several, share, span,
} from './words.js';

/** The number of devices shown for each kind of failure. */
const SAMPLES = 5;
/** The state of the hubs is requested again after this time, in milliseconds. */
const HUBS_MAX_AGE_MS = 10_000;
/**
 * With new failures, samples are requested again after this time: when fewer samples than could be
 * shown are known, and when enough are.
 */
const FEW_SAMPLES_MAX_AGE_MS = 5_000;
const SAMPLES_MAX_AGE_MS = 60_000;
/** The number of events shown without unfolding the rest. */
const MAX_SHOWN_EVENTS = 12;

export function rolloutView(name) {
  const path = `/rollouts/${encodeURIComponent(name)}`;
  const rate = rateOf(name);
  const samples = new Map();
  let hubs = { at: -Infinity, rows: [] };

  /** Requests samples of failures: few requests, and none without changes. */
  async function sample(ask, counts) {
    const now = performance.now();
    const isOld = ({ count, devices, at }, failure) =>
      count !== counts[failure] &&
      now - at > (devices.length < SAMPLES ? FEW_SAMPLES_MAX_AGE_MS : SAMPLES_MAX_AGE_MS);
    const wanted = failures.map(({ name }) => name).filter((failure) => {
      const known = samples.get(failure);
      return counts[failure] > 0 && (!known || isOld(known, failure));
    });
    await Promise.all(wanted.map(async (failure) => {
      const { devices } = await ask(`${path}/devices?outcome=${failure}&limit=${SAMPLES}`);
      samples.set(failure, { count: counts[failure], devices, at: now });
    }));
  }

  return {
    of: 'rollouts',
    title: name,
    async load(ask) {
      const rollout = await ask(path);
      if (!isEnded(rollout.phase)) {
        rate.note(performance.now(), doneOf(rollout.by_class));
      }
      await sample(ask, rollout.counts);
      if (performance.now() - hubs.at > HUBS_MAX_AGE_MS) {
        hubs = { rows: (await ask('/hubs')).hubs, at: performance.now() };
      }
      return { rollout, samples, rate, hubs: hubs.rows };
    },
    news,
    isOver: ({ rollout }) => isEnded(rollout.phase),
    choose() {},
    show,
  };
}

/** Returns the announcement for screen readers: changes of state, not of every figure. */
function news({ rollout: before }, { rollout: now }) {
  const parts = [];
  if (before.phase !== now.phase) {
    parts.push(`The rollout is ${phase(now.phase)}.`);
  }
  const stage = currentStage(now)?.name;
  if (now.stages.length > 1 && stage && stage !== currentStage(before)?.name) {
    parts.push(`Stage ${stage}.`);
  }
  // Times and figures change all the time; only another awaited condition is announced.
  const gist = (text) => (text ?? '').replace(/[\d:.,TZ-]+/g, '');
  if (gist(before.waits_for) !== gist(now.waits_for) && now.waits_for) {
    parts.push(`The rollout waits for ${onTheClock(now.waits_for)}.`);
  }
  return parts.join(' ');
}

function show({ rollout, samples, rate, hubs }, who) {
  const buttons = buttonsFor(rollout, who);
  return [
    el('p', { class: 'trail' }, el('a', { href: '#/' }, 'All rollouts')),
    el('div', { class: 'head' },
      el('h1', { tabindex: '-1' }, rollout.name),
      badge(rollout.phase),
      buttons.length > 0 && el('div',
        { class: 'buttons', role: 'group', 'aria-label': 'Operations' },
        buttons)),
    state(rollout),
    section('progress', 'Progress', showProgress(rollout, rate, hubs)),
    rollout.spec.stages?.length > 0 &&
      rollout.stages.length > 0 &&
      section('stages', 'Stages', showStages(rollout.stages)),
    el('div', { class: 'pair' },
      section('rate', 'Rate', showRate(rollout, rate, hubs)),
      section('time', 'Time', showTime(rollout.time_seconds))),
    section('failures', 'Failures', showFailures(rollout, samples)),
    section('history', 'History', showHistory(rollout.history)),
    section('spec', 'Spec', el('details', {},
      el('summary', {}, 'The submitted spec'),
      el('pre', { tabindex: '0' }, JSON.stringify(rollout.spec, null, 2)))),
  ];
}

function section(id, title, ...content) {
  return el('section', { 'data-key': id, 'aria-labelledby': `of-${id}` },
    el('h2', { id: `of-${id}` }, title),
    ...content);
}

/** Returns a sentence about the state. */
function state(rollout) {
  const { phase: now, waits_for, changed_at, created_at } = rollout;
  const stage = rollout.spec.stages?.length > 0 && currentStage(rollout)?.name;
  const since =
    (now === 'accepted' ? 'since' : `accepted ${moment(created_at)}, ${phase(now)} since`) +
    ` ${moment(changed_at)}`;
  const why = standstill(rollout);
  const says = waits_for ? `${stage ? `Stage ${stage} waits` : 'Waits'} for ${why}` : why;
  return el('p', { class: waits_for ? 'state waits' : 'state' },
    says && el('strong', {}, says), el('span', { class: 'calm' }, since));
}

// --- progress

function showProgress(rollout, rate, hubs) {
  const { by_class } = rollout;
  if (allOf(by_class) === 0) {
    return [
      el('p', {},
        rollout.phase === 'planning'
          ? finding(rollout.devices_found)
          : 'The rollout has no devices.'),
      ...leftOut(rollout.plan),
    ];
  }
  const parts = classes.filter((name) => by_class[name] > 0);
  const legend = parts.map((name) =>
    el('li', { 'data-key': name },
      el('span', { class: `swatch ${name}`, 'aria-hidden': 'true' }),
      `${number(by_class[name])} ${classMeans(name)}`));
  return [
    el('p', { class: 'figure' },
      el('strong', {}, number(doneOf(by_class))),
      ` of ${several(allOf(by_class), 'device')} done`,
      el('span', { class: 'calm' }, ` ${pace(rollout, rate)}`)),
    el('div', { class: 'big' }, bar(by_class)),
    el('ul', { class: 'legend' }, legend),
    showAnswers(rollout),
    byHub(rollout, hubs),
    ...leftOut(rollout.plan),
  ];
}

function finding(found) {
  return found > 0 ? `Finding devices: ${number(found)} so far.` : 'Finding devices.';
}

/** Shows the devices' answers so far. After the end, the answers are part of the outcomes. */
function showAnswers({ phase: now, stages }) {
  const answers = stages.map((stage) => stage.answers).filter(Boolean);
  if (isEnded(now) || answers.length === 0) {
    return false;
  }
  const sum = (of) => answers.reduce((all, answered) => all + answered[of], 0);
  const asked = answers.map((answered) => answered.asked_at).sort().at(-1);
  return el('p', { 'data-key': 'answers' },
    `Answers so far: ${number(sum('applied'))} applied, ${number(sum('installing'))} installing, ` +
      `${number(sum('failed'))} failed.`,
    el('span', { class: 'calm' }, ` Queried at ${moment(asked)}.`));
}

/** Shows duplicate devices and malformed rows. */
function leftOut(plan) {
  const { repeated = 0, malformed_rows: malformed } = plan ?? {};
  const more = malformed ? malformed.rows - malformed.examples.length : 0;
  return [
    repeated > 0 && el('p', { 'data-key': 'repeated' },
      `${several(repeated, 'duplicate')} in the list or in the hubs’ answers; ` +
        'each device counts once.'),
    malformed && el('div', { 'data-key': 'malformed-rows' },
      el('p', {}, `Left out: ${several(malformed.rows, 'malformed row')} of the hubs’ answers.`),
      el('ul', { class: 'devices' },
        malformed.examples.map(({ hub, found, reason }, index) =>
          el('li', { 'data-key': String(index) },
            el('code', {}, found),
            ` of hub ${hub}: ${reason}`)),
        more > 0 && el('li', { 'data-key': 'more' }, `and ${number(more)} more`))),
  ];
}

/** Returns the rate and the remaining time. */
function pace(rollout, rate) {
  const now = rate.now();
  if (rollout.phase !== 'running' || rollout.waits_for || !now) {
    return '';
  }
  return `${number(Math.round(now))}/min, ${span((rollout.by_class.pending / now) * 60)} left`;
}

/** Returns the columns of the classes with devices in any row of a table. */
function classColumns(all) {
  const shown = classes.filter((name) => all.some((by_class) => by_class[name] > 0));
  return {
    heads: shown.map((name) => ({ head: capital(className(name)), number: true })),
    cells: (by_class) => shown.map((name) => number(by_class[name])),
  };
}

function byHub(rollout, hubs) {
  const byClass = classColumns(Object.values(rollout.hubs).map(({ by_class }) => by_class));
  const columns = [
    { head: 'Hub' }, { head: 'Done' }, ...byClass.heads,
    { head: 'Quota per minute', number: true }, { head: 'Workers', number: true },
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
        quota === null ? 'no limit' : quota === undefined ? 'unknown' : number(Math.floor(quota)),
        hub?.workers === null || !hub ? 'unknown' : number(hub.workers),
      ],
    };
  });
  return table('Progress by hub', columns, rows);
}

// --- stages

function showStages(stages) {
  const byClass = classColumns(stages.map(({ by_class }) => by_class));
  const columns = [
    { head: 'Stage' },
    { head: 'State' },
    { head: 'Done' },
    ...byClass.heads,
    { head: 'Gate' },
  ];
  const rows = stages.map((stage) => ({
    key: stage.name,
    cells: [
      [stage.current && el('span', { class: 'here', 'aria-hidden': 'true' }, '▸ '), stage.name],
      onTheClock(stage.state),
      progress(stage.by_class),
      ...byClass.cells(stage.by_class),
      stage.gate ?? 'none',
    ],
  }));
  return table('Stages, in order', columns, rows);
}

// --- rate

function showRate(rollout, rate, hubs) {
  const used = hubs.filter((hub) => hub.name in rollout.hubs);
  const isLimited = used.length > 0 && used.every((hub) => hub.messages_per_minute !== null);
  const quota = isLimited ? used.reduce((all, hub) => all + hub.messages_per_minute, 0) : null;
  const limits = [
    quota === null
      ? null
      : `${used.length === 1 ? 'Quota of the hub' : 'Quota of the hubs'}: ` +
        `${number(Math.floor(quota))} messages per minute.`,
    rollout.spec.rate ? `Rate limit of the rollout: ${rollout.spec.rate}.` : null,
  ];
  return [
    chart(rate, quota, isEnded(rollout.phase)),
    el('p', { class: 'calm' }, limits.filter(Boolean).join(' ')),
  ];
}

// --- failures

function showFailures(rollout, samples) {
  const failed = failures.filter(({ name }) => rollout.counts[name] > 0);
  if (failed.length === 0) {
    return el('p', {}, 'No device has failed.');
  }
  const columns = [
    { head: 'Outcome' },
    { head: 'Class' },
    { head: 'Devices', number: true },
    { head: 'Reason' },
    { head: 'Examples' },
  ];
  const rows = failed.map(({ of, name: failure }) => {
    const devices = samples.get(failure)?.devices ?? [];
    const reasons = new Set(
      devices.map(({ code, error }) => errorIn(error) ?? outcome(failure, code ?? 0)));
    const why = [...(reasons.size > 0 ? reasons : [outcome(failure, 0)])].join('; ');
    return {
      key: failure,
      cells: [
        outcomeName(failure),
        className(of),
        number(rollout.counts[failure]),
        why,
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
    el('p', { class: 'calm' },
      'All failed devices: ',
      el('code', {}, `twincast report ${rollout.name} --failed`)),
  ];
}

// --- time and history

function showTime(time) {
  const { total = 0, ...spent } = time;
  const rows = Object.entries(spent)
    .filter(([name, seconds]) => seconds > 0 && name !== 'total')
    .sort(([, one], [, other]) => other - one)
    .map(([name, seconds]) => [name, activity(name), seconds]);
  const all = total || rows.reduce((sum, [, , seconds]) => sum + seconds, 0);
  const columns = [
    { head: 'Activity' },
    { head: 'Time', number: true },
    { head: 'Share', number: true },
  ];
  const body = rows.map(([key, says, seconds]) => ({
    key,
    cells: [says, span(seconds), share(seconds, all)],
  }));
  return table('Time by activity', columns, [
    ...body,
    { key: 'in-all', cells: ['total', span(all), ''] },
  ]);
}

function showHistory(history) {
  const entries = [...history].reverse();
  const rest = entries.slice(MAX_SHOWN_EVENTS);
  return [
    historyTable('History, newest first', entries.slice(0, MAX_SHOWN_EVENTS)),
    rest.length > 0 && el('details', {},
      el('summary', {}, `${several(rest.length, 'older event')}`),
      historyTable('Older events', rest)),
  ];
}

function historyTable(caption, entries) {
  const columns = [{ head: 'When' }, { head: 'Event' }, { head: 'By, and reason' }];
  const rows = entries.map((entry) => ({
    key: `v${entry.version}-${entry.event}`,
    cells: [
      when(entry.at),
      [
        event(entry.event),
        entry.stage && ` (${entry.stage})`,
        entry.times && `, ${entry.times} times since ${when(entry.since)}`,
      ],
      whoAndWhy(entry),
    ],
  }));
  return table(caption, columns, rows);
}

function whoAndWhy({ by, reason, plan, behind, metric, samples }) {
  const measured = metric && `${metric}: ${samples}`;
  const why = onTheClock(
    reason ?? behind ?? measured ?? (plan ? several(plan.devices, 'device') : ''));
  return by && why ? `${by}: ${why}` : by ?? why;
}
