// The files of a vector store: how far each has come and why it failed, adding more of them, their attributes and their text.

import { del, get, list, post, upload } from "./api.js";
import { button, bytes, confirmed, el, field, fill, notify, time } from "./dom.js";
import { choice, clearFaults, numberInput, pairs, Reading, showApiError, showFault, showFaults } from "./fields.js";
import { chooseFiles, filePicker, progressRow } from "./file_picker.js";

const POLL_MS = 1000;
const FILES_SHOWN_MAX = 1000;
const UPLOADS_AT_ONCE = 3;
const BATCH_FILES_MAX = 500;
const TEXT_SHOWN_MAX = 200_000;
const STATUSES = [
  ["", "All"],
  ["in_progress", "In progress"],
  ["completed", "Ready"],
  ["failed", "Failed"],
  ["cancelled", "Cancelled"],
];
const BADGES = {
  completed: ["ok", "ready"],
  in_progress: ["busy", "in progress"],
  failed: ["bad", "failed"],
  cancelled: ["", "cancelled"],
};

/** The files of a vector store. onStore gets the store when its counts have changed. Returns `{ element, end() }`. */
export async function filesOf(store, onStore) {
  const path = `/vector_stores/${encodeURIComponent(store.id)}`;
  const uploaded = await list("/files", { purpose: "assistants", order: "desc" });
  const names = new Map(uploaded.map((file) => [file.id, file.filename]));
  const table = fileTable(path, names, refresh);
  const more = el("p", { class: "quiet", hidden: true }, `Only the newest ${FILES_SHOWN_MAX} files are shown.`);
  const empty = el("p", { class: "quiet" }, "No files yet.");
  let timer = null;
  let isOver = false;

  /** Reads the files anew, and again in a while when some are on their way. */
  async function refresh() {
    clearTimeout(timer);
    const [found, changed] = await Promise.all([list(`${path}/files`, { order: "desc" }, FILES_SHOWN_MAX), get(path)]);
    if (isOver) return;
    table.update(found);
    empty.hidden = found.length > 0;
    table.element.hidden = found.length === 0;
    more.hidden = found.length >= changed.file_counts.total;
    onStore(changed);
    if (found.some((file) => file.status === "in_progress")) later();
  }

  function later() {
    clearTimeout(timer);
    if (!isOver) timer = setTimeout(() => refresh().catch(later), POLL_MS);
  }

  await refresh();
  const element = el("section", { class: "card column" }, el("h2", {}, "Files"), adder(path, refresh), empty, table.element, more);
  const end = () => {
    isOver = true;
    clearTimeout(timer);
  };
  return { element, end };
}

// -- The table -----------------------------------------------------------------------------------------------------------------------

/** names: of files that are known already, by their ids. */
function fileTable(path, names, refresh) {
  const body = el("tbody");
  const rows = new Map();
  const filter = choice(STATUSES, "");
  const head = el("tr", {}, ["Name", "Status", "Size", "Attributes", "Added", "Actions"].map((name) => el("th", { scope: "col" }, name)));
  const none = el("p", { class: "quiet", hidden: true }, "No file has this status.");

  function showWanted() {
    for (const row of rows.values()) row.element.hidden = filter.value !== "" && row.file.status !== filter.value;
    none.hidden = [...rows.values()].some((row) => !row.element.hidden);
  }

  /** Rows stay the same elements, so that a button keeps the focus while files are ingested. */
  function update(files) {
    const kept = new Set(files.map((file) => file.id));
    for (const [id, row] of rows) {
      if (kept.has(id)) continue;
      row.element.remove();
      rows.delete(id);
    }
    files.forEach((file, place) => {
      if (!rows.has(file.id)) rows.set(file.id, fileRow(path, file, names.get(file.id), refresh));
      const row = rows.get(file.id);
      row.update(file);
      if (body.children[place] !== row.element) body.insertBefore(row.element, body.children[place] ?? null);
    });
    showWanted();
  }

  filter.addEventListener("change", showWanted);
  const table = el("table", { class: "table" }, el("thead", {}, head), body);
  return { element: el("div", { class: "column" }, field("Show", filter), table, none), update };
}

function fileRow(path, first, knownName, refresh) {
  const filePath = `${path}/files/${encodeURIComponent(first.id)}`;
  const name = el("th", { scope: "row" }, first.id);
  const status = el("td", {});
  const size = el("td", { class: "size" });
  const attributes = el("td", {});
  const buttons = el("div", { class: "row actions-of-file" });
  const row = { file: null, element: null, update };
  row.element = el("tr", {}, name, status, size, attributes, el("td", {}, time(first.created_at)), el("td", {}, buttons));

  function update(file) {
    if (row.file && JSON.stringify(row.file) === JSON.stringify(file)) return;
    row.file = file;
    const [kind, word] = BADGES[file.status] ?? ["", file.status];
    const reason = file.last_error ? el("p", { class: "error reason" }, file.last_error.message) : null;
    fill(status, el("span", { class: `badge ${kind}` }, word), reason);
    fill(size, bytes(file.usage_bytes));
    const pieces = Object.entries(file.attributes ?? {}).map(([key, value]) => el("span", { class: "badge" }, `${key}: ${value}`));
    fill(attributes, el("div", { class: "row" }, pieces));
  }

  const remove = async () => {
    if (!(await confirmed(`Take “${name.textContent}” out of this vector store? The file itself stays.`, "Remove"))) return;
    await del(filePath);
    await refresh();
    notify("The file was removed.");
  };
  const actions = {
    Attributes: () => editAttributes(name.textContent, filePath, row.file, refresh),
    Text: () => showText(name.textContent, filePath),
    Remove: remove,
  };
  const named = Object.entries(actions).map(([label, onclick]) => button(label, onclick));
  buttons.append(...named);
  update(first);
  showName(first.id, knownName, name, named);
  return row;
}

/** Puts the file's name into a row, which has only its id at first. */
async function showName(id, knownName, cell, buttons) {
  try {
    fill(cell, knownName ?? (await get(`/files/${encodeURIComponent(id)}`)).filename);
    cell.title = id;
  } catch {
    cell.title = "The file was deleted.";
  }
  const words = { Attributes: "Attributes of", Text: "Text of", Remove: "Remove" };
  for (const one of buttons) one.setAttribute("aria-label", `${words[one.textContent]} ${cell.textContent}`);
}

function openDialog(label, ...children) {
  const dialog = el("dialog", { "aria-label": label, onclose: () => dialog.remove() }, el("h2", {}, label), children);
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

function editAttributes(name, filePath, file, refresh) {
  const editor = pairs("Attributes", file.attributes, { isTyped: true, hint: "Searches can filter by them." });
  const save = button("Save", null, { kind: "primary", type: "submit" });
  const submit = async (event) => {
    event.preventDefault();
    clearFaults(form);
    const reading = new Reading();
    const attributes = editor.read("attributes", reading);
    if (showFaults(reading)) return;
    try {
      await post(filePath, { attributes });
      dialog.close();
      await refresh();
    } catch (error) {
      if (!showApiError(error, reading)) showFault(save, error.message);
    }
  };
  const actions = el("div", { class: "row end" }, button("Cancel", () => dialog.close()), save);
  const form = el("form", { class: "column", novalidate: true, onsubmit: submit }, editor.element, actions);
  const dialog = openDialog(`Attributes of ${name}`, form);
}

async function showText(name, filePath) {
  const page = await get(`${filePath}/content`);
  const text = page.data.map((part) => part.text).join("\n");
  const shown = text.length > TEXT_SHOWN_MAX ? `${text.slice(0, TEXT_SHOWN_MAX)}…` : text;
  const none = el("p", { class: "quiet" }, "There is no text of this file.");
  const content = text ? el("pre", { class: "code text", tabindex: 0 }, shown) : none;
  const dialog = openDialog(name, content, el("div", { class: "row end" }, button("Close", () => dialog.close())));
}

// -- Adding files --------------------------------------------------------------------------------------------------------------------

function adder(path, refresh) {
  const chunking = chunkingFields();
  const attributes = pairs("Attributes of the files", {}, { isTyped: true, hint: "Searches can filter by them." });
  const uploads = el("div", { class: "column uploads" });
  const options = el("details", {}, el("summary", {}, "Attributes and chunks of new files"), chunking.element, attributes.element);

  /** What the options say of new files; null when something is wrong with them. */
  function readOptions() {
    clearFaults(options);
    const reading = new Reading();
    const body = chunking.read("chunking_strategy", reading);
    const given = attributes.read("attributes", reading);
    if (showFaults(reading)) return null;
    if (Object.keys(given).length) body.attributes = given;
    return { body, reading };
  }

  /** Adds files that are there. An error is shown at the option that it is about, too. */
  async function attach(ids, { body, reading }) {
    try {
      if (ids.length === 1) await post(`${path}/files`, { file_id: ids[0], ...body });
      for (let place = 0; place < ids.length && ids.length > 1; place += BATCH_FILES_MAX) {
        await post(`${path}/file_batches`, { file_ids: ids.slice(place, place + BATCH_FILES_MAX), ...body });
      }
    } catch (error) {
      showApiError(error, reading);
      throw error;
    }
    await refresh();
  }

  async function addFiles(files) {
    const given = readOptions();
    if (!given || files.length === 0) return;
    const done = await uploadAll(files, uploads);
    try {
      if (done.length) await attach(done.map(({ id }) => id), given);
      for (const { row } of done) row.end();
    } catch (error) {
      for (const { row } of done) row.fail(error.message);
    }
  }

  const choose = button("Choose files…", () => chooseFiles(addFiles), { kind: "primary" });
  const drop = dropZone(addFiles, el("p", {}, "Drop files here, or "), choose);
  return el("div", { class: "column" }, drop, uploads, options, earlierFiles(attach, readOptions));
}

function dropZone(onfiles, ...children) {
  const drop = el("div", { class: "drop row" }, children);
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    onfiles([...event.dataTransfer.files]);
  });
  return drop;
}

/** Uploads files, a few at a time, each with its progress. Returns those that have arrived: `{ id, row }`. */
async function uploadAll(files, place) {
  const done = [];
  const waiting = files.map((file) => {
    const stop = new AbortController();
    const row = progressRow(file.name, () => stop.abort());
    place.append(row.element);
    return { file, row, signal: stop.signal };
  });
  const work = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const { file, row, signal } = next;
      try {
        signal.throwIfAborted();
        const made = await upload(file, { onProgress: row.set, signal });
        row.set(1);
        done.push({ id: made.id, row });
      } catch (error) {
        if (error.name === "AbortError") row.end();
        else row.fail(error.message);
      }
    }
  };
  await Promise.all(Array.from({ length: UPLOADS_AT_ONCE }, work));
  return done;
}

function chunkingFields() {
  const kind = choice(
    [
      ["auto", "Automatic"],
      ["static", "By size"],
    ],
    "auto",
  );
  const size = numberInput(800, { min: 100, max: 4096, step: 1 });
  const overlap = numberInput(400, { min: 0, max: 2048, step: 1 });
  const sizes = el("div", { class: "fields", hidden: true });
  sizes.append(field("Tokens of a chunk", size, "100 to 4096"), field("Tokens of overlap", overlap, "At most half of a chunk"));
  kind.addEventListener("change", () => (sizes.hidden = kind.value === "auto"));

  function read(param, reading) {
    reading.at(param, kind);
    if (kind.value === "auto") return {};
    const chunk = {
      max_chunk_size_tokens: reading.number(`${param}.static.max_chunk_size_tokens`, size) ?? 800,
      chunk_overlap_tokens: reading.number(`${param}.static.chunk_overlap_tokens`, overlap) ?? 400,
    };
    reading.at(`${param}.static`, overlap);
    return { chunking_strategy: { type: "static", static: chunk } };
  }

  return { element: el("div", { class: "column" }, field("Chunks", kind), sizes), read };
}

/** Files that were uploaded before: looked up when they are asked for, as there may be many. */
function earlierFiles(attach, readOptions) {
  const place = el("div", { class: "column" });
  const load = async () => {
    const picker = await filePicker("Uploaded files", []);
    const add = button("Add to this store", async () => {
      clearFaults(place);
      const given = readOptions();
      if (!given) return;
      if (!picker.ids().length) {
        showFault(add, "Choose files first.");
        return;
      }
      try {
        await attach(picker.ids(), given);
        details.open = false;
      } catch (error) {
        showFault(add, error.message);
      }
    });
    fill(place, picker.element, el("div", { class: "row" }, add));
  };
  const summary = el("summary", {}, "Add files that were uploaded before");
  const details = el("details", { ontoggle: () => details.open && load() }, summary, place);
  return details;
}
