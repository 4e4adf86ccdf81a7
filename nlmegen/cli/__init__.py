"""The command line: `nlmegen fit compare posterior simulate vpc bootstrap sir profile check list new`.

Exit status 0: a usable result. 2: bad input, one message. 3: the estimation failed; what there is was kept.
Arguments are read without any numerical library, so that `nlmegen --help` and `nlmegen list` are quick.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from nlmegen.cli.parser import build_parser
from nlmegen.errors import FitError, NlmegenError

USABLE, UNEXPECTED, BAD_INPUT, FAILED = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: The words after `nlmegen`; those of the process unless given.

    Example:
        >>> main(["fit", "theophylline"])
        2
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or its message
        return int(stop.code or 0)
    # before torch is imported: on batches of this size more threads only wait for each other (ten times slower)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        command = importlib.import_module(f"nlmegen.cli.{args.module}")
        return int(getattr(command, args.function)(args))
    except KeyboardInterrupt:
        # an interrupt inside an estimation is handled there and keeps the best so far
        return _stop("interrupted by the user; nothing more was written", FAILED, args.debug)
    except FitError as error:
        if args.module != "estimate":  # nothing was estimated: the folders given cannot be used so
            return _stop(str(error), BAD_INPUT, args.debug)
        return _stop(f"the estimation failed: {error}", FAILED, args.debug)
    except NlmegenError as error:
        return _stop(str(error), BAD_INPUT, args.debug)
    except BrokenPipeError:
        # the reader of our output (head, less) went away; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USABLE
    except OSError as error:
        return _stop(f"{error.filename or 'a file'}: {error.strerror or error}", BAD_INPUT, args.debug)
    except Exception as error:  # noqa: BLE001 the last resort: no traceback unless it is asked for
        what = f"unexpected {type(error).__name__}: {error}"
        return _stop(f"{what}. This is a fault in nlmegen; --debug shows where", UNEXPECTED, args.debug)


def _stop(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"nlmegen: {message}", file=sys.stderr)
    return status
