"""How a command of tools ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
