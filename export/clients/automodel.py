"""transformers' AutoModel, as its users call it. Run by path; imports no package of ours.

python automodel.py FOLDER BATCHES.json OUTPUT.npy [remote-code]

Without the last word no code of the folder is run, which is right on transformers >= 5.2 only.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

folder, source, target, *options = sys.argv[1:]
pooling = json.loads(Path(folder, "1_Pooling/config.json").read_text(encoding="utf-8"))["pooling_mode"]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder, trust_remote_code="remote-code" in options).eval()
rows = []
for texts in json.loads(Path(source).read_text(encoding="utf-8")):
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"]
    if pooling == "mean":
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    else:
        pooled = hidden[torch.arange(len(mask)), mask.sum(1) - 1 if pooling == "lasttoken" else 0]
    rows.append(torch.nn.functional.normalize(pooled, dim=-1).numpy())
np.save(target, np.concatenate(rows))
