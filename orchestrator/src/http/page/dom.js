// Creation and update of elements.
//
// Every answer builds a new view, and only the differences are applied to the shown elements.
// Focus, scroll position and unfolded parts therefore stay. Texts are always inserted as text,
// never parsed as HTML.

const SVG = new Set(['svg', 'path', 'line', 'title']);

/**
 * Creates an element. Attributes and children with the value null, undefined or false are left out.
 */
export function el(tag, attributes = {}, ...children) {
  const element = SVG.has(tag)
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
 * Creates a table with a caption. A column is `{ head, number }`; a row is `{ key, cells }`, and
 * the first cell is the heading of the row. The roles keep the meaning of a table on narrow
 * screens, where rows are shown as cards.
 */
export function table(caption, columns, rows) {
  const side = (column) => (column.number ? 'number' : null);
  const heads = columns.map((column) =>
    el('th', { scope: 'col', role: 'columnheader', class: side(column) }, column.head));
  const body = rows.map(({ key, cells }) => {
    const shown = cells.map((cell, index) => {
      const column = columns[index];
      const about = { 'data-head': column.head, class: side(column) };
      return index === 0
        ? el('th', { scope: 'row', role: 'rowheader', ...about }, cell)
        : el('td', { role: 'cell', ...about }, el('span', { class: 'cell' }, cell));
    });
    return el('tr', { role: 'row', 'data-key': key }, shown);
  });
  return el('table', { role: 'table' },
    el('caption', { class: 'unseen' }, caption),
    el('thead', { role: 'rowgroup' }, el('tr', { role: 'row' }, heads)),
    el('tbody', { role: 'rowgroup' }, body));
}

/** Changes the children of `shown` to the children of `wanted`, with few changes. */
export function become(shown, wanted) {
  const keyed = new Map();
  for (const child of shown.children) {
    const key = child.dataset.key;
    if (key) {
      keyed.set(key, child);
    }
  }
  let place = shown.firstChild;
  for (const child of [...wanted.childNodes]) {
    const key = child.dataset?.key;
    const found = key ? keyed.get(key) : place?.dataset?.key ? null : place;
    if (!found || !isAlike(found, child)) {
      shown.insertBefore(child, place);
      continue;
    }
    if (found === place) {
      place = place.nextSibling;
    } else {
      shown.insertBefore(found, place);
    }
    change(found, child);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function isAlike(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName;
}

function change(shown, wanted) {
  if (shown.nodeType === Node.TEXT_NODE) {
    if (shown.data !== wanted.data) {
      shown.data = wanted.data;
    }
    return;
  }
  for (const { name } of [...shown.attributes]) {
    // Unfolded parts stay unfolded.
    if (!wanted.hasAttribute(name) && name !== 'open') {
      shown.removeAttribute(name);
    }
  }
  for (const { name, value } of [...wanted.attributes]) {
    if (shown.getAttribute(name) !== value) {
      shown.setAttribute(name, value);
    }
  }
  become(shown, wanted);
}
