// What a run did besides writing: code with its output as it streams, searches with their results, calls of functions.

import { el, fill } from "./dom.js";
import { fileImage } from "./attachments.js";
import { pageOf, showResult } from "./citations.js";
import { prettyJson } from "./function_calls.js";
import { CodeBlock } from "./markdown.js";

const LOGS_SHOWN_MAX = 100_000;
const WORDS = { in_progress: "running", completed: "done", failed: "failed", cancelled: "cancelled", expired: "expired" };
const KINDS = { in_progress: "busy", completed: "ok", failed: "bad", cancelled: "bad", expired: "bad" };

/** A badge with a status of a step. */
function stepBadge(status) {
  return el("span", { class: `badge ${KINDS[status] ?? ""}` }, WORDS[status] ?? status);
}

/** A step of the type `tool_calls`. Its element stays the same while the step changes: `update`. */
export class StepView {
  constructor() {
    this.element = el("div", { class: "steps" });
    this.calls = [];
  }

  update(step) {
    step.step_details.tool_calls.forEach((call, index) => {
      if (!call) return;
      if (!this.calls[index]) {
        this.calls[index] = viewOf(call);
        this.element.append(this.calls[index].element);
      }
      this.calls[index].update(call, step);
    });
    // A step that was cut off is told without the calls that had begun; they stay, with how it ended.
    for (const view of this.calls.slice(step.step_details.tool_calls.length)) view?.setStatus(step.status);
    if (step.last_error && !this.error) {
      this.error = el("p", { class: "error" }, step.last_error.message);
      this.element.append(this.error);
    }
  }
}

function viewOf(call) {
  if (call.type === "code_interpreter") return new CodeView();
  if (call.type === "file_search") return new SearchView();
  return new FunctionView();
}

/** The part that all calls share: a line with the name and the status, and what opens below it. */
class CallView {
  constructor(isOpen) {
    this.title = el("span", { class: "step-title" });
    this.badge = el("span");
    this.body = el("div", { class: "step-body" });
    this.element = el("details", { class: "step", open: isOpen }, el("summary", {}, this.title, " ", this.badge), this.body);
  }

  head(title, status) {
    this.title.textContent = title;
    this.setStatus(status);
  }

  setStatus(status) {
    if (this.status !== status) fill(this.badge, stepBadge(status));
    this.status = status;
  }
}

class CodeView extends CallView {
  constructor() {
    super(true);
    this.code = new CodeBlock("python");
    this.outputs = [];
    this.body.append(this.code.element);
  }

  update(call, step) {
    this.head("Code interpreter", step.status);
    this.code.update(call.code_interpreter.input);
    call.code_interpreter.outputs.forEach((output, index) => {
      if (!output) return;
      if (!this.outputs[index]) {
        this.outputs[index] = output.type === "logs" ? logs() : fileImage(output.image.file_id, "Figure made by the code");
        this.body.append(this.outputs[index]);
      }
      if (output.type === "logs") setLogs(this.outputs[index], output.logs);
    });
  }
}

function logs() {
  return el("pre", { class: "code logs", tabindex: "0", role: "group", "aria-label": "Output of the code" });
}

function setLogs(element, text) {
  const rest = text.length - LOGS_SHOWN_MAX;
  const shown = rest > 0 ? `${text.slice(0, LOGS_SHOWN_MAX)}\n… and ${rest} characters more` : text;
  if (element.textContent !== shown) element.textContent = shown;
}

class SearchView extends CallView {
  constructor() {
    super(false);
    this.shown = -1;
  }

  update(call, step) {
    const results = call.file_search.results;
    const place = { threadId: step.thread_id, runId: step.run_id, stepId: step.id };
    const count = results.length === 1 ? "1 passage" : `${results.length} passages`;
    this.head(step.status === "in_progress" ? "File search" : `File search: ${count}`, step.status);
    if (this.shown === results.length && this.isOver === (step.status !== "in_progress")) return;
    this.shown = results.length;
    this.isOver = step.status !== "in_progress";
    const rows = results.map((result, index) => {
      const facts = [pageOf(result), `score ${result.score.toFixed(2)}`].filter(Boolean).join(" · ");
      const open = el("button", { type: "button", onclick: () => showResult(place, call.id, index) }, result.file_name);
      return el("li", {}, open, " ", el("span", { class: "quiet" }, facts));
    });
    const nothing = el("p", { class: "quiet" }, this.isOver ? "Nothing was found." : "Searching…");
    fill(this.body, rows.length ? el("ol", { class: "results" }, rows) : nothing);
  }
}

class FunctionView extends CallView {
  constructor() {
    super(false);
    this.arguments = new CodeBlock("json");
    this.output = logs();
    this.output.setAttribute("aria-label", "Output of the function");
    this.output.hidden = true;
    this.body.append(this.arguments.element, this.output);
  }

  update(call, step) {
    this.head(`Function ${call.function.name}`, step.status);
    this.arguments.update(prettyJson(call.function.arguments));
    this.output.hidden = call.function.output === null || call.function.output === undefined;
    if (!this.output.hidden) setLogs(this.output, call.function.output);
  }
}
