"""Strangers' text inside a prompt: delimited, and without what a model or its chat template could take for orders.

A document may say "ignore the above", imitate rank markers such as `[1] > [2]`, or hold the special tokens of a chat
template. The words stay, since they may be what the document is about; the signs that give them power do not.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<passage>", "</passage>"
BAR = "|\uff5c"  # also the wide one, of DeepSeek's tokens
GAP = r"[\s\u200c\u200d]*"  # joiners are invisible too; they stay, since Persian and Indic words need them
ANGLE = re.compile(rf"[<\uff1c](?={GAP}[/{BAR}!?]?{GAP}[A-Za-z{BAR}])")  # opens a tag or token: <s>, <|im_end|>
SPECIAL_END = re.compile(rf"[{BAR}](?={GAP}[>\uff1e])")
MARKER = re.compile(rf"[\[\uff3b\u3010]{GAP}(\d+){GAP}[\]\uff3d\u3011]")  # of a rank: [3], also in wide brackets
TOKEN = re.compile(rf"[\[\uff3b]({GAP}/?{GAP}[a-z]?[A-Z][A-Z_]+{GAP})[\]\uff3d]")  # [INST], [/SYSTEM_PROMPT], [gMASK]
ROLE = re.compile(rf"\[(?={GAP}/?{GAP}(?:INST|SYS|SYSTEM|USER|ASSISTANT|TOOL_CALLS|AVAILABLE_TOOLS)\b)", re.IGNORECASE)
TILDE = re.compile(r"(?<=\])~|~(?=\[)")  # of MiniMax's tokens: ]~b], [e~[
# Controls and signs that reorder what is shown; then what a word is not cut by: soft hyphens, invisible tag letters.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2061-\u206f]")
INSIDE_WORDS = re.compile("[\u00ad\u034f\u180e\u2060\ufe00-\ufe0f\ufeff\U000e0000-\U000e01ef]")


def neutralise(text: str) -> str:
    """One line of text whose angle brackets, rank markers and invisible signs cannot be taken for the prompt's own.

    `<|im_end|>` becomes `< |im_end| >`, `[3]` becomes `(3)`, `[INST]` becomes `(INST)`, a line break becomes a space.
    """
    line = " ".join(UNSEEN.sub(" ", INSIDE_WORDS.sub("", text)).split())
    line = MARKER.sub(r"(\1)", line)
    line = ROLE.sub("(", TOKEN.sub(r"(\1)", line))
    return TILDE.sub(" ~ ", SPECIAL_END.sub("| ", ANGLE.sub("< ", line)))


def delimited(text: str, characters: int | None = None) -> str:
    """The neutralised text between `<passage>` tags, which it cannot close itself.

    Args:
        text: any text.
        characters: kept of it; all by default.
    """
    return f"{OPEN}{neutralise(text)[:characters]}{CLOSE}"
