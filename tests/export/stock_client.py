"""Run a script of a stock client, and fail if it has imported anything of ours.

python stock_client.py SCRIPT ARGUMENTS...
"""

import runpy
import sys

OURS = ("drama_models", "pruning", "training", "export", "demo", "tests")

script, *arguments = sys.argv[1:]
sys.argv = [script, *arguments]
sys.path[0] = str(script).rpartition("/")[0]
runpy.run_path(script, run_name="__main__")
found = sorted({name.partition(".")[0] for name in sys.modules} & set(OURS))
if found:
    sys.exit(f"the client imported {found}")
