// A search in a vector store: the query, filters put together by hand, and the passages that were found.

import { post } from "./api.js";
import { button, el, field, fill } from "./dom.js";
import { changed, checkbox, choice, clearFaults, kindChoice, numberInput, Reading } from "./fields.js";
import { showApiError, showFault, showFaults, typedValue } from "./fields.js";

const OPERATORS = [
  ["eq", "is"],
  ["ne", "is not"],
  ["gt", ">"],
  ["gte", "≥"],
  ["lt", "<"],
  ["lte", "≤"],
  ["in", "is one of"],
  ["nin", "is none of"],
];
const COMBINATIONS = [
  ["and", "All of these hold"],
  ["or", "One of these holds"],
];

/** The search box of a vector store. */
export function searchOf(store) {
  const query = el("input", { type: "search", autocomplete: "off", maxlength: 10000 });
  const count = numberInput(null, { min: 1, max: 50, step: 1, placeholder: "10" });
  const threshold = numberInput(null, { min: 0, max: 1, placeholder: "0" });
  const ranker = choice(["auto", "none", "default-2024-11-15"], "auto");
  const rewrite = checkbox("Rewrite the query", false);
  const filters = filterGroup({ canNest: true });
  const json = el("pre", { class: "code", "aria-label": "Filters as JSON", tabindex: 0 });
  const results = el("div", { class: "found column", "aria-live": "polite" });
  const search = button("Search", null, { kind: "primary", type: "submit" });
  const showJson = () => {
    const filter = filters.read("filters", new Reading());
    fill(json, filter ? JSON.stringify(filter, null, 2) : "No filters");
  };

  function read(reading) {
    const body = { query: reading.at("query", query).value };
    if (body.query.trim() === "") reading.fault(query, "What is to be found?");
    const max = reading.number("max_num_results", count);
    if (max !== null) body.max_num_results = max;
    const score = reading.number("ranking_options.score_threshold", threshold);
    if (score !== null) body.ranking_options = { score_threshold: score };
    if (ranker.value !== "auto") body.ranking_options = { ...body.ranking_options, ranker: ranker.value };
    if (rewrite.input.checked) body.rewrite_query = true;
    const filter = filters.read("filters", reading);
    if (filter) body.filters = filter;
    return body;
  }

  async function submit(event) {
    event.preventDefault();
    clearFaults(form);
    const reading = new Reading();
    const body = read(reading);
    if (showFaults(reading)) return;
    search.disabled = true;
    try {
      showResults(results, await post(`/vector_stores/${encodeURIComponent(store.id)}/search`, body));
    } catch (error) {
      fill(results);
      if (!showApiError(error, reading)) showFault(query, error.message);
    } finally {
      search.disabled = false;
    }
  }

  const options = el(
    "details",
    {},
    el("summary", {}, "Options and filters"),
    el("div", { class: "fields" }, field("Results at most", count), field("Score threshold", threshold, "0 to 1"), field("Ranker", ranker)),
    rewrite.element,
    el("h3", {}, "Filters on attributes"),
    filters.element,
    json,
  );
  options.addEventListener("input", showJson);
  options.addEventListener("change", showJson);
  showJson();
  const box = el("div", { class: "search-box" }, field("Find passages", query), search);
  const form = el("form", { class: "column", novalidate: true, role: "search", onsubmit: submit }, box, options);
  return el("section", { class: "card column" }, el("h2", {}, "Search"), form, results);
}

function showResults(results, page) {
  const searched = page.search_query.join(" · ");
  const found = page.data.length === 1 ? "1 passage" : `${page.data.length} passages`;
  fill(
    results,
    el("p", { class: "quiet" }, `${found} for “${searched}”`),
    el("ol", { class: "found-passages" }, page.data.map(resultOf)),
  );
}

function resultOf(result) {
  const score = result.score.toFixed(3);
  const bar = el("div", { class: "bar" });
  bar.style.width = `${Math.round(Math.min(1, Math.max(0, result.score)) * 100)}%`;
  const place = result.page ? `page ${result.page}` : null; // servers that do not tell pages leave it out
  const attributes = Object.entries(result.attributes ?? {}).map(([key, value]) => el("span", { class: "badge" }, `${key}: ${value}`));
  return el(
    "li",
    { class: "found-passage" },
    el("div", { class: "row" }, el("strong", {}, result.filename), place ? el("span", { class: "quiet" }, place) : null, attributes),
    el("div", { class: "score" }, el("div", { class: "track", "aria-hidden": "true" }, bar), el("span", {}, `score ${score}`)),
    result.content.map((part) => el("blockquote", { tabindex: 0 }, part.text)),
  );
}

/**
 * Conditions that hold together or by choice, and, where it can nest, groups of such ones. Returns `{ element, read(param, reading) }`;
 * `read` gives the filter, null for none.
 */
function filterGroup({ canNest, onremove = null }) {
  const combination = choice(COMBINATIONS, "and", { "aria-label": "How the conditions are combined" });
  const rows = el("div", { class: "column" });
  const addCondition = button("Add condition", () => {
    const row = conditionRow(addCondition);
    rows.append(row);
    row.querySelector("input").focus();
    changed(rows);
  });
  const addGroup = button("Add group", () => {
    const group = filterGroup({
      canNest: false,
      onremove: () => {
        group.element.remove();
        changed(rows);
        addGroup.focus();
      },
    });
    group.element.read = group.read;
    rows.append(group.element);
    group.element.querySelector("button").focus();
    changed(rows);
  });
  const remove = onremove && button("Remove group", onremove);
  const element = el(
    "div",
    { class: "filter-group column", role: "group", "aria-label": canNest ? "Filters" : "Group of filters" },
    combination,
    rows,
    el("div", { class: "row" }, addCondition, canNest ? addGroup : null, remove),
  );

  function read(param, reading) {
    reading.at(param, addCondition);
    const filters = [...rows.children].map((row) => row.read(param, reading)).filter((filter) => filter !== null);
    if (filters.length === 0) return null;
    return filters.length === 1 ? filters[0] : { type: combination.value, filters };
  }

  return { element, read };
}

function conditionRow(focusAfter) {
  const key = el("input", { placeholder: "attribute", maxlength: 64, autocomplete: "off", "aria-label": "Attribute" });
  const operator = choice(OPERATORS, "eq", { "aria-label": "Comparison" });
  const kind = kindChoice();
  const value = el("input", { placeholder: "value", autocomplete: "off", "aria-label": "Value" });
  operator.addEventListener("change", () => {
    value.placeholder = isList() ? "values, with commas between" : "value";
  });
  const row = el("div", { class: "pair condition" }, key, operator, kind, value);
  row.append(
    button(
      "×",
      () => {
        const around = row.parentElement;
        row.remove();
        changed(around);
        focusAfter.focus();
      },
      { title: "Remove this condition" },
    ),
  );
  const isList = () => operator.value === "in" || operator.value === "nin";

  row.read = (param, reading) => {
    if (key.value === "" && value.value === "") return null;
    if (key.value === "") reading.fault(key, "Which attribute?");
    const texts = isList() ? value.value.split(",").map((text) => text.trim()) : [value.value];
    const values = texts.map((text) => typedValue(kind.value, text));
    if (values.includes(undefined)) reading.fault(value, kind.value === "number" ? "This is not a number." : "Write true or false.");
    return { type: operator.value, key: key.value, value: isList() ? values : values[0] };
  };
  return row;
}
