// The page: sign-in, choice of the view, and polling.

import { deviceView } from './device.js';
import { become, el } from './dom.js';
import { hubsView, rolloutsView } from './lists.js';
import { openDialog } from './operations.js';
import { rolloutView } from './rollout.js';
import { moment, zone } from './words.js';

/** The interval between two requests of a view, in milliseconds. */
const POLL_MS = 2000;
/** The interval for a rollout that has ended. */
const POLL_ENDED_MS = 10_000;
/**
 * The interval is at least this many times as long as an answer takes, so that viewers do not slow
 * the server down ...
 */
const POLL_TIME_FACTOR = 10;
/** ... but at most this. */
const MAX_POLL_MS = 30_000;
/** The number of announcements kept for screen readers. */
const MAX_ANNOUNCEMENTS = 5;
/** The time limit of a request. */
const REQUEST_TIMEOUT_MS = 20_000;

const TOKEN = 'twincast-token';

const at = (id) => document.getElementById(id);

/** The owner of the token, once known. */
let who = null;
let view = null;
let data = null;
let timer = null;
/** Aborts the latest request. */
let asking = new AbortController();
let lostSince = null;

// --- requests

/** An error response of the API. */
class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, { body, signal = AbortSignal.timeout(REQUEST_TIMEOUT_MS) } = {}) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) {
    headers.Authorization = `Bearer ${token}`;
  }
  // A proxy in front of the orchestrator may identify people by a cookie, and add a token.
  const request = { headers, signal, credentials: 'same-origin' };
  if (body) {
    headers['Content-Type'] = 'application/json';
    Object.assign(request, { method: 'POST', body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(`api/v1${path}`, request);
  } catch (error) {
    throw error.name === 'AbortError' ? error : new Refused(0, 'The orchestrator does not answer.');
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) {
    return answer;
  }
  const says = [
    answer?.detail ?? `The server answered ${response.status} ${response.statusText}`,
    ...(answer?.details ?? []),
  ];
  throw new Refused(response.status, says.join('\n'));
}

// --- choice of the view

function chosen() {
  const [, name, device] =
    location.hash.match(/^#\/rollouts\/([\w.-]+)(?:\/devices\/(.+))?$/) ?? [];
  if (device) {
    return deviceView(name, decoded(device));
  }
  if (name) {
    return rolloutView(name);
  }
  return location.hash === '#/hubs' ? hubsView() : rolloutsView();
}

/** Decodes a part of the address. A typed address may be unencoded. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function open() {
  view = chosen();
  data = null;
  for (const link of at('views').children) {
    link.ariaCurrent = link.dataset.view === view.of ? 'page' : null;
  }
  show([el('h1', { tabindex: '-1' }, view.title), el('p', { class: 'calm' }, 'Loading')]);
  document.title = `${view.title} · Twincast`;
  window.scrollTo(0, 0);
  at('main').querySelector('h1').focus();
  look();
}

function show(nodes) {
  const focused = document.activeElement;
  become(at('main'), el('main', {}, nodes));
  // The focused element is gone: keyboard users continue at the top of the view.
  if (focused && focused !== document.body && !focused.isConnected) {
    at('main').querySelector('h1')?.focus();
  }
}

// --- polling

async function look() {
  clearTimeout(timer);
  asking.abort();
  const mine = new AbortController();
  asking = mine;
  if (!who || document.hidden) {
    return;
  }
  const began = performance.now();
  try {
    const signal = AbortSignal.any([mine.signal, AbortSignal.timeout(REQUEST_TIMEOUT_MS)]);
    const found = await view.load((path) => ask(path, { signal }), data);
    if (mine.signal.aborted) {
      return;
    }
    announce(data ? view.news(data, found) : '');
    data = found;
    refresh();
    recovered();
  } catch (error) {
    if (mine.signal.aborted) {
      return;
    }
    failed(error);
  }
  const often = data && view.isOver(data) ? POLL_ENDED_MS : POLL_MS;
  const sparing = Math.min(POLL_TIME_FACTOR * (performance.now() - began), MAX_POLL_MS);
  timer = setTimeout(look, Math.max(often, sparing));
}

function refresh() {
  show(view.show(data, who));
  at('foot').textContent = `As of ${moment(Date.now())}. Times in ${zone}.`;
}

function failed(error) {
  if (error.status === 401) {
    signOut(sentence(error.message));
    return;
  }
  if (error.status === 404) {
    data = null;
    show([
      el('h1', { tabindex: '-1' }, view.title),
      el('p', {}, `${error.message}. `, el('a', { href: '#/' }, 'All rollouts')),
    ]);
    recovered();
    return;
  }
  lostSince ??= moment(Date.now());
  const seen = data ? ` The data shown is older than ${lostSince}.` : '';
  trouble(
    `${error.status ? error.message : 'No connection to the orchestrator.'}${seen} Retrying.`);
}

function recovered() {
  if (lostSince) {
    announce('The orchestrator answers again.');
  }
  lostSince = null;
  trouble('');
}

function trouble(text) {
  if (at('trouble').textContent !== text) {
    at('trouble').textContent = text;
  }
  at('main').classList.toggle('old', Boolean(text));
}

/** Announces a change to screen readers. */
function announce(text) {
  if (text) {
    at('news').append(el('p', {}, text));
  }
  while (at('news').children.length > MAX_ANNOUNCEMENTS) {
    at('news').firstChild.remove();
  }
}

// --- sign-in

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

function signInForm(mistake) {
  const input = el('input', {
    id: 'token', type: 'password', autocomplete: 'off', spellcheck: 'false', required: true,
    'aria-describedby': 'token-says token-mistake', 'aria-invalid': Boolean(mistake) && 'true',
  });
  const form = el('form', { class: 'sign-in' },
    el('h1', { tabindex: '-1' }, 'Sign in'),
    el('label', { for: 'token' }, 'Token'),
    input,
    el('p', { id: 'token-says', class: 'calm' },
      'The token is kept until this tab is closed. Create a token with ',
      el('code', {}, 'twincast token NAME'),
      ', or use a JWT of the configured issuer.'),
    el('p', { id: 'token-mistake', class: 'mistake', role: 'alert' }, mistake),
    el('button', { type: 'submit', class: 'main' }, 'Sign in'));
  form.addEventListener('submit', (submitted) => {
    submitted.preventDefault();
    sessionStorage.setItem(TOKEN, input.value.trim());
    signIn();
  });
  at('main').replaceChildren(form);
  document.title = 'Sign in · Twincast';
  input.focus();
}

async function signIn() {
  const had = Boolean(sessionStorage.getItem(TOKEN));
  try {
    who = await ask('/whoami');
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      signOut(had || error.status === 403 ? sentence(error.message) : '');
    } else {
      failed(error);
      timer = setTimeout(signIn, POLL_MS);
    }
    return;
  }
  recovered();
  at('who-name').textContent = `${who.name}, ${who.role}`;
  // Without a token, signing out has no meaning.
  at('sign-out').hidden = !had;
  at('who').hidden = false;
  at('views').hidden = false;
  open();
}

function signOut(mistake = '') {
  clearTimeout(timer);
  asking.abort();
  sessionStorage.removeItem(TOKEN);
  who = null;
  data = null;
  at('who').hidden = true;
  at('views').hidden = true;
  at('foot').textContent = '';
  if (at('dialog').open) {
    at('dialog').close();
  }
  recovered();
  signInForm(mistake);
}

// --- operations

document.addEventListener('click', (click) => {
  const button = click.target.closest?.('button[data-operation]');
  if (button && who) {
    openDialog(button.dataset, (path, body) => ask(path, { body }), (done) => {
      announce(done);
      look();
    });
    return;
  }
  const choice = click.target.closest?.('button[data-choice]');
  if (choice && data) {
    view.choose(choice.dataset.choice);
    look();
  }
});

document.addEventListener('change', (changed) => {
  if (changed.target.dataset?.choice) {
    view.choose(changed.target.dataset.choice, changed.target.value);
    look();
  }
});

at('skip').addEventListener('click', (click) => {
  click.preventDefault();
  at('main').focus();
});
at('sign-out').addEventListener('click', () => signOut());
addEventListener('hashchange', () => {
  if (who) {
    open();
  }
});
document.addEventListener('visibilitychange', () => {
  if (who) {
    look();
  }
});

signIn();
