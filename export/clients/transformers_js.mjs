// transformers.js in node, as its users call it, without network. Run by path; needs @huggingface/transformers.
//
// node transformers_js.mjs FOLDER BATCHES.json OUTPUT.json [DTYPE]
//
// NODE_MODULES names the folder that holds the package.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, source, target, dtype = "fp32"] = process.argv.slice(2);
const require = createRequire(path.join(process.env.NODE_MODULES, "here.js"));
const { env, pipeline } = await import(pathToFileURL(require.resolve("@huggingface/transformers")));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const extract = await pipeline("feature-extraction", path.basename(folder), { dtype, device: "cpu" });
const rows = [];
for (const texts of JSON.parse(readFileSync(source, "utf-8"))) {
  const vectors = await extract(texts, { pooling: "mean", normalize: true });
  rows.push(...vectors.tolist());
}
writeFileSync(target, JSON.stringify(rows));
