// The rate of sends, measured while the page is open.

import { el } from './dom.js';
import { formatNumber } from './text.js';

/** The time range of the chart, in milliseconds. */
const CHART_MS = 10 * 60_000;
/** The time window of a measured rate, the same as on the command line. */
const WINDOW_MS = 10_000;
/**
 * A quota more than this many times higher than the highest rate is not drawn: the line of the rate
 * would be too low to read.
 */
const MAX_QUOTA_FACTOR = 8;

/** The number of rollouts whose rates are kept while another rollout is shown. */
const MAX_KEPT_RATES = 20;

const WIDTH = 600;
const HEIGHT = 160;

/** The number of done devices at each poll, for the time range of the chart. */
class Rate {
  #samples = [];

  addSample(time, done) {
    this.#samples.push({ time, done });
    const first = this.#samples.findIndex((sample) => time - sample.time <= CHART_MS + WINDOW_MS);
    this.#samples.splice(0, first);
  }

  /** Returns devices per minute at each poll, oldest first. */
  points() {
    const points = [];
    let start = 0;
    for (const [index, { time, done }] of this.#samples.entries()) {
      while (start + 1 < index && this.#samples[start + 1].time <= time - WINDOW_MS) {
        start += 1;
      }
      const before = this.#samples[start];
      // Less than a second is too short for a rate.
      if (time - before.time >= 1000) {
        const rate = (Math.max(0, done - before.done) / (time - before.time)) * 60_000;
        points.push({ time, rate });
      }
    }
    return points;
  }

  /** Returns the current devices per minute; undefined while unknown. */
  current() {
    return this.points().at(-1)?.rate;
  }
}

const rates = new Map();

/** Returns the measured rate of a rollout, kept while another view is shown. */
export function rateFor(name) {
  const rate = rates.get(name) ?? new Rate();
  // The map is in the order of use, so the first rate is the least recently used.
  rates.delete(name);
  rates.set(name, rate);
  if (rates.size > MAX_KEPT_RATES) {
    rates.delete(rates.keys().next().value);
  }
  return rate;
}

/** Draws the rate over time as a line, and the quota as a dashed line. */
export function rateChart(rate, quota, isEnded) {
  const points = rate.points();
  if (points.length < 2) {
    return el('p', {},
      isEnded
        ? 'The rollout ended before this page measured a rate.'
        : 'The rate is measured while this page is open.');
  }
  const highest = Math.max(...points.map((point) => point.rate), 1);
  const showsQuota = quota !== null && quota <= highest * MAX_QUOTA_FACTOR;
  const yMax = roundUp(showsQuota ? Math.max(highest, quota) * 1.05 : highest * 1.1);
  const end = points.at(-1).time;
  const duration = Math.max(60_000, Math.min(CHART_MS, end - points[0].time));
  const x = (time) => ((1 - (end - time) / duration) * WIDTH).toFixed(1);
  const y = (value) => ((1 - value / yMax) * HEIGHT).toFixed(1);
  const visible = points.filter((point) => end - point.time <= duration);
  const line = visible
    .map((point, index) => `${index ? 'L' : 'M'}${x(point.time)} ${y(point.rate)}`)
    .join('');
  const area = `${line}L${x(end)} ${HEIGHT}L${x(visible[0].time)} ${HEIGHT}Z`;
  const highestText = formatNumber(Math.round(highest));
  const currentText = formatNumber(Math.round(points.at(-1).rate));
  const description = [
    isEnded
      ? `at most ${highestText} devices per minute`
      : `${currentText} devices per minute now, at most ${highestText}`,
    quota === null ? 'no quota' : `the quota is ${formatNumber(Math.floor(quota))}`,
  ].join('; ');
  return el('figure', { class: 'chart' },
    el('figcaption', {},
      el('strong', {}, isEnded ? highestText : currentText),
      ` devices per minute ${isEnded ? 'at most' : 'now'}`,
      showsQuota && el('span', { class: 'chart-legend' },
        el('span', { class: 'dashed-line', 'aria-hidden': 'true' }),
        'quota')),
    el('div', { class: 'plot' },
      el('span', { class: 'y-max', 'aria-hidden': 'true' }, formatNumber(yMax)),
      el('span', { class: 'y-min', 'aria-hidden': 'true' }, '0'),
      el('svg', {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        preserveAspectRatio: 'none',
        role: 'img',
        'aria-label': description,
      },
        el('path', { class: 'area', d: area }),
        el('path', { class: 'line', d: line }),
        showsQuota &&
          el('line', { class: 'quota', x1: 0, x2: WIDTH, y1: y(quota), y2: y(quota) })),
      el('span', { class: 'x-start', 'aria-hidden': 'true' },
        `${Math.round(duration / 60_000)} min ${isEnded ? 'before' : 'ago'}`),
      el('span', { class: 'x-end', 'aria-hidden': 'true' }, isEnded ? 'the end' : 'now')));
}

/** Rounds up to 1, 1.5, 2, 3, 5 or 7.5 times a power of ten. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 1.5, 2, 3, 5, 7.5, 10].find((step) => step * power >= value);
  return Math.round(step * power);
}
