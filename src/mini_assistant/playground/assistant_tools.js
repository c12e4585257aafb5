// The tools of an assistant: a card for each, which gives the tool as the API takes it.

import { button, el, field } from "./dom.js";
import { changed, checkbox, choice, numberInput, pairs } from "./fields.js";
import { schemaEditor } from "./schema_editor.js";

/** What can be added, with what it is called. */
export const TOOL_KINDS = [
  ["file_search", "File search"],
  ["code_interpreter", "Code interpreter"],
  ["function", "Function"],
  ["mcp", "MCP server"],
];

const NEW_TOOLS = {
  file_search: { type: "file_search" },
  code_interpreter: { type: "code_interpreter" },
  function: { type: "function", function: { name: "", strict: false, parameters: { type: "object", properties: {}, required: [] } } },
  mcp: { type: "mcp", server_label: "", server_url: "" },
};
const EDITORS = { file_search: fileSearch, code_interpreter: codeInterpreter, function: functionTool, mcp: mcpServer };

/**
 * The list of tools. Returns `{ element, read(param, reading) }`, where `read` gives the tools in their order.
 */
export function toolsEditor(tools) {
  const cards = el("div", { class: "column tool-cards" });
  const adders = TOOL_KINDS.map(([type, label]) =>
    button(`+ ${label}`, () => {
      const card = addCard(NEW_TOOLS[type]);
      changed(cards);
      (card.querySelector("input, select, textarea") ?? card.querySelector("button")).focus();
    }),
  );

  function addCard(tool) {
    const editor = EDITORS[tool.type](tool);
    const title = el("h3", {}, TOOL_KINDS.find(([type]) => type === tool.type)[1]);
    const remove = button("Remove", () => {
      card.remove();
      changed(cards);
      adders[0].focus();
    });
    remove.setAttribute("aria-label", `Remove the tool ${title.textContent}`);
    const card = el("section", { class: "card tool" }, el("div", { class: "toolbar" }, title, remove), editor.element);
    card.read = editor.read;
    cards.append(card);
    return card;
  }

  for (const tool of tools) addCard(tool);
  const element = el("fieldset", {}, el("legend", {}, "Tools"), cards, el("div", { class: "row" }, adders));
  const read = (param, reading) => {
    reading.at(param, adders[0]);
    return [...cards.children].map((card, place) => card.read(`${param}[${place}]`, reading));
  };
  return { element, read };
}

function codeInterpreter() {
  const element = el("p", { class: "quiet" }, "Runs Python in a sandbox, and makes files and figures.");
  return { element, read: () => ({ type: "code_interpreter" }) };
}

function fileSearch(tool) {
  const options = tool.file_search ?? {};
  const ranking = options.ranking_options ?? {};
  const count = numberInput(options.max_num_results, { min: 1, max: 50, step: 1, placeholder: "20" });
  const threshold = numberInput(ranking.score_threshold, { min: 0, max: 1, placeholder: "0" });
  const ranker = choice(["auto", "default_2024_08_21"], ranking.ranker ?? "auto");
  const meaning = numberInput(ranking.hybrid_search?.embedding_weight, { min: 0 });
  const words = numberInput(ranking.hybrid_search?.text_weight, { min: 0 });
  const element = el(
    "div",
    { class: "fields" },
    field("Results at most", count, "1 to 50; empty for the default."),
    field("Score threshold", threshold, "0 to 1: passages below it are left out."),
    field("Ranker", ranker),
    field("Weight of meaning", meaning, "Both weights or neither."),
    field("Weight of words", words),
  );

  function read(param, reading) {
    const place = `${param}.file_search`;
    const found = {};
    const max = reading.number(`${place}.max_num_results`, count);
    if (max !== null) found.max_num_results = max;
    const score = reading.number(`${place}.ranking_options.score_threshold`, threshold);
    reading.at(`${place}.ranking_options`, ranker);
    found.ranking_options = { score_threshold: score ?? 0, ranker: ranker.value };
    const hybrid = `${place}.ranking_options.hybrid_search`;
    const weights = [reading.number(`${hybrid}.embedding_weight`, meaning), reading.number(`${hybrid}.text_weight`, words)];
    reading.at(hybrid, meaning);
    if (weights.some((weight) => weight !== null)) {
      found.ranking_options.hybrid_search = { embedding_weight: weights[0] ?? 0, text_weight: weights[1] ?? 0 };
    }
    return { type: "file_search", file_search: found };
  }

  return { element, read };
}

function functionTool(tool) {
  const given = tool.function;
  const name = el("input", { value: given.name, maxlength: 64, autocomplete: "off", spellcheck: "false" });
  const description = el("textarea", { rows: 2 });
  description.value = given.description ?? "";
  const strict = checkbox("Strict: calls follow the schema exactly", given.strict);
  const schema = schemaEditor("Parameters (JSON schema)", given.parameters, { isStrict: () => strict.input.checked });
  strict.input.addEventListener("change", schema.check);
  const element = el(
    "div",
    { class: "column" },
    field("Function name", name, "Letters, digits, “_” and “-”."),
    field("What it does", description, "The model reads this to decide when to call it."),
    strict.element,
    schema.element,
  );

  function read(param, reading) {
    const place = `${param}.function`;
    const found = { name: reading.at(`${place}.name`, name).value };
    if (found.name === "") reading.fault(name, "A function needs a name.");
    const said = reading.text(`${place}.description`, description);
    if (said !== null) found.description = said;
    const parameters = schema.read(`${place}.parameters`, reading);
    if (parameters !== null) found.parameters = parameters;
    found.strict = reading.at(`${place}.strict`, strict.input).checked;
    return { type: "function", function: found };
  }

  return { element, read };
}

const names = (text) => {
  const all = text.split(",").map((name) => name.trim());
  return all.filter((name) => name !== "");
};

function mcpServer(tool) {
  const approval = tool.require_approval ?? "always";
  const isListed = typeof approval === "object";
  const label = el("input", { value: tool.server_label, maxlength: 64, autocomplete: "off", spellcheck: "false" });
  const url = el("input", { type: "url", value: tool.server_url, autocomplete: "off", placeholder: "https://docs.example.com/mcp" });
  const headers = pairs("Headers", tool.headers, {
    hint: "Sent with each request to the server, and shown to everyone who can read this assistant.",
    valueMax: 4096,
  });
  const allowed = el("input", { value: (tool.allowed_tools ?? []).join(", "), autocomplete: "off", spellcheck: "false" });
  const rule = choice(
    [
      ["always", "Each call needs an approval"],
      ["never", "No call needs an approval"],
      ["listed", "As listed"],
    ],
    isListed ? "listed" : approval,
  );
  const never = el("input", { value: (approval.never?.tool_names ?? []).join(", "), autocomplete: "off", spellcheck: "false" });
  const always = el("input", { value: (approval.always?.tool_names ?? []).join(", "), autocomplete: "off", spellcheck: "false" });
  const lists = el("div", { class: "fields", hidden: !isListed }, field("Without approval", never), field("With approval", always));
  rule.addEventListener("change", () => (lists.hidden = rule.value !== "listed"));
  const element = el(
    "div",
    { class: "column" },
    field("Label", label, "Letters, digits, “_” and “-”; one of its own for each server."),
    field("URL", url),
    headers.element,
    field("Allowed tools", allowed, "Names with commas between; empty for all."),
    field("Approval", rule),
    lists,
  );

  function read(param, reading) {
    const found = { type: "mcp", server_label: reading.at(`${param}.server_label`, label).value };
    found.server_url = reading.at(`${param}.server_url`, url).value;
    const sent = headers.read(`${param}.headers`, reading);
    if (Object.keys(sent).length) found.headers = sent;
    const tools = names(reading.at(`${param}.allowed_tools`, allowed).value);
    if (tools.length) found.allowed_tools = tools;
    found.require_approval = reading.at(`${param}.require_approval`, rule).value;
    if (rule.value === "listed") {
      found.require_approval = {};
      for (const [kind, input] of Object.entries({ always, never })) {
        const listed = names(reading.at(`${param}.require_approval.${kind}`, input).value);
        if (listed.length) found.require_approval[kind] = { tool_names: listed };
      }
    }
    return found;
  }

  return { element, read };
}
