"""What the tests of this folder share."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# The program itself: it says whether a configuration is one.
TWINCAST = Path(os.environ.get("TWINCAST") or Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/twincast")
if not TWINCAST.exists():
    sys.exit(f"{TWINCAST} is not there: run `cargo build` first, or name another one in TWINCAST")
