// Calls of the API as commands of a shell, with curl.

import { described, laidOut, literal, quoted } from "./code_calls.js";

const JSON_ITSELF = { atoms: { null: "null", true: "true", false: "false" }, name: quoted, pad: "" };

/** Commands that make these calls, as `onCall` tells them. baseUrl: of the API, with `/v1`. The key is in OPENAI_API_KEY. */
export function curlCode(calls, baseUrl) {
  return calls.map((call) => command(call, baseUrl)).join("\n\n") + "\n";
}

/** A text as one word of a shell, whatever it contains. */
const word = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function command(call, baseUrl) {
  const { method, body, stream, operation, ids, form } = described(call);
  // Brackets and braces would be patterns for curl.
  const url = new URL(baseUrl + call.path).href.replace(/[[\]{}]/g, encodeURIComponent);
  const isEvents = stream || operation.answers === "events";
  const lines = [`curl${isEvents ? " -N" : ""}${method === "DELETE" ? " -X DELETE" : ""} ${word(url)}`];
  lines.push('-H "Authorization: Bearer $OPENAI_API_KEY"', "-H 'OpenAI-Beta: assistants=v2'");
  if (form) lines.push(...formFields(body, operation.form));
  else if (method === "POST") {
    const text = laidOut(literal(stream ? { ...body, stream: true } : body, JSON_ITSELF), { step: "  ", lastComma: "", column: 8 });
    lines.push("-H 'Content-Type: application/json'", `-d ${word(text)}`);
  }
  if (operation.answers === "bytes") lines.push(`-o ${word(ids[0][1])}`);
  return lines.join(" \\\n  ");
}

function formFields(body, fileField) {
  return Object.entries(body).map(([name, value]) => {
    if (name !== fileField) return `--form-string ${word(`${name}=${value}`)}`;
    return `-F ${word(`${name}=@"${value.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`)}`; // so that a ; or , belongs to the name
  });
}
