// Function tools: the stream stops for outputs, and goes on in a second one.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { all, finalObjectsAsStored, recorded, started, threads } from './client.mjs';

const FUNCTIONS = ['get_weather', 'get_time'].map((name) => ({ type: 'function', function: { name } }));
const BOTH = 'Please call get_weather {"city": "Oslo"} and call get_time {}';

const outputsOf = (run) =>
  run.required_action.submit_tool_outputs.tool_calls.map(({ id, function: { name } }) => ({ tool_call_id: id, output: name }));

test('parallel calls are streamed, and their outputs too', async () => {
  const { thread_id, assistant_id } = await started(BOTH, { tools: FUNCTIONS });
  const asking = threads.runs.stream(thread_id, { assistant_id });
  const asked = recorded(asking);
  const run = await asking.finalRun();
  assert.equal(run.status, 'requires_action');
  assert.deepEqual(run, await threads.runs.retrieve(run.id, { thread_id }));
  assert.deepEqual(asked.events.slice(-2), ['thread.run.step.delta', 'thread.run.requires_action']);
  assert.equal(asked.helpers.filter((name) => name === 'toolCallCreated').length, 2);
  assert.equal(asked.helpers.filter((name) => name === 'toolCallDone').length, 2);

  const calls = run.required_action.submit_tool_outputs.tool_calls;
  assert.deepEqual(
    calls.map((call) => [call.function.name, call.function.arguments]),
    [
      ['get_weather', '{"city": "Oslo"}'],
      ['get_time', '{}'],
    ],
  );
  const [step] = await asking.finalRunSteps();
  const snapshots = calls.map((call, index) => ({ index, ...call, function: { ...call.function, output: null } }));
  assert.deepEqual(step.step_details.tool_calls, snapshots);

  const answering = threads.runs.submitToolOutputsStream(run.id, { thread_id, tool_outputs: outputsOf(run) });
  const answered = recorded(answering);
  const { messages, steps } = await finalObjectsAsStored(answering);
  assert.deepEqual(answered.events.slice(0, 3), ['thread.run.step.completed', 'thread.run.queued', 'thread.run.in_progress']);
  assert.deepEqual(
    steps[0].step_details.tool_calls.map((call) => call.function.output),
    ['get_weather', 'get_time'],
  );
  assert.equal(messages[0].content[0].text.value, 'The tool returned: get_time');
});

test('outputs are submitted and polled', async () => {
  const { thread_id, assistant_id } = await started(BOTH, { tools: FUNCTIONS });
  const waiting = await threads.runs.createAndPoll(thread_id, { assistant_id });
  assert.equal(waiting.status, 'requires_action');
  const body = { thread_id, tool_outputs: outputsOf(waiting) };
  const run = await threads.runs.submitToolOutputsAndPoll(waiting.id, body);
  assert.equal(run.status, 'completed');
  await assert.rejects(threads.runs.submitToolOutputs(run.id, body), {
    status: 400,
    message: '400 Runs in status "completed" do not accept tool outputs.',
  });
});

test('words come before the first of two rounds of calls', async () => {
  const { thread_id, assistant_id } = await started('Go', { model: 'two-rounds', tools: FUNCTIONS });
  let stream = threads.runs.stream(thread_id, { assistant_id });
  let run = await stream.finalRun();
  assert.equal((await stream.finalMessages())[0].content[0].text.value, 'Let me look. ');
  let rounds = 0;
  while (run.status === 'requires_action') {
    rounds += 1;
    stream = threads.runs.submitToolOutputsStream(run.id, { thread_id, tool_outputs: outputsOf(run) });
    run = await stream.finalRun();
  }
  assert.deepEqual([rounds, run.status], [2, 'completed']);
  const steps = await all(threads.runs.steps.list(run.id, { thread_id, order: 'asc' }));
  assert.deepEqual(
    steps.map((step) => step.type),
    ['message_creation', 'tool_calls', 'tool_calls', 'message_creation'],
  );
});
