// The messages of a thread with what its runs did, in their order. Objects come in whole or growing; what has changed is drawn soon.

import { el, fill, time } from "./dom.js";
import { downloadButton, fileImage, fileOrNull } from "./attachments.js";
import { withHoles } from "./citations.js";
import { actionForm } from "./function_calls.js";
import { GrowingText, safeAddress } from "./markdown.js";
import { StepView } from "./run_steps.js";

const DRAW_AFTER_MS = 40;
const END_PIXELS = 80;
const STATUS_KINDS = { completed: "ok", queued: "busy", in_progress: "busy", cancelling: "busy", requires_action: "busy" };
const STATUS_WORDS = { in_progress: "in progress", requires_action: "waits for you" };
const ENDS = {
  max_completion_tokens: "The answer was cut off: the run's budget of completion tokens is used up.",
  max_prompt_tokens: "The run stopped: its budget of prompt tokens is used up.",
};
const ERRORS = {
  rate_limit_exceeded: "The model's limit of requests is reached.",
  invalid_prompt: "The model refused the prompt.",
  server_error: "The run failed.",
};

/** A badge with a run's status. */
export function runBadge(status) {
  return el("span", { class: `badge ${STATUS_KINDS[status] ?? "bad"}` }, STATUS_WORDS[status] ?? status);
}

/** The conversation. `element` holds it; names: a map of the assistants' names by their ids. */
export class Conversation {
  constructor(names, submitOutputs) {
    this.names = names;
    this.submitOutputs = submitOutputs;
    this.element = el("div", { class: "conversation" });
    this.spoken = el("div", { class: "spoken", "aria-live": "polite" });
    this.messages = new Map();
    this.steps = new Map();
    this.runs = new Map();
    this.changed = new Map(); // views and the objects that they will show
    this.timer = null;
    this.pauseMs = DRAW_AFTER_MS;
    // Whether the reader is at the lower end, and goes along with what is added there.
    this.isAtEnd = true;
    this.ending = new AbortController();
    const { signal } = this.ending;
    document.addEventListener("scroll", () => (this.isAtEnd = isAtEnd()), { signal, passive: true });
    this.element.addEventListener("load", () => this.goAlong(), { signal, capture: true }); // images come late, and are high
  }

  /** Draws what was there before. messages, runs: in rising order. */
  fill(messages, runs) {
    const waiting = [...runs];
    for (const message of messages) {
      const isOfRun = message.run_id && runs.some((run) => run.id === message.run_id);
      while (waiting.length && (isOfRun ? !this.runs.has(message.run_id) : waiting[0].created_at < message.created_at)) {
        this.run(waiting.shift());
      }
      this.message(message);
    }
    for (const run of waiting) this.run(run);
    this.draw();
  }

  /** Puts the steps of a run that is over among its messages. steps: in rising order. */
  addSteps(runId, steps) {
    const group = this.runs.get(runId);
    for (const step of steps) {
      this.step(step);
      const view = this.steps.get(step.id) ?? this.messages.get(step.step_details.message_creation?.message_id);
      if (view) group.body.append(view.element);
    }
    this.draw();
  }

  message(message) {
    if (!this.messages.has(message.id)) {
      const view = new MessageView(message, this.names);
      this.messages.set(message.id, view);
      const group = message.run_id && this.runs.get(message.run_id);
      (group ? group.body : this.element).append(view.element);
    }
    this.mark(this.messages.get(message.id), message);
  }

  step(step) {
    if (step.type !== "tool_calls") return;
    if (!this.steps.has(step.id)) {
      const view = new StepView();
      this.steps.set(step.id, view);
      (this.runs.get(step.run_id)?.body ?? this.element).append(view.element);
    }
    this.mark(this.steps.get(step.id), step);
  }

  run(run) {
    if (!this.runs.has(run.id)) {
      const view = new RunView(this.submitOutputs);
      this.runs.set(run.id, view);
      this.element.append(view.element);
    }
    this.mark(this.runs.get(run.id), run);
  }

  /** Shows a message at the end that the API has no object of. */
  append(element) {
    this.element.append(element);
    this.goAlong();
  }

  /** Says something to screen readers. */
  say(text) {
    this.spoken.textContent = text;
  }

  mark(view, object) {
    this.changed.set(view, object);
    this.timer ??= setTimeout(() => this.draw(), this.pauseMs);
  }

  draw() {
    clearTimeout(this.timer);
    this.timer = null;
    const begin = performance.now();
    for (const [view, object] of this.changed) view.update(object);
    this.changed.clear();
    this.goAlong();
    // A long answer takes longer to draw: it is drawn less often, so that the page stays at hand.
    this.pauseMs = Math.max(DRAW_AFTER_MS, 4 * (performance.now() - begin));
  }

  goAlong() {
    if (this.isAtEnd) this.toEnd();
  }

  /** Shows the lower end. */
  toEnd() {
    this.isAtEnd = true;
    document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
  }

  leave() {
    clearTimeout(this.timer);
    this.changed.clear();
    this.ending.abort();
  }
}

function isAtEnd() {
  const page = document.scrollingElement;
  return page.scrollHeight - page.scrollTop - page.clientHeight < END_PIXELS;
}

class RunView {
  constructor(submitOutputs) {
    this.submitOutputs = submitOutputs;
    this.asked = null;
    this.body = el("div", { class: "run-body" });
    this.line = el("div", { class: "run-line row" });
    this.action = el("div");
    this.element = el("div", { class: "run", role: "group", "aria-label": "Run" }, this.body, this.action, this.line);
  }

  update(run) {
    this.ask(run.status === "requires_action" ? run : null);
    if (this.status === run.status && this.usage === run.usage?.total_tokens) return;
    this.status = run.status;
    this.usage = run.usage?.total_tokens;
    const tokens = run.usage ? el("span", { class: "quiet" }, `${run.usage.total_tokens} tokens`) : null;
    const trace = el("a", { href: `#/threads/${run.thread_id}/runs/${run.id}` }, "Trace");
    fill(this.line, runBadge(run.status), el("span", { class: "quiet" }, run.model), tokens, trace, problemOf(run));
  }

  /** Shows the form of the calls that wait; one that is there stays, with what has been typed into it. */
  ask(run) {
    const asked = run ? run.required_action.submit_tool_outputs.tool_calls.map((call) => call.id).join(" ") : null;
    if (asked === this.asked) return;
    this.asked = asked;
    fill(this.action, run ? actionForm(run, (outputs) => this.submitOutputs(run, outputs)) : null);
  }
}

/** Why a run did not complete, in words; null when nothing is to be said. */
function problemOf(run) {
  if (run.last_error) {
    const words = ERRORS[run.last_error.code] ?? run.last_error.code;
    return el("p", { class: "error", role: "alert" }, `${words} ${run.last_error.message}`);
  }
  if (run.incomplete_details) return el("p", { class: "error" }, ENDS[run.incomplete_details.reason] ?? run.incomplete_details.reason);
  if (run.status === "expired") return el("p", { class: "error" }, "The run has expired: it waited too long.");
  return null;
}

class MessageView {
  constructor(message, names) {
    this.isUser = message.role === "user";
    const name = this.isUser ? "You" : (names.get(message.assistant_id) ?? "Assistant");
    this.parts = [];
    this.body = el("div", { class: "message-body" });
    this.files = el("div", { class: "row message-files" });
    this.note = el("p", { class: "quiet", hidden: true });
    this.element = el(
      "article",
      { class: `message ${this.isUser ? "user" : "assistant"}`, "aria-label": `Message of ${name}` },
      el("div", { class: "message-head" }, el("strong", {}, name), " ", el("span", { class: "quiet" }, time(message.created_at))),
      this.body,
      this.files,
      this.note,
    );
  }

  update(message) {
    message.content.forEach((part, index) => this.updatePart(part, index, message));
    for (const { element } of this.parts.splice(message.content.length)) element.remove();
    this.updateFiles(message);
    const reason = message.status === "incomplete" ? message.incomplete_details?.reason : null;
    this.note.hidden = !reason;
    this.note.textContent = reason ? `This message is not whole: ${reason.replaceAll("_", " ")}.` : "";
  }

  updatePart(part, index, message) {
    if (!part) return;
    if (this.parts[index]?.type !== part.type) {
      const view = { type: part.type, ...this.partView(part) };
      if (this.parts[index]) this.parts[index].element.replaceWith(view.element);
      else this.body.append(view.element);
      this.parts[index] = view;
    }
    this.parts[index].update(part, { threadId: message.thread_id, runId: message.run_id });
  }

  partView(part) {
    const nothing = () => {};
    if (part.type === "image_file") return { element: fileImage(part.image_file.file_id, "Image of the message"), update: nothing };
    if (part.type === "image_url") return { element: imageByAddress(part.image_url.url), update: nothing };
    if (part.type === "refusal") {
      const element = el("p", { class: "refusal plain" });
      return { element, update: ({ refusal }) => (element.textContent = refusal) };
    }
    if (this.isUser) {
      const element = el("p", { class: "plain" });
      return { element, update: ({ text }) => (element.textContent = text.value) };
    }
    const growing = new GrowingText();
    const update = ({ text }, place) => {
      const { source, holes } = withHoles(text.value, text.annotations, place);
      growing.update(source, holes);
    };
    return { element: growing.element, update };
  }

  updateFiles(message) {
    const ids = message.attachments.map((attachment) => attachment.file_id);
    if (ids.length === this.files.childElementCount) return;
    fill(this.files, ids.map(attachedFile));
  }
}

function attachedFile(id) {
  const place = el("span", { class: "file-name" }, id);
  fileOrNull(id).then((file) => {
    if (file) fill(place, downloadButton(id, file.filename.split("/").at(-1), file.filename.split("/").at(-1)));
    else fill(place, el("span", { class: "quiet" }, `${id} (deleted)`));
  });
  return place;
}

/** An image that a message names by its address. Only data is shown: other sites are not asked for anything. */
function imageByAddress(url) {
  if (/^data:image\/(?:png|jpeg|gif|webp);base64,/.test(url)) {
    return el("figure", { class: "figure" }, el("img", { src: url, alt: "Image of the message" }));
  }
  const address = safeAddress(url);
  const text = url.length > 200 ? `${url.slice(0, 200)}…` : url;
  if (address === null) return el("p", { class: "plain" }, text);
  return el("p", {}, "Image: ", el("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, text));
}
