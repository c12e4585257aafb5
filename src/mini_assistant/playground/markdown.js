// Markdown to elements. Text stays text: HTML in it is shown as it is written, links lead to http and https only, and nothing is loaded.
// Every step takes time in proportion to the text, and nesting has an end, so a hostile answer cannot hold up the page.
//
// A text may have holes: places that are something else than text, such as a citation. `withHoles` of citations.js puts them in as
// HOLE_BEGIN, a number and HOLE_END. A hole has `text` (what stood there), `node()`, and `link(children)` or null.

import { button, el } from "./dom.js";
import { highlight } from "./highlight.js";

export const HOLE_BEGIN = "\uE000";
export const HOLE_END = "\uE001";

const NESTING_MAX = 10;
const OPENERS_MAX = 16;
const COLUMNS_MAX = 60;
const URL_CHARACTERS_MAX = 2048;
const ENTITIES = { "&lt;": "<", "&gt;": ">", "&amp;": "&", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00A0" };

const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const HOLE = new RegExp(`${HOLE_BEGIN}(\\d{1,6})${HOLE_END}`, "g");

/** The address of a link when it leads to http or https, else null. */
export function safeAddress(text) {
  if (text.length > URL_CHARACTERS_MAX || !/^https?:\/\//i.test(text)) return null;
  try {
    const address = new URL(text);
    return address.protocol === "http:" || address.protocol === "https:" ? address.href : null;
  } catch {
    return null;
  }
}

/** The elements of a text. */
export function render(source, holes = []) {
  return blocksOf(linesOf(source)).flatMap((block) => blockNodes(block, holes, 0));
}

/** An element that shows a text which grows: what has not changed since the last `update` keeps its elements, and with them the focus. */
export class GrowingText {
  constructor() {
    this.element = el("div", { class: "markdown" });
    this.shown = []; // the source and the nodes of each block
  }

  update(source, holes = []) {
    const blocks = blocksOf(linesOf(source)).map((block) => ({ block, source: block.lines.join("\n") }));
    let same = 0;
    while (same < blocks.length && same < this.shown.length && this.shown[same].source === blocks[same].source) same += 1;
    for (const { nodes } of this.shown.splice(same)) for (const node of nodes) node.remove();
    for (const { block, source: text } of blocks.slice(same)) {
      const nodes = blockNodes(block, holes, 0);
      this.element.append(...nodes);
      this.shown.push({ source: text, nodes });
    }
  }
}

/** An element with children one after the other: as arguments of one call, a hundred thousand of them would be too many. */
function filled(element, children) {
  for (const child of children) element.append(child);
  return element;
}

function linesOf(source) {
  return source.replace(/\r\n?/g, "\n").split("\n");
}

// ---- blocks

function indentOf(line) {
  let width = 0;
  while (line[width] === " ") width += 1;
  return width;
}

function isRule(line) {
  const bare = line.replace(/[ \t]/g, "");
  return bare.length >= 3 && "-*_".includes(bare[0]) && bare === bare[0].repeat(bare.length);
}

function isHeading(line) {
  return /^ {0,3}#{1,6}(?:[ \t]|$)/.test(line);
}

function isQuote(line) {
  return /^ {0,3}>/.test(line);
}

function isTableAt(lines, at) {
  const next = lines[at + 1];
  if (next === undefined || !lines[at].includes("|") || !next.includes("-") || !/^[\s|:-]+$/.test(next)) return false;
  const columns = cellsOf(lines[at]).length;
  return columns <= COLUMNS_MAX && columns === cellsOf(next).length;
}

/** Whether a line ends the paragraph before it. */
function begins(lines, at) {
  const line = lines[at];
  if (FENCE.test(line) || isHeading(line) || isQuote(line) || isRule(line)) return true;
  const item = ITEM.exec(line);
  if (item && item[3] && item[1].length <= 3 && (item[2].length === 1 || item[2].startsWith("1"))) return true;
  return isTableAt(lines, at);
}

function blocksOf(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const [kind, end] = blockAt(lines, at);
    blocks.push({ kind, lines: lines.slice(at, end) });
    at = end;
  }
  return blocks;
}

/** The kind of the block that begins in a line, and the line behind it. */
function blockAt(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence && !(fence[1][0] === "`" && fence[2].includes("`"))) return ["code", fenceEnd(lines, at, fence[1])];
  if (isHeading(line)) return ["heading", at + 1];
  if (isRule(line)) return ["rule", at + 1];
  let end = at + 1;
  if (isQuote(line)) {
    while (end < lines.length && isQuote(lines[end])) end += 1;
    return ["quote", end];
  }
  if (ITEM.test(line)) return ["list", listEnd(lines, at)];
  if (isTableAt(lines, at)) {
    while (end < lines.length && lines[end].includes("|") && lines[end].trim() !== "") end += 1;
    return ["table", end];
  }
  while (end < lines.length && lines[end].trim() !== "" && !begins(lines, end)) end += 1;
  return ["paragraph", end];
}

function fenceEnd(lines, at, mark) {
  for (let end = at + 1; end < lines.length; end += 1) {
    const line = lines[end].trim();
    if (line.length >= mark.length && line === mark[0].repeat(line.length)) return end + 1;
  }
  return lines.length;
}

function isOrdered(marker) {
  return marker.length > 1;
}

function listEnd(lines, at) {
  const first = ITEM.exec(lines[at]);
  const base = first[1].length;
  let end = at + 1;
  for (let next = at + 1; next < lines.length; next += 1) {
    const line = lines[next];
    if (line.trim() === "") continue;
    const isAfterBlank = next > end;
    const item = ITEM.exec(line);
    const isSibling = item !== null && item[1].length >= base && (item[1].length > base + 1 || isOrdered(item[2]) === isOrdered(first[2]));
    const isInside = indentOf(line) >= base + 2;
    const isLazy = !isAfterBlank && !begins(lines, next);
    if (isRule(line) || !(isSibling || isInside || isLazy)) break;
    end = next + 1;
  }
  return end;
}

function blockNodes(block, holes, depth) {
  const { kind, lines } = block;
  if (depth > NESTING_MAX) return [el("p", { class: "plain" }, withoutHoles(lines.join("\n"), holes))];
  if (kind === "code") return [codeNode(lines, holes)];
  if (kind === "heading") return [headingNode(lines[0].trim(), holes)];
  if (kind === "rule") return [el("hr")];
  if (kind === "quote") {
    const inner = blocksOf(lines.map((line) => line.replace(/^ {0,3}> ?/, "")));
    return [filled(el("blockquote"), inner.flatMap((one) => blockNodes(one, holes, depth + 1)))];
  }
  if (kind === "list") return [listNode(lines, holes, depth)];
  if (kind === "table") return [tableNode(lines, holes)];
  return [filled(el("p"), inline(lines.map((line) => line.trimStart()).join("\n"), holes))];
}

function headingNode(line, holes) {
  let level = 0;
  while (line[level] === "#") level += 1;
  let end = line.length;
  while (end > level && line[end - 1] === "#") end -= 1;
  // An answer stands below the page's own headings.
  return filled(el(`h${Math.min(6, level + 2)}`), inline(line.slice(level, end).trim(), holes));
}

function codeNode(lines, holes) {
  const [, mark, info] = FENCE.exec(lines[0]);
  const last = lines.length > 1 ? lines.at(-1).trim() : "";
  const isClosed = last.length >= mark.length && last === mark[0].repeat(last.length);
  const text = withoutHoles(lines.slice(1, isClosed ? -1 : undefined).join("\n"), holes);
  return new CodeBlock(withoutHoles(info.trim().split(/\s/)[0], holes)).update(text).element;
}

/** Code with its language and a button that copies it. The code may grow: `update` again. */
export class CodeBlock {
  constructor(language = "") {
    this.language = language;
    this.text = "";
    this.code = el("code");
    const copy = button("Copy", async () => {
      await navigator.clipboard.writeText(this.text);
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    });
    this.element = el(
      "div",
      { class: "code-block" },
      el("div", { class: "code-head" }, el("span", { class: "quiet" }, language.slice(0, 40) || "text"), copy),
      el("pre", { class: "code", tabindex: "0", role: "group", "aria-label": "Code" }, this.code),
    );
  }

  update(text) {
    if (text === this.text) return this;
    this.text = text;
    this.code.textContent = "";
    filled(this.code, highlight(text, this.language));
    return this;
  }
}

function listNode(lines, holes, depth) {
  const [, base, marker] = ITEM.exec(lines[0]);
  const items = [];
  let inner = 0; // how far the text of the current item is indented
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && (items.length === 0 || (item[1].length <= base.length + 1 && item[1].length < inner && !isRule(line)))) {
      inner = item[0].length + (item[3] ? 0 : 1);
      if (item[3].length > 4) inner -= item[3].length - 1;
      items.push([line.slice(inner)]);
    } else {
      items.at(-1).push(line.slice(Math.min(indentOf(line), inner)));
    }
  }
  const start = isOrdered(marker) ? Number.parseInt(marker, 10) : 1;
  return filled(
    el(isOrdered(marker) ? "ol" : "ul", { start: start === 1 ? null : start }),
    items.map((content) => filled(el("li"), itemNodes(content, holes, depth))),
  );
}

function itemNodes(lines, holes, depth) {
  const task = /^\[([ xX])\] /.exec(lines[0]);
  const content = task ? [`${task[1] === " " ? "☐" : "☑"} ${lines[0].slice(4)}`, ...lines.slice(1)] : lines;
  const blocks = blocksOf(content);
  const isTight = blocks.filter((block) => block.kind === "paragraph").length <= 1;
  return blocks.flatMap((block) => {
    const nodes = blockNodes(block, holes, depth + 1);
    return isTight && block.kind === "paragraph" ? [...nodes[0].childNodes] : nodes;
  });
}

function cellsOf(line) {
  const text = line.trim();
  const cells = [];
  let begin = text.startsWith("|") ? 1 : 0;
  let at = begin;
  for (; at < text.length; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "|") {
      cells.push(text.slice(begin, at).trim());
      begin = at + 1;
    }
  }
  if (text.slice(begin).trim() !== "" || cells.length === 0) cells.push(text.slice(begin).trim());
  return cells;
}

function tableNode(lines, holes) {
  const sides = cellsOf(lines[1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : null));
  const row = (line, tag) =>
    el(
      "tr",
      {},
      cellsOf(line)
        .slice(0, sides.length)
        .map((cell, column) => filled(el(tag, { class: sides[column], scope: tag === "th" ? "col" : null }), inline(cell, holes))),
    );
  const body = lines.slice(2).map((line) => row(line, "td"));
  // It may be wider than the page, and what scrolls has to be reached by the keyboard.
  return el(
    "div",
    { class: "table-frame", tabindex: "0", role: "group", "aria-label": "Table" },
    el("table", { class: "table" }, el("thead", {}, row(lines[0], "th")), filled(el("tbody"), body)),
  );
}

// ---- text within a block

/** The text with what stood in the places of its holes. */
function withoutHoles(text, holes) {
  return text.replace(HOLE, (whole, number) => holes[Number(number)]?.text ?? whole);
}

function inline(text, holes) {
  return new Inline(text, holes).nodes();
}

const PLAIN = /[^\\`*_~[\]!<&:\n\uE000]+/y;
const LINK_END = /\(\s{0,4}<?((?:[^\s()<>]|\([^\s()<>]*\))*)>?(?:\s{1,4}"[^"\n]*")?\s{0,4}\)/y;
const SCHEME = /(?:^|\W)(https?)$/i;
const BARE_ADDRESS = /:\/\/[^\s<>"'`[\]\uE000]+/y;
const TAG_ADDRESS = /<(https?:\/\/[^\s<>\uE000]+)>/y;
const LINE_BREAK = /<br ?\/?>/iy;
const ENTITY = /&(?:lt|gt|amp|quot|#39|nbsp);/y;
const HOLE_HERE = new RegExp(HOLE.source, "y");

/** Reads a text once, from left to right. What may turn out to be the beginning of something waits in `openers` or `brackets`. */
class Inline {
  constructor(text, holes) {
    this.text = text;
    this.holes = holes;
    this.at = 0;
    this.out = []; // nodes and texts
    this.plain = ""; // text that is not yet in `out`
    this.openers = []; // of emphasis: `{ mark, length, place }`, place in `out`
    this.brackets = []; // places in `out`
    this.ticks = null;
  }

  nodes() {
    while (this.at < this.text.length) this.step();
    this.flush();
    return this.out;
  }

  step() {
    const plain = this.match(PLAIN);
    if (plain) {
      this.plain += plain[0];
      return;
    }
    const character = this.text[this.at];
    if (character === "\\") this.escaped();
    else if (character === "`") this.codeSpan();
    else if (character === "*" || character === "_" || character === "~") this.emphasis(character);
    else if (character === "[") this.bracket(1);
    else if (character === "!" && this.text[this.at + 1] === "[") this.bracket(2); // images are not loaded: a link with their text
    else if (character === "]") this.link();
    else if (character === ":") this.bareAddress();
    else if (character === "\n") this.lineBreak();
    else if (!this.other()) this.take(1);
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found) this.at = pattern.lastIndex;
    return found;
  }

  take(count) {
    this.plain += this.text.slice(this.at, this.at + count);
    this.at += count;
  }

  flush() {
    if (this.plain) this.out.push(this.plain);
    this.plain = "";
  }

  push(node) {
    this.flush();
    this.out.push(node);
  }

  escaped() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "\n") {
      this.at += 1;
      return;
    }
    if (/[!-/:-@[-`{-~]/.test(next)) this.at += 1;
    this.take(1);
  }

  lineBreak() {
    this.plain = this.plain.trimEnd();
    this.push(el("br"));
    this.at += 1;
  }

  other() {
    const hole = this.match(HOLE_HERE);
    if (hole) {
      const known = this.holes[Number(hole[1])];
      this.push(known ? known.node() : "");
      return true;
    }
    const entity = this.match(ENTITY);
    if (entity) {
      this.plain += ENTITIES[entity[0]];
      return true;
    }
    if (this.match(LINE_BREAK)) {
      this.push(el("br"));
      return true;
    }
    const address = this.match(TAG_ADDRESS);
    if (address) this.push(linkNode(address[1], [address[1]]));
    return address !== null;
  }

  codeSpan() {
    let end = this.at;
    while (this.text[end] === "`") end += 1;
    const length = end - this.at;
    const close = this.closingTicks(length, end);
    if (close === -1) {
      this.take(length);
      return;
    }
    let code = withoutHoles(this.text.slice(end, close), this.holes).replaceAll("\n", " ");
    if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
    this.push(el("code", {}, code));
    this.at = close + length;
  }

  /** Where the next run of so many backticks begins. All runs are looked up once. */
  closingTicks(length, from) {
    if (this.ticks === null) {
      this.ticks = new Map();
      for (const run of this.text.matchAll(/`+/g)) {
        if (!this.ticks.has(run[0].length)) this.ticks.set(run[0].length, { next: 0, places: [] });
        this.ticks.get(run[0].length).places.push(run.index);
      }
    }
    const runs = this.ticks.get(length);
    while (runs && runs.next < runs.places.length && runs.places[runs.next] < from) runs.next += 1;
    return runs?.places[runs.next] ?? -1;
  }

  bareAddress() {
    const scheme = SCHEME.exec(this.text.slice(Math.max(0, this.at - 6), this.at));
    const found = scheme ? this.match(BARE_ADDRESS) : null;
    if (!found) {
      this.take(1);
      return;
    }
    const rest = found[0];
    const ends = rest.includes("(") ? ".,:;!?*_~|" : ".,:;!?*_~|)"; // what closes or ends the sentence around an address
    let end = rest.length;
    while (end > 3 && ends.includes(rest[end - 1])) end -= 1;
    this.at -= rest.length - end;
    this.plain = this.plain.slice(0, -scheme[1].length);
    const address = scheme[1] + rest.slice(0, end);
    this.push(linkNode(address, [address]));
  }

  bracket(length) {
    this.flush();
    this.brackets.push(this.out.length);
    this.out.push(this.text.slice(this.at, this.at + length));
    this.at += length;
  }

  link() {
    const place = this.brackets.pop();
    this.at += 1;
    if (place === undefined || this.text[this.at] !== "(") {
      this.plain += "]";
      return;
    }
    const found = this.linkEnd();
    if (found === null) {
      this.plain += "]";
      return;
    }
    this.at += found[0].length;
    this.flush();
    const children = this.out.splice(place).slice(1);
    this.openers = this.openers.filter((opener) => opener.place < place);
    this.brackets = []; // links do not stand in links
    this.out.push(this.linkTo(found[1], children));
  }

  linkEnd() {
    const ahead = this.text.slice(this.at, this.at + URL_CHARACTERS_MAX);
    LINK_END.lastIndex = 0;
    return LINK_END.exec(ahead);
  }

  linkTo(target, children) {
    HOLE_HERE.lastIndex = 0;
    const hole = HOLE_HERE.exec(target);
    if (hole && hole[0] === target && this.holes[Number(hole[1])]?.link) return this.holes[Number(hole[1])].link(children);
    return linkNode(withoutHoles(target, this.holes), children);
  }

  emphasis(mark) {
    let end = this.at;
    while (this.text[end] === mark) end += 1;
    let length = end - this.at;
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[end] ?? " ";
    let canOpen = !/\s/.test(after);
    let canClose = !/\s/.test(before);
    if (mark === "_") {
      if (canOpen && canClose && /\w/.test(before) && /\w/.test(after)) canOpen = canClose = false;
    }
    if (length > 3 || (mark === "~" && length !== 2)) {
      this.take(length);
      return;
    }
    this.at = end;
    this.flush();
    while (canClose && length > 0 && this.close(mark, length)) length -= this.used;
    if (length === 0) return;
    if (canOpen && this.openers.length < OPENERS_MAX) this.openers.push({ mark, length, place: this.out.length });
    this.out.push(mark.repeat(length));
  }

  close(mark, length) {
    let top = this.openers.length - 1;
    while (top >= 0 && this.openers[top].mark !== mark) top -= 1;
    if (top < 0) return false;
    const opener = this.openers[top];
    if (opener.place === this.out.length - 1) return false; // nothing in between
    this.used = length >= 2 && opener.length >= 2 ? 2 : 1;
    if (mark === "~" && this.used !== 2) return false;
    const children = this.out.splice(opener.place + 1);
    this.openers.length = top + 1;
    while (this.brackets.length && this.brackets.at(-1) > opener.place) this.brackets.pop();
    opener.length -= this.used;
    this.out[opener.place] = mark.repeat(opener.length);
    if (opener.length === 0) this.openers.pop();
    this.out.push(filled(el(mark === "~" ? "del" : this.used === 2 ? "strong" : "em"), children));
    return true;
  }
}

/** A link, or the text alone when it does not lead to http or https. */
function linkNode(target, children) {
  const address = safeAddress(target);
  const hasLink = children.some((child) => child instanceof Element && (child.matches("a") || child.querySelector("a")));
  const texts = hasLink ? children.map((child) => (child instanceof Element ? child.textContent : child)) : children;
  const shown = texts.length ? texts : [target];
  if (address === null) return filled(el("span", { class: "no-link", title: "Not a web address" }), shown);
  return filled(el("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow" }), shown);
}
