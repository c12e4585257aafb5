// Annotations of an answer: citations as numbered buttons that open the passage, and links to files as buttons that download them.

import { get, list } from "./api.js";
import { button, el, fill } from "./dom.js";
import { downloadButton, fileOrNull } from "./attachments.js";
import { HOLE_BEGIN, HOLE_END } from "./markdown.js";

const PASSAGES = { "include[]": "step_details.tool_calls[*].file_search.results[*].content", order: "asc" };
const MARKER = /^【(\d{1,6}):(\d{1,6})/;

/** The text with a hole for each annotation, and the holes (see markdown.js). place: `{ threadId, runId }` of the message. */
export function withHoles(text, annotations, place) {
  // What could be taken for a hole is replaced, one for one: the places of the annotations stay right.
  const source = text.replaceAll(HOLE_BEGIN, "\uFFFD").replaceAll(HOLE_END, "\uFFFD");
  const known = annotations.filter(Boolean).sort((first, second) => first.start_index - second.start_index);
  const numbers = new Map();
  const holes = [];
  const parts = [];
  const placeOf = codePointPlaces(source);
  let end = 0;
  for (const annotation of known) {
    const from = placeOf(annotation.start_index);
    const to = from + annotation.text.length;
    if (from < end || source.slice(from, to) !== annotation.text) continue;
    parts.push(source.slice(end, from), HOLE_BEGIN, String(holes.length), HOLE_END);
    holes.push(holeOf(annotation, known, numbers, place));
    end = to;
  }
  return { source: parts.join("") + source.slice(end), holes };
}

/** From places in code points, as the API counts, to places in a string of JavaScript. They have to be asked for in rising order. */
function codePointPlaces(text) {
  let point = 0;
  let place = 0;
  return (wanted) => {
    while (point < wanted && place < text.length) {
      place += text.codePointAt(place) > 0xffff ? 2 : 1;
      point += 1;
    }
    return place;
  };
}

function holeOf(annotation, annotations, numbers, place) {
  if (annotation.type === "file_path") {
    const name = annotation.text.split("/").at(-1);
    const link = (children) => downloadButton(annotation.file_path.file_id, textOf(children) || name, name);
    return { text: annotation.text, node: () => link([name]), link };
  }
  if (!numbers.has(annotation.text)) numbers.set(annotation.text, numbers.size + 1);
  const number = numbers.get(annotation.text);
  const open = () => showCitation(number, annotation, annotations, place);
  const title = `Citation ${number}: ${nameIn(annotation.text)}`;
  const node = () => el("button", { type: "button", class: "citation", title, "aria-label": title, onclick: open }, String(number));
  return { text: annotation.text, node, link: null };
}

function textOf(children) {
  return children.map((child) => (typeof child === "string" ? child : child.textContent)).join("");
}

function nameIn(marker) {
  return /†(.*)】$/.exec(marker)?.[1] ?? marker;
}

async function showCitation(number, annotation, annotations, { threadId, runId }) {
  const dialog = openDialog(`Citation ${number}`, el("p", { class: "quiet" }, "Loading…"));
  try {
    const steps = await list(`/threads/${threadId}/runs/${runId}/steps`, PASSAGES);
    const result = passageOf(annotation, annotations, steps);
    if (result) dialog.show(passageNodes(result));
    else dialog.show(await unknownPassage(annotation));
  } catch (error) {
    dialog.show(el("p", { class: "error", role: "alert" }, error.message));
  }
}

/** Opens the passage of a search result in a dialog. place: `{ threadId, runId, stepId }`; the result is number `index` of the call. */
export async function showResult({ threadId, runId, stepId }, callId, index) {
  const dialog = openDialog("Passage", el("p", { class: "quiet" }, "Loading…"));
  try {
    const query = new URLSearchParams({ "include[]": PASSAGES["include[]"] });
    const step = await get(`/threads/${threadId}/runs/${runId}/steps/${stepId}?${query}`);
    const call = step.step_details.tool_calls.find((one) => one.id === callId);
    dialog.show(passageNodes(call.file_search.results[index]));
  } catch (error) {
    dialog.show(el("p", { class: "error", role: "alert" }, error.message));
  }
}

/** The page of a passage in words, or null where the file has no pages. */
export function pageOf(result) {
  return Number.isInteger(result.page) ? `page ${result.page}` : null;
}

function passageNodes(result) {
  const facts = [pageOf(result), `score ${result.score.toFixed(2)}`].filter(Boolean).join(" · ");
  const attributes = Object.entries(result.attributes ?? {}).map(([name, value]) => el("span", { class: "badge" }, `${name}: ${value}`));
  return [
    el("p", { class: "passage-head" }, el("strong", {}, result.file_name), " ", el("span", { class: "quiet" }, facts)),
    attributes.length ? el("p", { class: "row" }, attributes) : null,
    el("blockquote", { class: "passage", tabindex: "0" }, (result.content ?? []).map((part) => part.text).join("\n")),
    el("p", {}, downloadButton(result.file_id, "Download the file", result.file_name)),
  ];
}

async function unknownPassage(annotation) {
  const id = annotation.file_citation.file_id;
  const file = await fileOrNull(id);
  return [
    el("p", {}, el("strong", {}, file?.filename ?? nameIn(annotation.text))),
    el("p", { class: "quiet" }, "The passage is not among the results that the run has kept."),
    file ? el("p", {}, downloadButton(id, "Download the file", file.filename)) : null,
  ];
}

function openDialog(title, ...content) {
  const body = el("div", {}, content);
  const dialog = el(
    "dialog",
    { class: "passage-dialog", "aria-label": title, onclose: () => dialog.remove() },
    el("h2", {}, title),
    body,
    el(
      "div",
      { class: "row end" },
      button("Close", () => dialog.close(), { kind: "primary" }),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  return { show: (...nodes) => fill(body, nodes) };
}

/**
 * The search result that an annotation cites, or null. A marker has two numbers: the place of the search in the context of the model, and
 * that of the passage in its results. The context begins somewhere, which the API does not tell; each call after that is one place
 * further, and so is each turn. The beginning is taken for which most annotations fit the files that they name.
 */
export function passageOf(annotation, annotations, steps) {
  const searches = searchesIn(steps);
  const cited = annotations.filter((one) => one?.type === "file_citation" && MARKER.test(one.text));
  const begins = new Set(cited.flatMap((one) => [...searches.keys()].map((offset) => numbersIn(one.text)[0] - offset)));
  let best = { begin: 0, fitting: 0 };
  for (const begin of begins) {
    const fitting = cited.filter((one) => resultOf(one, searches, begin)).length;
    if (fitting > best.fitting) best = { begin, fitting };
  }
  return best.fitting > 0 ? resultOf(annotation, searches, best.begin) : null;
}

function numbersIn(marker) {
  return (MARKER.exec(marker) ?? [0, -1, -1]).slice(1).map(Number);
}

function resultOf(annotation, searches, begin) {
  const [number, index] = numbersIn(annotation.text);
  const result = searches.get(number - begin)?.[index];
  return result?.file_id === annotation.file_citation.file_id ? result : null;
}

/** The results of each search by its place, counted from that of the first call. */
function searchesIn(steps) {
  const searches = new Map();
  let offset = 0;
  for (const step of steps.filter((one) => one.type === "tool_calls")) {
    for (const call of step.step_details.tool_calls) {
      if (call.type === "file_search") searches.set(offset, call.file_search.results);
      offset += 1;
    }
    offset += 1; // the model's own message with the calls of the next turn
  }
  return searches;
}
