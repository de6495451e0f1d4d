"""The command line of the simulated network; see the package."""

import argparse

from tests.netsim.table import DOCUMENT, document

parser = argparse.ArgumentParser(
    prog="python -m tests.netsim", description="What the stack reaches over simulated paths."
)
parser.add_argument("--write", action="store_true", help=f"renew {DOCUMENT.name}")
options = parser.parse_args()
text = document()
if options.write:
    DOCUMENT.write_text(text)
else:
    print(text, end="")
