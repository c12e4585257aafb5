// What "Show code" knows of the API: which method of the official SDKs makes a call, and how a value is laid out in a program.

const WIDTH = 88;

// A route -> the method that makes its call, named as in Python; none where the SDKs have none. `stream`: the method that streams it.
// `result`: what the answer is called; `each`: it is a list of such, read item by item. `beyond`: fields of the body or the query that this
// method has no parameters for. `answers`: "bytes" or "text" where it is no JSON.
const OPERATIONS = {
  "POST /assistants": { call: "beta.assistants.create", result: "assistant" },
  "GET /assistants": { call: "beta.assistants.list", each: "assistant" },
  "GET /assistants/{assistant_id}": { call: "beta.assistants.retrieve", result: "assistant" },
  "POST /assistants/{assistant_id}": { call: "beta.assistants.update", result: "assistant" },
  "DELETE /assistants/{assistant_id}": { call: "beta.assistants.delete", result: "deleted" },
  "POST /threads": { call: "beta.threads.create", result: "thread" },
  "GET /threads": { result: "threads" },
  "POST /threads/runs": {
    call: "beta.threads.create_and_run",
    stream: "beta.threads.create_and_run_stream",
    result: "run",
    beyond: ["additional_instructions", "reasoning_effort", "include"],
  },
  "GET /threads/{thread_id}": { call: "beta.threads.retrieve", result: "thread" },
  "POST /threads/{thread_id}": { call: "beta.threads.update", result: "thread" },
  "DELETE /threads/{thread_id}": { call: "beta.threads.delete", result: "deleted" },
  "POST /threads/{thread_id}/messages": { call: "beta.threads.messages.create", result: "message" },
  "GET /threads/{thread_id}/messages": { call: "beta.threads.messages.list", each: "message" },
  "GET /threads/{thread_id}/messages/{message_id}": { call: "beta.threads.messages.retrieve", result: "message" },
  "POST /threads/{thread_id}/messages/{message_id}": { call: "beta.threads.messages.update", result: "message" },
  "DELETE /threads/{thread_id}/messages/{message_id}": { call: "beta.threads.messages.delete", result: "deleted" },
  "POST /threads/{thread_id}/runs": { call: "beta.threads.runs.create", stream: "beta.threads.runs.stream", result: "run" },
  "GET /threads/{thread_id}/runs": { call: "beta.threads.runs.list", each: "run" },
  "GET /threads/{thread_id}/runs/{run_id}": { call: "beta.threads.runs.retrieve", result: "run" },
  "POST /threads/{thread_id}/runs/{run_id}": { call: "beta.threads.runs.update", result: "run" },
  "POST /threads/{thread_id}/runs/{run_id}/cancel": { call: "beta.threads.runs.cancel", result: "run" },
  "POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs": {
    call: "beta.threads.runs.submit_tool_outputs",
    stream: "beta.threads.runs.submit_tool_outputs_stream",
    result: "run",
  },
  "GET /threads/{thread_id}/runs/{run_id}/events": { answers: "events" },
  "GET /threads/{thread_id}/runs/{run_id}/steps": { call: "beta.threads.runs.steps.list", each: "step" },
  "GET /threads/{thread_id}/runs/{run_id}/steps/{step_id}": { call: "beta.threads.runs.steps.retrieve", result: "step" },
  "POST /files": { call: "files.create", result: "file", form: "file" },
  "GET /files": { call: "files.list", each: "file" },
  "GET /files/{file_id}": { call: "files.retrieve", result: "file" },
  "DELETE /files/{file_id}": { call: "files.delete", result: "deleted" },
  "GET /files/{file_id}/content": { call: "files.content", answers: "bytes" },
  "POST /uploads": { call: "uploads.create", result: "upload" },
  "POST /uploads/{upload_id}/parts": { call: "uploads.parts.create", result: "part", form: "data" },
  "POST /uploads/{upload_id}/complete": { call: "uploads.complete", result: "upload" },
  "POST /uploads/{upload_id}/cancel": { call: "uploads.cancel", result: "upload" },
  "POST /vector_stores": { call: "vector_stores.create", result: "store" },
  "GET /vector_stores": { call: "vector_stores.list", each: "store" },
  "GET /vector_stores/{vector_store_id}": { call: "vector_stores.retrieve", result: "store" },
  "POST /vector_stores/{vector_store_id}": { call: "vector_stores.update", result: "store" },
  "DELETE /vector_stores/{vector_store_id}": { call: "vector_stores.delete", result: "deleted" },
  "POST /vector_stores/{vector_store_id}/search": { call: "vector_stores.search", each: "found" },
  "POST /vector_stores/{vector_store_id}/files": { call: "vector_stores.files.create", result: "file" },
  "GET /vector_stores/{vector_store_id}/files": { call: "vector_stores.files.list", each: "file" },
  "GET /vector_stores/{vector_store_id}/files/{file_id}": { call: "vector_stores.files.retrieve", result: "file" },
  "POST /vector_stores/{vector_store_id}/files/{file_id}": { call: "vector_stores.files.update", result: "file" },
  "DELETE /vector_stores/{vector_store_id}/files/{file_id}": { call: "vector_stores.files.delete", result: "deleted" },
  "GET /vector_stores/{vector_store_id}/files/{file_id}/content": { call: "vector_stores.files.content", each: "passage" },
  "POST /vector_stores/{vector_store_id}/file_batches": { call: "vector_stores.file_batches.create", result: "batch" },
  "GET /vector_stores/{vector_store_id}/file_batches/{batch_id}": { call: "vector_stores.file_batches.retrieve", result: "batch" },
  "POST /vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel": { call: "vector_stores.file_batches.cancel", result: "batch" },
  "GET /vector_stores/{vector_store_id}/file_batches/{batch_id}/files": { call: "vector_stores.file_batches.list_files", each: "file" },
  "POST /webhooks": { result: "webhook" },
  "GET /webhooks": { result: "webhooks" },
  "GET /webhooks/{webhook_id}": { result: "webhook" },
  "DELETE /webhooks/{webhook_id}": { result: "deleted" },
  "GET /models": { call: "models.list", each: "model" },
  "GET /models/{model}": { call: "models.retrieve", result: "model" },
  "GET /organization/audit_logs": { result: "entries" },
  "GET /organization/usage": { result: "usage" },
  "GET /health": { result: "health" },
  "GET /health/live": { result: "health" },
  "GET /metrics": { result: "metrics", answers: "text" },
  "GET /openapi.json": { result: "description" },
};

// Names of models have slashes; other ids end at one.
const PATTERNS = Object.entries(OPERATIONS).map(([route, operation]) => {
  const [method, path] = route.split(" ");
  const pattern = path.replace(/\{model\}/, "(.+)").replace(/\{\w+\}/g, "([^/]+)");
  return { method, route, operation, names: [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name), pattern: new RegExp(`^${pattern}$`) };
});

/**
 * What a recorded call is: `{ method, path, route, operation, ids, query, body, stream, form }`. path: without the query. route: such as
 * `GET /threads/{thread_id}`. ids: pairs of a name and a value, in the order of the path. query: its values as the SDKs take them.
 */
export function described({ method, path, body, stream = false, form = false }) {
  const [place, search = ""] = path.split("?");
  const found = PATTERNS.find((known) => known.method === method && known.pattern.test(place));
  const values = found ? found.pattern.exec(place).slice(1).map(decodeURIComponent) : [];
  return {
    method,
    path: place,
    route: found?.route ?? `${method} ${place}`,
    operation: found?.operation ?? { result: "answer" },
    ids: values.map((value, index) => [found.names[index], value]),
    query: queryOf(search),
    body: withoutStream(body),
    stream,
    form,
  };
}

function queryOf(search) {
  const parameters = new URLSearchParams(search);
  const query = {};
  for (const name of new Set(parameters.keys())) {
    const values = parameters.getAll(name);
    if (name.endsWith("[]")) query[name.slice(0, -2)] = values;
    else query[name] = /^\d{1,9}$/.test(values[0]) && name === "limit" ? Number(values[0]) : values[0];
  }
  return query;
}

function withoutStream(body) {
  if (body === undefined || body === null) return {};
  const { stream: _, ...rest } = body;
  return rest;
}

/** The names and values that a method of an SDK takes, and those that it has no parameters for. */
export function divided(values, beyond = []) {
  const pairs = Object.entries(values);
  const isBeyond = ([name]) => beyond.includes(name) || !/^[a-z_][a-z0-9_]*$/i.test(name);
  return [pairs.filter((pair) => !isBeyond(pair)), Object.fromEntries(pairs.filter(isBeyond))];
}

/** Gives each variable of a program a name of its own: `run`, `run2`. */
export function variables() {
  const used = new Map();
  return (name) => {
    used.set(name, (used.get(name) ?? 0) + 1);
    return used.get(name) === 1 ? name : name + used.get(name);
  };
}

/**
 * A text as a literal that JSON, JavaScript and Python read alike. What cannot be seen, and what turns the direction of writing, is
 * escaped: the program that is shown must be the program that is copied.
 */
export function quoted(text) {
  const hidden = /[\u007f-\u00a0\u00ad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
  return JSON.stringify(text).replace(hidden, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** A part of a program that may need several lines: what opens it, pairs of a prefix and a part, and what closes it. */
export const group = (open, parts, close, pad = "") => ({ open, parts, close, pad });

/** A value of JSON as a part of a program. language: how null, true and false are written (`atoms`), and a field's name (`name`, `pad`). */
export function literal(value, language) {
  if (typeof value === "string") return quoted(value);
  if (value === null || typeof value === "boolean") return language.atoms[String(value)];
  if (typeof value === "number") return String(value);
  if (Array.isArray(value)) return group("[", value.map((item) => ["", literal(item, language)]), "]");
  const fields = Object.entries(value).filter(([, item]) => item !== undefined);
  return group("{", fields.map(([name, item]) => [`${language.name(name)}: `, literal(item, language)]), "}", language.pad);
}

function inOneLine(part) {
  if (typeof part === "string") return part;
  if (part.parts.length === 0) return part.open + part.close;
  return part.open + part.pad + part.parts.map(([prefix, inner]) => prefix + inOneLine(inner)).join(", ") + part.pad + part.close;
}

/** Arguments whose last one is an object: it opens in the line of the call. */
function hugged(part, options) {
  const first = part.parts.slice(0, -1).map(([prefix, inner]) => `${prefix}${inOneLine(inner)}, `);
  const before = part.open + first.join("");
  return before + laidOut(part.parts.at(-1)[1], { ...options, column: options.column + before.length }) + part.close;
}

/** A part of a program as text. step: by what inner lines are indented. column: how long the line is already. lastComma: "" for JSON. */
export function laidOut(part, { step, indent = "", column = 0, lastComma = "," }) {
  const line = inOneLine(part);
  if (typeof part === "string" || part.parts.length === 0 || column + line.length <= WIDTH) return line;
  if (part.hugs) return hugged(part, { step, indent, column, lastComma });
  const inner = indent + step;
  const rows = part.parts.map(([prefix, item], index) => {
    const text = laidOut(item, { step, indent: inner, column: inner.length + prefix.length + 1, lastComma });
    return inner + prefix + text + (index < part.parts.length - 1 ? "," : lastComma);
  });
  return [part.open, ...rows, indent + part.close].join("\n");
}
