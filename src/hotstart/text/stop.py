"""StopStrings: finds the first stop string in a stream of text, however the stream is cut."""

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Passes text on until a stop string is complete.

    The match is the one whose last character comes first, the longest of those: it depends on the text, not on where
    the text is cut.  A tail that may still become a stop string is held back.
    """

    def __init__(self, stops: Sequence[str], include_in_output: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include_in_output
        self._held = ""
        self.matched: str | None = None
        self.rest = ""  # what came behind the match, with the text that completed it

    def push(self, text: str) -> str:
        """The text that is safe to show.  After a match (`matched` names it) nothing more comes out."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(text.find(stop), stop) for stop in self._stops]
        matches = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        if matches:
            end, start, self.matched = min(matches)
            self._held, self.rest = "", text[end:]
            return text[: end if self._include else start]
        shown = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """What was held back, once it is known that no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
