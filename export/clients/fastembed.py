"""FastEmbed with a custom model from a local folder. Not a module of ours: run by path, imports no package of ours.

python fastembed.py FOLDER BATCHES.json OUTPUT.npy [GRAPH]
"""

import json
import sys
from pathlib import Path

sys.path.pop(0)  # the script's own folder, where this file would hide the package of the same name

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

folder, source, target, *graph = sys.argv[1:]
config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
name = "local/release"
TextEmbedding.add_custom_model(
    model=name,
    pooling=PoolingType.MEAN,
    normalization=True,
    sources=ModelSource(hf=name),  # asked for by its class; the folder below is used instead
    dim=config["hidden_size"],
    model_file=graph[0] if graph else "onnx/model.onnx",
)
model = TextEmbedding(name, specific_model_path=folder, providers=["CPUExecutionProvider"])
rows = []
for texts in json.loads(Path(source).read_text(encoding="utf-8")):
    rows += list(model.embed(texts, batch_size=len(texts)))
np.save(target, np.stack(rows).astype(np.float32))
