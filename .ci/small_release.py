"""A release folder to try the wheel on: the demo's source model as an encoder, without any training.

python - OUT < .ci/small_release.py       (from the checkout, whose packages it imports)
"""

import sys
import tempfile
from pathlib import Path

from export.release import ReleaseRecipe, release
from training.start import write_start_folder

with tempfile.TemporaryDirectory() as work:
    retriever = Path(work) / "retriever"
    write_start_folder(Path("demo/source"), retriever, bidirectional=True)
    release(ReleaseRecipe(retriever=retriever, out=Path(sys.argv[1]), license="apache-2.0", max_length=128))
