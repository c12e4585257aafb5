// Colours for code in Python, JavaScript, JSON, shell and SQL: a small tokenizer that knows words, strings, numbers and comments.

import { el } from "./dom.js";

const CHARACTERS_MAX = 60_000; // more is shown without colours: each token is an element
const NUMBER = String.raw`\b(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\b`;
const DOUBLE = String.raw`"[^"\\\n]*(?:\\[^][^"\\\n]*)*"?`;
const SINGLE = String.raw`'[^'\\\n]*(?:\\[^][^'\\\n]*)*'?`;
const words = (text) => text.split(" ");

const PYTHON = {
  string: String.raw`(?:\b[rbfuRBFU]{1,2})?(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|${DOUBLE}|${SINGLE})`,
  comment: "#[^\\n]*",
  keywords: words(
    "and as assert async await break case class continue def del elif else except False finally for from global if import in " +
      "is lambda match None nonlocal not or pass raise return self True try while with yield",
  ),
};
const JAVASCRIPT = {
  string: String.raw`${DOUBLE}|${SINGLE}|` + "`[^`\\\\]*(?:\\\\[^][^`\\\\]*)*`?",
  comment: String.raw`\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)`,
  keywords: words(
    "async await break case catch class const continue debugger default delete do else enum export extends false finally for " +
      "from function if implements import in instanceof interface let new null of return static super switch this throw true " +
      "try type typeof undefined var void while yield",
  ),
};
const JSON_TEXT = { string: DOUBLE, comment: null, keywords: words("true false null") };
const SHELL = {
  string: String.raw`"[^"\\]*(?:\\[^][^"\\]*)*"?|'[^']*'?`,
  comment: String.raw`(?<=^|\s)#[^\n]*`,
  keywords: words(
    "case cd curl do done echo elif else esac exit export fi for function grep if in local pip python read return sed set " +
      "source sudo then unset until while",
  ),
};
const SQL = {
  string: String.raw`'[^']*(?:''[^']*)*'?|"[^"]*"?`,
  comment: String.raw`--[^\n]*|\/\*[^]*?(?:\*\/|$)`,
  ignoresCase: true,
  keywords: words(
    "add all alter and as asc between by case check column create cross database default delete desc distinct drop else end " +
      "exists foreign from full group having if in index inner insert into is join key left like limit not null offset on or " +
      "order outer primary references returning right select set table then union unique update using values view when where " +
      "with",
  ),
};
const LANGUAGES = {
  ...{ python: PYTHON, py: PYTHON, python3: PYTHON },
  ...{ javascript: JAVASCRIPT, js: JAVASCRIPT, jsx: JAVASCRIPT, mjs: JAVASCRIPT, typescript: JAVASCRIPT, ts: JAVASCRIPT, tsx: JAVASCRIPT },
  ...{ json: JSON_TEXT, jsonl: JSON_TEXT },
  ...{ bash: SHELL, sh: SHELL, shell: SHELL, zsh: SHELL, console: SHELL },
  ...{ sql: SQL, sqlite: SQL, postgresql: SQL },
};
const patterns = new Map();

function patternOf(language) {
  if (!patterns.has(language)) {
    const kinds = [
      language.comment && `(?<comment>${language.comment})`,
      `(?<string>${language.string})`,
      `(?<number>${NUMBER})`,
      "(?<word>[A-Za-z_$][\\w$]*)",
    ];
    patterns.set(language, new RegExp(kinds.filter(Boolean).join("|"), "g"));
  }
  return patterns.get(language);
}

/** The parts of some code: texts, and elements of the classes `token-keyword`, `-string`, `-number`, `-comment` and `-call`. */
export function highlight(code, name = "") {
  const language = Object.hasOwn(LANGUAGES, name.toLowerCase()) ? LANGUAGES[name.toLowerCase()] : null;
  if (language === null || code.length > CHARACTERS_MAX) return [code];
  const parts = [];
  let end = 0;
  for (const found of code.matchAll(patternOf(language))) {
    const kind = kindOf(found, language, code);
    if (kind === null) continue;
    if (found.index > end) parts.push(code.slice(end, found.index));
    parts.push(el("span", { class: `token-${kind}` }, found[0]));
    end = found.index + found[0].length;
  }
  if (end < code.length) parts.push(code.slice(end));
  return parts;
}

function kindOf(found, language, code) {
  const { comment, string, number, word } = found.groups;
  if (comment !== undefined) return "comment";
  if (string !== undefined) return "string";
  if (number !== undefined) return "number";
  if (language.keywords.includes(language.ignoresCase ? word.toLowerCase() : word)) return "keyword";
  return code[found.index + word.length] === "(" ? "call" : null;
}
