"""One model behind HTTP: `drama serve`. Embeddings as OpenAI's clients ask for them, and search in an index.

`limits` says how much is taken, `requests` reads what callers send, `batching` computes for all of them together,
`app` puts these behind addresses, `run` listens. Starlette and uvicorn are the extra `serve`.
"""
