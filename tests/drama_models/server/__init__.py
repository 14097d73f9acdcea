"""The server, as callers meet it."""
