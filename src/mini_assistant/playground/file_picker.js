// Files to choose from, and more of them uploaded on the spot.

import { list, upload } from "./api.js";
import { button, bytes, el, field, fill } from "./dom.js";
import { changed } from "./fields.js";

const SHOWN_MAX = 200;

/** A progress bar with the name of what is under way. Returns `{ element, set(share), fail(message), end() }`. */
export function progressRow(name, oncancel) {
  const bar = el("progress", { class: "progress", max: 1, value: 0, "aria-label": `Upload of ${name}` });
  const state = el("span", { class: "quiet", role: "status" }, "waiting");
  const cancel = button("×", oncancel, { title: `Stop the upload of ${name}` });
  const element = el("div", { class: "upload" }, el("span", { class: "name" }, name), bar, state, cancel);
  const set = (share) => {
    bar.value = share;
    fill(state, `${Math.round(share * 100)} %`);
  };
  const fail = (message) => {
    fill(state, message);
    state.className = "error";
    bar.remove();
    cancel.replaceWith(button("×", () => element.remove(), { title: "Dismiss" }));
  };
  return { element, set, fail, end: () => element.remove() };
}

/** Opens the browser's choice of files; `onfiles` gets them. */
export function chooseFiles(onfiles) {
  const input = el("input", { type: "file", multiple: true, onchange: () => onfiles([...input.files]) });
  input.click();
}

/**
 * Files with checkboxes. chosen: ids. Returns `{ element, read(param, reading), ids() }`, where `read` gives the ids. Files that are not
 * there any more stay chosen until they are unchecked.
 */
export async function filePicker(legend, chosen, { hint = null } = {}) {
  const checked = new Set(chosen);
  const rows = el("ul", { class: "choices" });
  const uploads = el("div", { class: "column" });
  const filter = el("input", { type: "search", autocomplete: "off", placeholder: "Name or id" });
  const files = await list("/files", { purpose: "assistants", order: "desc" });
  const known = new Set(files.map((file) => file.id));
  files.unshift(...chosen.filter((id) => !known.has(id)).map((id) => ({ id, filename: id, isUnknown: true })));

  function show() {
    const wanted = filter.value.toLowerCase();
    const found = files.filter((file) => file.filename.toLowerCase().includes(wanted) || file.id === filter.value);
    const first = found.filter((file) => checked.has(file.id));
    const rest = found.filter((file) => !checked.has(file.id)).slice(0, SHOWN_MAX);
    fill(rows, [...first, ...rest].map((file) => fileRow(file, checked, rows)));
    if (!found.length) fill(rows, el("li", { class: "quiet" }, files.length ? "No such file." : "No files yet."));
  }

  async function add(file) {
    const stop = new AbortController();
    const row = progressRow(file.name, () => stop.abort());
    uploads.append(row.element);
    try {
      const made = await upload(file, { onProgress: row.set, signal: stop.signal });
      files.unshift(made);
      checked.add(made.id);
      row.end();
      show();
      changed(rows);
    } catch (error) {
      if (error.name === "AbortError") row.end();
      else row.fail(error.message);
    }
  }

  filter.addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault()); // it would send the form
  filter.addEventListener("input", (event) => {
    event.stopPropagation(); // to look for a file changes nothing
    show();
  });
  show();
  const choose = button("Upload…", () => chooseFiles((picked) => picked.forEach(add)));
  const search = field("Find a file", filter);
  const said = hint ? el("small", {}, hint) : null;
  const element = el("fieldset", {}, el("legend", {}, legend), said, search, rows, uploads, el("div", { class: "row" }, choose));
  const read = (param, reading) => {
    reading.at(param, choose);
    return [...checked];
  };
  return { element, read, ids: () => [...checked] };
}

function fileRow(file, checked, rows) {
  const input = el("input", {
    type: "checkbox",
    checked: checked.has(file.id),
    onchange: () => {
      if (input.checked) checked.add(file.id);
      else checked.delete(file.id);
      changed(rows);
    },
  });
  const detail = file.isUnknown ? "not there any more" : bytes(file.bytes);
  return el("li", {}, el("label", { class: "check" }, input, el("span", {}, file.filename), el("span", { class: "quiet" }, detail)));
}
