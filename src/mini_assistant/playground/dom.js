// Elements without strings of HTML: text is always text, so nothing that a model, a file or a person has written can become markup.

/**
 * An element. attributes: `class`, `hidden` and the like; `onclick` and other functions become listeners; false, null and undefined are
 * left out, true is an attribute without a value. children: nodes or texts; null is left out.
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name.startsWith("on")) throw new TypeError(`${name} must be a function`);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Empties an element and fills it anew. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

let fields = 0;

/** A labelled field of a form: the label, the control and, below it, a hint. */
export function field(label, control, hint = null) {
  control.id ||= `field-${(fields += 1)}`;
  const described = hint ? el("small", { id: `${control.id}-hint` }, hint) : null;
  if (described) control.setAttribute("aria-describedby", described.id);
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control, described);
}

/** A button. kind: empty, `primary` or `danger`. */
export function button(text, onclick, { kind = "", type = "button", title = null, disabled = false } = {}) {
  return el("button", { type, class: kind, title, disabled, onclick }, text);
}

/** A message at the edge of the page, read out by screen readers. kind: `info` or `error`. */
export function notify(text, kind = "info") {
  const place = document.getElementById("notices");
  const dismiss = el("button", { type: "button", "aria-label": "Dismiss", onclick: () => notice.remove() }, "×");
  const notice = el("div", { class: `notice ${kind}`, role: kind === "error" ? "alert" : null }, el("span", {}, text), dismiss);
  place.append(notice);
  if (kind !== "error") setTimeout(() => notice.remove(), 6000);
}

/** Copies a text where browsers give no clipboard to pages: at an address that is neither https nor this machine. */
export async function copyWithoutClipboard(text) {
  const before = document.activeElement;
  const area = el("textarea", { class: "visually-hidden", "aria-hidden": "true", tabindex: "-1" });
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  before?.focus();
  if (!isDone) throw new Error("This browser lets the page copy nothing.");
}

/** Asks before something that cannot be undone; a promise of true or false. */
export function confirmed(question, action = "Delete") {
  return new Promise((resolve) => {
    const dialog = el("dialog", { "aria-label": question });
    const end = (answer) => {
      dialog.close();
      dialog.remove();
      resolve(answer);
    };
    dialog.append(
      el("p", {}, question),
      el("div", { class: "row end" }, button("Cancel", () => end(false)), button(action, () => end(true), { kind: "danger" })),
    );
    dialog.addEventListener("cancel", () => end(false));
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A time of the API (unix seconds) for people, with the exact one as a title. */
export function time(seconds) {
  const date = new Date(seconds * 1000);
  return el("time", { datetime: date.toISOString(), title: date.toISOString() }, date.toLocaleString());
}

/** Bytes for people. */
export function bytes(count) {
  const units = ["B", "KB", "MB", "GB"];
  let size = count;
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? size : size.toFixed(1)} ${units[unit]}`;
}
