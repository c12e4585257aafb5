// The arithmetic of a run's trace: what its time and its tokens went to.

/** When a step ended, in whatever way; null while it goes on. */
export const stepEnd = (step) => step.completed_at ?? step.failed_at ?? step.cancelled_at ?? step.expired_at ?? null;

/** What a step is called: the tools that it called, or that it wrote a message. */
export function stepName(step) {
  const details = step.step_details;
  if (details.type === "message_creation") return "message";
  const names = details.tool_calls.map((call) => (call.type === "function" ? call.function.name : call.type));
  return [...new Set(names)].join(", ") || "tool calls";
}

function runEnd(run, steps, now) {
  const told = run.completed_at ?? run.failed_at ?? run.cancelled_at;
  if (told) return told;
  if (["queued", "in_progress", "cancelling"].includes(run.status)) return now;
  // Of some ends the API tells no time, and one that waits for its client does no work.
  return Math.max(run.started_at ?? run.created_at, ...steps.map((step) => stepEnd(step) ?? step.created_at));
}

/** For how many seconds at least one of the spans, pairs of a beginning and an end, lasted. */
export function covered(spans) {
  let sum = 0;
  let until = -Infinity;
  for (const [begin, end] of [...spans].sort(([one], [other]) => one - other)) {
    sum += Math.max(0, end - Math.max(begin, until));
    until = Math.max(until, end);
  }
  return sum;
}

/**
 * A run taken apart: `{ total, queued, parts, sum }`, in seconds. A part: `{ id, kind, name, state, after, took, usage, tokens }`; kind is
 * `queue`, `step` or `rest` (what lies between the steps: mostly the model, before its first word). now: unix seconds, for what goes on.
 */
export function parts(run, steps, now) {
  const begin = run.created_at;
  const end = Math.max(runEnd(run, steps, now), begin);
  const started = run.started_at ?? (run.status === "queued" ? end : begin);
  const queued = Math.max(0, started - begin);
  const isActive = ["queued", "in_progress", "cancelling"].includes(run.status);
  const spans = steps.map((step) => [step.created_at, Math.max(step.created_at, stepEnd(step) ?? (isActive ? end : step.created_at))]);
  const shown = steps.map((step, index) => ({
    id: step.id,
    kind: "step",
    name: `${index + 1}. ${stepName(step)}`,
    state: step.status,
    after: spans[index][0] - begin,
    took: spans[index][1] - spans[index][0],
    usage: step.usage,
    tokens: step.usage?.total_tokens ?? null,
  }));
  const total = end - begin;
  const rest = Math.max(0, total - queued - covered(spans));
  const usage = run.usage ?? null;
  return {
    total,
    queued,
    parts: [
      { id: "queue", kind: "queue", name: "Queue", state: "", after: 0, took: queued, usage: null, tokens: null },
      ...shown,
      { id: "rest", kind: "rest", name: "Between the steps", state: "", after: 0, took: rest, usage: untold(usage, steps), tokens: null },
    ],
    sum: { kind: "sum", name: "Whole run", after: 0, took: total, usage: usage ?? summed(steps) },
  };
}

const NAMES = ["prompt_tokens", "completion_tokens", "total_tokens"];

function summed(steps) {
  const known = steps.filter(({ usage }) => usage);
  if (!known.length) return null;
  return Object.fromEntries(NAMES.map((name) => [name, known.reduce((sum, { usage }) => sum + usage[name], 0)]));
}

/** Tokens of the run that no step tells of, such as those of a turn that gave neither text nor calls. */
function untold(usage, steps) {
  const known = summed(steps);
  if (!usage || !known) return null;
  const rest = Object.fromEntries(NAMES.map((name) => [name, usage[name] - known[name]]));
  return rest.total_tokens > 0 ? rest : null;
}

/** Seconds for people. */
export function seconds(count) {
  const whole = Math.round(count);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** How long something took, for people: what the API tells as nothing took less than a second. */
export const lasted = (count) => (count < 0.5 ? "<1 s" : seconds(count));

/** A part of a whole in per cent; nothing where there is no whole. */
export const share = (part, whole) => (whole > 0 ? `${Math.round((100 * part) / whole)} %` : "");

/** The marks of an axis that is `total` seconds long: at most six, at round numbers. */
export function axisTicks(total) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
  const step = steps.find((candidate) => total / candidate <= 5) ?? Math.ceil(total / 5);
  const ticks = [];
  for (let tick = 0; tick <= Math.max(total, 1); tick += step) ticks.push(tick);
  return ticks;
}
