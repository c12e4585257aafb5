// What the test files share: the client, and the comparison of a stream's final objects with what the API stores.

import assert from 'node:assert/strict';
import OpenAI from 'openai';

// OPENAI_BASE_URL and OPENAI_API_KEY name the server under test.
export const client = new OpenAI({ maxRetries: 0, timeout: 20_000 });
export const { assistants, threads } = client.beta;

export const TEXT_RUN_EVENTS = [
  'thread.run.created',
  'thread.run.queued',
  'thread.run.in_progress',
  'thread.run.step.created',
  'thread.run.step.in_progress',
  'thread.message.created',
  'thread.message.in_progress',
  'thread.message.delta',
  'thread.message.completed',
  'thread.run.step.completed',
  'thread.run.completed',
];

const HELPER_EVENTS = [
  'messageCreated',
  'messageDelta',
  'messageDone',
  'runStepCreated',
  'runStepDelta',
  'runStepDone',
  'toolCallCreated',
  'toolCallDelta',
  'toolCallDone',
  'textCreated',
  'textDelta',
  'textDone',
  'run',
];

/** A new assistant for a model of the script, and a thread with one question. */
export async function started(question, assistant = {}) {
  const created = await assistants.create({ model: 'scripted', ...assistant });
  const thread = await threads.create({ messages: [{ role: 'user', content: question }] });
  return { assistant_id: created.id, thread_id: thread.id };
}

/** Records what a stream emits: the wire events, and the helper's own; neighbours of the same name count once. */
export function recorded(stream) {
  const record = { events: [], helpers: [], text: '', data: [] };
  const append = (names, name) => names.at(-1) === name || names.push(name);
  stream.on('event', (event) => {
    append(record.events, event.event);
    record.data.push(structuredClone(event));
  });
  stream.on('textDelta', (delta) => (record.text += delta.value));
  for (const name of HELPER_EVENTS) stream.on(name, () => append(record.helpers, name));
  return record;
}

/** `finalRun`, `finalMessages` and `finalRunSteps` are what GET answers. Gives those three. */
export async function finalObjectsAsStored(stream) {
  const run = await stream.finalRun();
  const messages = await stream.finalMessages();
  const steps = await stream.finalRunSteps();
  const stored = { run_id: run.id, order: 'asc' };
  assert.deepEqual(run, await threads.runs.retrieve(run.id, { thread_id: run.thread_id }));
  assert.deepEqual(messages, await all(threads.messages.list(run.thread_id, stored)));
  assert.deepEqual(steps, await all(threads.runs.steps.list(run.id, { thread_id: run.thread_id, order: 'asc' })));
  return { run, messages, steps };
}

/** All items of a list, over its pages. */
export async function all(list) {
  const items = [];
  for await (const item of list) items.push(item);
  return items;
}

/** A plain request for a run's events: the server's extension, which the SDK has no call for. */
export function fetchEvents(thread_id, run_id, headers = {}) {
  const url = `${client.baseURL}/threads/${thread_id}/runs/${run_id}/events`;
  return fetch(url, { headers: { Authorization: `Bearer ${client.apiKey}`, ...headers } });
}
