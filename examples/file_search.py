"""Questions about a file: a PDF goes into a vector store, and the answer cites it.

Start the server with `make serve`, then run `python examples/file_search.py "Your question" [FILE]` with the package `openai` installed.
Without a file a small PDF is made. The built-in model answers by quoting the file. ASSISTANTS_BASE_URL names the server when it
listens elsewhere than on port 8000.
"""

import os
import sys
import warnings
from pathlib import Path

from openai import OpenAI

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)

HANDBOOK = [
    "Handbook of the Lighthouse Company.",
    "Every employee has 27 days of vacation a year.",
    "Unused days expire at the end of March.",
    "Dogs are welcome in the office on Fridays.",
]


def small_pdf(lines: list[str]) -> bytes:
    """A PDF with one page of text, written by hand."""
    text = " T* ".join(f"({line}) Tj" for line in lines)
    content = f"BT /F1 12 Tf 14 TL 60 760 Td {text} ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    pdf = b"%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(pdf))
        pdf += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(pdf)}\n%%EOF\n"
    return pdf + end.encode()


question = sys.argv[1] if len(sys.argv) > 1 else "How many days of vacation does an employee have?"
file = (Path(sys.argv[2]).name, Path(sys.argv[2]).read_bytes()) if len(sys.argv) > 2 else ("handbook.pdf", small_pdf(HANDBOOK))
client = OpenAI(
    base_url=os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("ASSISTANTS_API_KEY", "anything"),
)

vector_store = client.vector_stores.create(name="Handbooks")
uploaded = client.vector_stores.files.upload_and_poll(vector_store_id=vector_store.id, file=file)
if uploaded.status != "completed":
    sys.exit(f"The file cannot be searched: {uploaded.last_error}")

assistant = client.beta.assistants.create(
    model="gpt-4o",
    instructions="Answer from the files, in one sentence, and cite them.",
    tools=[{"type": "file_search"}],
    tool_resources={"file_search": {"vector_store_ids": [vector_store.id]}},
)
thread = client.beta.threads.create(messages=[{"role": "user", "content": question}])

with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
    for text in stream.text_deltas:
        print(text, end="", flush=True)
    print()
    run = stream.get_final_run()
    messages = stream.get_final_messages()

if run.status != "completed":
    sys.exit(f"The run ended as {run.status}: {run.last_error or run.incomplete_details}")
for part in messages[-1].content:
    for annotation in part.text.annotations if part.type == "text" else []:
        if annotation.type == "file_citation":
            print(f"{annotation.text} is from {client.files.retrieve(annotation.file_citation.file_id).filename}")
