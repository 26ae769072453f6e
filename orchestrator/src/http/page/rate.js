// How fast devices are sent to, measured while somebody looks.

import { el } from './dom.js';
import { number } from './words.js';

/** How far back it is drawn, in milliseconds. */
const DRAWN = 10 * 60_000;
/** The span over which a rate is measured, the same as the command line's. */
const OVER = 10_000;
/** A quota that is so many times higher than what is drawn is only told, or nothing would be seen of the rest. */
const TOO_HIGH = 8;

/** Rollouts whose rates are kept while others are looked at. */
const KEPT = 20;

const WIDTH = 600;
const HEIGHT = 160;

/** How many devices were done at each moment that somebody looked; never more than `DRAWN` of it. */
class Rate {
  #seen = [];

  note(at, done) {
    this.#seen.push({ at, done });
    const first = this.#seen.findIndex((seen) => at - seen.at <= DRAWN + OVER);
    this.#seen.splice(0, first);
  }

  /** Devices a minute at each moment, oldest first. */
  line() {
    const points = [];
    let from = 0;
    for (const [index, { at, done }] of this.#seen.entries()) {
      while (from + 1 < index && this.#seen[from + 1].at <= at - OVER) {
        from += 1;
      }
      const before = this.#seen[from];
      // Less than a second says nothing.
      if (at - before.at >= 1000) {
        points.push({ at, rate: (Math.max(0, done - before.done) / (at - before.at)) * 60_000 });
      }
    }
    return points;
  }

  /** Devices a minute now; undefined as long as that is not known. */
  now() {
    return this.line().at(-1)?.rate;
  }
}

const rates = new Map();

/** What is known of a rollout's rate: the same as before, when one comes back to it. */
export function rateOf(name) {
  const rate = rates.get(name) ?? new Rate();
  rates.delete(name);
  rates.set(name, rate);
  if (rates.size > KEPT) {
    rates.delete(rates.keys().next().value);
  }
  return rate;
}

/** A line of the rate over time, and the quota as a dashed one. */
export function chart(rate, quota, isOver) {
  const points = rate.line();
  if (points.length < 2) {
    return el('p', {}, isOver ? 'It was over before it could be measured here.' : 'It is measured while this page is open.');
  }
  const highest = Math.max(...points.map((point) => point.rate), 1);
  const isDrawn = quota !== null && quota <= highest * TOO_HIGH;
  const top = roundedUp(isDrawn ? Math.max(highest, quota) * 1.05 : highest * 1.1);
  const last = points.at(-1).at;
  const width = Math.max(60_000, Math.min(DRAWN, last - points[0].at));
  const x = (at) => ((1 - (last - at) / width) * WIDTH).toFixed(1);
  const y = (value) => ((1 - value / top) * HEIGHT).toFixed(1);
  const drawn = points.filter((point) => last - point.at <= width);
  const line = drawn.map(({ at, rate: value }, index) => `${index ? 'L' : 'M'}${x(at)} ${y(value)}`).join('');
  const area = `${line}L${x(last)} ${HEIGHT}L${x(drawn[0].at)} ${HEIGHT}Z`;
  const most = number(Math.round(highest));
  const now = number(Math.round(points.at(-1).rate));
  const says = [
    isOver ? `${most} devices a minute at the most` : `${now} devices a minute now, ${most} at the most`,
    quota === null ? 'no quota' : `the quota is ${number(Math.floor(quota))}`,
  ].join('; ');
  return el('figure', { class: 'chart' },
    el('figcaption', {}, el('strong', {}, isOver ? most : now), ` devices a minute ${isOver ? 'at the most' : 'now'}`,
      isDrawn && el('span', { class: 'key' }, el('span', { class: 'dash', 'aria-hidden': 'true' }), 'quota')),
    el('div', { class: 'plot' },
      el('span', { class: 'most', 'aria-hidden': 'true' }, number(top)),
      el('span', { class: 'zero', 'aria-hidden': 'true' }, '0'),
      el('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': says },
        el('path', { class: 'area', d: area }),
        el('path', { class: 'line', d: line }),
        isDrawn && el('line', { class: 'quota', x1: 0, x2: WIDTH, y1: y(quota), y2: y(quota) })),
      el('span', { class: 'from', 'aria-hidden': 'true' }, `${Math.round(width / 60_000)} min ${isOver ? 'before' : 'ago'}`),
      el('span', { class: 'to', 'aria-hidden': 'true' }, isOver ? 'its end' : 'now')));
}

/** The next number that reads well: 1, 1.5, 2, 3, 5, 7.5 times a power of ten. */
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 1.5, 2, 3, 5, 7.5, 10].find((step) => step * power >= value);
  return Math.round(step * power);
}
