// The rate of sends, measured while the page is open.

import { el } from './dom.js';
import { number } from './words.js';

/** The drawn time, in milliseconds. */
const DRAWN_MS = 10 * 60_000;
/** The span over which a rate is measured, the same as the command line's. */
const MEASURED_MS = 10_000;
/**
 * A quota more than this many times higher than the rates is not drawn: the rates would be too low
 * to see.
 */
const MAX_QUOTA_FACTOR = 8;

/** The number of rollouts whose rates are kept while another rollout is shown. */
const MAX_KEPT_RATES = 20;

const WIDTH = 600;
const HEIGHT = 160;

/** The number of done devices at each poll, for at most `DRAWN_MS`. */
class Rate {
  #seen = [];

  note(at, done) {
    this.#seen.push({ at, done });
    const first = this.#seen.findIndex((seen) => at - seen.at <= DRAWN_MS + MEASURED_MS);
    this.#seen.splice(0, first);
  }

  /** Returns devices per minute at each poll, oldest first. */
  line() {
    const points = [];
    let from = 0;
    for (const [index, { at, done }] of this.#seen.entries()) {
      while (from + 1 < index && this.#seen[from + 1].at <= at - MEASURED_MS) {
        from += 1;
      }
      const before = this.#seen[from];
      // Less than a second is too short for a rate.
      if (at - before.at >= 1000) {
        points.push({ at, rate: (Math.max(0, done - before.done) / (at - before.at)) * 60_000 });
      }
    }
    return points;
  }

  /** Returns the current devices per minute; undefined while unknown. */
  now() {
    return this.line().at(-1)?.rate;
  }
}

const rates = new Map();

/** Returns the measured rate of a rollout, kept while another view is shown. */
export function rateOf(name) {
  const rate = rates.get(name) ?? new Rate();
  rates.delete(name);
  rates.set(name, rate);
  if (rates.size > MAX_KEPT_RATES) {
    rates.delete(rates.keys().next().value);
  }
  return rate;
}

/** Draws the rate over time as a line, and the quota as a dashed line. */
export function chart(rate, quota, isOver) {
  const points = rate.line();
  if (points.length < 2) {
    return el('p', {},
      isOver
        ? 'The rollout ended before this page measured a rate.'
        : 'The rate is measured while this page is open.');
  }
  const highest = Math.max(...points.map((point) => point.rate), 1);
  const isDrawn = quota !== null && quota <= highest * MAX_QUOTA_FACTOR;
  const top = roundedUp(isDrawn ? Math.max(highest, quota) * 1.05 : highest * 1.1);
  const last = points.at(-1).at;
  const width = Math.max(60_000, Math.min(DRAWN_MS, last - points[0].at));
  const x = (at) => ((1 - (last - at) / width) * WIDTH).toFixed(1);
  const y = (value) => ((1 - value / top) * HEIGHT).toFixed(1);
  const drawn = points.filter((point) => last - point.at <= width);
  const line = drawn
    .map(({ at, rate: value }, index) => `${index ? 'L' : 'M'}${x(at)} ${y(value)}`)
    .join('');
  const area = `${line}L${x(last)} ${HEIGHT}L${x(drawn[0].at)} ${HEIGHT}Z`;
  const most = number(Math.round(highest));
  const now = number(Math.round(points.at(-1).rate));
  const says = [
    isOver
      ? `at most ${most} devices per minute`
      : `${now} devices per minute now, at most ${most}`,
    quota === null ? 'no quota' : `the quota is ${number(Math.floor(quota))}`,
  ].join('; ');
  return el('figure', { class: 'chart' },
    el('figcaption', {},
      el('strong', {}, isOver ? most : now),
      ` devices per minute ${isOver ? 'at most' : 'now'}`,
      isDrawn && el('span', { class: 'key' },
        el('span', { class: 'dash', 'aria-hidden': 'true' }),
        'quota')),
    el('div', { class: 'plot' },
      el('span', { class: 'most', 'aria-hidden': 'true' }, number(top)),
      el('span', { class: 'zero', 'aria-hidden': 'true' }, '0'),
      el('svg', {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        preserveAspectRatio: 'none',
        role: 'img',
        'aria-label': says,
      },
        el('path', { class: 'area', d: area }),
        el('path', { class: 'line', d: line }),
        isDrawn && el('line', { class: 'quota', x1: 0, x2: WIDTH, y1: y(quota), y2: y(quota) })),
      el('span', { class: 'from', 'aria-hidden': 'true' },
        `${Math.round(width / 60_000)} min ${isOver ? 'before' : 'ago'}`),
      el('span', { class: 'to', 'aria-hidden': 'true' }, isOver ? 'the end' : 'now')));
}

/** Rounds up to 1, 1.5, 2, 3, 5 or 7.5 times a power of ten. */
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 1.5, 2, 3, 5, 7.5, 10].find((step) => step * power >= value);
  return Math.round(step * power);
}
