"""`iadd-lab` and `python -m iadd_lab`: what must hold before the slow imports, and while Python ends."""

import codecs
import os
import signal
import sys


def main() -> None:
    """Carry out the command in `sys.argv`, and exit with its code."""
    # A script that starts commands in the background has them ignore Ctrl-C.
    heeded = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if heeded:  # PyTorch takes seconds to import: no traceback from there
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    for stream in (sys.stdout, sys.stderr):  # α, ± and × reach any terminal, each line at once
        ascii_only = codecs.lookup(stream.encoding).name == "ascii"
        encoding = "utf-8" if ascii_only else stream.encoding
        stream.reconfigure(encoding=encoding, errors="backslashreplace", line_buffering=True)
    from iadd_lab.cli import run
    from iadd_lab.store.resumable import heed

    heed()
    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:  # who read it is gone, which was said already
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
