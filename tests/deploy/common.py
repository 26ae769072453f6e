"""Common definitions of the tests in this folder."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# The program validates configurations.
TWINCAST = Path(
    os.environ.get("TWINCAST")
    or Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/twincast"
)
if not TWINCAST.exists():
    sys.exit(f"{TWINCAST} is not there: run `cargo build` first, or name another one in TWINCAST")
