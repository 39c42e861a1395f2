"""What carries the method: checks, devices, files, checkpoints.  Nobody needs to read it to follow the papers."""

from . import checks as checks
from . import files as files
