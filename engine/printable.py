"""Texts that others have chosen (names of hosts and programs, tags), made fit for a terminal."""

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""Return `text` with all that a terminal would obey, or that would mislead the eye, written out: `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
