// The trace of a run: its fields, its steps on a time axis, what each took of time and tokens, and its events as they come.

import { ApiError, blob, get, list, stream } from "./api.js";
import { copyText } from "./code.js";
import { button, el, fill, notify, time } from "./dom.js";
import { EventList } from "./trace_events.js";
import { axisTicks, lasted, parts, seconds, share, stepEnd } from "./trace_times.js";

const ACTIVE = new Set(["queued", "in_progress", "cancelling"]);
const BADGES = { completed: "ok", failed: "bad", expired: "bad", incomplete: "bad", cancelled: "", requires_action: "busy" };
const INCLUDE = "step_details.tool_calls[*].file_search.results[*].content";
const RECONNECTS_MAX = 5;
const RECONNECT_SECONDS = 1;

/** Shows a run of a thread. */
export async function show(main, threadId, runId) {
  const trace = new Trace(threadId, runId);
  await trace.load();
  fill(main, trace.element);
  trace.follow();
  return () => trace.leave();
}

/** Fills an element anew, and puts the focus back on what has the same `data-focus`. */
function refill(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  fill(element, ...children);
  if (focused) element.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // models write what they like
  }
}

const code = (text, label) => el("pre", { class: "code", tabindex: "0", "aria-label": label }, text);

class Trace {
  #steps = new Map();
  #opened = new Set(); // ids of the details that are shown
  #lines = new Map(); // id of a part -> puts its bar where it belongs
  #messages = new Map(); // id -> text, of messages that were looked into
  #images = new Map(); // file id -> address of its bytes in this page
  #gone = new AbortController();
  #drawing = null;
  #ticking = null;
  #hasLeft = false;

  constructor(threadId, runId) {
    this.path = `/threads/${encodeURIComponent(threadId)}/runs/${encodeURIComponent(runId)}`;
    this.threadPath = `/threads/${encodeURIComponent(threadId)}`;
    this.run = null;
    this.fields = el("section", { class: "card", "aria-label": "Run" });
    this.steps = el("section", { class: "card trace", "aria-label": "Steps" });
    this.table = el("section", { class: "card", "aria-label": "Time and tokens" });
    this.events = new EventList();
    this.badge = el("span", { class: "badge", role: "status" });
    this.element = el(
      "div",
      {},
      el(
        "div",
        { class: "toolbar" },
        el("h1", {}, "Run ", this.badge),
        el("a", { class: "button", href: `#${this.threadPath}` }, "Open the thread"),
        button("Refresh", () => this.#refresh()),
      ),
      this.fields,
      this.steps,
      this.table,
      this.events.element,
    );
  }

  leave() {
    this.#hasLeft = true;
    this.#gone.abort();
    clearTimeout(this.#drawing);
    clearTimeout(this.#ticking);
    for (const address of this.#images.values()) URL.revokeObjectURL(address);
  }

  async load() {
    const [run, steps] = await Promise.all([
      get(this.path),
      list(`${this.path}/steps`, { order: "asc", "include[]": INCLUDE }),
    ]);
    this.run = run;
    this.#steps = new Map(steps.map((step) => [step.id, step]));
    if (!this.#hasLeft) this.#draw();
  }

  async #refresh() {
    await this.load();
    if (!this.#hasLeft) this.follow();
  }

  /** Reads the run's events until it stops; a line that breaks is taken up where it broke. */
  async follow() {
    this.#gone.abort();
    const { signal } = (this.#gone = new AbortController());
    this.events.begin();
    const reading = { last: null, isOver: false };
    for (let failures = 0; failures <= RECONNECTS_MAX; ) {
      const before = reading.last;
      const problem = await this.#readEvents(reading, signal);
      if (signal.aborted) return;
      if (problem?.code === "events_gone" && reading.last !== null) {
        reading.last = null; // a restart of the server has forgotten the pieces of an answer: it tells all anew
        this.events.begin();
        continue;
      }
      if (problem instanceof ApiError) {
        this.events.end(problem.code === "events_gone" ? "The events of this run are not kept any more." : problem.message);
        return;
      }
      if (reading.isOver) {
        this.events.end();
        await this.load(); // events tell no passages of searches
        if (ACTIVE.has(this.run.status)) setTimeout(() => !signal.aborted && this.follow(), RECONNECT_SECONDS * 1000); // its client went on
        return;
      }
      failures = reading.last === before ? failures + 1 : 1;
      this.events.tell("The connection was lost; it is taken up again.");
      await new Promise((resolve) => setTimeout(resolve, RECONNECT_SECONDS * 1000 * failures));
    }
    this.events.end("The connection was lost.");
  }

  /** Reads on after `reading.last` until the line ends; what stopped it, null when it just ended. */
  async #readEvents(reading, signal) {
    const onEvent = (event) => {
      if (signal.aborted) return;
      reading.last = event.id ?? reading.last;
      reading.isOver ||= event.event === "done"; // without it the line has broken, however quietly
      this.#take(event);
    };
    try {
      await stream(`${this.path}/events`, null, onEvent, { signal, lastEventId: reading.last });
      return null;
    } catch (error) {
      return error;
    }
  }

  #take(event) {
    this.events.add(event);
    const object = event.data?.object;
    // The events of a run that has stopped are told from its beginning: this page knows more than they do.
    if (object === "thread.run" && ACTIVE.has(this.run.status)) this.run = event.data;
    else if (object === "thread.run.step" && !this.#hasEnded(event.data.id)) this.#steps.set(event.data.id, event.data);
    else return;
    this.#drawing ??= setTimeout(() => this.#draw(), 200);
  }

  #hasEnded(stepId) {
    return (this.#steps.get(stepId)?.status ?? "in_progress") !== "in_progress";
  }

  #draw() {
    clearTimeout(this.#drawing);
    clearTimeout(this.#ticking);
    this.#drawing = null;
    const now = Date.now() / 1000;
    const whole = parts(this.run, [...this.#steps.values()], now);
    this.badge.textContent = this.run.status;
    this.badge.className = `badge ${BADGES[this.run.status] ?? "busy"}`;
    refill(this.fields, ...this.#drawFields(whole));
    refill(this.steps, ...this.#drawSteps(whole));
    refill(this.table, ...drawTable(whole));
    if (ACTIVE.has(this.run.status)) this.#ticking = setTimeout(() => this.#tick(), 1000);
  }

  /** Time has passed and nothing else has: what is opened is left alone. */
  #tick() {
    const whole = parts(this.run, [...this.#steps.values()], Date.now() / 1000);
    refill(this.fields, ...this.#drawFields(whole));
    refill(this.table, ...drawTable(whole));
    fill(this.axis, tickMarks(whole));
    for (const part of whole.parts) this.#lines.get(part.id)?.(part, whole);
    this.#ticking = setTimeout(() => this.#tick(), 1000);
  }

  #drawFields(whole) {
    const { run } = this;
    const ended = run.completed_at ?? run.failed_at ?? run.cancelled_at;
    const facts = [
      ["Run", el("code", {}, run.id)],
      ["Assistant", el("a", { href: `#/assistants/${encodeURIComponent(run.assistant_id)}`, "data-focus": "assistant" }, run.assistant_id)],
      ["Model", run.model],
      ["Created", time(run.created_at)],
      ["Started", run.started_at ? time(run.started_at) : "not yet"],
      ["Ended", ended ? time(ended) : "not yet"],
      ["Waited in the queue", lasted(whole.queued)],
      ["Took", lasted(whole.total)],
      ["Tokens", run.usage ? tokensInWords(run.usage) : "not told yet"],
      ["Last error", run.last_error && el("span", { class: "error" }, `${run.last_error.code}: ${run.last_error.message}`)],
      ["Incomplete because of", run.incomplete_details?.reason],
      ["Waits for", run.required_action && callNames(run.required_action)],
      ["Metadata", Object.keys(run.metadata ?? {}).length ? JSON.stringify(run.metadata) : null],
    ];
    const shown = facts.filter(([, value]) => value !== null && value !== undefined && value !== "");
    return [
      el("h2", {}, "The run"),
      el("dl", { class: "facts" }, shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
      this.#details("run", "All fields as JSON", () => [code(JSON.stringify(run, null, 2), "The run as JSON")]),
    ];
  }

  /** What is shown when it is opened, and stays open when the page is drawn anew. */
  #details(id, summary, content, attributes = {}) {
    const body = el("div", { class: "trace-details" });
    const element = el("details", attributes, el("summary", { "data-focus": id }, summary), body);
    element.open = this.#opened.has(id);
    const show = () => {
      fill(body, content());
      // The focus comes back to the same place when all is drawn anew.
      body.querySelectorAll("pre, table, button").forEach((part, index) => (part.dataset.focus ??= `${id}:${index}`));
    };
    if (element.open) show();
    element.addEventListener("toggle", () => {
      if (element.open === this.#opened.has(id)) return;
      if (element.open) {
        this.#opened.add(id);
        show();
      } else this.#opened.delete(id);
    });
    return element;
  }

  #drawSteps(whole) {
    this.axis = el("div", { class: "trace-track" }, tickMarks(whole));
    const axis = el("div", { class: "trace-line trace-axis", "aria-hidden": "true" }, el("span"), this.axis, el("span"));
    this.#lines.clear();
    const rows = whole.parts.filter(({ kind }) => kind !== "rest").map((part) => el("li", {}, this.#drawPart(part, whole)));
    return [
      el("h2", {}, "Steps"),
      axis,
      el("ol", { class: "trace-parts" }, rows),
      whole.parts.some(({ kind }) => kind === "step") ? null : el("p", { class: "quiet" }, "The run has no steps yet."),
      el("p", { class: "quiet" }, "The API tells times in whole seconds."),
    ];
  }

  #drawPart(part, whole) {
    const bar = el("div", { class: `bar is-${part.kind} is-${part.state}` });
    const took = el("span", { class: "trace-took quiet" });
    const place = ({ after, took: duration, tokens }, { total }) => {
      bar.style.marginLeft = `${(100 * after) / Math.max(total, 1)}%`;
      bar.style.width = `${(100 * duration) / Math.max(total, 1)}%`;
      took.textContent = lasted(duration) + (tokens ? `, ${tokens} tokens` : "");
    };
    place(part, whole);
    this.#lines.set(part.id, place);
    const line = el(
      "span",
      { class: "trace-line" },
      el("span", { class: "trace-name" }, part.name),
      el("span", { class: "trace-track", "aria-hidden": "true" }, bar),
      took,
    );
    if (part.kind === "queue") return line;
    return this.#details(part.id, line, () => this.#stepContent(this.#steps.get(part.id)), { class: "trace-step" });
  }

  #stepContent(step) {
    const details = step.step_details;
    const end = stepEnd(step);
    const told = [
      el("p", { class: "quiet" }, `${step.status}, began `, time(step.created_at), end && [", ended ", time(end)]),
      step.last_error && el("p", { class: "error" }, `${step.last_error.code}: ${step.last_error.message}`),
      step.usage && el("p", {}, `Tokens: ${tokensInWords(step.usage)}`),
    ];
    if (details.type === "message_creation") told.push(this.#messageContent(details.message_creation.message_id));
    else told.push(...details.tool_calls.map((call) => this.#callContent(call)));
    told.push(this.#details(`${step.id}-json`, "The step as JSON", () => [code(JSON.stringify(step, null, 2), "The step as JSON")]));
    return told;
  }

  #messageContent(id) {
    const place = el("div", {}, el("p", {}, "Message ", el("code", {}, id)));
    const put = (text) => place.append(code(text, "Text of the message"));
    if (this.#messages.has(id)) put(this.#messages.get(id));
    else {
      get(`${this.threadPath}/messages/${encodeURIComponent(id)}`)
        .then((message) => {
          const text = message.content.map((part) => part.text?.value ?? `[${part.type}]`).join("\n\n");
          if (message.status !== "in_progress") this.#messages.set(id, text);
          put(text);
        })
        .catch((error) => place.append(el("p", { class: "error" }, error.message)));
    }
    return place;
  }

  #callContent(call) {
    const head = el("h3", {}, call.type === "function" ? call.function.name : call.type, " ", el("code", {}, call.id));
    if (call.type === "function") return el("div", {}, head, functionContent(call.function));
    if (call.type === "code_interpreter") return el("div", {}, head, this.#codeContent(call.code_interpreter));
    if (call.type === "file_search") return el("div", {}, head, this.#searchContent(call));
    return el("div", {}, head, code(JSON.stringify(call, null, 2), "The call as JSON"));
  }

  #codeContent({ input, outputs }) {
    const shown = outputs.map((output) => (output.type === "logs" ? code(output.logs, "Logs") : this.#image(output.image.file_id)));
    return [code(input, "Code"), el("h4", {}, shown.length ? "Outputs" : "No outputs"), shown];
  }

  #searchContent({ id, file_search: { ranking_options: options, results } }) {
    const rows = (results ?? []).map((result, index) => {
      const text = (result.content ?? []).map((part) => part.text).join("\n");
      const passage = this.#details(`${id}:${index}`, `${text.slice(0, 60).trim()}…`, () => [code(text, "Passage")]);
      const file = [result.file_name, el("br"), el("code", {}, result.file_id)];
      return el("tr", {}, el("td", {}, file), el("td", {}, result.score.toFixed(3)), el("td", {}, text ? passage : "not told"));
    });
    return [
      options && el("p", { class: "quiet" }, `Ranked by ${options.ranker}, from a score of ${options.score_threshold} on`),
      rows.length ? tableOf("Results", ["File", "Score", "Passage"], rows) : el("p", {}, "Nothing was found."),
    ];
  }

  #image(fileId) {
    const place = el("p", {});
    const put = () => fill(place, el("img", { class: "trace-image", src: this.#images.get(fileId), alt: `Figure ${fileId}` }));
    const load = async () => {
      try {
        const address = URL.createObjectURL(await blob(`/files/${encodeURIComponent(fileId)}/content`));
        this.#images.set(fileId, address);
        put();
      } catch (error) {
        notify(error.message, "error");
      }
    };
    if (this.#images.has(fileId)) put();
    else fill(place, button("Show the figure", load), " ", el("code", {}, fileId));
    return place;
  }
}

function tokensInWords({ prompt_tokens: prompt, completion_tokens: completion, total_tokens: total, ...details }) {
  const cached = details.prompt_token_details?.cached_tokens;
  const reasoning = details.completion_tokens_details?.reasoning_tokens;
  const asides = [cached ? `${cached} cached` : null, reasoning ? `${reasoning} for reasoning` : null].filter(Boolean);
  return `${total} (${prompt} prompt, ${completion} completion${asides.length ? `; ${asides.join(", ")}` : ""})`;
}

const callNames = ({ submit_tool_outputs: { tool_calls: calls } }) => `outputs of ${calls.map((call) => call.function.name).join(", ")}`;

function functionContent(call) {
  const output = call.output === null || call.output === undefined;
  return [
    el("h4", {}, "Arguments"),
    code(pretty(call.arguments), "Arguments"),
    el("h4", {}, output ? "No output yet" : "Output"),
    output ? null : code(pretty(call.output), "Output"),
  ];
}

function tickMarks({ total }) {
  return axisTicks(total).map((tick) => {
    const mark = el("span", { class: "trace-tick" }, seconds(tick));
    mark.style.left = `${(100 * tick) / Math.max(total, 1)}%`;
    return mark;
  });
}

function tableOf(caption, heads, rows) {
  const head = el("thead", {}, el("tr", {}, heads.map((name) => el("th", { scope: "col" }, name))));
  const attributes = { class: "table trace-table", tabindex: "0", "aria-label": caption, "data-focus": caption };
  return el("table", attributes, head, el("tbody", {}, rows));
}

function drawTable(whole) {
  const rows = [...whole.parts, whole.sum].map(({ name, after, took, usage, kind }) => {
    const numbers = [
      kind === "rest" || kind === "sum" ? "" : seconds(after),
      lasted(took),
      share(took, whole.total),
      usage?.prompt_tokens ?? "",
      usage?.completion_tokens ?? "",
      usage?.total_tokens ?? "",
      usage ? share(usage.total_tokens, whole.sum.usage?.total_tokens) : "",
    ];
    const cells = numbers.map((number) => el("td", {}, String(number)));
    return el("tr", { class: kind === "sum" ? "trace-sum" : null }, el("th", { scope: "row" }, name), cells);
  });
  const heads = ["Part", "Began after", "Took", "Share of time", "Prompt tokens", "Completion tokens", "Tokens", "Share of tokens"];
  return [el("h2", {}, "Time and tokens"), tableOf("Time and tokens of each part", heads, rows)];
}
