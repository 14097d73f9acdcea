"""OpenVINO and tokenizers, in float32 computation. Not a module of ours: run by path, imports no package of ours.

python openvino.py FOLDER BATCHES.json OUTPUT.npy [GRAPH]
"""

import json
import sys
from pathlib import Path

sys.path.pop(0)  # the script's own folder, where this file would hide the package of the same name

import numpy as np
import openvino
from tokenizers import Tokenizer

folder, source, target, *graph = sys.argv[1:]
settings = json.loads(Path(folder, "tokenizer_config.json").read_text(encoding="utf-8"))
pooling = json.loads(Path(folder, "1_Pooling/config.json").read_text(encoding="utf-8"))["pooling_mode"]
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.enable_truncation(settings["model_max_length"])
tokenizer.enable_padding(pad_id=tokenizer.token_to_id(settings["pad_token"]), pad_token=settings["pad_token"])
core = openvino.Core()
hint = {"INFERENCE_PRECISION_HINT": "f32"}  # bfloat16 by default where the processor has it
model = core.compile_model(f"{folder}/{graph[0] if graph else 'onnx/model.onnx'}", "CPU", hint)
rows = []
for texts in json.loads(Path(source).read_text(encoding="utf-8")):
    encodings = tokenizer.encode_batch(texts)
    ids, mask = (np.array([getattr(row, name) for row in encodings]) for name in ("ids", "attention_mask"))
    hidden = model({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
    if pooling == "mean":
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    else:
        pooled = hidden[np.arange(len(ids)), mask.sum(1) - 1 if pooling == "lasttoken" else 0]
    rows.append(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
np.save(target, np.concatenate(rows).astype(np.float32))
