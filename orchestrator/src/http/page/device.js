// A device in a rollout: position, reason, and waiting state.

import { el, table } from './dom.js';
import { when } from './lists.js';
import { classMeans, onTheClock, outcomeName, phase } from './words.js';

export function deviceView(name, device) {
  const path = `/rollouts/${encodeURIComponent(name)}/devices/${encodeURIComponent(device)}`;
  return {
    of: 'rollouts',
    title: device,
    load: (ask) => ask(path),
    news: () => '',
    // The server searches all batches for the device, so the view is not polled.
    isOver: () => true,
    choose() {},
    show: (explained) => show(name, explained),
  };
}

function show(name, { device, phase: now, reason, places }) {
  return [
    el('p', { class: 'trail' }, el('a', { href: `#/rollouts/${name}` }, name)),
    el('h1', { tabindex: '-1' }, device),
    el('p', { class: 'state' },
      `The rollout is ${phase(now)}${reason ? `: ${onTheClock(reason)}` : ''}.`),
    ...places.map((place) =>
      el('section', { 'data-key': titleOf(place), 'aria-label': titleOf(place) },
        table(titleOf(place), [{ head: 'Property' }, { head: 'Value' }], rowsOf(place)))),
  ];
}

function titleOf({ hub, entry, entries }) {
  return `On hub ${hub}${entries > 1 ? `, entry ${entry} of ${entries}` : ''}`;
}

function rowsOf(place) {
  const { stage, times } = place;
  const at = (key, says, time) => time && { key, cells: [says, when(time)] };
  return [
    {
      key: 'stage',
      cells: ['Stage', `${stage.name} (${stage.number} of ${stage.of}): ${stage.reason}`],
    },
    ...stage.passed_over.map((it) => ({
      key: `not-${it.stage}`,
      cells: ['Earlier stage', `${it.stage}: ${it.reason}`],
    })),
    {
      key: 'batch',
      cells: [
        'Batch',
        `${place.batch}, device ${place.index + 1} of ${place.batch_devices}; ${place.group}`,
      ],
    },
    { key: 'outcome', cells: ['Outcome', `${outcomeName(place.outcome)}: ${place.reason}`] },
    { key: 'class', cells: ['Class', classMeans(place.class)] },
    ...place.attempts.map((it) => ({
      key: `attempt-${it.attempt}`,
      cells: [`Attempt ${it.attempt}`, el('code', {}, it.message_id)],
    })),
    { key: 'waits', cells: ['Waits for', onTheClock(place.waits_for ?? 'nothing')] },
    at('accepted', 'Accepted', times.accepted_at),
    at('planned', 'Planned', times.planned_at),
    at('started', 'Stage started', times.stage_started_at),
    at('sent', 'Stage sent', times.stage_sent_at),
    at('passed', 'Stage passed', times.stage_passed_at),
  ].filter(Boolean);
}
