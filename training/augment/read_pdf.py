"""Reading PDF, with the optional pypdf package: the text of all pages, as far as the file holds text and not pictures.

A PDF knows places on a page, not paragraphs: lines that belong together are guessed by pypdf, words cut at the end of
a line are put together here, and a sentence may go on over the end of a page.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from drama_models.surrogates import storable
from training.augment.read_documents import Block, plain_blocks

if TYPE_CHECKING:
    from pathlib import Path

NEEDS_PYPDF = "PDF, which needs `pip install 'drama-models[pdf]'`"
LOCKED, DAMAGED, PICTURES = "PDF with a password", "damaged PDF", "PDF without text; run text recognition on it first"
CUT_WORD = re.compile(r"(?<=[^\W\d_])[-\u00ad]\n(?=[^\W\d_])")


def pdf_blocks(path: Path) -> tuple[str, list[Block], str]:
    """Title (of the file's own description, often empty), blocks, and the reason why there are none.

    Args:
        path: of the file; anything in it is tolerated, since nothing is run and nothing fetched.
    """
    try:
        from pypdf import PdfReader
    except ImportError:
        return "", [], NEEDS_PYPDF
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every oddity, page by page
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            return "", [], LOCKED
        title = str((reader.metadata and reader.metadata.title) or "")
        text = "\n".join(page.extract_text().strip() for page in reader.pages)
    except Exception:  # whatever a damaged file makes of the parser
        return "", [], DAMAGED
    blocks = plain_blocks(storable(CUT_WORD.sub("", text.replace("\x00", ""))))[1]
    return " ".join(storable(title).split()), blocks, "" if blocks else PICTURES
