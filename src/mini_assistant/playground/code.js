// "Show code": the calls that the page has made of the API since its view was opened, as programs.

import { BASE, onCall } from "./api.js";
import { described } from "./code_calls.js";
import { curlCode } from "./code_curl.js";
import { nodeCode } from "./code_node.js";
import { pythonCode } from "./code_python.js";
import { button, el, fill } from "./dom.js";
import { highlight } from "./highlight.js";

const CALLS_MAX = 50;
const LANGUAGE_KEY = "mini-assistant.code-language";
const LANGUAGES = [
  { name: "Python", write: pythonCode, colours: "python", hint: "Needs the package openai, and the key in OPENAI_API_KEY." },
  { name: "Node", write: nodeCode, colours: "javascript", hint: "A module; needs the package openai, and the key in OPENAI_API_KEY." },
  { name: "curl", write: curlCode, colours: "bash", hint: "For a shell, with the key in OPENAI_API_KEY." },
];

let calls = [];

function record(call) {
  if (isLaterPage(call)) return;
  const name = JSON.stringify([call.method, call.path, call.body, call.stream]);
  const before = calls.find((known) => known.name === name);
  // What is asked again and again is one call, at the place of the last time.
  calls = [...calls.filter((known) => known !== before), { ...call, name, times: (before?.times ?? 0) + 1 }].slice(-CALLS_MAX);
}

/** The SDKs turn the pages of a list by themselves: the call for the first one stands for all. */
function isLaterPage({ method, path }) {
  if (method !== "GET" || !/[?&]after=/.test(path)) return false;
  return calls.some((known) => known.method === "GET" && withoutPage(known.path) === withoutPage(path));
}

function withoutPage(path) {
  const [place, search = ""] = path.split("?");
  const query = new URLSearchParams(search);
  query.delete("after");
  query.delete("limit");
  return `${place}?${query}`;
}

function forget(event) {
  // What was made on a page for something new belongs to what it has become.
  if (!new URL(event.oldURL).hash.endsWith("/new")) calls = [];
}

/** The calls recorded since the view was opened, the oldest first. */
export const recordedCalls = () => calls.map(({ method, path, body, stream, form }) => ({ method, path, body, stream, form }));

/** Copies a text to the clipboard; says how that went, for people. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return "Copied.";
  } catch {
    // a page that came without TLS from another machine has no clipboard
    return "The browser does not let this page copy. Select the text and copy it.";
  }
}

/** Of the calls of one kind the last one is chosen at first: a list of threads asks for each thread's first message. */
function chosenAtFirst(shown) {
  const last = new Map(shown.map((call) => [described(call).route, call]));
  const isUsual = (call) => call.path === "/models" && shown.length > 1;
  return new Set([...last.values()].filter((call) => !isUsual(call)));
}

/** Opens the dialog. */
export function open() {
  const shown = [...calls];
  const chosen = chosenAtFirst(shown);
  const known = LANGUAGES.findIndex(({ name }) => name === sessionStorage.getItem(LANGUAGE_KEY));
  const dialog = el("dialog", { class: "code-dialog", "aria-labelledby": "code-title" });
  const program = el("code", {});
  const hint = el("p", { class: "quiet", id: "code-hint" });
  const panel = el(
    "div",
    { role: "tabpanel", id: "code-panel", "aria-labelledby": "" },
    hint,
    el("pre", { class: "code", tabindex: "0", "aria-label": "Program" }, program),
  );
  const write = (language) => {
    told.textContent = "";
    const picked = shown.filter((call) => chosen.has(call));
    const text = picked.length ? language.write(picked, BASE) : "";
    fill(program, ...highlight(text, language.colours));
    hint.textContent = picked.length ? language.hint : "No call is chosen.";
  };
  const tabs = languageTabs(panel, Math.max(known, 0), write);
  const told = el("span", { class: "quiet", role: "status" });
  dialog.addEventListener("close", () => dialog.remove());
  dialog.append(
    el("h2", { id: "code-title" }, "Show code"),
    shown.length ? callChoice(shown, chosen, tabs.rewrite) : el("p", { class: "quiet" }, "This page has not called the API yet."),
    tabs.element,
    panel,
    el(
      "div",
      { class: "row end" },
      told,
      button("Copy", async () => (told.textContent = await copyText(program.textContent)), { kind: "primary" }),
      button("Close", () => dialog.close()),
    ),
  );
  document.body.append(dialog);
  tabs.rewrite();
  dialog.showModal();
}

/** The calls with a box each; one box more for all of them. */
function callChoice(shown, chosen, onchange) {
  const boxes = shown.map((call) => {
    const box = el("input", { type: "checkbox" });
    box.checked = chosen.has(call);
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(call);
      else chosen.delete(call);
      showAll();
      onchange();
    });
    return box;
  });
  const all = el("input", { type: "checkbox" });
  const showAll = () => {
    all.checked = chosen.size === shown.length;
    all.indeterminate = chosen.size > 0 && !all.checked;
  };
  all.addEventListener("change", () => {
    chosen.clear();
    if (all.checked) for (const call of shown) chosen.add(call);
    for (const box of boxes) box.checked = all.checked;
    onchange();
  });
  showAll();
  const rows = shown.map((call, index) => {
    const times = call.times > 1 ? el("span", { class: "quiet" }, ` ×${call.times}`) : null;
    return el("label", {}, boxes[index], el("span", {}, el("code", {}, `${call.method} ${call.path}`), times));
  });
  return el("fieldset", {}, el("legend", {}, "Calls of this page"), el("div", { class: "code-calls" }, el("label", {}, all, "All"), rows));
}

/** Tabs for the languages, moved along by the arrow keys. */
function languageTabs(panel, first, write) {
  let current = first;
  const tabs = LANGUAGES.map(({ name }, index) =>
    el("button", { type: "button", role: "tab", id: `code-tab-${index}`, "aria-controls": panel.id, onclick: () => choose(index) }, name),
  );
  const choose = (index) => {
    current = index;
    tabs.forEach((tab, place) => {
      tab.setAttribute("aria-selected", String(place === index));
      tab.tabIndex = place === index ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", tabs[index].id);
    sessionStorage.setItem(LANGUAGE_KEY, LANGUAGES[index].name);
    write(LANGUAGES[index]);
  };
  const moves = { ArrowRight: 1, ArrowLeft: -1 };
  const onkeydown = (event) => {
    let next = null;
    if (event.key in moves) next = (current + moves[event.key] + tabs.length) % tabs.length;
    if (event.key === "Home") next = 0;
    if (event.key === "End") next = tabs.length - 1;
    if (next === null) return;
    event.preventDefault();
    choose(next);
    tabs[next].focus();
  };
  const element = el("div", { class: "code-tabs", role: "tablist", "aria-label": "Language", onkeydown }, tabs);
  return { element, rewrite: () => choose(current) };
}

onCall(record);
window.addEventListener("hashchange", forget);
