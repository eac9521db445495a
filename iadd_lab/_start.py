"""Ctrl-C while the command line imports PyTorch, which takes seconds: exit code 130, and no traceback.

Only where this process is the command; `cli.main` puts Python's own handler back.
"""

import os
import signal
import sys

_is_command = os.path.basename(sys.argv[0]) == "iadd-lab" or sys.orig_argv[1:3] == ["-m", "iadd_lab"]
# A script that starts commands in the background has them ignore Ctrl-C.
if _is_command and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
