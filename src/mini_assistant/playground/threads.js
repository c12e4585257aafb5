// The list of threads: found by their first words, opened, deleted.

import { del, get } from "./api.js";
import { button, confirmed, el, fill, notify, time } from "./dom.js";

const PAGE = 20;
const AT_ONCE_MAX = 4;
const TITLE_LENGTH = 120;

// Titles of threads that were seen: a first message stays what it is.
const titles = new Map();

/** Shows the threads. */
export async function show(main) {
  const list = new ThreadList();
  await list.loadMore();
  fill(main, list.element);
  return () => list.leave();
}

/** Does `work` for each item, a few at a time, until `isOver` says so. */
async function inTurn(items, work, isOver = () => false) {
  const waiting = [...items];
  const lane = async () => {
    while (waiting.length && !isOver()) await work(waiting.shift());
  };
  await Promise.all(Array.from({ length: AT_ONCE_MAX }, lane));
}

const counted = (count) => (count === 1 ? "1 thread" : `${count} threads`);

function titleOf(messages) {
  const message = messages.find(({ role }) => role === "user") ?? messages[0];
  if (!message) return "Empty thread";
  const text = message.content.find(({ type }) => type === "text")?.text.value.trim().replace(/\s+/g, " ");
  if (!text) return "A message without text";
  return text.length > TITLE_LENGTH ? `${text.slice(0, TITLE_LENGTH)}…` : text;
}

class ThreadList {
  #rows = new Map(); // id -> { thread, item, title, box }
  #last = null;
  #hasMore = true;
  #isOver = false;

  constructor() {
    const oninput = () => this.#filter();
    this.search = el("input", { type: "search", placeholder: "Words, an id, metadata", "aria-label": "Search", oninput });
    this.list = el("ul", { class: "list threads" });
    this.count = el("p", { class: "quiet", role: "status" });
    this.more = button("Load more", () => this.loadMore());
    this.all = el("input", { type: "checkbox", onchange: () => this.#selectAll() });
    const all = el("label", { class: "row" }, this.all, "Select all");
    const newThread = el("a", { class: "button", href: "#/threads/new" }, "New thread");
    this.deleteButton = button("Delete selected", () => this.#deleteSelected(), { kind: "danger", disabled: true });
    this.element = el(
      "div",
      {},
      el("div", { class: "toolbar" }, el("h1", { tabindex: "-1" }, "Threads"), newThread),
      el("div", { class: "toolbar threads-tools" }, this.search, all, this.deleteButton),
      this.count,
      this.list,
      el("p", {}, this.more),
    );
  }

  leave() {
    this.#isOver = true;
  }

  async loadMore() {
    this.more.disabled = true;
    try {
      const query = new URLSearchParams({ limit: String(PAGE), order: "desc" });
      if (this.#last) query.set("after", this.#last);
      const page = await get(`/threads?${query}`);
      this.#last = page.last_id ?? this.#last;
      this.#hasMore = page.has_more;
      const added = page.data.filter(({ id }) => !this.#rows.has(id));
      for (const thread of added) this.#add(thread);
      this.#filter();
      this.#loadTitles(added);
    } finally {
      this.more.disabled = false;
    }
  }

  #add(thread) {
    const onclick = () => this.#deleteOne(thread.id);
    const title = el("span", { class: "thread-title" }, titles.get(thread.id) ?? "…");
    const box = el("input", { type: "checkbox", "aria-label": `Select ${thread.id}`, onchange: () => this.#showCount() });
    const metadata = Object.entries(thread.metadata ?? {}).map(([name, value]) => el("span", { class: "badge" }, `${name}: ${value}`));
    const facts = el("span", { class: "quiet thread-facts" }, time(thread.created_at), el("span", {}, thread.id), metadata);
    const item = el(
      "li",
      { "data-thread": thread.id },
      box,
      el("a", { href: `#/threads/${encodeURIComponent(thread.id)}` }, title, facts),
      el("button", { type: "button", class: "danger", "aria-label": `Delete ${thread.id}`, onclick }, "Delete"),
    );
    this.#rows.set(thread.id, { thread, item, title, box });
    this.list.append(item);
  }

  async #loadTitles(threads) {
    const unknown = threads.filter(({ id }) => !titles.has(id));
    const load = async ({ id }) => {
      let title = "";
      try {
        title = titleOf((await get(`/threads/${encodeURIComponent(id)}/messages?order=asc&limit=3`)).data);
      } catch {
        title = "The messages could not be read"; // such as: deleted meanwhile
      }
      if (title !== "Empty thread") titles.set(id, title); // what is empty may be written to
      const row = this.#rows.get(id);
      if (!row) return;
      row.title.textContent = title;
      if (this.search.value) this.#filter();
    };
    await inTurn(unknown, load, () => this.#isOver);
  }

  #matches({ thread, title }) {
    const about = [title.textContent, thread.id, ...Object.entries(thread.metadata ?? {}).flat()].join("\n").toLowerCase();
    return this.search.value.toLowerCase().split(/\s+/).every((word) => about.includes(word));
  }

  #filter() {
    for (const row of this.#rows.values()) {
      row.item.hidden = !this.#matches(row);
      if (row.item.hidden) row.box.checked = false; // nothing is deleted that is not seen
    }
    this.more.hidden = !this.#hasMore;
    this.#showCount();
  }

  #visible() {
    return [...this.#rows.values()].filter(({ item }) => !item.hidden);
  }

  #selected() {
    return this.#visible().filter(({ box }) => box.checked);
  }

  #showCount() {
    const [visible, selected] = [this.#visible().length, this.#selected().length];
    const loaded = `${counted(this.#rows.size)}${this.#hasMore ? " loaded" : ""}`;
    const told = this.search.value ? `${visible} of ${loaded}` : loaded;
    this.count.textContent = selected ? `${told}, ${selected} selected` : told;
    if (!this.#rows.size) this.count.textContent = "There are no threads yet.";
    this.deleteButton.disabled = selected === 0;
    this.all.disabled = visible === 0;
    this.all.checked = selected > 0 && selected === visible;
    this.all.indeterminate = selected > 0 && selected < visible;
  }

  #selectAll() {
    const checked = this.all.checked;
    for (const { box } of this.#visible()) box.checked = checked;
    this.#showCount();
  }

  async #deleteOne(id) {
    const { item, title } = this.#rows.get(id);
    if (!(await confirmed(`Delete the thread “${title.textContent}” with all its messages and runs?`))) return;
    const next = item.nextElementSibling ?? item.previousElementSibling;
    if (await this.#delete(id)) (next?.querySelector("a") ?? this.element.querySelector("h1")).focus();
    this.#showCount();
  }

  async #deleteSelected() {
    const ids = this.#selected().map(({ thread }) => thread.id);
    if (!(await confirmed(`Delete ${counted(ids.length)} with all their messages and runs?`))) return;
    this.deleteButton.disabled = true;
    let deleted = 0;
    await inTurn(ids, async (id) => {
      if (await this.#delete(id)) deleted += 1;
      this.#showCount();
    });
    notify(`${deleted} of ${counted(ids.length)} deleted.`);
    this.element.querySelector("h1").focus();
  }

  async #delete(id) {
    try {
      await del(`/threads/${encodeURIComponent(id)}`);
    } catch (error) {
      if (error.status !== 404) {
        notify(`${id}: ${error.message}`, "error");
        return false;
      }
    }
    this.#rows.get(id).item.remove();
    this.#rows.delete(id);
    titles.delete(id);
    return true;
  }
}
