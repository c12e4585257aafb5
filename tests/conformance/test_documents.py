"""From real documents to a cited answer, with the official SDK alone: a PDF with pages, Word, PowerPoint, a web page and source code."""

from typing import Any

import openai

from mini_assistant.models.script import Text
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.conformance.conversations import answer_turns, new_assistant, thread_saying
from tests.documents import docx_document, html_document, pdf_document, pptx_document
from tests.searched_files import resources_of, search_for

FILES = {
    "handbook.pdf": pdf_document(
        [
            "The Lighthouse Company was founded in 1887 by two sisters.",
            "Every keeper has 27 days of vacation.",
            "The lamp burns rapeseed oil.",
        ]
    ),
    "minutes.docx": docx_document(["The board met in Bergen.", "It decided to paint the tower in red and white stripes."]),
    "plans.pptx": pptx_document(["Plans for next year", "A second foghorn will be bought in April."]),
    "visitors.html": html_document("Visitors", ["The tower is open on Sundays.", "Tickets cost four crowns."]),
    "signal.py": b'def flash_seconds() -> float:\n    """The beam comes round every 7.5 seconds."""\n    return 7.5\n',
}
QUESTIONS = {
    "How many days of vacation does a keeper have?": ("handbook.pdf", "27 days"),
    "Which colours were decided for the tower by the board?": ("minutes.docx", "red and white stripes"),
    "When will the second foghorn be bought?": ("plans.pptx", "April"),
    "What do tickets cost on Sundays?": ("visitors.html", "four crowns"),
    "How often does the beam come round, in seconds?": ("signal.py", "7.5 seconds"),
}


async def test_documents_are_uploaded_searched_and_cited(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    store = await sdk.vector_stores.create(name="Lighthouse")
    batch = await sdk.vector_stores.file_batches.upload_and_poll(store.id, files=list(FILES.items()), poll_interval_ms=20)
    assert batch.status == "completed"
    assert (batch.file_counts.completed, batch.file_counts.failed) == (len(FILES), 0)

    for question, (filename, answer) in QUESTIONS.items():
        found = await sdk.vector_stores.search(store.id, query=question, max_num_results=3)
        assert found.data[0].filename == filename, question
        assert answer in found.data[0].content[0].text
        has_pages = filename.endswith((".pdf", ".pptx"))
        assert isinstance((found.data[0].model_extra or {}).get("page"), int) is has_pages

    assistant = await new_assistant(sdk, tools=[{"type": "file_search"}], tool_resources=resources_of(store))
    answer_turns(endpoint, [search_for("vacation of a keeper")], [Text(["27 ", "days 【4:0†hand", "book.pdf】."])])
    thread = await thread_saying(sdk, "How many days of vacation does a keeper have?")
    deltas: list[Any] = []
    async with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        async for delta in stream.text_deltas:
            deltas.append(delta)
        [message] = await stream.get_final_messages()
    assert "".join(deltas) == "27 days 【4:0†handbook.pdf】."
    [part] = message.content
    assert part.type == "text"
    [annotation] = part.text.annotations
    assert annotation.type == "file_citation"
    assert part.text.value[annotation.start_index : annotation.end_index] == annotation.text
    assert (await sdk.files.retrieve(annotation.file_citation.file_id)).filename == "handbook.pdf"
    [_, search] = (await sdk.beta.threads.runs.steps.list(message.run_id or "", thread_id=thread.id)).to_dict()["data"]
    assert search["step_details"]["tool_calls"][0]["file_search"]["results"][0]["page"] == 1
    assert message.to_dict() == (await sdk.beta.threads.messages.retrieve(message.id, thread_id=thread.id)).to_dict()
