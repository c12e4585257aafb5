// Files on their way to a message, and files of messages: uploads with their progress, images, downloads.

import { blob, get, upload } from "./api.js";
import { bytes, button, el, fill, notify } from "./dom.js";

const SEARCHABLE = new Set("c cpp cs css doc docx go html java js json md pdf php pptx py rb sh tex ts txt".split(" "));
const IMAGES = new Set(["png", "jpg", "jpeg", "gif", "webp"]);
const BOTH = ["file_search", "code_interpreter"];
const TOOLS = { file_search: ["file_search"], code_interpreter: ["code_interpreter"], both: BOTH, image: [] };
const LABELS = { file_search: "File search", code_interpreter: "Code interpreter", both: "Search and code", image: "Image" };
const SIGNS = [
  ["image/png", [0x89, 0x50, 0x4e, 0x47]],
  ["image/jpeg", [0xff, 0xd8, 0xff]],
  ["image/gif", [0x47, 0x49, 0x46, 0x38]],
  ["image/webp", [0x52, 0x49, 0x46, 0x46]],
];
const REVOKE_AFTER_MS = 60_000;

function extensionOf(name) {
  return name.includes(".") ? name.split(".").at(-1).toLowerCase() : "";
}

/**
 * The files that will go with the next message. onChange is called when one is added, removed, uploaded or given to another tool, and
 * onProblem with a text when one cannot be uploaded.
 */
export class Attachments {
  constructor(onChange, onProblem) {
    this.onChange = onChange;
    this.onProblem = onProblem;
    this.entries = [];
    this.element = el("ul", { class: "attachments", "aria-label": "Attachments" });
  }

  /** Begins to upload files. */
  add(files) {
    for (const file of files) this.begin(file);
  }

  get isUploading() {
    return this.entries.some((entry) => entry.id === null);
  }

  get isEmpty() {
    return this.entries.length === 0;
  }

  /** The tools that the files are meant for. */
  get tools() {
    return new Set(this.entries.flatMap((entry) => TOOLS[entry.select.value]));
  }

  /** A message with this text and the files, as the API takes it. */
  message(text) {
    const images = this.entries.filter((entry) => entry.select.value === "image");
    const files = this.entries.filter((entry) => entry.select.value !== "image");
    const message = { role: "user", content: text };
    if (images.length) {
      const parts = images.map(({ id }) => ({ type: "image_file", image_file: { file_id: id } }));
      message.content = text ? [{ type: "text", text }, ...parts] : parts;
    }
    if (files.length) {
      const toolsOf = (entry) => TOOLS[entry.select.value].map((type) => ({ type }));
      message.attachments = files.map((entry) => ({ file_id: entry.id, tools: toolsOf(entry) }));
    }
    return message;
  }

  /** Whether there is an image, which is a message even without words. */
  get hasImage() {
    return this.entries.some((entry) => entry.select.value === "image");
  }

  /** Forgets the files; they have been sent. */
  clear() {
    this.entries = [];
    fill(this.element);
    this.onChange();
  }

  /** Ends the uploads that are under way. */
  abort() {
    for (const entry of this.entries) entry.ending.abort();
  }

  begin(file) {
    const extension = extensionOf(file.name);
    const kinds = IMAGES.has(extension) ? ["image", "code_interpreter"] : ["file_search", "code_interpreter", "both"];
    const select = el(
      "select",
      { "aria-label": `Use ${file.name} for`, onchange: this.onChange },
      kinds.map((kind) => el("option", { value: kind }, LABELS[kind])),
    );
    if (!IMAGES.has(extension) && !SEARCHABLE.has(extension)) select.value = "code_interpreter";
    const progress = el("progress", { max: "1", value: "0", "aria-label": `Upload of ${file.name}` });
    const remove = button("×", () => this.remove(entry), { title: `Remove ${file.name}` });
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    const size = el("span", { class: "quiet" }, bytes(file.size));
    const row = el("li", { class: "attachment" }, el("span", { class: "file-name" }, file.name), size, progress, select, remove);
    const entry = { id: null, select, row, ending: new AbortController() };
    this.entries.push(entry);
    this.element.append(row);
    this.onChange();
    this.send(entry, file, progress, IMAGES.has(extension) ? "vision" : "assistants");
  }

  async send(entry, file, progress, purpose) {
    try {
      const onProgress = (share) => (progress.value = share);
      const sent = await upload(file, { purpose, onProgress, signal: entry.ending.signal });
      entry.id = sent.id;
      progress.remove();
      this.onChange();
    } catch (error) {
      if (error.name === "AbortError") return;
      this.onProblem(`${file.name}: ${error.message}`);
      this.remove(entry);
    }
  }

  remove(entry) {
    entry.ending.abort();
    this.entries = this.entries.filter((one) => one !== entry);
    entry.row.remove();
    this.onChange();
  }
}

// ---- files of messages

const files = new Map();
const addresses = new Set();

/** The file's object, or null when it has been deleted. Asked for once. */
export function fileOrNull(id) {
  if (!files.has(id)) files.set(id, get(`/files/${encodeURIComponent(id)}`).catch(() => null));
  return files.get(id);
}

async function contentOf(id) {
  return blob(`/files/${encodeURIComponent(id)}/content`);
}

/** A button that downloads a file. Without a name the file's own one is asked for. */
export function downloadButton(id, text, name = null) {
  const download = async () => {
    try {
      // Whatever the file holds, its bytes are only saved: the type keeps a browser from showing them as a page of ours.
      const content = new Blob([await contentOf(id)], { type: "application/octet-stream" });
      const address = URL.createObjectURL(content);
      const named = name ?? (await fileOrNull(id))?.filename.split("/").at(-1) ?? id;
      el("a", { href: address, download: named }).click();
      setTimeout(() => URL.revokeObjectURL(address), REVOKE_AFTER_MS);
    } catch (error) {
      notify(`${text}: ${error.message}`, "error");
    }
  };
  return button(text, download, { kind: "download", title: "Download" });
}

/** An image of the API. What is no PNG, JPEG, GIF or WebP by its first bytes is not shown, but can be downloaded. */
export function fileImage(id, alt) {
  const figure = el("figure", { class: "figure" }, el("span", { class: "quiet" }, "Loading the image…"));
  const load = async () => {
    try {
      const content = await contentOf(id);
      const type = await imageTypeOrNull(content);
      const download = downloadButton(id, "Download");
      if (type === null) {
        fill(figure, el("span", { class: "quiet" }, "This is no image that can be shown. "), download);
        return;
      }
      const address = URL.createObjectURL(new Blob([content], { type }));
      addresses.add(address);
      fill(figure, el("img", { src: address, alt }), el("figcaption", {}, download));
    } catch (error) {
      fill(figure, el("span", { class: "error" }, `The image cannot be loaded: ${error.message}`));
    }
  };
  load();
  return figure;
}

async function imageTypeOrNull(content) {
  const begin = new Uint8Array(await content.slice(0, 4).arrayBuffer());
  return SIGNS.find(([, sign]) => sign.every((byte, place) => begin[place] === byte))?.[0] ?? null;
}

/** Gives back the memory of the images that have been shown. */
export function releaseImages() {
  for (const address of addresses) URL.revokeObjectURL(address);
  addresses.clear();
}
