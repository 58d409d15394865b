"""Where things are in the repository, for tests in any folder."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent
SHAPES_VL = ROOT / "examples" / "shapes-vl"
GOLDENS = SUPPORT / "modelfiles" / "goldens"
