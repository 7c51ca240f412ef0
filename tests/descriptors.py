"""What this process has open: only below one directory, for servers and loops of other tests come and go."""

import os
from contextlib import suppress
from pathlib import Path


def open_below(directory):
    """Give the paths below `directory` that descriptors of this process point to, one for each descriptor."""
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            targets.append(str(descriptor.readlink()))
    return [target for target in targets if target.startswith(f"{directory}{os.sep}")]
