"""transformers' AutoModel without remote code, as its users call it. Run by path; imports no package of ours.

python automodel.py FOLDER INPUT.json OUTPUT.npy
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

folder, source, target = sys.argv[1:]
texts = json.loads(Path(source).read_text(encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
rows = []
for start in range(0, len(texts), 16):
    batch = tokenizer(texts[start : start + 16], padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    rows.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy())
np.save(target, np.concatenate(rows))
