"""Tells reasoning from the answer where a model writes both as text: `<think>Let me see.</think>The answer.`

Most servers take the tags apart themselves and send reasoning in a field of its own. Those that were not told how the model thinks
pass everything on as the answer, and a user of this server should not have to read it.
"""

from typing import Literal

from mini_assistant.errors import ModelError
from mini_assistant.models.base import ReasoningDelta, TextDelta

# Only what models were trained to begin with. A tag in any other place of an answer may be what was asked for.
_TAGS = (
    ("<think>", "</think>"),  # DeepSeek R1, Qwen, QwQ, GLM, MiniMax, SmolLM3 and most others
    ("<thinking>", "</thinking>"),  # Reflection, and models that were fine-tuned on answers of Claude
    ("<thought>", "</thought>"),  # EXAONE Deep, and Gemini behind its OpenAI-compatible address
    ("<reasoning>", "</reasoning>"),  # what the usual recipes for training with rewards ask for
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
)
_OPENED_ENDS_WITH = "</think>"
_WHITE_SPACE_HELD_MAX = 1_000
_HELD_CHARACTERS_MAX = 1_000_000
_REASONING_CHARACTERS_MAX = 4_000_000


class ThinkTags:
    """One answer while it arrives.

    mode: True for an answer that may begin with a tag; "opened" for one that begins within reasoning, because the tag is the end of the
    prompt already, so that only the closing one is written.
    """

    def __init__(self, mode: Literal[True, "opened"]) -> None:
        # None while it is open whether there is reasoning at all; empty once the reasoning has ended.
        self._closing: str | None = _OPENED_ENDS_WITH if mode == "opened" else None
        self._is_certain = mode != "opened"
        self._held: list[str] = []
        self._reasoning_characters = 0
        self._is_done = False

    @property
    def is_done(self) -> bool:
        """Whether all that follows is the answer. Nothing is held back then, and nobody needs to ask any more."""
        return self._is_done

    def feed(self, text: str) -> list[TextDelta | ReasoningDelta]:
        """What the next piece of the answer turns out to be; empty while it may still be a part of a tag.

        Raises ModelError when the reasoning has no end.
        """
        if self._is_done:
            return [TextDelta(text)] if text else []
        if self._closing is None:
            return self._feed_beginning(text)
        return self._feed_reasoning(text, self._closing) if self._closing else self._feed_gap(text)

    def end(self, *, is_whole: bool = True) -> list[TextDelta | ReasoningDelta]:
        """What is still held back, once the answer has ended.

        is_whole: whether the model ended by itself with an answer, so `stop`, not a limit or a call. Reasoning that was begun with a tag
        and never closed remains reasoning and the answer is empty, as when a limit cuts a hosted reasoning model off: nobody wants to
        take thoughts for an answer. Without any tag (`opened`) a whole answer is an answer: the model has not thought, for instance
        because a schema forced it to begin at once.
        """
        held = "".join(self._held)
        self._held.clear()
        is_answer = self._closing is None or (is_whole and not self._is_certain)
        self._is_done = True
        if not held or (is_answer and held.isspace()):
            return []  # a message of white space beside a tool call helps nobody
        return [TextDelta(held) if is_answer else ReasoningDelta(held)]

    def _feed_beginning(self, text: str) -> list[TextDelta | ReasoningDelta]:
        begun = self._take_held() + text
        word = begun.lstrip()
        for opening, closing in _TAGS:
            if word.startswith(opening):
                self._closing = closing
                return self._feed_reasoning(word[len(opening) :], closing)
        if len(begun) - len(word) <= _WHITE_SPACE_HELD_MAX and any(opening.startswith(word) for opening, _ in _TAGS):
            self._held = [begun]
            return []
        self._is_done = True
        return [TextDelta(begun)]

    def _feed_reasoning(self, text: str, closing: str) -> list[TextDelta | ReasoningDelta]:
        self._reasoning_characters += len(text)
        if self._reasoning_characters > _REASONING_CHARACTERS_MAX:
            raise ModelError(f"The model's reasoning is longer than {_REASONING_CHARACTERS_MAX} characters.")
        # The last piece that is held is the one in which the closing tag may have begun.
        text = (self._held.pop() if self._held else "") + text
        at = text.find(closing)
        if at >= 0:
            self._closing = ""
            return [*_reasoning(self._take_held() + text[:at]), *self._feed_gap(text[at + len(closing) :])]
        end = len(text) - _begun_at_end(text, closing)
        self._held += [text[:end], text[end:]]
        if self._reasoning_characters > _HELD_CHARACTERS_MAX:
            self._is_certain = True  # so long an answer is none
        if not self._is_certain:
            return []
        begun = self._held.pop()
        thought = self._take_held()
        self._held.append(begun)
        return _reasoning(thought)

    def _feed_gap(self, text: str) -> list[TextDelta | ReasoningDelta]:
        """White space between the reasoning and the answer belongs to neither."""
        text = text.lstrip()
        self._is_done = bool(text)
        return [TextDelta(text)] if text else []

    def _take_held(self) -> str:
        held = "".join(self._held)
        self._held.clear()
        return held


def _reasoning(text: str) -> list[TextDelta | ReasoningDelta]:
    return [ReasoningDelta(text)] if text else []


def _begun_at_end(text: str, tag: str) -> int:
    """With how many of its characters the tag may have begun at the end of the text."""
    for count in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:count]):
            return count
    return 0
