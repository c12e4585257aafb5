// The calls that a run waits for: a form with a place for the output of each function, and a yes or no for calls of MCP servers.

import { button, el, field } from "./dom.js";
import { CodeBlock } from "./markdown.js";

/** JSON text with line breaks, or the text as it is when it is no JSON. */
export function prettyJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** Whether a call needs an approval and no output: it is none of the run's own functions. */
function isApproval(run, call) {
  const functions = run.tools.filter((tool) => tool.type === "function").map((tool) => tool.function.name);
  return run.tools.some((tool) => tool.type === "mcp") && !functions.includes(call.function.name);
}

/** The form of a run in `requires_action`. submit(outputs) is called with what the API takes as `tool_outputs`; it may fail. */
export function actionForm(run, submit) {
  const calls = run.required_action.submit_tool_outputs.tool_calls;
  const parts = calls.map((call) => (isApproval(run, call) ? approvalPart(call) : outputPart(call)));
  const send = button(calls.length === 1 ? "Submit the output" : "Submit the outputs", null, { kind: "primary", type: "submit" });
  const problem = el("p", { class: "error", role: "alert", hidden: true });
  const onsubmit = async (event) => {
    event.preventDefault();
    send.disabled = true;
    problem.hidden = true;
    try {
      await submit(parts.map((part) => ({ tool_call_id: part.id, output: part.output() })));
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    } finally {
      send.disabled = false;
    }
  };
  return el(
    "form",
    { class: "card action", "aria-label": "Outputs that the run waits for", onsubmit },
    el("p", {}, calls.length === 1 ? "The assistant waits for the output of a call." : `The assistant waits for ${calls.length} outputs.`),
    parts.map((part) => part.element),
    problem,
    el("div", { class: "row end" }, send),
  );
}

function outputPart(call) {
  const input = el("textarea", { rows: "3", class: "output", spellcheck: "false" });
  const element = el(
    "fieldset",
    {},
    el("legend", {}, call.function.name),
    new CodeBlock("json").update(prettyJson(call.function.arguments)).element,
    field(`Output of ${call.function.name}`, input, "Any text; functions mostly give JSON."),
  );
  return { id: call.id, element, output: () => input.value };
}

function approvalPart(call) {
  const choice = el(
    "select",
    {},
    el("option", { value: "refuse" }, "Do not make this call"),
    el("option", { value: "approve" }, "Make this call"),
  );
  const reason = el("input", { type: "text" });
  const element = el(
    "fieldset",
    {},
    el("legend", {}, call.function.name),
    el("p", { class: "quiet" }, "A tool of an MCP server: the call is made only with your approval."),
    new CodeBlock("json").update(prettyJson(call.function.arguments)).element,
    field("Approval", choice),
    field("Reason for a refusal", reason, "The model reads it."),
  );
  return { id: call.id, element, output: () => (choice.value === "approve" ? "approve" : reason.value) };
}
