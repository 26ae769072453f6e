// What can be done to a rollout, by whom, and the dialog that asks why.

import { el } from './dom.js';
import { isEnded } from './words.js';

const OPERATE = ['operator', 'admin'];
const DECIDE = ['approver', 'admin'];
const OPEN = ['running', 'paused', 'halted'];

/** Devices that were not sent the message, or did not take it. */
export const failedOf = (ends) => ends.not_sent + ends.not_taken + ends.not_applied;

/**
 * `may`: the roles. `fits`: whether it can be done to a rollout as it is. `of`: it is about a stage. `why`: a reason
 * is needed, and not only asked for.
 */
const OPERATIONS = {
  approve: {
    label: 'Approve', look: 'main', may: DECIDE, of: true,
    fits: ({ phase }, stage) => OPEN.includes(phase) && stage?.approval && !stage.approved,
    says: 'The next stage starts when all else that the gate asks for holds.',
  },
  reject: {
    label: 'Reject', look: 'danger', may: DECIDE, of: true, why: true,
    fits: ({ phase }, stage) => phase === 'running' && stage?.gate,
    says: 'The gate has then failed, and the rollout is paused, or aborted if its spec says so.',
  },
  promote: {
    label: 'Promote', look: 'quiet', may: DECIDE, of: true, why: true,
    fits: ({ phase }, stage) => OPEN.includes(phase) && stage?.gate && !stage.promoted,
    says: 'The gate counts as passed, whatever it says.',
  },
  pause: {
    label: 'Pause', look: 'quiet', may: OPERATE,
    fits: ({ phase }) => ['accepted', 'planning', 'running', 'halted'].includes(phase),
    says: 'Nothing more is sent until it is resumed.',
  },
  resume: {
    label: 'Resume', look: 'main', may: OPERATE,
    fits: ({ phase, to_be_paused: held }) => phase === 'paused' || held,
    says: 'It goes on where it left off. A gate that has paused it is asked again.',
  },
  retry: {
    label: 'Retry', look: 'quiet', may: OPERATE,
    fits: ({ phase, ends }) => failedOf(ends) > 0 && [...OPEN, 'succeeded', 'finished_with_failures'].includes(phase),
    says: 'A new attempt at all devices that failed. If it has ended, it runs again.',
  },
  abort: {
    label: 'Abort', look: 'danger', may: OPERATE, why: true,
    fits: ({ phase }) => ['accepted', 'planning', ...OPEN].includes(phase),
    says: 'It ends for good. What was not sent is skipped.',
  },
  delete: {
    label: 'Delete', look: 'danger', may: ['admin'], why: true,
    fits: ({ phase }) => isEnded(phase),
    says: 'All that is stored of it is removed, with what became of each device. Its name is free then.',
  },
  'stop-all': {
    label: 'Stop all', look: 'danger', may: OPERATE, all: true, why: true,
    says: 'Nothing is sent by any rollout, nor by those to come, until all are resumed.',
  },
  'resume-all': {
    label: 'Resume all', look: 'quiet', may: OPERATE, all: true,
    says: 'All rollouts go on that were stopped together.',
  },
};

/** The stage that is current, with what its gate is about; undefined if there is none. */
export function currentStage(rollout) {
  const stage = rollout.stages.find(({ current }) => current);
  const asked = rollout.spec.stages?.find(({ name }) => name === stage?.name);
  return stage && { ...stage, approval: Boolean(asked?.gate?.approval) };
}

/** The buttons for what whoever looks may do to a rollout now. */
export function buttonsFor(rollout, who) {
  const stage = currentStage(rollout);
  const fitting = Object.entries(OPERATIONS).filter(
    ([, { all, may, fits }]) => !all && may.includes(who.role) && fits(rollout, stage));
  return fitting.map(([name, { of }]) => button(name, rollout.name, of ? stage.name : null));
}

/** The buttons for all rollouts together. */
export function buttonsForAll(who) {
  const fitting = Object.entries(OPERATIONS).filter(([, { all, may }]) => all && may.includes(who.role));
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

/** Asks whether it is meant, and why. `perform` is given a path and a body; `tell` what came of it. */
export function openDialog({ operation, rollout, stage }, perform, tell) {
  const { label, look, says, why, all } = OPERATIONS[operation];
  part('title').textContent = all ? `${label} rollouts?`
    : stage ? `${label} stage ${stage} of ${rollout}?` : `${label} ${rollout}?`;
  part('says').textContent = says;
  part('label').textContent = why ? 'Why' : 'Why (may be empty)';
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
      mistake('Say why: it is kept in the history.');
      part('reason').focus();
      return;
    }
    busy(true);
    mistake('');
    const path = all ? `/${operation}` : `/rollouts/${encodeURIComponent(rollout)}/${operation}`;
    try {
      const answer = await perform(path, { ...(stage && { stage }), ...(reason && { reason }) });
      part().close();
      tell(answer.changed ? `Done: ${label.toLowerCase()}.` : answer.note ?? 'It was so already; nothing has changed.');
    } catch (error) {
      mistake(error.message);
    } finally {
      busy(false);
    }
  };
  part().showModal();
  part('reason').focus();
}

/** If the button that the focus goes back to has gone, whoever uses a keyboard goes on from the top of the view. */
function focusTheView() {
  const focused = document.activeElement;
  // The browser takes the focus from what is hidden only when it paints.
  if (!focused || focused === document.body || part().contains(focused)) {
    document.querySelector('main h1')?.focus();
  }
}

/** Whether an answer is awaited: some seconds, until the store keeps the effect. The button stays focusable. */
function busy(waits) {
  part('do').ariaDisabled = String(waits);
}

function mistake(text) {
  part('mistake').textContent = text;
  part('reason').setAttribute('aria-invalid', String(Boolean(text)));
}
