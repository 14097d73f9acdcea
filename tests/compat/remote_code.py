"""transformers 4 with the release's own code, and sentence-transformers 5; run by path, imports nothing of ours.

python remote_code.py FOLDER INPUT.json OUTPUT.npz
"""

import json
import sys
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

folder, source, target = sys.argv[1:]
texts = json.loads(Path(source).read_text(encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
with torch.inference_mode():
    by_class = model.encode_documents(tokenizer, texts).numpy()
    queries = model.encode_queries(tokenizer, texts).numpy()
    attentions = {}
    for implementation in ("eager", "sdpa"):
        model = AutoModel.from_pretrained(folder, trust_remote_code=True, attn_implementation=implementation).eval()
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        hidden = model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"][..., None]
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        attentions[implementation] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
stock = SentenceTransformer(folder, device="cpu", trust_remote_code=True)
np.savez(
    target,
    versions=np.array([transformers.__version__, sentence_transformers.__version__]),
    model_class=np.array(type(model).__name__),
    by_class=by_class,
    queries=queries,
    sentence_transformers=stock.encode(texts, prompt_name="document"),
    eager=attentions["eager"],
    sdpa=attentions["sdpa"],
)
