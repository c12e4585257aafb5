// An editor of JSON schemas: line numbers, where the JSON is wrong, and what of the schema a model could not follow.

import { button, el, field, fill } from "./dom.js";
import { changed, checkbox, choice } from "./fields.js";

const DEPTH_MAX = 200; // the API takes no more
const TYPES = ["string", "number", "integer", "boolean", "object", "array", "null"];
const WHITESPACE = /[ \t\n\r]*/y;
const LITERAL = /true|false|null/y;
const NUMBER = /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
const STRING = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
// Strict functions and response formats are a subset of JSON schema: these are not in it.
const NOT_STRICT = ["allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties"];

class Fault extends Error {
  constructor(message, offset) {
    super(message);
    this.offset = offset;
  }
}

/** The line and column of a place in a text, both from 1. */
export function lineAndColumn(text, offset) {
  const before = text.slice(0, offset);
  return { line: before.split("\n").length, column: offset - before.lastIndexOf("\n") };
}

/**
 * Reads JSON. Returns `{ value, offsets }`, where `offsets` has the place of each value by its path (`properties.city.type`), or
 * `{ error: { message, line, column, offset } }`. What browsers themselves say of wrong JSON differs, and often names no place.
 */
export function parseJson(text) {
  const offsets = new Map();
  try {
    const end = readValue(text, 0, "", offsets, 0);
    const rest = skip(text, end);
    if (rest < text.length) throw new Fault("Nothing may follow the value", rest);
  } catch (fault) {
    if (!(fault instanceof Fault)) throw fault;
    return { error: { message: fault.message, offset: fault.offset, ...lineAndColumn(text, fault.offset) } };
  }
  return { value: JSON.parse(text), offsets };
}

function match(pattern, text, offset) {
  pattern.lastIndex = offset;
  return pattern.exec(text)?.[0] ?? null;
}

const skip = (text, offset) => offset + match(WHITESPACE, text, offset).length;

function readValue(text, from, path, offsets, depth) {
  const start = skip(text, from);
  offsets.set(path, start);
  if (depth > DEPTH_MAX) throw new Fault("It is nested too deeply", start);
  if (start >= text.length) throw new Fault("A value is missing", start);
  if (text[start] === "{") return readMembers(text, start, path, offsets, depth);
  if (text[start] === "[") return readItems(text, start, path, offsets, depth);
  if (text[start] === '"') return readString(text, start);
  const scalar = match(LITERAL, text, start) ?? match(NUMBER, text, start);
  if (scalar === null) throw new Fault(`“${text[start]}” cannot begin a value`, start);
  return start + scalar.length;
}

function readString(text, start) {
  const string = match(STRING, text, start);
  if (string === null) throw new Fault("This text is not closed, or has a character that must be escaped", start);
  return start + string.length;
}

function readMembers(text, start, path, offsets, depth) {
  const names = new Set();
  let at = skip(text, start + 1);
  if (text[at] === "}") return at + 1;
  for (;;) {
    if (text[at] !== '"') throw new Fault("A name in double quotes is missing", at);
    const end = readString(text, at);
    const name = JSON.parse(text.slice(at, end));
    if (names.has(name)) throw new Fault(`“${name}” is there twice`, at);
    names.add(name);
    const colon = skip(text, end);
    if (text[colon] !== ":") throw new Fault("A colon is missing", colon);
    at = skip(text, readValue(text, colon + 1, path ? `${path}.${name}` : name, offsets, depth + 1));
    if (text[at] === "}") return at + 1;
    if (text[at] !== ",") throw new Fault("A comma or “}” is missing", at);
    at = skip(text, at + 1);
  }
}

function readItems(text, start, path, offsets, depth) {
  let at = skip(text, start + 1);
  if (text[at] === "]") return at + 1;
  for (let place = 0; ; place += 1) {
    at = skip(text, readValue(text, at, `${path}[${place}]`, offsets, depth + 1));
    if (text[at] === "]") return at + 1;
    if (text[at] !== ",") throw new Fault("A comma or “]” is missing", at);
    at += 1;
  }
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const joined = (path, name) => (path ? `${path}.${name}` : name);

/** What a model could not follow in the schema of a function's parameters or of an answer: a list of `{ path, message }`. */
export function checkSchema(schema, { isStrict = false } = {}) {
  const problems = [];
  const tell = (path, message) => problems.push({ path, message });
  if (!isObject(schema)) return [{ path: "", message: 'The schema must be an object, such as {"type": "object"}.' }];
  if (schema.type !== "object") tell("", 'The type at the top must be "object".');
  if (isStrict && schema.anyOf) tell("anyOf", 'A strict schema cannot have "anyOf" at the top.');
  checkNode(schema, "", isStrict, tell);
  return problems;
}

function checkNode(schema, path, isStrict, tell) {
  if (typeof schema === "boolean" && !isStrict) return;
  if (!isObject(schema)) {
    tell(path, "A schema must be an object.");
    return;
  }
  checkType(schema, path, isStrict, tell);
  checkEnum(schema, path, tell);
  checkProperties(schema, path, isStrict, tell);
  if (isStrict) for (const name of NOT_STRICT) if (name in schema) tell(joined(path, name), `A strict schema cannot have "${name}".`);
  for (const name of ["properties", "$defs", "definitions"]) {
    if (!isObject(schema[name])) continue;
    for (const [key, inner] of Object.entries(schema[name])) checkNode(inner, `${joined(path, name)}.${key}`, isStrict, tell);
  }
  if ("items" in schema) checkNode(schema.items, joined(path, "items"), isStrict, tell);
  for (const name of ["anyOf", "oneOf", "allOf"]) {
    if (!(name in schema)) continue;
    if (!Array.isArray(schema[name]) || schema[name].length === 0) tell(joined(path, name), `"${name}" must be a list of schemas.`);
    else schema[name].forEach((inner, place) => checkNode(inner, `${joined(path, name)}[${place}]`, isStrict, tell));
  }
}

function checkType(schema, path, isStrict, tell) {
  const types = Array.isArray(schema.type) ? schema.type : [schema.type];
  const isElsewhere = ["$ref", "anyOf", "oneOf", "allOf", "enum", "const"].some((name) => name in schema);
  if (schema.type === undefined) {
    if (path && isStrict && !isElsewhere) tell(path, 'A "type" is missing.');
    return;
  }
  for (const type of types) {
    if (!TYPES.includes(type)) tell(joined(path, "type"), `${JSON.stringify(type)} is no type. Types are ${TYPES.join(", ")}.`);
  }
  if (isStrict && types.includes("array") && !("items" in schema)) tell(path, 'A strict array needs "items".');
}

function checkEnum(schema, path, tell) {
  if (!("enum" in schema)) return;
  if (!Array.isArray(schema.enum) || schema.enum.length === 0) {
    tell(joined(path, "enum"), '"enum" must be a list of values.');
    return;
  }
  const types = schema.type === undefined ? [] : [schema.type].flat();
  if (types.length === 0 || !types.every((type) => TYPES.includes(type))) return;
  schema.enum.forEach((value, place) => {
    if (types.some((type) => isOfType(value, type))) return;
    tell(`${joined(path, "enum")}[${place}]`, `${JSON.stringify(value)} is not of the type "${types.join('" or "')}".`);
  });
}

function isOfType(value, type) {
  if (type === "null") return value === null;
  if (type === "array") return Array.isArray(value);
  if (type === "object") return isObject(value);
  if (type === "integer") return Number.isInteger(value);
  return typeof value === type;
}

function checkProperties(schema, path, isStrict, tell) {
  const types = [schema.type].flat();
  if ("properties" in schema && !isObject(schema.properties)) tell(joined(path, "properties"), '"properties" must be an object.');
  const names = isObject(schema.properties) ? Object.keys(schema.properties) : [];
  const required = schema.required ?? [];
  if (!Array.isArray(required)) {
    tell(joined(path, "required"), '"required" must be a list of names.');
    return;
  }
  required.forEach((name, place) => {
    if (!names.includes(name)) tell(`${joined(path, "required")}[${place}]`, `"${name}" is required, but is no property.`);
  });
  if (!isStrict || !types.includes("object")) return;
  if (schema.additionalProperties !== false) tell(path, 'A strict object needs "additionalProperties": false.');
  for (const name of names) {
    if (!required.includes(name)) tell(`${joined(path, "properties")}.${name}`, `A strict schema needs "${name}" in "required".`);
  }
}

/**
 * The editor. value: the schema, null for none; isStrict: a function that says which rules hold. Returns
 * `{ element, read(param, reading), check() }`; `check` is to be called when what `isStrict` says has changed.
 */
export function schemaEditor(label, value, { isStrict = () => false } = {}) {
  const numbers = el("pre", { class: "line-numbers", "aria-hidden": "true" });
  const input = el("textarea", { class: "code", wrap: "off", spellcheck: "false", autocomplete: "off", autocapitalize: "off", rows: 12 });
  const verdict = el("div", { class: "verdict", role: "status" });
  input.value = value === null || value === undefined ? "" : JSON.stringify(value, null, 2);
  const text = field(label, input);
  const written = text.querySelector("label");
  text.replaceChildren(written, el("div", { class: "numbered" }, numbers, input), verdict);

  function goTo(offset) {
    input.focus();
    input.setSelectionRange(offset, offset);
    const lines = input.value.split("\n").length;
    input.scrollTop = Math.max(0, (lineAndColumn(input.value, offset).line - 3) * (input.scrollHeight / lines));
  }

  function check() {
    numbers.textContent = Array.from({ length: input.value.split("\n").length }, (_, place) => place + 1).join("\n");
    numbers.scrollTop = input.scrollTop;
    showVerdict(verdict, input.value, isStrict(), goTo);
  }

  function format() {
    const { value: parsed, error } = parseJson(input.value);
    if (error) {
      goTo(error.offset);
      return;
    }
    input.value = JSON.stringify(parsed, null, 2);
    changed(input);
  }

  input.addEventListener("input", check);
  input.addEventListener("scroll", () => (numbers.scrollTop = input.scrollTop));
  check();
  const tools = el("div", { class: "row" }, button("Format", format));
  const element = el("div", { class: "schema-editor column" }, text, tools, propertyForm(input, isStrict));
  return { element, check, read: (param, reading) => readSchema(input, param, reading) };
}

function readSchema(input, param, reading) {
  reading.at(param, input);
  if (input.value.trim() === "") return null;
  const { value, error } = parseJson(input.value);
  if (error) reading.fault(input, `${error.message} (line ${error.line}, column ${error.column}).`);
  else if (!isObject(value)) reading.fault(input, "The schema must be an object.");
  else return value;
  return { "": input.value }; // not sent, but another text is another schema
}

function showVerdict(verdict, text, isStrict, goTo) {
  if (text.trim() === "") {
    fill(verdict, el("p", { class: "quiet" }, "No schema: anything goes."));
    return;
  }
  const { value, offsets, error } = parseJson(text);
  if (error) {
    const place = `Line ${error.line}, column ${error.column}`;
    fill(verdict, el("p", { class: "error" }, button(place, () => goTo(error.offset), { kind: "place" }), ` ${error.message}.`));
    return;
  }
  const problems = checkSchema(value, { isStrict });
  if (problems.length === 0) {
    fill(verdict, el("p", { class: "good" }, isStrict ? "Valid strict schema." : "Valid schema."));
    return;
  }
  const shown = problems.slice(0, 20).map(({ path, message }) => {
    const offset = offsets.get(path) ?? 0;
    const line = button(`Line ${lineAndColumn(text, offset).line}`, () => goTo(offset), { kind: "place" });
    return el("li", {}, line, ` ${path ? `${path}: ` : ""}${message}`);
  });
  const more = problems.length > shown.length ? el("p", { class: "quiet" }, `And ${problems.length - shown.length} more.`) : null;
  fill(verdict, el("ul", { class: "problems" }, shown), more);
}

function propertyForm(input, isStrict) {
  const name = el("input", { autocomplete: "off", spellcheck: "false" });
  const type = choice(TYPES, "string");
  const description = el("input", { autocomplete: "off" });
  const values = el("input", { autocomplete: "off", placeholder: "celsius, fahrenheit" });
  const required = checkbox("Required", true);
  const told = el("p", { class: "quiet", role: "status" });

  function insert() {
    const { value, error } = parseJson(input.value.trim() === "" ? '{"type": "object", "properties": {}}' : input.value);
    if (error || !isObject(value)) {
      fill(told, "Correct the JSON first.");
      return;
    }
    if (name.value === "") {
      fill(told, "A property needs a name.");
      name.focus();
      return;
    }
    const property = newProperty(type.value, description.value, values.value);
    if (property.enum?.some(Number.isNaN)) {
      fill(told, "The values must be numbers.");
      values.focus();
      return;
    }
    input.value = JSON.stringify(withProperty(value, name.value, property, required.input.checked, isStrict()), null, 2);
    fill(told, `“${name.value}” was inserted.`);
    name.value = "";
    description.value = "";
    values.value = "";
    name.focus();
    changed(input);
  }

  const form = el(
    "div",
    {
      class: "property-form",
      onkeydown: (event) => {
        if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
        event.preventDefault(); // it would send the form around this one
        insert();
      },
      oninput: (event) => event.stopPropagation(), // not a part of the assistant until it is inserted
    },
    field("Name", name),
    field("Type", type),
    field("Description", description),
    field("Only these values", values, "With commas between; empty for any."),
    el("div", { class: "row" }, required.element, button("Insert", insert)),
    told,
  );
  return el("details", {}, el("summary", {}, "Insert a property"), form);
}

function newProperty(type, description, values) {
  const property = { type };
  if (description) property.description = description;
  if (type === "array") property.items = { type: "string" };
  if (type === "object") Object.assign(property, { properties: {}, required: [], additionalProperties: false });
  const listed = values.split(",").map((text) => text.trim());
  const allowed = listed.filter((text) => text !== "").map((text) => (type === "number" || type === "integer" ? Number(text) : text));
  if (allowed.length) property.enum = allowed;
  return property;
}

/** A schema with one more property. */
export function withProperty(schema, name, property, isRequired, isStrict) {
  const whole = { ...schema, type: "object", properties: { ...schema.properties, [name]: property } };
  const others = (Array.isArray(schema.required) ? schema.required : []).filter((other) => other !== name);
  if (isRequired || others.length || schema.required) whole.required = isRequired ? [...others, name] : others;
  if (isStrict) whole.additionalProperties = false;
  return whole;
}
