// An answer printed as it is written, from Node: an assistant, a thread, a question, and a stream.
//
// Start the server with `make serve`, run `npm install openai --prefix examples/node`, then
// `node examples/node/streaming.mjs "Your question"`. ASSISTANTS_BASE_URL names the server when it listens elsewhere than on port 8000.

import OpenAI from 'openai';

const question = process.argv[2] ?? 'What is the Moon?';
const client = new OpenAI({
  baseURL: process.env.ASSISTANTS_BASE_URL ?? 'http://127.0.0.1:8000/v1',
  apiKey: process.env.ASSISTANTS_API_KEY ?? 'anything',
});

const assistant = await client.beta.assistants.create({ model: 'gpt-4o', instructions: 'Answer in one or two short sentences.' });
const thread = await client.beta.threads.create({ messages: [{ role: 'user', content: question }] });

const stream = client.beta.threads.runs
  .stream(thread.id, { assistant_id: assistant.id })
  .on('textDelta', (delta) => process.stdout.write(delta.value ?? ''))
  .on('textDone', () => process.stdout.write('\n'));

const run = await stream.finalRun();
if (run.status !== 'completed') {
  console.error(`The run ended as ${run.status}:`, run.last_error ?? run.incomplete_details);
  process.exitCode = 1;
}
