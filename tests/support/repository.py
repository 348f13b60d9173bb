"""Where the sources lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
