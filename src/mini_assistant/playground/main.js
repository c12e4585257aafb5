// The page: which view is shown, the key, light and dark. A view is a module with `show(main, ...ids)`, which fills the element and may
// return what is to be called when another view is shown.

import { get, key } from "./api.js";
import { button, copyWithoutClipboard, el, field, fill, notify } from "./dom.js";
import * as code from "./code.js";

// The address after `#`, and the view that it shows, which is loaded when it is needed. Ids are the groups.
const ROUTES = [
  [/^\/assistants(?:\/([^/]+))?$/, () => import("./assistants.js")],
  [/^\/threads$/, () => import("./threads.js")],
  [/^\/threads\/([^/]+)$/, () => import("./chat.js")],
  [/^\/threads\/([^/]+)\/runs\/([^/]+)$/, () => import("./trace.js")],
  [/^\/vector-stores(?:\/([^/]+))?$/, () => import("./vector_stores.js")],
];
const HOME = "#/threads";

let leave = null;
let shown = 0;

async function showRoute() {
  const path = location.hash.slice(1);
  const found = ROUTES.map(([pattern, load]) => [pattern.exec(path), load]).find(([match]) => match);
  if (!found) {
    location.replace(HOME);
    return;
  }
  const [match, load] = found;
  const main = document.getElementById("main");
  const number = (shown += 1);
  leave?.();
  leave = null;
  markCurrent(path);
  const hadFocus = main.contains(document.activeElement);
  fill(main, el("p", { class: "quiet loading" }, "Loading…"));
  try {
    const ids = match.slice(1).filter((id) => id !== undefined).map(decodeURIComponent);
    const view = await load();
    if (number !== shown) return;
    const ended = await view.show(main, ...ids);
    if (number === shown) leave = ended ?? null;
    else ended?.();
  } catch (error) {
    if (number === shown) fill(main, el("h1", {}, "This cannot be shown"), el("p", { class: "error", role: "alert" }, error.message));
  }
  if (number === shown && hadFocus) keepFocus(main);
}

function markCurrent(path) {
  for (const link of document.querySelectorAll("nav a")) {
    const isCurrent = path.startsWith(link.hash.slice(1));
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (isCurrent) document.title = `${link.textContent} · mini-assistant playground`;
  }
}

// A view that was opened by the keyboard goes on where it was opened: at the same link when that is still there.
function keepFocus(main) {
  if (document.activeElement !== document.body || document.querySelector("dialog[open]")) return;
  const same = [...main.querySelectorAll("a")].find((link) => link.hash === location.hash);
  (same ?? main).focus({ preventScroll: true });
}

function askForKey(problem = null) {
  const dialog = document.getElementById("key");
  if (dialog.open) return;
  const input = el("input", { type: "password", autocomplete: "off", placeholder: "sk-mini-…" });
  input.value = key.get();
  const use = (value) => {
    key.set(value);
    dialog.close();
    showRoute();
  };
  const form = el(
    "form",
    {
      onsubmit: (event) => {
        event.preventDefault();
        use(input.value.trim());
      },
    },
    el("h2", {}, "API key"),
    problem && el("p", { class: "error", role: "alert" }, problem),
    field("Key", input, "Kept for this tab only, and sent to this server only. A server without keys needs none."),
    el(
      "div",
      { class: "row end" },
      key.get() && button("Forget", () => use("")),
      button("Cancel", () => dialog.close()),
      button("Save", null, { kind: "primary", type: "submit" }),
    ),
  );
  fill(dialog, form);
  dialog.showModal();
  input.focus();
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function toggleTheme() {
  const now = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const theme = now === "dark" ? "light" : "dark";
  localStorage.setItem("mini-assistant.theme", theme);
  setTheme(theme);
}

setTheme(localStorage.getItem("mini-assistant.theme"));
// What is written for the clipboard works where browsers give none, too.
if (!navigator.clipboard) Object.defineProperty(navigator, "clipboard", { value: { writeText: copyWithoutClipboard } });
document.getElementById("theme-button").addEventListener("click", toggleTheme);
document.getElementById("key-button").addEventListener("click", () => askForKey());
document.getElementById("code-button").addEventListener("click", () => code.open());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // what is after `#` names the view
  document.getElementById("main").focus();
});
document.addEventListener("key-needed", () => askForKey(key.get() ? "This server does not take the key." : "This server asks for a key."));
window.addEventListener("hashchange", showRoute);
window.addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name !== "AbortError") notify(event.reason?.message ?? String(event.reason), "error");
});
showRoute();
get("/models").catch(() => {}); // asks for a key at once where one is needed
