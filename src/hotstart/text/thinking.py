"""Thinking: tells an answer's reasoning from its content while both are still growing.

Qwen's templates end a prompt with an open <think>, so that an answer begins inside it, or with a closed pair, so that
it does not; a model may also begin its answer with one.  What stands between is reasoning, the rest is content, and
newlines around the marks are neither's.
"""

from typing import Self

from hotstart.text.stop import StopStrings

__all__ = ["Thinking"]

BEGIN, END = "<think>", "</think>"


class Thinking:
    def __init__(self, starts_inside: bool) -> None:
        self.is_inside = starts_inside
        self._may_begin = not starts_inside
        self._opening = ""  # what may still become a mark at the beginning of the answer
        self._end = StopStrings([END])
        self._drops_newlines = starts_inside

    @classmethod
    def after(cls, prompt: str) -> Self:
        """For the answer to a rendered prompt."""
        return cls(prompt.rstrip().endswith(BEGIN))

    def push(self, text: str) -> tuple[str, str]:
        """(reasoning, content) that are certain now."""
        if self._may_begin:
            text = self._begin(text)
        if not self.is_inside:
            return "", self._trimmed(text)
        reasoning = self._trimmed(self._end.push(text))
        if self._end.matched is None:
            return reasoning, ""
        self.is_inside, self._drops_newlines = False, True
        return reasoning, self._trimmed(self._end.rest)

    def finish(self) -> tuple[str, str]:
        """What was held back in the hope of a mark."""
        if self.is_inside:
            return self._trimmed(self._end.finish()), ""
        held, self._opening = self._opening, ""
        return "", held

    def _begin(self, text: str) -> str:
        """Looks for a mark where the answer begins; gives what follows it, or what is certainly none."""
        text = self._opening + text
        head = text.lstrip()
        if len(head) < len(BEGIN) and BEGIN.startswith(head):
            self._opening = text
            return ""
        self._opening, self._may_begin = "", False
        if not head.startswith(BEGIN):
            return text
        self.is_inside = self._drops_newlines = True
        return head.removeprefix(BEGIN)

    def _trimmed(self, text: str) -> str:
        if self._drops_newlines and text:
            text = text.lstrip("\n")
            self._drops_newlines = not text
        return text
