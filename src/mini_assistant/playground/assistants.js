// Assistants: the list of them, and a form with every field that the API has.

import { del, get, list, post } from "./api.js";
import { toolsEditor } from "./assistant_tools.js";
import { button, confirmed, el, field, fill, notify, time } from "./dom.js";
import { checkbox, choice, clearFaults, guardChanges, numberInput, pairs, Reading, showApiError, showFault, showFaults } from "./fields.js";
import { filePicker } from "./file_picker.js";
import { schemaEditor } from "./schema_editor.js";

const CHOSEN = "mini-assistant.assistant"; // what the chat begins with
const EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
const FORMATS = [
  ["auto", "As the model likes"],
  ["text", "Text"],
  ["json_object", "JSON"],
  ["json_schema", "JSON by a schema"],
];
const LEAVE = "What you changed has not been saved. Leave it?";

let draft = null; // a copy that is not saved yet, on its way to the form

/** Shows the list and, with an id, the form of one; the id `new` is a form for a new one. */
export async function show(main, id = null) {
  const address = location.hash;
  const assistants = await list("/assistants", { order: "desc" });
  const master = listOf(assistants, id);
  const detail = el("div", { class: "detail" });
  const split = el("div", { class: id ? "split open" : "split" }, master.element, detail);
  const create = el("a", { class: "button primary", href: "#/assistants/new" }, "New assistant");
  const frame = [el("div", { class: "toolbar" }, el("h1", {}, "Assistants"), create), split];
  if (!id) {
    const text = assistants.length ? "Choose an assistant, or make a new one." : "There is no assistant yet. Make the first one.";
    fill(detail, el("p", { class: "quiet" }, text));
    if (location.hash === address) fill(main, frame);
    return null;
  }
  let editor = null;
  const showEditor = async (assistant) => {
    editor = await editorOf(assistant, onSaved);
    fill(detail, el("a", { class: "back", href: "#/assistants" }, "← All assistants"), editor.element);
  };
  const onSaved = async (assistant) => {
    if (assistant.id !== id) {
      location.hash = hashOf(assistant);
      return;
    }
    master.replace(assistant);
    await showEditor(assistant);
    editor.focus();
  };
  const assistant = id === "new" ? { ...draft } : await get(`/assistants/${encodeURIComponent(id)}`);
  draft = null;
  await showEditor(assistant);
  if (location.hash !== address) return null; // another view is shown meanwhile
  fill(main, frame);
  return guardChanges(
    () => editor.isChanged(),
    () => confirmed(LEAVE, "Leave"),
  );
}

const titleOf = (assistant) => assistant.name || "Untitled assistant";
const hashOf = (assistant) => `#/assistants/${encodeURIComponent(assistant.id)}`;
const pathOf = (assistant) => `/assistants/${encodeURIComponent(assistant.id)}`;

function listOf(assistants, id) {
  const rows = el("ul", { class: "list" });
  const filter = el("input", { type: "search", autocomplete: "off", placeholder: "Name, model or id" });
  const showRows = () => {
    const wanted = filter.value.toLowerCase();
    const found = assistants.filter((one) => [one.name ?? "", one.model, one.id].some((text) => text.toLowerCase().includes(wanted)));
    fill(rows, found.map((one) => rowOf(one, one.id === id)));
  };
  filter.addEventListener("input", showRows);
  const replace = (changed) => {
    const place = assistants.findIndex((one) => one.id === changed.id);
    if (place >= 0) assistants[place] = changed;
    showRows();
  };
  showRows();
  const element = el("div", { class: "master column" }, assistants.length > 5 ? field("Find an assistant", filter) : null, rows);
  return { element, replace };
}

function rowOf(assistant, isCurrent) {
  const tools = assistant.tools.map((tool) => tool.function?.name ?? tool.server_label ?? tool.type.replace("_", " "));
  const detail = [assistant.model, ...tools].join(" · ");
  const words = [el("span", {}, titleOf(assistant)), el("small", { class: "quiet" }, detail)];
  return el("li", {}, el("a", { href: hashOf(assistant), "aria-current": isCurrent ? "page" : null }, words));
}

/** The form of an assistant, which has no id yet when it is new. onSaved gets what the API answers. */
async function editorOf(assistant, onSaved) {
  const isNew = !assistant.id;
  const parts = await partsOf(assistant);
  const state = () => JSON.stringify(read(parts, new Reading()));
  const saved = read(parts, new Reading());
  let kept = isNew && assistant.name ? "" : state(); // a copy is a change from the start
  let isLeft = false;
  const isChanged = () => !isLeft && state() !== kept;
  const changes = el("span", { class: "quiet", role: "status" });
  const showChanges = () => fill(changes, isChanged() ? "Not saved" : "");
  const save = button(isNew ? "Create" : "Save", null, { kind: "primary", type: "submit" });

  async function submit(event) {
    event.preventDefault();
    clearFaults(form);
    const reading = new Reading();
    const body = read(parts, reading);
    if (showFaults(reading)) return;
    save.disabled = true;
    try {
      const answer = isNew ? await post("/assistants", withoutEmpty(body)) : await post(pathOf(assistant), onlyChanged(body, saved));
      kept = state();
      notify(isNew ? "The assistant was created." : "The assistant was saved.");
      await onSaved(answer);
    } catch (error) {
      if (!showApiError(error, reading)) showFault(save, error.message);
    } finally {
      save.disabled = false;
    }
  }

  const leaveTo = (hash) => {
    isLeft = true;
    location.hash = hash;
  };
  const form = el("form", { class: "column wide-form", novalidate: true, autocomplete: "off", onsubmit: submit, oninput: showChanges });
  form.addEventListener("change", showChanges);
  form.append(el("h2", {}, isNew ? "New assistant" : titleOf(assistant)));
  if (!isNew) form.append(el("p", { class: "quiet" }, el("code", {}, assistant.id), " · created ", time(assistant.created_at)));
  const actions = isNew ? [] : actionsOf(assistant, isChanged, leaveTo);
  form.append(...parts.elements, el("div", { class: "row actions" }, save, actions, changes));
  showChanges();
  return { element: form, isChanged, focus: () => save.focus() };
}

function actionsOf(assistant, isChanged, leaveTo) {
  const chat = () => {
    sessionStorage.setItem(CHOSEN, assistant.id);
    location.hash = "#/threads/new";
  };
  const duplicate = async () => {
    if (isChanged() && !(await confirmed("The copy is made of what was saved; what you changed is lost.", "Duplicate"))) return;
    const { id, ...copied } = assistant;
    draft = { ...copied, name: `Copy of ${assistant.name || id}`.slice(0, 256) };
    leaveTo("#/assistants/new");
  };
  const remove = async () => {
    if (!(await confirmed(`Delete “${titleOf(assistant)}”? Its threads and runs stay.`))) return;
    await del(pathOf(assistant));
    notify("The assistant was deleted.");
    leaveTo("#/assistants");
  };
  return [button("Chat", chat), button("Duplicate", duplicate), button("Delete", remove, { kind: "danger" })];
}

/** Each field with its control, and the elements in their order. */
async function partsOf(assistant) {
  const [models, stores] = await Promise.all([get("/models"), list("/vector_stores", { order: "desc" })]);
  const resources = assistant.tool_resources ?? {};
  const text = (value, attributes) => el("input", { value: value ?? "", autocomplete: "off", ...attributes });
  const parts = {
    name: text(assistant.name, { maxlength: 256 }),
    description: text(assistant.description, { maxlength: 512 }),
    model: text(assistant.model ?? models.data[0]?.id, { list: "models-known", spellcheck: "false" }),
    instructions: el("textarea", { rows: 8 }),
    temperature: numberInput(assistant.temperature, { min: 0, max: 2, placeholder: "1" }),
    top_p: numberInput(assistant.top_p, { min: 0, max: 1, placeholder: "1" }),
    reasoning_effort: choice([["", "As the model likes"], ...EFFORTS], assistant.reasoning_effort ?? ""),
    response_format: formatEditor(assistant.response_format ?? "auto"),
    tools: toolsEditor(assistant.tools ?? []),
    store: storeChoice(stores, resources.file_search?.vector_store_ids?.[0] ?? ""),
    files: await filePicker("Files for the code interpreter", resources.code_interpreter?.file_ids ?? [], { hint: "At most 20." }),
    metadata: pairs("Metadata", assistant.metadata, { hint: "Up to 16 texts of your own." }),
  };
  parts.instructions.value = assistant.instructions ?? "";
  parts.elements = [
    el("datalist", { id: "models-known" }, models.data.map((model) => el("option", { value: model.id }))),
    field("Name", parts.name),
    field("Description", parts.description),
    field("Model", parts.model),
    field("Instructions", parts.instructions, "What the model is told before each conversation."),
    parts.tools.element,
    field("Vector store", parts.store, "What file search looks into, beside the thread's own files."),
    parts.files.element,
    modelSettings(parts),
    parts.metadata.element,
  ];
  return parts;
}

function modelSettings(parts) {
  return el(
    "fieldset",
    { class: "fields" },
    el("legend", {}, "Answers"),
    field("Temperature", parts.temperature, "0 to 2: how freely words are chosen."),
    field("Top p", parts.top_p, "0 to 1: how many of the likely words count."),
    field("Reasoning effort", parts.reasoning_effort),
    parts.response_format.element,
  );
}

function storeChoice(stores, chosen) {
  const options = stores.map((store) => [store.id, `${store.name || "Untitled store"} (${store.file_counts.total} files)`]);
  if (chosen && !stores.some((store) => store.id === chosen)) options.unshift([chosen, `${chosen} (not there any more)`]);
  return choice([["", "None"], ...options], chosen);
}

function formatEditor(format) {
  const schemaOf = format.json_schema ?? {};
  const kind = choice(FORMATS, format.type ?? "auto");
  const name = el("input", { value: schemaOf.name ?? "", maxlength: 64, autocomplete: "off", spellcheck: "false" });
  const description = el("input", { value: schemaOf.description ?? "", autocomplete: "off" });
  const strict = checkbox("Strict: answers follow the schema exactly", schemaOf.strict);
  const schema = schemaEditor("Schema of the answer", schemaOf.schema, { isStrict: () => strict.input.checked });
  strict.input.addEventListener("change", schema.check);
  const details = el(
    "div",
    { class: "column wide", hidden: kind.value !== "json_schema" },
    field("Schema name", name, "Letters, digits, “_” and “-”."),
    field("Schema description", description),
    strict.element,
    schema.element,
  );
  kind.addEventListener("change", () => (details.hidden = kind.value !== "json_schema"));

  function read(param, reading) {
    reading.at(param, kind);
    if (kind.value !== "json_schema") return kind.value === "auto" ? "auto" : { type: kind.value };
    const place = `${param}.json_schema`;
    const found = { name: reading.at(`${place}.name`, name).value };
    if (found.name === "") reading.fault(name, "The schema needs a name.");
    const said = reading.text(`${place}.description`, description);
    if (said !== null) found.description = said;
    const value = schema.read(`${place}.schema`, reading);
    if (value !== null) found.schema = value;
    found.strict = reading.at(`${place}.strict`, strict.input).checked;
    return { type: "json_schema", json_schema: found };
  }

  return { element: el("div", { class: "column wide" }, field("Form of answers", kind), details), read };
}

/** The body as the API takes it; what cannot be sent is noted in `reading`. */
function read(parts, reading) {
  const body = {
    model: reading.at("model", parts.model).value.trim(),
    name: reading.text("name", parts.name),
    description: reading.text("description", parts.description),
    instructions: reading.text("instructions", parts.instructions),
    tools: parts.tools.read("tools", reading),
    tool_resources: {},
    temperature: reading.number("temperature", parts.temperature),
    top_p: reading.number("top_p", parts.top_p),
    reasoning_effort: reading.text("reasoning_effort", parts.reasoning_effort),
    response_format: parts.response_format.read("response_format", reading),
    metadata: parts.metadata.read("metadata", reading),
  };
  if (body.model === "") reading.fault(parts.model, "An assistant needs a model.");
  const store = reading.at("tool_resources.file_search", parts.store).value;
  if (store) body.tool_resources.file_search = { vector_store_ids: [store] };
  const files = parts.files.read("tool_resources.code_interpreter.file_ids", reading);
  if (files.length) body.tool_resources.code_interpreter = { file_ids: files };
  return body;
}

const isEmpty = (value) => value === null || (typeof value === "object" && Object.keys(value).length === 0);

/** A new assistant without what is the default anyway. */
function withoutEmpty(body) {
  const isDefault = (name, value) => isEmpty(value) || (name === "response_format" && value === "auto");
  return Object.fromEntries(Object.entries(body).filter(([name, value]) => !isDefault(name, value)));
}

/** What is not as it was: what others have changed meanwhile in other fields stays. */
function onlyChanged(body, saved) {
  return Object.fromEntries(Object.entries(body).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(saved[name])));
}
