// The page: who looks, which view, and asking again and again.

import { deviceView } from './device.js';
import { become, el } from './dom.js';
import { hubsView, rolloutsView } from './lists.js';
import { openDialog } from './operations.js';
import { rolloutView } from './rollout.js';
import { moment, zone } from './words.js';

/** How long it waits before it asks again, in milliseconds. */
const ASK_EVERY = 2000;
/** The same for what has ended. */
const ENDED_EVERY = 10_000;
/** It waits so many times as long as answers take, so that those who look never slow down what they look at ... */
const SPARING = 10;
/** ... but no longer than this. */
const ASK_AT_LEAST_EVERY = 30_000;
/** What was told that is kept, for screen readers to come to. */
const TOLD = 5;
/** How long an answer may take. */
const PATIENCE = 20_000;

const TOKEN = 'twincast-token';

const at = (id) => document.getElementById(id);

/** Whose token it is, once that is known. */
let who = null;
let view = null;
let data = null;
let timer = null;
/** What the newest question can be taken back with. */
let asking = new AbortController();
let lostSince = null;

// --- asking

/** An answer that is not what was asked for. */
class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, { body, signal = AbortSignal.timeout(PATIENCE) } = {}) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) {
    headers.Authorization = `Bearer ${token}`;
  }
  // What stands before the orchestrator may know people by a cookie, and bring their token.
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
  const says = [answer?.detail ?? `The answer was ${response.status} ${response.statusText}`, ...(answer?.details ?? [])];
  throw new Refused(response.status, says.join('\n'));
}

// --- which view

function chosen() {
  const [, name, device] = location.hash.match(/^#\/rollouts\/([\w.-]+)(?:\/devices\/(.+))?$/) ?? [];
  if (device) {
    return deviceView(name, decoded(device));
  }
  if (name) {
    return rolloutView(name);
  }
  return location.hash === '#/hubs' ? hubsView() : rolloutsView();
}

/** A part of the address as text. What somebody has typed need not be encoded. */
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
  // What had the focus has gone: whoever uses a keyboard goes on from the top of the view.
  if (focused && focused !== document.body && !focused.isConnected) {
    at('main').querySelector('h1')?.focus();
  }
}

// --- asking again and again

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
    const signal = AbortSignal.any([mine.signal, AbortSignal.timeout(PATIENCE)]);
    const found = await view.load((path) => ask(path, { signal }), data);
    if (mine.signal.aborted) {
      return;
    }
    tell(data ? view.news(data, found) : '');
    data = found;
    refresh();
    recovered();
  } catch (error) {
    if (mine.signal.aborted) {
      return;
    }
    failed(error);
  }
  const often = data && view.isOver(data) ? ENDED_EVERY : ASK_EVERY;
  const sparing = Math.min(SPARING * (performance.now() - began), ASK_AT_LEAST_EVERY);
  timer = setTimeout(look, Math.max(often, sparing));
}

function refresh() {
  show(view.show(data, who));
  at('foot').textContent = `As of ${moment(Date.now())}. Times are those of ${zone}.`;
}

function failed(error) {
  if (error.status === 401) {
    signOut(sentence(error.message));
    return;
  }
  if (error.status === 404) {
    data = null;
    show([el('h1', { tabindex: '-1' }, view.title), el('p', {}, `${error.message}. `, el('a', { href: '#/' }, 'All rollouts'))]);
    recovered();
    return;
  }
  lostSince ??= moment(Date.now());
  const seen = data ? ` What you see is older than ${lostSince}.` : '';
  trouble(`${error.status ? error.message : 'No connection to the orchestrator.'}${seen} Trying again.`);
}

function recovered() {
  if (lostSince) {
    tell('The orchestrator answers again.');
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

/** Says something to those who do not see that it changes. */
function tell(text) {
  if (text) {
    at('news').append(el('p', {}, text));
  }
  while (at('news').children.length > TOLD) {
    at('news').firstChild.remove();
  }
}

// --- who looks

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
    el('p', { id: 'token-says', class: 'calm' }, 'It is kept until this tab is closed. ', el('code', {}, 'twincast token NAME'), ' makes one; a JWT of the configured issuer is one, too.'),
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
      timer = setTimeout(signIn, ASK_EVERY);
    }
    return;
  }
  recovered();
  at('who-name').textContent = `${who.name}, ${who.role}`;
  // Without tokens there is nothing to sign out of.
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

// --- what people do

document.addEventListener('click', (click) => {
  const button = click.target.closest?.('button[data-operation]');
  if (button && who) {
    openDialog(button.dataset, (path, body) => ask(path, { body }), (done) => {
      tell(done);
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
