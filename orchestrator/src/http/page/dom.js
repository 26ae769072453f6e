// Creation and update of elements.
//
// Every response builds a new view, and only the differences are applied to the displayed elements.
// Focus, scroll position and open details therefore stay. Texts are always inserted as text, never
// parsed as HTML.

const SVG_TAGS = new Set(['svg', 'path', 'line', 'title']);

/**
 * Creates an element. Attributes and children with the value null, undefined or false are left out.
 */
export function el(tag, attributes = {}, ...children) {
  const element = SVG_TAGS.has(tag)
    ? document.createElementNS('http://www.w3.org/2000/svg', tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? '' : String(value));
    }
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) {
      element.append(child);
    }
  }
  return element;
}

/**
 * Creates a table with a caption. A column is `{ header, numeric }`; a row is `{ key, cells }`, and
 * the first cell is the heading of the row. The roles keep the meaning of a table on narrow
 * screens, where rows are shown as cards.
 */
export function table(caption, columns, rows) {
  const cellClass = (column) => (column.numeric ? 'numeric' : null);
  const headers = columns.map((column) =>
    el('th', { scope: 'col', role: 'columnheader', class: cellClass(column) }, column.header));
  const body = rows.map(({ key, cells }) => {
    const elements = cells.map((cell, index) => {
      const column = columns[index];
      const attributes = { 'data-label': column.header, class: cellClass(column) };
      return index === 0
        ? el('th', { scope: 'row', role: 'rowheader', ...attributes }, cell)
        : el('td', { role: 'cell', ...attributes }, el('span', { class: 'cell' }, cell));
    });
    return el('tr', { role: 'row', 'data-key': key }, elements);
  });
  return el('table', { role: 'table' },
    el('caption', { class: 'visually-hidden' }, caption),
    el('thead', { role: 'rowgroup' }, el('tr', { role: 'row' }, headers)),
    el('tbody', { role: 'rowgroup' }, body));
}

/**
 * Changes the children of `current` to the children of `target`, with few changes. Children with a
 * `data-key` are matched by key, other children by position.
 */
export function patchChildren(current, target) {
  const childrenByKey = new Map();
  for (const child of current.children) {
    const key = child.dataset.key;
    if (key) {
      childrenByKey.set(key, child);
    }
  }
  let position = current.firstChild;
  for (const child of [...target.childNodes]) {
    const key = child.dataset?.key;
    const match = key ? childrenByKey.get(key) : position?.dataset?.key ? null : position;
    if (!match || !isSameType(match, child)) {
      current.insertBefore(child, position);
      continue;
    }
    if (match === position) {
      position = position.nextSibling;
    } else {
      current.insertBefore(match, position);
    }
    patchNode(match, child);
  }
  while (position) {
    const next = position.nextSibling;
    position.remove();
    position = next;
  }
}

function isSameType(left, right) {
  return left.nodeType === right.nodeType && left.nodeName === right.nodeName;
}

function patchNode(current, target) {
  if (current.nodeType === Node.TEXT_NODE) {
    if (current.data !== target.data) {
      current.data = target.data;
    }
    return;
  }
  for (const { name } of [...current.attributes]) {
    // Details opened by the viewer stay open.
    if (!target.hasAttribute(name) && name !== 'open') {
      current.removeAttribute(name);
    }
  }
  for (const { name, value } of [...target.attributes]) {
    if (current.getAttribute(name) !== value) {
      current.setAttribute(name, value);
    }
  }
  patchChildren(current, target);
}
