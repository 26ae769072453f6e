// The operations on a rollout, the roles allowed, and the confirmation dialog.

import { el } from './dom.js';
import { isEnded } from './words.js';

const OPERATE = ['operator', 'admin'];
const DECIDE = ['approver', 'admin'];
const OPEN = ['running', 'paused', 'halted'];

/** The number of failed devices. */
export const failedOf = (by_class) => by_class.not_sent + by_class.not_taken + by_class.not_applied;

/**
 * `may`: the allowed roles. `fits`: whether the operation is possible in the rollout's state. `of`:
 * the operation is on a stage. `why`: the reason is required, not optional.
 */
const OPERATIONS = {
  approve: {
    label: 'Approve', look: 'main', may: DECIDE, of: true,
    fits: ({ phase }, stage) => OPEN.includes(phase) && stage?.approval && !stage.approved,
    says: 'The next stage starts when all other conditions of the gate hold.',
  },
  reject: {
    label: 'Reject', look: 'danger', may: DECIDE, of: true, why: true,
    fits: ({ phase }, stage) => phase === 'running' && stage?.gate,
    says: 'The gate fails, and the rollout is paused, or aborted if its spec says so.',
  },
  promote: {
    label: 'Promote', look: 'quiet', may: DECIDE, of: true, why: true,
    fits: ({ phase }, stage) => OPEN.includes(phase) && stage?.gate && !stage.promoted,
    says: 'The gate counts as passed, regardless of its verdict.',
  },
  pause: {
    label: 'Pause', look: 'quiet', may: OPERATE,
    fits: ({ phase }) => ['accepted', 'planning', 'running', 'halted'].includes(phase),
    says: 'Nothing more is sent until the rollout is resumed.',
  },
  resume: {
    label: 'Resume', look: 'main', may: OPERATE,
    fits: ({ phase, to_be_paused: held }) => phase === 'paused' || held,
    says: 'The rollout continues where it stopped. A gate that paused the rollout is judged again.',
  },
  retry: {
    label: 'Retry', look: 'quiet', may: OPERATE,
    fits: ({ phase, by_class }) =>
      failedOf(by_class) > 0 && [...OPEN, 'succeeded', 'finished_with_failures'].includes(phase),
    says: 'A new attempt at all failed devices. An ended rollout runs again.',
  },
  abort: {
    label: 'Abort', look: 'danger', may: OPERATE, why: true,
    fits: ({ phase }) => ['accepted', 'planning', ...OPEN].includes(phase),
    says: 'The rollout ends permanently. Devices not sent to are skipped.',
  },
  delete: {
    label: 'Delete', look: 'danger', may: ['admin'], why: true,
    fits: ({ phase }) => isEnded(phase),
    says: 'All stored data of the rollout is removed, including the outcome of each device. ' +
      'The name becomes free.',
  },
  'stop-all': {
    label: 'Stop all', look: 'danger', may: OPERATE, all: true, why: true,
    says: 'No rollout sends anything, including future rollouts, until all are resumed.',
  },
  'resume-all': {
    label: 'Resume all', look: 'quiet', may: OPERATE, all: true,
    says: 'All rollouts stopped by stop-all continue.',
  },
};

/** Returns the current stage with the need for an approval; undefined without a current stage. */
export function currentStage(rollout) {
  const stage = rollout.stages.find(({ current }) => current);
  const asked = rollout.spec.stages?.find(({ name }) => name === stage?.name);
  return stage && { ...stage, approval: Boolean(asked?.gate?.approval) };
}

/** Returns the buttons of the operations currently allowed to the viewer. */
export function buttonsFor(rollout, who) {
  const stage = currentStage(rollout);
  const fitting = Object.entries(OPERATIONS).filter(
    ([, { all, may, fits }]) => !all && may.includes(who.role) && fits(rollout, stage));
  return fitting.map(([name, { of }]) => button(name, rollout.name, of ? stage.name : null));
}

/** Returns the buttons of the operations on all rollouts. */
export function buttonsForAll(who) {
  const fitting = Object.entries(OPERATIONS).filter(
    ([, { all, may }]) => all && may.includes(who.role));
  return fitting.map(([name]) => button(name, null, null));
}

function button(name, rollout, stage) {
  const { label, look } = OPERATIONS[name];
  return el('button', {
    type: 'button', class: look, 'aria-haspopup': 'dialog',
    'data-key': name, 'data-operation': name, 'data-rollout': rollout, 'data-stage': stage,
  }, label, stage && el('span', { class: 'of' }, ` ${stage}`));
}

const part = (name) => document.getElementById(name ? `dialog-${name}` : 'dialog');

/**
 * Asks for confirmation and a reason. `perform` receives a path and a body; `announce` receives the
 * result.
 */
export function openDialog({ operation, rollout, stage }, perform, announce) {
  const { label, look, says, why, all } = OPERATIONS[operation];
  part('title').textContent = all ? `${label} rollouts?`
    : stage ? `${label} stage ${stage} of ${rollout}?` : `${label} ${rollout}?`;
  part('says').textContent = says;
  part('label').textContent = why ? 'Reason' : 'Reason (optional)';
  part('mistake').textContent = '';
  part('do').textContent = label;
  part('do').className = look === 'quiet' ? 'main' : look;
  busy(false);
  part('reason').value = '';
  part('reason').required = Boolean(why);

  part('leave').onclick = () => part().close();
  part().onclose = focusTheView;
  part('form').onsubmit = async (submitted) => {
    submitted.preventDefault();
    if (part('do').ariaDisabled === 'true') {
      return;
    }
    const reason = part('reason').value.trim();
    if (why && !reason) {
      mistake('Enter a reason. It is kept in the history.');
      part('reason').focus();
      return;
    }
    busy(true);
    mistake('');
    const path = all ? `/${operation}` : `/rollouts/${encodeURIComponent(rollout)}/${operation}`;
    try {
      const answer = await perform(path, { ...(stage && { stage }), ...(reason && { reason }) });
      part().close();
      announce(
        answer.changed
          ? `Done: ${label.toLowerCase()}.`
          : (answer.note ?? 'Already in effect; nothing has changed.'));
    } catch (error) {
      mistake(error.message);
    } finally {
      busy(false);
    }
  };
  part().showModal();
  part('reason').focus();
}

/** If the previously focused button is gone, keyboard users continue at the top of the view. */
function focusTheView() {
  const focused = document.activeElement;
  // The browser removes the focus from hidden elements only at the next paint.
  if (!focused || focused === document.body || part().contains(focused)) {
    document.querySelector('main h1')?.focus();
  }
}

/** Marks the button as busy until the answer, for some seconds. The button stays focusable. */
function busy(waits) {
  part('do').ariaDisabled = String(waits);
}

function mistake(text) {
  part('mistake').textContent = text;
  part('reason').setAttribute('aria-invalid', String(Boolean(text)));
}
