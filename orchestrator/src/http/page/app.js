// The page: sign-in, choice of the view, and polling.

import { deviceView } from './device.js';
import { el, patchChildren } from './dom.js';
import { hubsView, rolloutsView } from './lists.js';
import { openDialog } from './operations.js';
import { rolloutView } from './rollout.js';
import { formatTime, timeZone } from './text.js';

/** The interval between two requests of a view, in milliseconds. */
const POLL_MS = 2000;
/** The interval for a rollout that has ended. */
const POLL_ENDED_MS = 10_000;
/**
 * The interval is at least this many times as long as the server takes for a response. Viewers
 * therefore do not slow the server down.
 */
const POLL_TIME_FACTOR = 10;
/** The limit of an interval extended by `POLL_TIME_FACTOR`. */
const MAX_POLL_MS = 30_000;
/** The number of announcements kept for screen readers. */
const MAX_ANNOUNCEMENTS = 5;
/** The time limit of a request. */
const REQUEST_TIMEOUT_MS = 20_000;

/** The key of the token in the session storage. */
const TOKEN_KEY = 'twincast-token';

const byId = (id) => document.getElementById(id);

/** The owner of the token; null before the sign-in. */
let user = null;
let view = null;
let data = null;
let pollTimer = null;
/** Aborts the latest request of the view. */
let viewRequest = new AbortController();
let disconnectedSince = null;

// --- requests

/** An error response of the API. */
class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(path, { body, signal = AbortSignal.timeout(REQUEST_TIMEOUT_MS) } = {}) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN_KEY);
  if (token) {
    headers.Authorization = `Bearer ${token}`;
  }
  // A proxy in front of the orchestrator may identify people by a cookie, and add a token.
  const options = { headers, signal, credentials: 'same-origin' };
  if (body) {
    headers['Content-Type'] = 'application/json';
    Object.assign(options, { method: 'POST', body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(`api/v1${path}`, options);
  } catch (error) {
    throw error.name === 'AbortError'
      ? error
      : new ApiError(0, 'The orchestrator does not answer.');
  }
  const content = await response.json().catch(() => null);
  if (response.ok && content) {
    return content;
  }
  const messages = [
    content?.detail ?? `The server answered ${response.status} ${response.statusText}`,
    ...(content?.details ?? []),
  ];
  throw new ApiError(response.status, messages.join('\n'));
}

// --- choice of the view

/** Returns the view for the fragment of the address. */
function viewFromAddress() {
  const [, name, device] =
    location.hash.match(/^#\/rollouts\/([\w.-]+)(?:\/devices\/(.+))?$/) ?? [];
  if (device) {
    return deviceView(name, decode(device));
  }
  if (name) {
    return rolloutView(name);
  }
  return location.hash === '#/hubs' ? hubsView() : rolloutsView();
}

/** Decodes a part of the address. A typed address may be unencoded. */
function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function openView() {
  view = viewFromAddress();
  data = null;
  for (const link of byId('views').children) {
    link.ariaCurrent = link.dataset.section === view.section ? 'page' : null;
  }
  setContent([el('h1', { tabindex: '-1' }, view.title), el('p', { class: 'muted' }, 'Loading')]);
  document.title = `${view.title} · Twincast`;
  window.scrollTo(0, 0);
  byId('main').querySelector('h1').focus();
  refresh();
}

function setContent(nodes) {
  const focused = document.activeElement;
  patchChildren(byId('main'), el('main', {}, nodes));
  // If the focused element is gone, keyboard users continue at the top of the view.
  if (focused && focused !== document.body && !focused.isConnected) {
    byId('main').querySelector('h1')?.focus();
  }
}

// --- polling

/** Requests the data of the view, renders the view, and schedules the next refresh. */
async function refresh() {
  clearTimeout(pollTimer);
  viewRequest.abort();
  const controller = new AbortController();
  viewRequest = controller;
  if (!user || document.hidden) {
    return;
  }
  const startedAt = performance.now();
  try {
    const signal = AbortSignal.any([controller.signal, AbortSignal.timeout(REQUEST_TIMEOUT_MS)]);
    const newData = await view.load((path) => request(path, { signal }), data);
    if (controller.signal.aborted) {
      return;
    }
    announce(data ? view.announcement(data, newData) : '');
    data = newData;
    renderView();
    clearConnectionError();
  } catch (error) {
    if (controller.signal.aborted) {
      return;
    }
    handleError(error);
  }
  const interval = data && view.isEnded(data) ? POLL_ENDED_MS : POLL_MS;
  const minInterval = Math.min(POLL_TIME_FACTOR * (performance.now() - startedAt), MAX_POLL_MS);
  pollTimer = setTimeout(refresh, Math.max(interval, minInterval));
}

function renderView() {
  setContent(view.render(data, user));
  byId('page-footer').textContent = `As of ${formatTime(Date.now())}. Times in ${timeZone}.`;
}

function handleError(error) {
  if (error.status === 401) {
    signOut(toSentence(error.message));
    return;
  }
  if (error.status === 404 && view) {
    data = null;
    setContent([
      el('h1', { tabindex: '-1' }, view.title),
      el('p', {}, `${error.message}. `, el('a', { href: '#/' }, 'All rollouts')),
    ]);
    clearConnectionError();
    return;
  }
  disconnectedSince ??= formatTime(Date.now());
  const age = data ? ` The data shown is older than ${disconnectedSince}.` : '';
  setErrorBanner(
    `${error.status ? error.message : 'No connection to the orchestrator.'}${age} Retrying.`);
}

function clearConnectionError() {
  if (disconnectedSince) {
    announce('The orchestrator answers again.');
  }
  disconnectedSince = null;
  setErrorBanner('');
}

/** Shows an error above the view, and marks the view as stale; an empty text removes both. */
function setErrorBanner(text) {
  if (byId('error-banner').textContent !== text) {
    byId('error-banner').textContent = text;
  }
  byId('main').classList.toggle('stale', Boolean(text));
}

/** Announces a change to screen readers. */
function announce(text) {
  const log = byId('announcements');
  if (text) {
    log.append(el('p', {}, text));
  }
  while (log.children.length > MAX_ANNOUNCEMENTS) {
    log.firstChild.remove();
  }
}

// --- sign-in

const toSentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

function showSignInForm(error) {
  const input = el('input', {
    id: 'token', type: 'password', autocomplete: 'off', spellcheck: 'false', required: true,
    'aria-describedby': 'token-description token-error',
    'aria-invalid': Boolean(error) && 'true',
  });
  const form = el('form', { class: 'sign-in' },
    el('h1', { tabindex: '-1' }, 'Sign in'),
    el('label', { for: 'token' }, 'Token'),
    input,
    el('p', { id: 'token-description', class: 'muted' },
      'The token is kept until this tab is closed. Create a token with ',
      el('code', {}, 'twincast token NAME'),
      ', or use a JWT of the configured issuer.'),
    el('p', { id: 'token-error', class: 'error', role: 'alert' }, error),
    el('button', { type: 'submit', class: 'primary' }, 'Sign in'));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN_KEY, input.value.trim());
    signIn();
  });
  byId('main').replaceChildren(form);
  document.title = 'Sign in · Twincast';
  input.focus();
}

async function signIn() {
  const hasToken = Boolean(sessionStorage.getItem(TOKEN_KEY));
  try {
    user = await request('/whoami');
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      signOut(hasToken || error.status === 403 ? toSentence(error.message) : '');
    } else {
      handleError(error);
      pollTimer = setTimeout(signIn, POLL_MS);
    }
    return;
  }
  clearConnectionError();
  byId('user-name').textContent = `${user.name}, ${user.role}`;
  // Without a token, signing out has no effect.
  byId('sign-out').hidden = !hasToken;
  byId('user').hidden = false;
  byId('views').hidden = false;
  openView();
}

function signOut(error = '') {
  clearTimeout(pollTimer);
  viewRequest.abort();
  sessionStorage.removeItem(TOKEN_KEY);
  user = null;
  data = null;
  byId('user').hidden = true;
  byId('views').hidden = true;
  byId('page-footer').textContent = '';
  if (byId('dialog').open) {
    byId('dialog').close();
  }
  clearConnectionError();
  showSignInForm(error);
}

// --- operations and selections

document.addEventListener('click', (event) => {
  const button = event.target.closest?.('button[data-operation]');
  if (button && user) {
    openDialog(button.dataset, (path, body) => request(path, { body }), (result) => {
      announce(result);
      refresh();
    });
    return;
  }
  const pageButton = event.target.closest?.('button[data-selection]');
  if (pageButton && data) {
    view.select(pageButton.dataset.selection);
    refresh();
  }
});

document.addEventListener('change', (event) => {
  if (event.target.dataset?.selection) {
    view.select(event.target.dataset.selection, event.target.value);
    refresh();
  }
});

byId('skip-link').addEventListener('click', (event) => {
  event.preventDefault();
  byId('main').focus();
});
byId('sign-out').addEventListener('click', () => signOut());
addEventListener('hashchange', () => {
  if (user) {
    openView();
  }
});
document.addEventListener('visibilitychange', () => {
  if (user) {
    refresh();
  }
});

signIn();
