"""Folders to try the wheel on: the demo's source model as an encoder without any training, and its release.

python - RETRIEVER RELEASE < .ci/small_release.py       (from the checkout, whose packages it imports)
"""

import sys
from pathlib import Path

from export.release import ReleaseRecipe, release
from training.start import write_start_folder

retriever, out = map(Path, sys.argv[1:])
write_start_folder(Path("demo/source"), retriever, bidirectional=True)
release(ReleaseRecipe(retriever=retriever, out=out, license="apache-2.0", max_length=128))
