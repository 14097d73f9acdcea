"""Strangers' text inside a prompt: delimited, and without what a model or its chat template could take for orders.

A document may say "ignore the above", imitate rank markers such as `[1] > [2]`, or hold the special tokens of a chat
template. The words stay, since they may be what the document is about; the signs that give them power do not.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<passage>", "</passage>"
BAR = "|\uff5c"  # also the wide one, of DeepSeek's tokens
ANGLE = re.compile(rf"<(?=\s*[/{BAR}!?]?\s*[A-Za-z{BAR}])")  # opens a tag or token: <s>, </s>, <|im_end|>, <passage>
SPECIAL_END = re.compile(rf"[{BAR}](?=\s*>)")
MARKER = re.compile(r"[\[\uff3b\u3010]\s*(\d+)\s*[\]\uff3d\u3011]")  # of a rank: [3], also in wide brackets
ROLE = re.compile(r"\[(?=\s*/?\s*(?:INST|SYS|SYSTEM|USER|ASSISTANT|TOOL_CALLS|AVAILABLE_TOOLS)\b)", re.IGNORECASE)
# Controls, signs that reorder what is shown, invisible tag letters. Joiners stay: Persian and Indic words need them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)


def neutralise(text: str) -> str:
    """One line of text whose angle brackets, rank markers and invisible signs cannot be taken for the prompt's own.

    `<|im_end|>` becomes `< |im_end| >`, `[3]` becomes `(3)`, `[INST]` becomes `(INST]`, a line break becomes a space.
    """
    line = " ".join(INVISIBLE.sub(" ", text).split())
    line = MARKER.sub(r"(\1)", line)
    line = ROLE.sub("(", line)
    return SPECIAL_END.sub("| ", ANGLE.sub("< ", line))


def delimited(text: str, characters: int | None = None) -> str:
    """The neutralised text between `<passage>` tags, which it cannot close itself.

    Args:
        text: any text.
        characters: kept of it; all by default.
    """
    return f"{OPEN}{neutralise(text)[:characters]}{CLOSE}"
