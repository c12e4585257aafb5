// file_search: what the helper of the Node SDK makes of a cited answer.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { toFile } from 'openai';
import { all, client, recorded, started, threads } from './client.mjs';

test('a cited answer is rebuilt from its deltas', async () => {
  const store = await client.vectorStores.create({ name: 'Foods' });
  const file = await toFile(Buffer.from('The favorite food of Anna is pizza.'), 'food.txt');
  const attached = await client.vectorStores.files.uploadAndPoll(store.id, file, { pollIntervalMs: 20 });
  assert.equal(attached.status, 'completed');
  const { thread_id, assistant_id } = await started('call file_search {"queries": ["food of Anna"]}', {
    tools: [{ type: 'file_search' }],
    tool_resources: { file_search: { vector_store_ids: [store.id] } },
  });

  const stream = threads.runs.stream(thread_id, { assistant_id });
  const record = recorded(stream);
  const run = await stream.finalRun();
  const [message] = await stream.finalMessages();
  assert.equal(run.status, 'completed');
  assert.equal(run.id, message.run_id);
  assert.deepEqual(await stream.finalRunSteps(), await all(threads.runs.steps.list(run.id, { thread_id, order: 'asc' })));

  const [stored] = await all(threads.messages.list(thread_id, { run_id: run.id }));
  const [{ text }] = stored.content;
  assert.equal(message.content[0].text.value, text.value);
  assert.equal(record.text, text.value);
  const [annotation] = text.annotations;
  assert.equal(annotation.text, '【4:0†food.txt】');
  assert.equal(text.value.slice(annotation.start_index, annotation.end_index), annotation.text);
  assert.equal(annotation.file_citation.file_id, attached.id);
  // The deltas have two fields more, as those of the hosted API had.
  const told = message.content[0].text.annotations.map(({ index, ...rest }) => rest);
  for (const each of told) delete each.file_citation.quote;
  assert.deepEqual(told, text.annotations);
});
