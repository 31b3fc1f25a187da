"""Counts of documents by way of their words, most of which were counted before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

# Longer words are seldom met twice.
_LONGEST_KEPT = 40
_MOST_KEPT = 500_000
# A long document is counted piece by piece, or its words would take many times its memory.
_CHARACTERS_AT_ONCE = 1_000_000


class WordCounts:
    """Counts the tokens of documents as the sum over their words, a word being what stands between blanks.

    It is for counts that are such sums: no token reaches over a blank, a tab or the end of a line, and what stands
    beyond one changes nothing.

    Args:
        count: Numbers of tokens of many words.
        special: Tokens that every document has besides.
    """

    def __init__(self, count: Callable[[list[str]], list[int]], special: int) -> None:
        self._count = count
        self._special = special
        self._known: dict[str, int] = {}

    def __call__(self, texts: list[str]) -> list[int]:
        """Return the number of tokens of each text."""
        totals = [self._special] * len(texts)
        for group in _groups(texts):
            new = self._learn(set().union(*(words for _, words in group)))
            for place, words in group:
                totals[place] += sum(map(self._known.__getitem__, words))
            for word in new:
                if len(word) > _LONGEST_KEPT:
                    del self._known[word]
        return totals

    def _learn(self, words: set[str]) -> list[str]:
        """Count the words that are not known, and return them."""
        if len(self._known) > _MOST_KEPT:
            self._known.clear()
        new = list(words.difference(self._known))
        if new:
            self._known.update(zip(new, self._count(new), strict=True))
        return new


def _groups(texts: list[str]) -> Iterator[list[tuple[int, list[str]]]]:
    """The words of texts or of pieces of them, with the number of the text, some at a time."""
    group: list[tuple[int, list[str]]] = []
    size = 0
    for place, text in enumerate(texts):
        for piece in _pieces(text):
            group.append((place, piece.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")))
            size += len(piece)
            if size >= _CHARACTERS_AT_ONCE:
                yield group
                group, size = [], 0
    if group:
        yield group


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _CHARACTERS_AT_ONCE:
        end = text.find("\n", start + _CHARACTERS_AT_ONCE // 2, start + _CHARACTERS_AT_ONCE)
        if end < 0:
            end = text.find(" ", start + _CHARACTERS_AT_ONCE // 2)
        if end < 0:
            break
        yield text[start:end]
        start = end
    yield text[start:]
