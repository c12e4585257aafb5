// code_interpreter: what the helper of the Node SDK makes of code, a figure and a link to a file.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { all, client, recorded, started, threads } from './client.mjs';

test('code, its outputs and what the answer shows are rebuilt from deltas', async () => {
  const { thread_id, assistant_id } = await started('Make a table.', { model: 'computes', tools: [{ type: 'code_interpreter' }] });
  const stream = threads.runs.stream(thread_id, { assistant_id });
  const record = recorded(stream);
  const run = await stream.finalRun();
  const [message] = await stream.finalMessages();
  assert.equal(run.status, 'completed');
  const stored = { run_id: run.id, order: 'asc' };
  const steps = await all(threads.runs.steps.list(run.id, { thread_id, order: 'asc' }));
  assert.deepEqual(await stream.finalRunSteps(), steps);
  const [call] = steps[0].step_details.tool_calls;
  const told = record.data.filter(({ event }) => event === 'thread.run.step.delta').map(({ data }) => data.delta.step_details.tool_calls[0]);
  assert.equal(told.map(({ code_interpreter: { input = '' } }) => input).join(''), call.code_interpreter.input);
  assert.ok(told.length > 4);

  const [shown] = await all(threads.messages.list(thread_id, stored));
  const [picture, { text }] = shown.content;
  assert.deepEqual(message.content[0].image_file, picture.image_file);
  assert.equal(message.content[1].text.value, text.value);
  assert.equal(record.text, text.value);
  const [link] = text.annotations;
  assert.equal(text.value.slice(link.start_index, link.end_index), 'sandbox:/mnt/data/table.csv');
  assert.deepEqual(
    message.content[1].text.annotations.map(({ index, ...rest }) => rest),
    text.annotations,
  );
  const file = await client.files.content(link.file_path.file_id);
  assert.equal(await file.text(), 'a,b\n1,2\n');
});
