// What the events of a run make of its objects: deltas are added to the message or step that they belong to. No elements here.

/** After one of these statuses a stream ends. */
export const STOPPED = new Set(["requires_action", "completed", "incomplete", "failed", "cancelled", "expired"]);
/** A run of one of these statuses locks its thread. */
export const ACTIVE = new Set(["queued", "in_progress", "requires_action", "cancelling"]);

/** The objects of one run as its events have told them so far. */
export class RunObjects {
  constructor() {
    this.thread = null;
    this.run = null;
    this.messages = new Map();
    this.steps = new Map();
  }

  /** Takes an event; returns `[kind, object]` of what has changed, or null. kind: `thread`, `run`, `message`, `step` or `error`. */
  take({ event, data }) {
    if (event === "error") return ["error", data?.error ?? data];
    if (event === "thread.created") return ["thread", (this.thread = data)];
    if (event === "thread.message.delta") return this.added("message", this.messages.get(data.id), addMessageDelta, data.delta);
    if (event === "thread.run.step.delta") return this.added("step", this.steps.get(data.id), addStepDelta, data.delta);
    if (event.startsWith("thread.run.step.")) return ["step", keep(this.steps, data)];
    if (event.startsWith("thread.message.")) return ["message", keep(this.messages, data)];
    if (event.startsWith("thread.run.")) return ["run", (this.run = data)];
    return null;
  }

  added(kind, object, add, delta) {
    if (!object) return null;
    add(object, delta);
    return [kind, object];
  }
}

function keep(objects, object) {
  objects.set(object.id, object);
  return object;
}

function addMessageDelta(message, delta) {
  for (const { index, ...part } of delta.content ?? []) {
    const known = message.content[index];
    if (!known || known.type !== part.type) {
      message.content[index] = part.type === "text" ? { type: "text", text: { value: "", annotations: [] } } : part;
      if (part.type !== "text") continue;
    }
    const whole = message.content[index];
    if (part.type === "text") addText(whole.text, part.text);
    else if (part.type === "refusal") whole.refusal += part.refusal;
    else message.content[index] = part;
  }
}

function addText(text, delta) {
  text.value += delta.value ?? "";
  for (const { index, ...annotation } of delta.annotations ?? []) text.annotations[index] = annotation;
}

function addStepDelta(step, delta) {
  for (const { index, ...call } of delta.step_details?.tool_calls ?? []) {
    const calls = step.step_details.tool_calls;
    const whole = (calls[index] ??= { type: call.type });
    if (call.id) whole.id = call.id;
    if (call.function) addFunction((whole.function ??= { name: "", arguments: "", output: null }), call.function);
    if (call.code_interpreter) addCode((whole.code_interpreter ??= { input: "", outputs: [] }), call.code_interpreter);
    if (call.file_search) whole.file_search = call.file_search;
  }
}

function addFunction(whole, delta) {
  whole.name += delta.name ?? "";
  whole.arguments += delta.arguments ?? "";
  whole.output = delta.output ?? whole.output;
}

function addCode(whole, delta) {
  whole.input += delta.input ?? "";
  for (const { index, ...output } of delta.outputs ?? []) {
    const known = whole.outputs[index];
    if (known?.type === "logs" && output.type === "logs") known.logs += output.logs ?? "";
    else whole.outputs[index] = output;
  }
}
