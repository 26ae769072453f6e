// A device in a rollout: position, reason, and waiting state.

import { el, table } from './dom.js';
import { timeElement } from './lists.js';
import { classDescription, localizeTimes, outcomeLabel, phaseLabel } from './text.js';

export function deviceView(name, device) {
  const path = `/rollouts/${encodeURIComponent(name)}/devices/${encodeURIComponent(device)}`;
  return {
    section: 'rollouts',
    title: device,
    load: (request) => request(path),
    announcement: () => '',
    // The server searches all batches for the device, so the view is polled at the long interval.
    isEnded: () => true,
    select() {},
    render: (explanation) => render(name, explanation),
  };
}

function render(name, { device, phase, reason, places }) {
  return [
    el('p', { class: 'breadcrumb' }, el('a', { href: `#/rollouts/${name}` }, name)),
    el('h1', { tabindex: '-1' }, device),
    el('p', { class: 'state' },
      `The rollout is ${phaseLabel(phase)}${reason ? `: ${localizeTimes(reason)}` : ''}.`),
    ...places.map((place) =>
      el('section', { 'data-key': placeTitle(place), 'aria-label': placeTitle(place) },
        table(placeTitle(place), [{ header: 'Property' }, { header: 'Value' }], placeRows(place)))),
  ];
}

function placeTitle({ hub, entry, entries }) {
  return `On hub ${hub}${entries > 1 ? `, entry ${entry} of ${entries}` : ''}`;
}

function placeRows(place) {
  const { stage, times } = place;
  const timeRow = (key, label, time) => time && { key, cells: [label, timeElement(time)] };
  return [
    {
      key: 'stage',
      cells: ['Stage', `${stage.name} (${stage.number} of ${stage.of}): ${stage.reason}`],
    },
    ...stage.passed_over.map((earlier) => ({
      key: `earlier-${earlier.stage}`,
      cells: ['Earlier stage', `${earlier.stage}: ${earlier.reason}`],
    })),
    {
      key: 'batch',
      cells: [
        'Batch',
        `${place.batch}, device ${place.index + 1} of ${place.batch_devices}; ${place.group}`,
      ],
    },
    { key: 'outcome', cells: ['Outcome', `${outcomeLabel(place.outcome)}: ${place.reason}`] },
    { key: 'class', cells: ['Class', classDescription(place.class)] },
    ...place.attempts.map(({ attempt, message_id }) => ({
      key: `attempt-${attempt}`,
      cells: [`Attempt ${attempt}`, el('code', {}, message_id)],
    })),
    { key: 'waits', cells: ['Waits for', localizeTimes(place.waits_for ?? 'nothing')] },
    timeRow('accepted', 'Accepted', times.accepted_at),
    timeRow('planned', 'Planned', times.planned_at),
    timeRow('started', 'Stage started', times.stage_started_at),
    timeRow('sent', 'Stage sent', times.stage_sent_at),
    timeRow('passed', 'Stage passed', times.stage_passed_at),
  ].filter(Boolean);
}
