// A thread as a conversation: its messages, the composer, and the run that is under way, which is followed again after a reload.

import { ApiError, get, list, post, stream } from "./api.js";
import { button, el, fill } from "./dom.js";
import { Attachments, releaseImages } from "./attachments.js";
import { Conversation } from "./conversation.js";
import { ACTIVE, RunObjects, STOPPED } from "./run_events.js";

const ASSISTANT = "mini-assistant.assistant";
const MESSAGES_SHOWN_MAX = 300;
const RUNS_SHOWN_MAX = 200;
const LOADS_AT_ONCE = 4;
const ATTEMPTS_MAX = 8;
const POLL_MS = 1000;
const SPOKEN_CHARACTERS_MAX = 3000;
const FIRST_ASSISTANT = {
  name: "Assistant",
  instructions: "You are a helpful assistant. Answer briefly. Use the tools when they help.",
  tools: [{ type: "file_search" }, { type: "code_interpreter" }],
};

/** Shows a thread; `new` is one that the first message makes. */
export async function show(main, threadId) {
  const chat = new Chat(threadId === "new" ? null : threadId);
  try {
    await chat.open(main);
  } catch (error) {
    chat.leave();
    throw error;
  }
  return () => chat.leave();
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

class Chat {
  constructor(threadId) {
    this.threadId = threadId;
    this.ending = new AbortController();
    this.active = null; // the run that is under way
    this.names = new Map();
    this.assistants = [];
    this.conversation = new Conversation(this.names, (run, outputs) => this.submitOutputs(run, outputs));
    const onProblem = (text) => this.showProblem(text);
    this.attachments = new Attachments(() => this.updateComposer(), onProblem);
  }

  leave() {
    this.ending.abort();
    this.attachments.abort();
    this.conversation.leave();
    releaseImages();
  }

  get hasLeft() {
    return this.ending.signal.aborted;
  }

  // ---- what is on the page

  async open(main) {
    const address = location.hash;
    const isOld = this.threadId !== null;
    const path = `/threads/${encodeURIComponent(this.threadId)}`;
    const [assistants, messages, runs] = await Promise.all([
      list("/assistants", { order: "desc" }, 200),
      isOld ? list(`${path}/messages`, { order: "desc" }, MESSAGES_SHOWN_MAX) : [],
      isOld ? list(`${path}/runs`, { order: "desc" }, RUNS_SHOWN_MAX) : [],
    ]);
    if (location.hash !== address) return; // another view has been opened meanwhile
    messages.reverse();
    runs.reverse();
    this.isCut = messages.length === MESSAGES_SHOWN_MAX;
    this.assistants = assistants;
    for (const { id, name } of assistants) this.names.set(id, name || id);
    this.build(main, runs);
    this.conversation.fill(messages, runs);
    this.conversation.toEnd();
    const last = runs.at(-1);
    // A message that no run has answered, and a run that has failed, can be answered by a new one.
    this.canRunAgain = last?.status === "failed" || messages.at(-1)?.role === "user";
    this.setActive(last && ACTIVE.has(last.status) ? last : null);
    this.loadSteps(runs.filter((run) => run.tools.length > 0 && !(run === last && this.isRunning)));
    if (this.isRunning) this.follow(() => this.attach(this.active.id));
    this.input.focus({ preventScroll: true });
  }

  build(main, runs) {
    this.title = el("h1", {}, this.threadId ? "Conversation" : "New conversation");
    this.threadName = el("code", { class: "quiet" }, this.threadId ?? "");
    this.picker = el("select", { id: "chat-assistant", onchange: () => this.pickAssistant() });
    this.showAssistants(runs.at(-1)?.assistant_id);
    this.input = el("textarea", {
      id: "chat-input",
      rows: "2",
      "aria-label": "Message",
      placeholder: "Write a message",
      oninput: () => this.updateComposer(),
      onkeydown: (event) => this.onKey(event),
      // Spreadsheets offer a picture beside the text; whoever pastes from one means the text.
      onpaste: ({ clipboardData }) => clipboardData.types.includes("text/plain") || this.addFiles(clipboardData.files),
    });
    this.problem = el("p", { class: "error", role: "alert", hidden: true });
    this.state = el("span", { class: "quiet chat-state" });
    this.cancelButton = button("Cancel", () => this.cancel(), { kind: "danger" });
    this.runButton = button("Try again", () => this.runAgain());
    this.sendButton = button("Send", null, { kind: "primary", type: "submit" });
    this.composer = el(
      "form",
      { class: "composer card", "aria-label": "New message", onsubmit: (event) => this.onSubmit(event) },
      this.attachments.element,
      this.problem,
      this.input,
      el(
        "div",
        { class: "row composer-line" },
        ...[this.fileButton(), this.pickerField(), this.state, this.cancelButton, this.runButton, this.sendButton],
      ),
    );
    this.welcome = el("div", { class: "welcome" });
    this.view = el(
      "div",
      { class: "chat" },
      el("div", { class: "chat-head row" }, this.title, this.threadName),
      this.welcome,
      this.conversation.element,
      this.conversation.spoken,
      this.composer,
    );
    this.listenForDrops();
    fill(main, this.view);
    this.showWelcome();
    this.updateComposer();
  }

  fileButton() {
    const chooser = el("input", { type: "file", multiple: true, hidden: true, onchange: () => this.addFiles(chooser.files) });
    this.chooser = chooser;
    return [chooser, button("Attach files", () => chooser.click(), { title: "Or drop them anywhere on the conversation" })];
  }

  pickerField() {
    return el("span", { class: "picker" }, el("label", { for: "chat-assistant" }, "Assistant"), this.picker);
  }

  showAssistants(ofThread) {
    fill(
      this.picker,
      this.assistants.map(({ id, name }) => el("option", { value: id }, name || id)),
    );
    const wanted = [ofThread, sessionStorage.getItem(ASSISTANT)];
    const chosen = wanted.find((id) => id && this.names.has(id)) ?? this.assistants[0]?.id;
    if (chosen) this.picker.value = chosen;
  }

  pickAssistant() {
    sessionStorage.setItem(ASSISTANT, this.picker.value);
    this.updateComposer();
  }

  showWelcome() {
    if (this.assistants.length > 0) {
      const cut = this.isCut ? `Only the last ${MESSAGES_SHOWN_MAX} messages are shown.` : null;
      const hint = this.threadId ? cut : "Write a message, or drop files here.";
      fill(this.welcome, hint ? el("p", { class: "quiet" }, hint) : null);
      return;
    }
    fill(
      this.welcome,
      el(
        "div",
        { class: "card" },
        el("p", {}, "There is no assistant yet. One that searches files and runs code is made with one click, and can be changed later."),
        el(
          "div",
          { class: "row" },
          button("Make an assistant", () => this.makeAssistant(), { kind: "primary" }),
          el("a", { href: "#/assistants" }, "Or make your own"),
        ),
      ),
    );
  }

  async makeAssistant() {
    const [model] = (await get("/models")).data;
    if (!model) {
      this.showProblem("The server names no model. Make an assistant of your own with the name of a model.");
      return;
    }
    const assistant = await post("/assistants", { ...FIRST_ASSISTANT, model: model.id });
    this.assistants = [assistant];
    this.names.set(assistant.id, assistant.name);
    this.showAssistants(assistant.id);
    this.pickAssistant();
    this.showWelcome();
    this.input.focus();
  }

  // ---- the composer

  get assistant() {
    return this.assistants.find((assistant) => assistant.id === this.picker.value);
  }

  get isRunning() {
    return this.active !== null && this.active.status !== "requires_action";
  }

  get canSend() {
    const hasContent = this.input.value.trim() !== "" || this.attachments.hasImage;
    return hasContent && !this.isBusy && this.active === null && !this.attachments.isUploading && this.assistant !== undefined;
  }

  updateComposer() {
    if (!this.sendButton) return;
    this.sendButton.disabled = !this.canSend;
    this.cancelButton.hidden = this.active === null;
    this.cancelButton.disabled = this.active?.status === "cancelling";
    this.runButton.hidden = !this.canRunAgain || this.active !== null || Boolean(this.isBusy);
    this.state.textContent = this.stateText();
  }

  /** Says beside the message why it cannot be sent; null: nothing is wrong any more. */
  showProblem(text) {
    this.problem.textContent = text ?? "";
    this.problem.hidden = text === null;
  }

  stateText() {
    if (this.isLost) return "The connection was lost; trying again…";
    if (this.active?.status === "requires_action") return "The run waits for your outputs.";
    if (this.active) return { queued: "Queued…", in_progress: "Working…", cancelling: "Cancelling…" }[this.active.status] ?? "";
    if (this.attachments.isUploading) return "Uploading…";
    const own = new Set((this.assistant?.tools ?? []).map((tool) => tool.type));
    const missing = [...this.attachments.tools].filter((tool) => !own.has(tool)).map((tool) => tool.replace("_", " "));
    return missing.length && this.assistant ? `This assistant has no ${missing.join(" and no ")}: it will not read the file.` : "";
  }

  onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (this.canSend) this.send();
  }

  onSubmit(event) {
    event.preventDefault();
    if (this.canSend) this.send();
  }

  addFiles(files, event = null) {
    if (!files || files.length === 0) return;
    event?.preventDefault();
    this.attachments.add([...files]);
    this.chooser.value = "";
  }

  listenForDrops() {
    let inside = 0;
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    const mark = (change) => {
      inside = Math.max(0, inside + change);
      this.view.classList.toggle("dropping", inside > 0);
    };
    this.view.addEventListener("dragenter", (event) => hasFiles(event) && mark(1));
    this.view.addEventListener("dragleave", (event) => hasFiles(event) && mark(-1));
    this.view.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    this.view.addEventListener("drop", (event) => {
      mark(-inside);
      this.addFiles(event.dataTransfer.files, event);
    });
  }

  // ---- a message, and the run that answers it

  async send() {
    const message = this.attachments.message(this.input.value.trim());
    this.isBusy = true;
    this.showProblem(null);
    sessionStorage.setItem(ASSISTANT, this.picker.value);
    this.updateComposer();
    this.input.focus();
    try {
      if (this.threadId === null) await this.beginThread(message);
      else await this.addMessage(message);
    } catch (error) {
      if (!this.hasLeft) this.showProblem(error.message);
    } finally {
      this.isBusy = false;
      this.updateComposer();
    }
  }

  async addMessage(message) {
    const created = await post(`/threads/${this.threadId}/messages`, message);
    this.conversation.message(created);
    this.sent();
    await this.startRun();
  }

  async beginThread(message) {
    const body = { assistant_id: this.picker.value, thread: { messages: [message] } };
    const text = typeof message.content === "string" ? message.content : message.content.find((part) => part.type === "text")?.text;
    this.first = { text: text ?? "", attachments: message.attachments ?? [], content: message.content };
    await this.follow(() => this.play("/threads/runs", body));
  }

  /** The composer is free for the next message; only now, for a message that was refused should not be lost. */
  sent() {
    this.input.value = "";
    this.attachments.clear();
    this.conversation.toEnd();
  }

  startRun() {
    return this.follow(() => this.play(`/threads/${this.threadId}/runs`, { assistant_id: this.picker.value }));
  }

  runAgain() {
    this.input.focus();
    return this.startRun();
  }

  submitOutputs(run, outputs) {
    const path = `/threads/${run.thread_id}/runs/${run.id}/submit_tool_outputs`;
    return new Promise((resolve, reject) => {
      // The form ends with the first event. What fails later is told by the run.
      this.accepted = resolve;
      this.follow(() => this.play(path, { tool_outputs: outputs }), reject);
      this.input.focus({ preventScroll: true });
    });
  }

  async cancel() {
    const { id } = this.active;
    const isWatched = this.isFollowing;
    this.input.focus();
    const run = await post(`/threads/${this.threadId}/runs/${id}/cancel`);
    if (this.active?.id === id) this.take(["run", run]);
    if (!isWatched) await this.follow(() => this.attach(id));
  }

  // ---- events

  /** Does something that follows a run, and says so when that cannot be done. */
  async follow(play, fail = null) {
    this.isFollowing = true;
    this.canRunAgain = false;
    this.objects ??= new RunObjects();
    this.updateComposer();
    try {
      await play();
    } catch (error) {
      if (this.hasLeft) return;
      this.canRunAgain = this.threadId !== null;
      if (fail) fail(error);
      else this.showError(error.message);
    } finally {
      this.isFollowing = false;
      this.isLost = false;
      this.updateComposer();
    }
  }

  showError(message) {
    this.conversation.append(el("p", { class: "error chat-error", role: "alert" }, message));
  }

  /** POSTs and reads the stream of the answer. When the line is cut, the run goes on, and its events are read from elsewhere. */
  async play(path, body) {
    const before = this.active?.id;
    try {
      await stream(path, body, (event) => this.onEvent(event), { signal: this.ending.signal });
    } catch (error) {
      if (this.hasLeft || error instanceof ApiError) throw error;
      if (this.active === null && this.threadId !== null) await this.findActive();
      if (this.active === null || (this.active.id === before && this.active.status === "requires_action")) throw error;
    }
    if (this.isRunning) await this.attach(this.active.id);
  }

  async findActive() {
    const [run] = (await get(`/threads/${this.threadId}/runs?limit=1&order=desc`)).data;
    if (run && ACTIVE.has(run.status)) this.take(["run", run]);
  }

  /** Reads the events of a run until it stops, again and again from where the line was cut. */
  async attach(runId) {
    const path = `/threads/${this.threadId}/runs/${runId}/events`;
    let lastEventId = null;
    for (let attempt = 0; attempt < ATTEMPTS_MAX && !this.hasLeft; attempt += 1) {
      try {
        const onEvent = (event) => {
          lastEventId = event.id ?? lastEventId;
          if (event.event !== "error") attempt = 0;
          this.setLost(false);
          this.onEvent(event);
        };
        await stream(path, null, onEvent, { signal: this.ending.signal, lastEventId });
        if (!this.isRunning) return;
      } catch (error) {
        if (this.hasLeft) return;
        if (error.code === "events_gone" && lastEventId === null) return this.waitFor(runId);
        if (error.code === "events_gone") lastEventId = null;
        else if (error instanceof ApiError && error.status < 500 && error.status !== 429) throw error;
      }
      this.setLost(true);
      await pause(Math.min(8000, 250 * 2 ** attempt));
    }
    if (!this.hasLeft) throw new Error("The connection was lost. Reload the page to go on.");
  }

  setLost(isLost) {
    if (Boolean(this.isLost) === isLost) return;
    this.isLost = isLost;
    this.updateComposer();
  }

  /** Asks for a run until it stops; for one whose events are not kept. */
  async waitFor(runId) {
    const path = `/threads/${this.threadId}`;
    while (!this.hasLeft) {
      const run = await get(`${path}/runs/${runId}`);
      this.take(["run", run]);
      if (STOPPED.has(run.status)) break;
      await pause(POLL_MS);
    }
    for (const message of await list(`${path}/messages`, { run_id: runId, order: "asc" })) this.take(["message", message]);
    this.conversation.addSteps(runId, await list(`${path}/runs/${runId}/steps`, { order: "asc" }));
  }

  onEvent(event) {
    if (event.data === null || this.hasLeft) return;
    this.accepted?.();
    this.accepted = null;
    const change = this.objects.take(event);
    if (change) this.take(change);
    if (event.event === "thread.message.completed") this.speak(event.data);
  }

  take([kind, object]) {
    if (kind === "thread") this.threadBegun(object);
    else if (kind === "run") this.runChanged(object);
    else if (kind === "message") this.conversation.message(object);
    else if (kind === "step") this.conversation.step(object);
    else this.showError(object?.message ?? "The server broke off.");
  }

  threadBegun(thread) {
    this.threadId = thread.id;
    this.title.textContent = "Conversation";
    this.threadName.textContent = thread.id;
    history.replaceState(null, "", `#/threads/${thread.id}`);
    fill(this.welcome);
    const content = typeof this.first.content === "string" ? [{ type: "text", text: this.first.content }] : this.first.content;
    const parts = content.map((part) => (part.type === "text" ? { type: "text", text: { value: part.text, annotations: [] } } : part));
    this.conversation.message({
      ...{ id: "first", role: "user", thread_id: thread.id, run_id: null, assistant_id: null, created_at: thread.created_at },
      ...{ status: "completed", content: parts, attachments: this.first.attachments },
    });
    this.conversation.draw();
    this.sent();
  }

  runChanged(run) {
    if (this.active?.id !== run.id || this.active.status !== run.status) this.announce(run.status);
    this.conversation.run(run);
    this.setActive(ACTIVE.has(run.status) ? run : null);
    if (STOPPED.has(run.status)) this.conversation.draw();
    if (run.status === "failed") this.canRunAgain = true;
  }

  setActive(run) {
    this.active = run;
    this.updateComposer();
  }

  announce(status) {
    const words = { queued: "The assistant is working.", requires_action: "The run waits for your outputs.", failed: "The run failed." };
    if (words[status]) this.conversation.say(words[status]);
  }

  /** Lets screen readers read a finished answer; read piece by piece nobody could follow it. */
  speak(message) {
    const text = message.content.map((part) => part.text?.value ?? part.refusal ?? "").join(" ");
    this.conversation.say(text.slice(0, SPOKEN_CHARACTERS_MAX));
  }

  // ---- what runs did before

  async loadSteps(runs) {
    const waiting = [...runs];
    const work = async () => {
      while (waiting.length && !this.hasLeft) {
        const run = waiting.pop(); // the last ones are in sight
        const steps = await list(`/threads/${this.threadId}/runs/${run.id}/steps`, { order: "asc" });
        if (!this.hasLeft) this.conversation.addSteps(run.id, steps);
      }
    };
    await Promise.all(Array.from({ length: LOADS_AT_ONCE }, work));
  }
}
