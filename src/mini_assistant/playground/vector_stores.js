// Vector stores: the list of them and, for one, its files, its settings and a search.

import { del, get, list, post } from "./api.js";
import { button, bytes, confirmed, el, field, fill, notify, time } from "./dom.js";
import { clearFaults, numberInput, pairs, Reading, showApiError, showFault, showFaults } from "./fields.js";
import { filesOf } from "./vector_store_files.js";
import { searchOf } from "./vector_store_search.js";

const KINDS = { completed: "ok", in_progress: "busy", expired: "bad" };
const WORDS = { completed: "ready", in_progress: "in progress", expired: "expired" };

const hashOf = (store) => `#/vector-stores/${encodeURIComponent(store.id)}`;
const pathOf = (store) => `/vector_stores/${encodeURIComponent(store.id)}`;
const titleOf = (store) => store.name || "Untitled store";

/** Shows the list and, with an id, one vector store; the id `new` is a form for a new one. */
export async function show(main, id = null) {
  const address = location.hash;
  const stores = await list("/vector_stores", { order: "desc" });
  const master = listOf(stores, id);
  const detail = el("div", { class: "detail column" });
  const split = el("div", { class: id ? "split open" : "split" }, master.element, detail);
  const create = el("a", { class: "button primary", href: "#/vector-stores/new" }, "New vector store");
  const frame = [el("div", { class: "toolbar" }, el("h1", {}, "Vector stores"), create), split];
  const back = el("a", { class: "back", href: "#/vector-stores" }, "← All vector stores");
  let end = null;
  if (!id) {
    const text = stores.length ? "Choose a vector store, or make a new one." : "There is no vector store yet. Make the first one.";
    fill(detail, el("p", { class: "quiet" }, text));
  } else if (id === "new") {
    fill(detail, back, newStore());
  } else {
    const store = await get(`/vector_stores/${encodeURIComponent(id)}`);
    const view = await viewOf(store, master.replace);
    fill(detail, back, view.elements);
    end = view.end;
  }
  if (location.hash === address) fill(main, frame); // or else another view is shown meanwhile
  return end;
}

function listOf(stores, id) {
  const rows = el("ul", { class: "list" });
  const filter = el("input", { type: "search", autocomplete: "off", placeholder: "Name or id" });
  const showRows = () => {
    const wanted = filter.value.toLowerCase();
    const found = stores.filter((one) => [one.name ?? "", one.id].some((text) => text.toLowerCase().includes(wanted)));
    fill(rows, found.map((one) => rowOf(one, one.id === id)));
  };
  const replace = (changed) => {
    const place = stores.findIndex((one) => one.id === changed.id);
    if (place >= 0) stores[place] = changed;
    if (!rows.contains(document.activeElement)) showRows();
  };
  filter.addEventListener("input", showRows);
  showRows();
  const element = el("div", { class: "master column" }, stores.length > 5 ? field("Find a vector store", filter) : null, rows);
  return { element, replace };
}

function rowOf(store, isCurrent) {
  const detail = el("small", { class: "quiet" }, `${countsOf(store.file_counts)} · ${bytes(store.usage_bytes)}`);
  const line = el("span", { class: "row" }, el("span", {}, titleOf(store)), statusBadge(store));
  return el("li", {}, el("a", { href: hashOf(store), "aria-current": isCurrent ? "page" : null }, line, detail));
}

const statusBadge = (store) => el("span", { class: `badge ${KINDS[store.status] ?? ""}` }, WORDS[store.status] ?? store.status);

/** How many files have come how far, in words. */
function countsOf(counts) {
  const parts = [counts.total === 1 ? "1 file" : `${counts.total} files`];
  if (counts.in_progress) parts.push(`${counts.in_progress} in progress`);
  if (counts.failed) parts.push(`${counts.failed} failed`);
  if (counts.cancelled) parts.push(`${counts.cancelled} cancelled`);
  return parts.join(", ");
}

// -- Name, expiry, metadata ----------------------------------------------------------------------------------------------------------

function newStore() {
  const description = el("input", { maxlength: 512, autocomplete: "off" });
  const parts = { ...storeFields({}), description };
  const elements = [field("Name", parts.name), field("Description", description), field("Expires after days", parts.days, parts.hint)];
  return storeForm("Create", parts, [el("h2", {}, "New vector store"), ...elements, parts.metadata.element], async (body) => {
    const given = Object.entries(body).filter(([, value]) => value !== null && Object.keys(value).length > 0);
    const made = await post("/vector_stores", Object.fromEntries(given));
    notify("The vector store was created.");
    location.hash = hashOf(made);
  });
}

function storeFields(store) {
  return {
    name: el("input", { value: store.name ?? "", maxlength: 256, autocomplete: "off" }),
    days: numberInput(store.expires_after?.days, { min: 1, max: 365, step: 1 }),
    hint: "Counted from its last run; empty for never.",
    metadata: pairs("Metadata", store.metadata, { hint: "Up to 16 texts of your own." }),
  };
}

function storeForm(label, parts, elements, onbody) {
  const save = button(label, null, { kind: "primary", type: "submit" });
  const onsubmit = async (event) => {
    event.preventDefault();
    clearFaults(form);
    const reading = new Reading();
    const days = reading.number("expires_after.days", parts.days);
    const body = {
      name: reading.text("name", parts.name),
      expires_after: days === null ? null : { anchor: "last_active_at", days },
      metadata: parts.metadata.read("metadata", reading),
    };
    if (parts.description) body.description = reading.text("description", parts.description);
    if (showFaults(reading)) return;
    save.disabled = true;
    try {
      await onbody(body);
    } catch (error) {
      if (!showApiError(error, reading)) showFault(save, error.message);
    } finally {
      save.disabled = false;
    }
  };
  const attributes = { class: "column wide-form", novalidate: true, autocomplete: "off", onsubmit };
  const form = el("form", attributes, elements, el("div", { class: "row" }, save));
  return form;
}

// -- One vector store ----------------------------------------------------------------------------------------------------------------

/** What is shown of a vector store. onChanged gets it when it has changed. */
async function viewOf(first, onChanged) {
  let store = first;
  const head = el("section", { class: "card" });
  const isExpired = store.status === "expired";
  const changed = (other) => {
    store = other;
    showHead();
    onChanged(other);
  };
  const remove = async () => {
    if (!(await confirmed(`Delete “${titleOf(store)}”? Its files stay, but cannot be searched here any more.`))) return;
    await del(pathOf(store));
    notify("The vector store was deleted.");
    location.hash = "#/vector-stores";
  };
  const title = el("h2", {});
  const facts = el("div", { class: "column store-facts" });
  head.append(el("div", { class: "toolbar" }, title, button("Delete", remove, { kind: "danger" })), facts, settingsOf(store, changed));

  function showHead() {
    fill(title, titleOf(store));
    fill(
      facts,
      store.description ? el("p", {}, store.description) : null,
      el("p", { class: "row" }, statusBadge(store), countsOf(store.file_counts), " · ", bytes(store.usage_bytes)),
      el("p", { class: "quiet" }, el("code", {}, store.id)),
      el("p", { class: "quiet" }, "Created ", time(store.created_at), ", last used ", time(store.last_active_at)),
      store.expires_at ? el("p", { class: "quiet" }, isExpired ? "Expired " : "Expires ", time(store.expires_at)) : null,
    );
  }

  showHead();
  const files = await filesOf(store, changed);
  const search = searchOf(store);
  return { elements: [head, search, files.element], end: files.end };
}

function settingsOf(store, onsaved) {
  const parts = storeFields(store);
  const elements = [field("Name", parts.name), field("Expires after days", parts.days, parts.hint), parts.metadata.element];
  const form = storeForm("Save", parts, elements, async (body) => {
    onsaved(await post(pathOf(store), body));
    notify("The vector store was saved.");
  });
  return el("details", {}, el("summary", {}, "Name, expiry and metadata"), form);
}
