"""The code location: components, definitions, jobs, schedules, sensors, launchers, worker and command line."""

import sys
from pathlib import Path

# This program's packages have everyday names (assets, scoring, reports): whatever else of these names lies on Python's
# path, in the working folder say, ours are found first. Done here because every process of ours imports this package
# first.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(place for place in sys.path if place != _ROOT)]
