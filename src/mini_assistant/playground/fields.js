// Parts of forms that several views use: choices, pairs of keys and values, and what is wrong, shown at the field that it is about.

import { button, el } from "./dom.js";

let notes = 0;

/** A select. options: values, or pairs of a value and what it is called. */
export function choice(options, selected, attributes = {}) {
  const items = options.map((option) => {
    const [value, label] = Array.isArray(option) ? option : [option, option];
    return el("option", { value, selected: value === selected }, label);
  });
  return el("select", attributes, items);
}

/** A checkbox with its label after it. Returns `{ element, input }`. */
export function checkbox(label, checked, attributes = {}) {
  const input = el("input", { type: "checkbox", checked, ...attributes });
  return { element: el("label", { class: "check" }, input, el("span", {}, label)), input };
}

/** An input for a number; empty for null and undefined. */
export function numberInput(value, attributes = {}) {
  return el("input", { type: "number", step: "any", value: value ?? "", ...attributes });
}

/** Tells the forms around an element that it holds something else now, as the browser does when a person types. */
export function changed(element) {
  element.dispatchEvent(new Event("input", { bubbles: true }));
}

/** What is gathered while a form is read: the control behind each parameter of the API, and what is wrong before it is sent. */
export class Reading {
  controls = new Map();
  faults = [];

  /** Remembers which control a parameter such as `tools[0].function.name` comes from. */
  at(param, control) {
    this.controls.set(param, control);
    return control;
  }

  /** Notes that what is in a control cannot be sent. */
  fault(control, message) {
    this.faults.push({ control, message });
  }

  /** The text of a control; null when it is empty. */
  text(param, control) {
    return this.at(param, control).value === "" ? null : control.value;
  }

  /** The number in a control; null when it is empty or no number, which is a fault. */
  number(param, control) {
    this.at(param, control);
    if (control.validity.badInput) this.fault(control, "This is not a number.");
    return control.value === "" ? null : Number(control.value);
  }

  /** The control of a parameter, or of what is around it; null when there is none. */
  controlOf(param) {
    for (let place = param ?? ""; place; ) {
      if (this.controls.has(place)) return this.controls.get(place);
      const around = place.replace(/(\.[^.[\]]*|\[[^\]]*\])$/, "");
      if (around === place) return null;
      place = around;
    }
    return null;
  }
}

/** Shows what is wrong below a control until it is changed. */
export function showFault(control, message) {
  const note = el("p", { class: "error fault", id: `fault-${(notes += 1)}`, role: "alert" }, message);
  const described = control.getAttribute("aria-describedby");
  const around = control.closest(".field, fieldset") ?? control.parentElement;
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-describedby", described ? `${described} ${note.id}` : note.id);
  around.append(note);
  const end = () => {
    note.remove();
    control.removeAttribute("aria-invalid");
    if (described) control.setAttribute("aria-describedby", described);
    else control.removeAttribute("aria-describedby");
    around.removeEventListener("input", end);
    around.removeEventListener("faults-cleared", end);
  };
  around.addEventListener("input", end);
  around.addEventListener("faults-cleared", end);
}

/** Takes away all that `showFault` has shown in an element. */
export function clearFaults(element) {
  for (const note of element.querySelectorAll(".fault")) note.parentElement?.dispatchEvent(new Event("faults-cleared"));
}

/** Shows what `reading` has found and goes to the first fault. Returns whether there was one. */
export function showFaults(reading) {
  for (const { control, message } of reading.faults) showFault(control, message);
  if (reading.faults.length) reveal(reading.faults[0].control);
  return reading.faults.length > 0;
}

/** Shows an error of the API at the field that its `param` names. Returns false when there is no such field. */
export function showApiError(error, reading) {
  const control = reading.controlOf(error.param);
  if (!control) return false;
  showFault(control, error.message);
  reveal(control);
  return true;
}

function reveal(control) {
  for (let around = control.closest("details"); around; around = around.parentElement.closest("details")) around.open = true;
  control.focus();
}

const KINDS = [
  ["text", "Text"],
  ["number", "Number"],
  ["boolean", "Yes or no"],
];

/** The value of an attribute as it was typed; undefined when it is no value of its kind. */
export function typedValue(kind, text) {
  if (kind === "number") return text.trim() === "" || !Number.isFinite(Number(text)) ? undefined : Number(text);
  if (kind === "boolean") return { true: true, yes: true, false: false, no: false }[text.trim().toLowerCase()];
  return text;
}

/** A select of the kinds that an attribute's value can have. */
export function kindChoice(kind = "text") {
  return choice(KINDS, kind, { "aria-label": "Kind" });
}

/** Which kind a value is of. */
export const kindOf = (value) => (typeof value === "string" ? "text" : typeof value);

/**
 * An editor of pairs. value: an object of them; isTyped: values may be numbers and booleans too. Returns
 * `{ element, read(param, reading) }`, where `read` gives the object.
 */
export function pairs(legend, value, { isTyped = false, hint = null, valueMax = 512 } = {}) {
  const rows = el("div", { class: "column pairs" });
  const add = button("Add", () => {
    addRow("", "").focus();
    changed(rows);
  });
  add.setAttribute("aria-label", `Add to ${legend.toLowerCase()}`);

  function addRow(name, content) {
    const key = el("input", { value: name, maxlength: 64, placeholder: "key", "aria-label": "Key" });
    const kind = isTyped ? kindChoice(kindOf(content)) : null;
    const text = el("input", { value: String(content), maxlength: valueMax, placeholder: "value", "aria-label": "Value" });
    const row = el("div", { class: "pair" }, key, kind, text);
    row.append(
      button(
        "×",
        () => {
          row.remove();
          changed(rows);
          add.focus();
        },
        { title: "Remove this pair" },
      ),
    );
    row.parts = { key, kind, text };
    rows.append(row);
    return key;
  }

  for (const [name, content] of Object.entries(value ?? {})) addRow(name, content);
  const said = hint ? el("small", {}, hint) : null;
  const element = el("fieldset", {}, el("legend", {}, legend), said, rows, el("div", { class: "row" }, add));
  return { element, read: (param, reading) => readPairs(rows, add, param, reading) };
}

function readPairs(rows, add, param, reading) {
  const found = new Map();
  reading.at(param, add);
  for (const { parts } of rows.children) {
    const name = parts.key.value;
    if (name === "" && parts.text.value === "") continue;
    const value = typedValue(parts.kind?.value ?? "text", parts.text.value);
    if (name === "") reading.fault(parts.key, "A key is missing.");
    else if (found.has(name)) reading.fault(parts.key, `The key “${name}” is there twice.`);
    if (value === undefined) reading.fault(parts.text, parts.kind.value === "number" ? "This is not a number." : "Write true or false.");
    reading.at(`${param}.${name}`, parts.text);
    found.set(name, value ?? parts.text.value);
  }
  return Object.fromEntries(found);
}

/** Asks before changes are lost, whether by another view or by closing the page. Returns what ends that. */
export function guardChanges(isChanged, confirmLeaving) {
  const onNavigate = async (event) => {
    if (!event.cancelable || !event.hashChange || !isChanged()) return;
    event.preventDefault();
    const { hash } = new URL(event.destination.url);
    if (!(await confirmLeaving())) return;
    end();
    location.hash = hash;
  };
  const onUnload = (event) => isChanged() && event.preventDefault();
  const end = () => {
    window.navigation?.removeEventListener("navigate", onNavigate);
    window.removeEventListener("beforeunload", onUnload);
  };
  // Of the events about addresses only this one comes before the change.
  window.navigation?.addEventListener("navigate", onNavigate);
  window.addEventListener("beforeunload", onUnload);
  return end;
}
