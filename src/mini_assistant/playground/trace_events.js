// The events of a run as the server tells them: filtered by their type, each as JSON when it is opened, all of them to be copied.

import { copyText } from "./code.js";
import { button, el, fill } from "./dom.js";

const SHOWN_STEP = 200;
const KEPT_MAX = 20_000;
const ALL = "all";
const NO_DELTAS = "no-deltas";

/** The card with the events of a run. */
export class EventList {
  #events = [];
  #counts = new Map();
  #shownMax = SHOWN_STEP;
  #shown = 0;

  constructor() {
    this.select = el("select", { "aria-label": "Type of event", onchange: () => this.#redraw() });
    this.status = el("span", { class: "quiet", role: "status" });
    this.list = el("ol", { class: "trace-events" });
    this.more = button("Show more", () => {
      this.#shownMax += SHOWN_STEP;
      this.#redraw();
    });
    const copy = button("Copy as JSON lines", async () => this.tell(await copyText(this.jsonLines())));
    this.element = el(
      "section",
      { class: "card", "aria-label": "Events" },
      el("div", { class: "toolbar trace-tools" }, el("h2", {}, "Events"), this.select, copy),
      el("p", {}, this.status),
      this.list,
      this.more,
    );
    this.begin();
  }

  /** Empties the list: the events are about to be told from the first one. */
  begin() {
    this.#events = [];
    this.#counts = new Map();
    this.#shownMax = SHOWN_STEP;
    fill(
      this.select,
      el("option", { value: ALL }, "All types"),
      el("option", { value: NO_DELTAS }, "All but pieces (deltas)"),
    );
    this.#redraw();
    this.tell("Reading the events…");
  }

  /** Says how it stands with the events. */
  tell(text) {
    this.status.textContent = text;
  }

  /** No more events come. problem: why, where that is not the run's end. */
  end(problem = null) {
    const more = this.#events.length >= KEPT_MAX ? "; later ones are not shown" : "";
    this.tell(problem ?? `${this.#events.length} events${more}.`);
  }

  /** One more event. */
  add(event) {
    if (event.event === "done" || this.#events.length >= KEPT_MAX) return;
    this.#events.push(event);
    this.#count(event.event);
    if (this.#isWanted(event)) this.#put(event);
  }

  /** The events of the chosen type, a line each. */
  jsonLines() {
    const lines = this.#events.filter((event) => this.#isWanted(event)).map(({ event, data }) => JSON.stringify({ event, data }));
    return lines.join("\n") + (lines.length ? "\n" : "");
  }

  #count(type) {
    const known = this.#counts.get(type);
    if (known) {
      known.count += 1;
      known.option.textContent = `${type} (${known.count})`;
    } else {
      const option = el("option", { value: type }, `${type} (1)`);
      this.#counts.set(type, { count: 1, option });
      this.select.append(option);
    }
  }

  #isWanted({ event }) {
    if (this.select.value === ALL) return true;
    return this.select.value === NO_DELTAS ? !event.endsWith(".delta") : event === this.select.value;
  }

  #redraw() {
    fill(this.list);
    this.#shown = 0;
    this.more.hidden = true;
    for (const event of this.#events) if (this.#isWanted(event)) this.#put(event);
  }

  #put(event) {
    if (this.#shown >= this.#shownMax) {
      this.more.hidden = false;
      return;
    }
    this.#shown += 1;
    const body = el("div", {});
    const summary = el("summary", {}, el("code", {}, event.event), " ", el("span", { class: "quiet" }, gist(event)));
    const details = el("details", {}, summary, body);
    details.addEventListener("toggle", () => {
      if (!details.open || body.firstChild) return;
      fill(body, el("pre", { class: "code", tabindex: "0", "aria-label": "The event as JSON" }, JSON.stringify(event.data, null, 2)));
    });
    this.list.append(el("li", {}, details));
  }
}

/** A few words of what an event says. */
function gist({ data }) {
  const delta = data?.delta;
  const text = delta?.content?.map((part) => part.text?.value ?? part.type).join("") ?? null;
  if (text !== null) return text.slice(0, 80);
  if (delta?.step_details) return delta.step_details.type;
  return data?.status ?? data?.message ?? data?.id ?? "";
}
