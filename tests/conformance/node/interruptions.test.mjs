// Silence, cancelling, readers that leave, and readers that attach again.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AssistantStream } from 'openai/lib/AssistantStream';
import { Stream } from 'openai/streaming';
import { fetchEvents, finalObjectsAsStored, recorded, started, TEXT_RUN_EVENTS, threads } from './client.mjs';

/** The helper of the SDK on a run's events from the start. */
async function attached(thread_id, run_id) {
  const response = await fetchEvents(thread_id, run_id);
  assert.equal(response.status, 200);
  const events = Stream.fromSSEResponse(response, new AbortController());
  return AssistantStream.fromReadableStream(events.toReadableStream());
}

/** Leaves the stream of a new run at its first piece of text; gives the run's id, once the server has seen the reader go or not. */
async function leftAtFirstPiece(thread_id, assistant_id) {
  for await (const event of threads.runs.stream(thread_id, { assistant_id })) {
    if (event.event === 'thread.message.delta') break;
  }
  const [run] = (await threads.runs.list(thread_id, { limit: 1 })).data;
  return run.id;
}

test('heart-beats fill the silence of a model', async () => {
  const { thread_id, assistant_id } = await started('Go', { model: 'thinks' });
  const raw = await threads.runs.create(thread_id, { assistant_id, stream: true }).asResponse();
  const text = await raw.text();
  assert.ok(text.match(/^: ping$/gm).length >= 2, text);
  assert.ok(text.endsWith('event: done\ndata: [DONE]\n\n'));

  const stream = threads.runs.stream(thread_id, { assistant_id });
  const record = recorded(stream);
  const { run } = await finalObjectsAsStored(stream);
  assert.equal(run.status, 'completed');
  assert.deepEqual(record.events, TEXT_RUN_EVENTS);

  const again = await threads.runs.create(thread_id, { assistant_id });
  await finalObjectsAsStored(await attached(thread_id, again.id));
});

test('a run is cancelled from within its stream', async () => {
  const { thread_id, assistant_id } = await started('Go', { model: 'stalls' });
  const stream = threads.runs.stream(thread_id, { assistant_id });
  const record = recorded(stream);
  stream.once('textDelta', () => threads.runs.cancel(stream.currentRun().id, { thread_id }));
  const { run, messages } = await finalObjectsAsStored(stream);
  assert.equal(run.status, 'cancelled');
  assert.deepEqual(record.events.slice(-4), [
    'thread.run.cancelling',
    'thread.message.incomplete',
    'thread.run.step.cancelled',
    'thread.run.cancelled',
  ]);
  assert.equal(messages[0].incomplete_details.reason, 'run_cancelled');
});

test('a run outlives its reader, and a new reader gets all of it', async () => {
  const { thread_id, assistant_id } = await started('Go', { model: 'slow' });
  const run_id = await leftAtFirstPiece(thread_id, assistant_id);
  const live = await attached(thread_id, run_id);
  const record = recorded(live);
  const { messages } = await finalObjectsAsStored(live);
  assert.equal(messages[0].content[0].text.value, 'tok '.repeat(40));
  assert.deepEqual(record.events, TEXT_RUN_EVENTS);

  const late = await attached(thread_id, run_id);
  const replayed = recorded(late);
  await finalObjectsAsStored(late);
  assert.deepEqual(replayed.data, record.data);
});

test('a reader goes on after the last event that it has seen', async () => {
  const { thread_id, assistant_id } = await started('Go', { model: 'slow' });
  const run_id = await leftAtFirstPiece(thread_id, assistant_id);
  const whole = frames(await (await fetchEvents(thread_id, run_id)).text());
  assert.ok(whole.length > 20);
  for (const place of [0, 7, 12, whole.length - 3]) {
    const last = whole[place].match(/^id: (.+)$/m)[1];
    const rest = await (await fetchEvents(thread_id, run_id, { 'Last-Event-ID': last })).text();
    assert.deepEqual(frames(rest), whole.slice(place + 1));
  }
});

/** The frames of a stream, without heart-beats. */
function frames(text) {
  return text.replaceAll(/^: ping\n/gm, '').split('\n\n').slice(0, -1);
}
