// The operations on rollouts, the allowed roles, and the confirmation dialog.

import { el } from './dom.js';
import { isEnded } from './text.js';

const OPERATORS = ['operator', 'admin'];
const APPROVERS = ['approver', 'admin'];
const ACTIVE_PHASES = ['running', 'paused', 'halted'];

/** Returns the number of failed devices. */
export const failedDevices = (by_class) =>
  by_class.not_sent + by_class.not_taken + by_class.not_applied;

/**
 * `style`: the CSS class of the button. `roles`: the allowed roles. `isAvailable`: whether the
 * operation is possible in the state of the rollout. `isForStage`: the operation is on a stage.
 * `isGlobal`: the operation is on all rollouts. `needsReason`: the reason is required.
 */
const OPERATIONS = {
  approve: {
    label: 'Approve', style: 'primary', roles: APPROVERS, isForStage: true,
    isAvailable: ({ phase }, stage) =>
      ACTIVE_PHASES.includes(phase) && stage?.approval && !stage.approved,
    description: 'The next stage starts when all other conditions of the gate hold.',
  },
  reject: {
    label: 'Reject', style: 'danger', roles: APPROVERS, isForStage: true, needsReason: true,
    isAvailable: ({ phase }, stage) => phase === 'running' && stage?.gate,
    description: 'The gate fails, and the rollout is paused, or aborted if its spec says so.',
  },
  promote: {
    label: 'Promote', style: 'secondary', roles: APPROVERS, isForStage: true, needsReason: true,
    isAvailable: ({ phase }, stage) =>
      ACTIVE_PHASES.includes(phase) && stage?.gate && !stage.promoted,
    description: 'The gate counts as passed, regardless of its verdict.',
  },
  pause: {
    label: 'Pause', style: 'secondary', roles: OPERATORS,
    isAvailable: ({ phase }) => ['accepted', 'planning', 'running', 'halted'].includes(phase),
    description: 'Nothing more is sent until the rollout is resumed.',
  },
  resume: {
    label: 'Resume', style: 'primary', roles: OPERATORS,
    isAvailable: ({ phase, to_be_paused }) => phase === 'paused' || to_be_paused,
    description:
      'The rollout continues where it stopped. A gate that paused the rollout is judged again.',
  },
  retry: {
    label: 'Retry', style: 'secondary', roles: OPERATORS,
    isAvailable: ({ phase, by_class }) =>
      failedDevices(by_class) > 0 &&
      [...ACTIVE_PHASES, 'succeeded', 'finished_with_failures'].includes(phase),
    description: 'A new attempt at all failed devices. An ended rollout runs again.',
  },
  abort: {
    label: 'Abort', style: 'danger', roles: OPERATORS, needsReason: true,
    isAvailable: ({ phase }) => ['accepted', 'planning', ...ACTIVE_PHASES].includes(phase),
    description: 'The rollout ends permanently. Devices not sent to are skipped.',
  },
  delete: {
    label: 'Delete', style: 'danger', roles: ['admin'], needsReason: true,
    isAvailable: ({ phase }) => isEnded(phase),
    description:
      'All stored data of the rollout is removed, including the outcome of each device. ' +
      'The name becomes free.',
  },
  'stop-all': {
    label: 'Stop all', style: 'danger', roles: OPERATORS, isGlobal: true, needsReason: true,
    description: 'No rollout sends anything, including future rollouts, until all are resumed.',
  },
  'resume-all': {
    label: 'Resume all', style: 'secondary', roles: OPERATORS, isGlobal: true,
    description: 'All rollouts stopped by stop-all continue.',
  },
};

/** Returns the current stage with the need for an approval; undefined without a current stage. */
export function currentStage(rollout) {
  const stage = rollout.stages.find(({ current }) => current);
  const stageSpec = rollout.spec.stages?.find(({ name }) => name === stage?.name);
  return stage && { ...stage, approval: Boolean(stageSpec?.gate?.approval) };
}

/** Returns the buttons of the operations currently available to the viewer. */
export function operationButtons(rollout, user) {
  const stage = currentStage(rollout);
  const available = Object.entries(OPERATIONS).filter(
    ([, { isGlobal, roles, isAvailable }]) =>
      !isGlobal && roles.includes(user.role) && isAvailable(rollout, stage));
  return available.map(([name, { isForStage }]) =>
    operationButton(name, rollout.name, isForStage ? stage.name : null));
}

/** Returns the buttons of the operations on all rollouts. */
export function globalOperationButtons(user) {
  const available = Object.entries(OPERATIONS).filter(
    ([, { isGlobal, roles }]) => isGlobal && roles.includes(user.role));
  return available.map(([name]) => operationButton(name, null, null));
}

function operationButton(operation, rollout, stage) {
  const { label, style } = OPERATIONS[operation];
  return el('button', {
    type: 'button', class: style, 'aria-haspopup': 'dialog',
    'data-key': operation, 'data-operation': operation,
    'data-rollout': rollout, 'data-stage': stage,
  }, label, stage && el('span', { class: 'button-detail' }, ` ${stage}`));
}

/** Returns the dialog, or an element of the dialog. */
const dialogElement = (name) => document.getElementById(name ? `dialog-${name}` : 'dialog');

/**
 * Asks for confirmation and a reason. `post` sends a body to a path of the API; `announce` receives
 * the result.
 */
export function openDialog({ operation, rollout, stage }, post, announce) {
  const { label, style, description, needsReason, isGlobal } = OPERATIONS[operation];
  const dialog = dialogElement();
  const reasonInput = dialogElement('reason');
  const confirmButton = dialogElement('confirm');
  dialogElement('title').textContent = isGlobal ? `${label} rollouts?`
    : stage ? `${label} stage ${stage} of ${rollout}?` : `${label} ${rollout}?`;
  dialogElement('description').textContent = description;
  dialogElement('label').textContent = needsReason ? 'Reason' : 'Reason (optional)';
  dialogElement('error').textContent = '';
  confirmButton.textContent = label;
  confirmButton.className = style === 'secondary' ? 'primary' : style;
  setPending(false);
  reasonInput.value = '';
  reasonInput.required = Boolean(needsReason);

  dialogElement('cancel').onclick = () => dialog.close();
  dialog.onclose = restoreFocus;
  dialogElement('form').onsubmit = async (event) => {
    event.preventDefault();
    if (confirmButton.ariaDisabled === 'true') {
      return;
    }
    const reason = reasonInput.value.trim();
    if (needsReason && !reason) {
      setError('Enter a reason. It is kept in the history.');
      reasonInput.focus();
      return;
    }
    setPending(true);
    setError('');
    const path = isGlobal
      ? `/${operation}`
      : `/rollouts/${encodeURIComponent(rollout)}/${operation}`;
    try {
      const response = await post(path, { ...(stage && { stage }), ...(reason && { reason }) });
      dialog.close();
      announce(
        response.changed
          ? `Done: ${label.toLowerCase()}.`
          : (response.note ?? 'Already in effect; nothing has changed.'));
    } catch (error) {
      setError(error.message);
    } finally {
      setPending(false);
    }
  };
  dialog.showModal();
  reasonInput.focus();
}

/** Moves the focus to the heading of the view if the previously focused button is gone. */
function restoreFocus() {
  const focused = document.activeElement;
  // The browser removes the focus from hidden elements only at the next paint.
  if (!focused || focused === document.body || dialogElement().contains(focused)) {
    document.querySelector('main h1')?.focus();
  }
}

/** Disables the button during a request. The button stays focusable. */
function setPending(isPending) {
  dialogElement('confirm').ariaDisabled = String(isPending);
}

/** Shows an error in the dialog; an empty text removes the error. */
function setError(text) {
  dialogElement('error').textContent = text;
  dialogElement('reason').setAttribute('aria-invalid', String(Boolean(text)));
}
