"""sentence-transformers, as its users call it. Not a module of ours: run by path, imports no package of ours.

python sentence_transformers.py FOLDER BATCHES.json OUTPUT.npy [remote-code | onnx]
"""

import json
import sys
from pathlib import Path

sys.path.pop(0)  # the script's own folder, where this file would hide the package of the same name

import numpy as np
from sentence_transformers import SentenceTransformer

folder, source, target, *options = sys.argv[1:]
if "onnx" in options:
    model = SentenceTransformer(folder, device="cpu", backend="onnx", model_kwargs={"provider": "CPUExecutionProvider"})
else:
    model = SentenceTransformer(folder, device="cpu", trust_remote_code="remote-code" in options)
batches = json.loads(Path(source).read_text(encoding="utf-8"))
np.save(target, np.concatenate([model.encode(texts, prompt="", batch_size=len(texts)) for texts in batches]))
