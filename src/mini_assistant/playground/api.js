// The public API of this server, and nothing else of it. Whatever is called is told to listeners: "Show code" is made from that.

/** The address of the API: beside the playground, for a proxy may show both under a path of its own. */
export const BASE = new URL("../v1", location.href.split("#")[0]).href;
const KEY = "mini-assistant.key";
const listeners = new Set();

/** An answer that is an error: `message`, `status`, `code` and `param` as the API gave them. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `The server answered ${status}.`);
    this.status = status;
    this.code = error?.code ?? null;
    this.param = error?.param ?? null;
  }
}

/** The key of this tab, empty without one. It is kept for the tab alone and sent to this server alone. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Calls `listener({method, path, body, stream})` before each call; returns what ends that. */
export function onCall(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function headers(extra = {}) {
  const all = { "openai-beta": "assistants=v2", ...extra };
  if (key.get()) all.authorization = `Bearer ${key.get()}`;
  return all;
}

function refused(status, body, usedKey) {
  // An answer to an earlier key says nothing about the one that has been given since.
  if (status === 401 && usedKey === key.get()) document.dispatchEvent(new CustomEvent("key-needed"));
  return new ApiError(status, body?.error);
}

async function failure(response, usedKey) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // no JSON: the status says enough
  }
  return refused(response.status, body, usedKey);
}

async function call(method, path, body, { signal } = {}) {
  for (const listener of listeners) listener({ method, path, body, stream: false });
  const usedKey = key.get();
  const response = await fetch(BASE + path, {
    method,
    signal,
    headers: headers(body === undefined ? {} : { "content-type": "application/json" }),
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) throw await failure(response, usedKey);
  return response;
}

/** The object that a GET answers with. */
export const get = async (path, options) => (await call("GET", path, undefined, options)).json();
/** The object that a POST answers with. */
export const post = async (path, body = {}, options = {}) => (await call("POST", path, body, options)).json();
/** Deletes; the API's answer. */
export const del = async (path) => (await call("DELETE", path)).json();
/** The bytes of an answer, such as `/files/ID/content`, as a Blob. */
export const blob = async (path, options) => (await call("GET", path, undefined, options)).blob();

/** All objects of a list, a page at a time, at most `limit`. query: such as `{ order: "asc" }`. */
export async function list(path, query = {}, limit = 1000) {
  const found = [];
  let after = null;
  while (found.length < limit) {
    const parameters = new URLSearchParams({ limit: String(Math.min(100, limit - found.length)), ...query });
    if (after) parameters.set("after", after);
    const page = await get(`${path}?${parameters}`);
    found.push(...page.data);
    if (!page.has_more) break;
    after = page.last_id;
  }
  return found;
}

/**
 * Reads a stream of events: POST with a body (`stream: true` is added), or GET when `body` is null (re-attaching).
 * onEvent gets `{ id, event, data }`, data parsed. Ends with the stream; raises ApiError, and what fetch raises when the line is cut.
 */
export async function stream(path, body, onEvent, { signal, lastEventId } = {}) {
  const whole = body === null ? undefined : { ...body, stream: true };
  for (const listener of listeners) listener({ method: body === null ? "GET" : "POST", path, body: whole, stream: true });
  const extra = { accept: "text/event-stream" };
  if (whole !== undefined) extra["content-type"] = "application/json";
  if (lastEventId) extra["last-event-id"] = lastEventId;
  const usedKey = key.get();
  const response = await fetch(BASE + path, {
    method: body === null ? "GET" : "POST",
    signal,
    headers: headers(extra),
    body: whole === undefined ? undefined : JSON.stringify(whole),
  });
  if (!response.ok) throw await failure(response, usedKey);
  await readEvents(response.body, onEvent);
}

/** Takes apart the frames of a stream of server-sent events. */
export async function readEvents(body, onEvent) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const fields = { id: null, event: "message", data: "" };
      for (const line of frame.split("\n")) {
        const [, name, text] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (name === "data") fields.data += text;
        else if (name === "id" || name === "event") fields[name] = text;
      }
      if (!fields.data) continue; // a heart-beat
      fields.data = fields.data === "[DONE]" ? null : JSON.parse(fields.data);
      onEvent(fields);
    }
  }
}

/** Uploads a file; onProgress gets a share from 0 to 1. Returns the file's object. */
export function upload(file, { purpose = "assistants", onProgress = () => {}, signal } = {}) {
  const body = { file: file.name, purpose };
  for (const listener of listeners) listener({ method: "POST", path: "/files", body, stream: false, form: true });
  const usedKey = key.get();
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch tells nothing of an upload's progress
    request.open("POST", BASE + "/files");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => {
      let answer = null;
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        // no JSON: the status says enough
      }
      if (request.status === 200) resolve(answer);
      else reject(refused(request.status, answer, usedKey));
    };
    request.onerror = () => reject(new Error("The connection was lost."));
    request.onabort = () => reject(new DOMException("Aborted", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    const form = new FormData();
    form.append("purpose", purpose);
    form.append("file", file, file.name);
    request.send(form);
  });
}
