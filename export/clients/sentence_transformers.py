"""sentence-transformers, as its users call it. Not a module of ours: run by path, imports no package of ours.

python sentence_transformers.py FOLDER INPUT.json OUTPUT.npy
"""

import json
import sys
from pathlib import Path

sys.path.pop(0)  # the script's own folder, where this file would hide the package of the same name

import numpy as np
from sentence_transformers import SentenceTransformer

folder, source, target = sys.argv[1:]
texts = json.loads(Path(source).read_text(encoding="utf-8"))
np.save(target, SentenceTransformer(folder, device="cpu").encode(texts, prompt=""))
