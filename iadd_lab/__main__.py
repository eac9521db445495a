"""`iadd-lab` and `python -m iadd_lab`: what must hold before the slow imports, and while Python ends."""

import os
import signal
import sys


def main() -> None:
    """Carry out the command in `sys.argv`, and exit with its code."""
    # A script that starts commands in the background has them ignore Ctrl-C.
    heeded = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if heeded:  # PyTorch takes seconds to import: no traceback from there
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started this: no file may get its number instead
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode))
    for stream in (sys.stdout, sys.stderr):  # α, ± and × stop nothing in any encoding, and lines come at once
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    from iadd_lab.cli import run
    from iadd_lab.store.resumable import heed

    heed()
    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # who read it is gone, which was said already
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
