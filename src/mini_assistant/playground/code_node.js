// Calls of the API as a program for the official SDK for Node.

import { described, divided, group, laidOut, literal, quoted, variables } from "./code_calls.js";

const IDENTIFIER = /^[a-z_$][a-z0-9_$]*$/i;
const JAVASCRIPT = {
  atoms: { null: "null", true: "true", false: "false" },
  // Between brackets the name that would set a prototype is a field like others.
  name: (name) => (name === "__proto__" ? `[${quoted(name)}]` : IDENTIFIER.test(name) ? name : quoted(name)),
  pad: " ",
};

/** A module for Node that makes these calls, as `onCall` tells them. baseUrl: of the API, with `/v1`. */
export function nodeCode(calls, baseUrl) {
  const imports = new Set();
  const named = variables();
  const parts = calls.map((call) => statement(described(call), imports, named));
  const opened = `const client = new OpenAI({ baseURL: ${quoted(baseUrl)}, apiKey: process.env.OPENAI_API_KEY });`;
  return [[...[...imports].sort(), 'import OpenAI from "openai";'].join("\n"), opened, ...parts].join("\n\n") + "\n";
}

function statement(call, imports, named) {
  const { operation } = call;
  if (operation.answers === "events") return eventLoop(call, named);
  if (!operation.call) return rawCall(call, named);
  const args = callArguments(call, imports);
  if (call.stream && operation.stream) return streamed(operation.stream, args, named);
  if (operation.answers === "bytes") return download(call, args, imports, named);
  if (operation.each) {
    const before = `for await (const ${operation.each} of `;
    return `${before}${invocation(operation.call, args, before)}) {\n  console.log(${operation.each});\n}`;
  }
  const name = named(operation.result);
  return `const ${name} = await ${invocation(operation.call, args, `const ${name} = await `)};\nconsole.log(${name});`;
}

/** `beta.threads.runs.submit_tool_outputs` -> `beta.threads.runs.submitToolOutputs`. */
const inCamelCase = (method) => method.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());

function invocation(method, args, before) {
  const call = group(`client.${inCamelCase(method)}(`, args, ")");
  call.hugs = args.slice(0, -1).every(([, value]) => typeof value === "string") && typeof args.at(-1)?.[1] === "object";
  return laidOut(call, { step: "  ", column: before.length });
}

/** The last id comes first; then an object of the other ids and the fields of the body and the query; then options. */
function callArguments({ ids, query, body, form, operation }, imports) {
  const [asked, beyondQuery] = divided(query, operation.beyond?.includes("include") ? ["include"] : []);
  const fields = [...ids.slice(0, -1), ...Object.entries(body), ...asked].filter(([, value]) => value !== undefined);
  const parts = fields.map(([name, value]) => {
    if (!form || name !== operation.form) return [`${JAVASCRIPT.name(name)}: `, literal(value, JAVASCRIPT)];
    imports.add('import { createReadStream } from "node:fs";');
    return [`${name}: `, `createReadStream(${quoted(value)})`];
  });
  const args = ids.slice(-1).map(([, value]) => ["", quoted(value)]);
  if (parts.length || Object.keys(beyondQuery).length) args.push(["", group("{", parts, "}", " ")]);
  if (Object.keys(beyondQuery).length) args.push(["", literal({ query: beyondQuery }, JAVASCRIPT)]);
  return args;
}

function streamed(method, args, named) {
  const name = named("stream");
  return `const ${name} = ${invocation(method, args, `const ${name} = `)};
${name}.on("textDelta", (delta) => process.stdout.write(delta.value));
console.log(\`\\n\${(await ${name}.finalRun()).status}\`);`;
}

function download({ ids }, args, imports, named) {
  imports.add('import { writeFile } from "node:fs/promises";');
  const name = named("content");
  return `const ${name} = await ${invocation("files.content", args, `const ${name} = await `)};
await writeFile(${quoted(ids[0][1])}, Buffer.from(await ${name}.arrayBuffer()));`;
}

function eventLoop({ path }, named) {
  const name = named("events");
  return `// An extension of this server: the SDK has no method of its own for it.
const ${name} = await ${invocation("get", [["", quoted(path)], ["", "{ stream: true }"]], `const ${name} = await `)};
for await (const event of ${name}) {
  console.log(event.event);
}`;
}

function rawCall({ method, path, query, body, operation }, named) {
  const name = named(operation.result);
  const options = {};
  if (method === "POST") options.body = body;
  if (Object.keys(query).length) options.query = query;
  const args = [["", quoted(path)]];
  if (Object.keys(options).length) args.push(["", literal(options, JAVASCRIPT)]);
  return `// An extension of this server: the SDK has no method of its own for it.
const ${name} = await ${invocation(method.toLowerCase(), args, `const ${name} = await `)};
console.log(${name});`;
}
