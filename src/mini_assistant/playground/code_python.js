// Calls of the API as a program for the official Python SDK.

import { described, divided, group, laidOut, literal, quoted, variables } from "./code_calls.js";

const PYTHON = { atoms: { null: "None", true: "True", false: "False" }, name: quoted, pad: "" };
const EVENT_IMPORTS = ["from openai import Stream", "from openai.types.beta import AssistantStreamEvent"];

/** A Python program that makes these calls, as `onCall` tells them. baseUrl: of the API, with `/v1`. */
export function pythonCode(calls, baseUrl) {
  const imports = new Set(["import os", "from openai import OpenAI"]);
  const named = variables();
  const parts = calls.map((call) => statement(described(call), imports, named));
  const plain = [...imports].filter((line) => line.startsWith("import "));
  const standard = [...imports].filter((line) => line.startsWith("from pathlib"));
  const opened = `client = OpenAI(base_url=${quoted(baseUrl)}, api_key=os.environ["OPENAI_API_KEY"])`;
  const head = [[...plain, ...standard].join("\n"), importsOfSdk(imports), opened].join("\n\n");
  return [head, ...parts].join("\n\n") + "\n";
}

function importsOfSdk(imports) {
  const names = [...imports].filter((line) => line.startsWith("from openai import ")).map((line) => line.split(" import ")[1]);
  const others = [...imports].filter((line) => line.startsWith("from openai."));
  return [`from openai import ${names.sort().join(", ")}`, ...others].join("\n");
}

function statement(call, imports, named) {
  const { operation } = call;
  if (operation.answers === "events") return eventLoop(call, imports);
  if (!operation.call) return rawCall(call, named);
  const args = callArguments(call, imports);
  if (call.stream && operation.stream) return streamed(operation.stream, args, named);
  if (operation.answers === "bytes") return download(call, args);
  if (operation.each) {
    const name = named(operation.each);
    return `for ${name} in ${invocation(operation.call, args, `for ${name} in `)}:\n    print(${name})`;
  }
  const name = named(operation.result);
  return `${name} = ${invocation(operation.call, args, `${name} = `)}\nprint(${name})`;
}

function invocation(method, args, before) {
  return laidOut(group(`client.${method}(`, args, ")"), { step: "    ", column: before.length });
}

/**
 * The last id goes first and without a name, the ones before it have theirs; then come the fields of the body or the query. The helpers of
 * streams want the names of all.
 */
function callArguments({ ids, query, body, form, stream, operation }, imports) {
  const [fields, beyondBody] = divided(body, operation.beyond);
  const [asked, beyondQuery] = divided(query, operation.beyond);
  const args = ids.slice(-1).map(([name, value]) => [stream && operation.stream ? `${name}=` : "", quoted(value)]);
  args.push(...ids.slice(0, -1).map(([name, value]) => [`${name}=`, quoted(value)]));
  for (const [name, value] of [...fields, ...asked]) {
    if (form && name === operation.form) {
      imports.add("from pathlib import Path");
      args.push([`${name}=`, `Path(${quoted(value)})`]);
    } else if (value !== undefined) args.push([`${name}=`, literal(value, PYTHON)]);
  }
  if (Object.keys(beyondBody).length) args.push(["extra_body=", literal(beyondBody, PYTHON)]);
  if (Object.keys(beyondQuery).length) args.push(["extra_query=", literal(beyondQuery, PYTHON)]);
  return args;
}

function streamed(method, args, named) {
  const name = named("stream");
  const opened = `with ${invocation(method, args, "with ")} as ${name}:`;
  const loop = `    for text in ${name}.text_deltas:\n        print(text, end="", flush=True)`;
  return `${opened}\n${loop}\n    print(f"\\n{${name}.get_final_run().status}")`;
}

function download({ ids }, args) {
  return `${invocation("files.content", args, "")}.write_to_file(${quoted(ids[0][1])})`;
}

function eventLoop({ path }, imports) {
  for (const line of EVENT_IMPORTS) imports.add(line);
  const args = [
    ["", quoted(path)],
    ["cast_to=", "AssistantStreamEvent"],
    ["stream=", "True"],
    ["stream_cls=", "Stream[AssistantStreamEvent]"],
  ];
  return `# An extension of this server: the SDK has no method of its own for it.
for event in ${invocation("get", args, "for event in ")}:
    print(event.event)`;
}

function rawCall({ method, path, query, body, operation }, named) {
  const name = named(operation.result);
  const args = [["", quoted(path)], ["cast_to=", operation.answers === "text" ? "str" : "object"]];
  if (method === "POST") args.push(["body=", literal(body, PYTHON)]);
  if (Object.keys(query).length) args.push(["options=", literal({ params: query }, PYTHON)]);
  return `# An extension of this server: the SDK has no method of its own for it.
${name} = ${invocation(method.toLowerCase(), args, `${name} = `)}
print(${name})`;
}
