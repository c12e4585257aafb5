// Answers of text: the stream helpers, polling, and the two ways in which a run ends early.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NotFoundError } from 'openai';
import { all, assistants, client, finalObjectsAsStored, recorded, started, TEXT_RUN_EVENTS, threads } from './client.mjs';

test('a text answer is streamed, event by event', async () => {
  const { thread_id, assistant_id } = await started('Grüße 🌍 \n done');
  const stream = threads.runs.stream(thread_id, { assistant_id });
  const record = recorded(stream);
  const { messages, steps } = await finalObjectsAsStored(stream);
  assert.deepEqual(record.events, TEXT_RUN_EVENTS);
  assert.deepEqual(
    record.helpers.filter((name) => !name.endsWith('Delta')),
    ['runStepCreated', 'messageCreated', 'textCreated', 'textDone', 'messageDone', 'runStepDone', 'run'],
  );
  assert.equal(record.text, 'You said: Grüße 🌍 \n done');
  assert.equal(messages[0].content[0].text.value, record.text);
  assert.equal(steps[0].status, 'completed');
});

test('thread and run are created and streamed in one call', async () => {
  const { id: assistant_id } = await assistants.create({ model: 'scripted' });
  const thread = { messages: [{ role: 'user', content: 'Hi' }] };
  const stream = threads.createAndRunStream({ assistant_id, thread });
  const record = recorded(stream);
  await finalObjectsAsStored(stream);
  assert.deepEqual(record.events, ['thread.created', ...TEXT_RUN_EVENTS]);
});

test('events are iterated', async () => {
  const { thread_id, assistant_id } = await started('Hi');
  const events = [];
  for await (const event of threads.runs.stream(thread_id, { assistant_id })) events.push(event.event);
  assert.deepEqual([events[0], events.at(-1)], ['thread.run.created', 'thread.run.completed']);
  const { id: second } = await assistants.create({ model: 'scripted' });
  const raw = await threads.runs.create(thread_id, { assistant_id: second, stream: true });
  assert.deepEqual((await all(raw)).map((event) => event.event), events);
});

test('a run is polled to its end', async () => {
  const { thread_id, assistant_id } = await started('Hi');
  const run = await threads.runs.createAndPoll(thread_id, { assistant_id });
  assert.equal(run.status, 'completed');
  const [answer] = await all(threads.messages.list(thread_id, { run_id: run.id }));
  assert.equal(answer.content[0].text.value, 'You said: Hi');
});

test('a failure in the middle ends the stream with a failed run', async () => {
  const { thread_id, assistant_id } = await started('Go', { model: 'breaks' });
  const stream = threads.runs.stream(thread_id, { assistant_id });
  const record = recorded(stream);
  const { run, messages } = await finalObjectsAsStored(stream);
  assert.deepEqual([run.status, run.last_error.code], ['failed', 'server_error']);
  assert.deepEqual(record.events.slice(-3), ['thread.message.incomplete', 'thread.run.step.failed', 'thread.run.failed']);
  assert.equal(messages[0].incomplete_details.reason, 'run_failed');
  assert.equal(messages[0].content[0].text.value, 'Half of ');
});

test('a cap on tokens ends the stream with an incomplete run', async () => {
  const { thread_id, assistant_id } = await started('Go', { model: 'wordy' });
  const stream = threads.runs.stream(thread_id, { assistant_id, max_completion_tokens: 256 });
  const { run, messages } = await finalObjectsAsStored(stream);
  assert.deepEqual([run.status, run.incomplete_details.reason], ['incomplete', 'max_completion_tokens']);
  assert.equal(messages[0].content[0].text.value, 'word '.repeat(256));
});

test('lists are paged, and errors have their classes', async () => {
  const created = [];
  for (let count = 0; count < 5; count++) created.unshift((await assistants.create({ model: 'scripted' })).id);
  const met = [];
  for await (const { id } of assistants.list({ limit: 2 })) {
    met.push(id);
    if (created.includes(id)) await assistants.delete(id);
  }
  assert.deepEqual(met.slice(0, 5), created);
  await assert.rejects(assistants.retrieve(created[0]), (error) => {
    assert.ok(error instanceof NotFoundError);
    assert.equal(error.message, `404 No assistant found with id '${created[0]}'.`);
    assert.match(error.requestID, /^req_/);
    return true;
  });
  await assert.rejects(client.withOptions({ apiKey: 'wrong' }).beta.threads.create(), { status: 401, code: 'invalid_api_key' });
});
