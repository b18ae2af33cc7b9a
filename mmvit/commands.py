"""What the commands of tools share: how they end, and where they may write."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ending() -> Iterator[None]:
    """End the program with a sentence: status 1 after an error that the user can mend, 130 after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as error:
        print(str(error) or 'stopped', file=sys.stderr)
        sys.exit(130)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        sys.exit(f'error: {error}')


def check_folder(out: Path) -> None:
    """Raises ValueError if there is no such folder and it cannot be made, or nothing can be written into it."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f'results cannot be written into {out}: {there} is a file')
    if not os.access(there, os.W_OK):
        raise ValueError(f'results cannot be written into {out}: {there} is write-protected')
