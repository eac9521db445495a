"""A process that executes one notebook with papermill, and lives no longer than the batch that started it.

A script, not a module to import: so it spends no second on PyTorch. Its argument is the order, as JSON, and
its standard input the batch's life line: when that closes, because the batch was interrupted or even killed,
the kernel is stopped, and then this process.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

_LONGEST = 1000  # letters of what is told
_STOPPING = 10.0  # seconds in which papermill stops a kernel; one that was left ends by itself


def main(order: dict) -> None:
    """Execute the notebook that is ordered, and say in a text beside its output why it failed."""
    leave_to_batch()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which unwinds papermill, which stops the kernel
    threading.Thread(target=_end_with_batch, daemon=True).start()
    logging.disable()  # a line of papermill's or a kernel's log would tear our own bars
    # Opened and filled now: what went wrong may be that nothing can be opened or written any more.
    path = Path(order["output_path"]).with_suffix(".txt")
    with path.open("w", encoding="utf-8", errors="backslashreplace") as told:
        told.write(" " * 4 * _LONGEST)  # bytes; a letter has four at most
        told.flush()
        failure = _failure(order)
        told.seek(0)
        told.write(failure[:_LONGEST])
        told.truncate()


def leave_to_batch() -> None:
    """Ignore what reaches all processes of a terminal or job, kernels too, which inherit this: it decides."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _failure(order: dict) -> str:
    """Execute the notebook; one sentence that says what went wrong, empty after success."""
    source = Path(order["input_path"])
    try:
        from jupyter_client import AsyncKernelManager
        from jupyter_client.kernelspec import KernelSpecManager
        from papermill import execute_notebook

        class ThisPython(AsyncKernelManager):
            """Starts kernels of this very Python, whatever kernelspec of another one is called python3."""

            def _kernel_spec_manager_default(self) -> KernelSpecManager:
                return KernelSpecManager(parent=self, kernel_dirs=[])

        options = {"kernel_name": "python3", "language": "python", "cwd": source.parent}
        options |= {"kernel_manager_class": ThisPython, "extra_arguments": ["--log-level=CRITICAL"]}
        # Nothing of the user's own comes into a kernel, nor goes home, which may be read-only or missing.
        with tempfile.TemporaryDirectory(prefix="iadd-lab-") as place:
            os.environ |= {"JUPYTER_RUNTIME_DIR": place, "IPYTHONDIR": place}
            execute_notebook(**order, **options)
    except Exception as error:  # a kernel that died, or whatever else: on to the next notebook
        if hasattr(error, "exec_count"):  # papermill's own
            reason = f"{error.ename}: {error.evalue}".splitlines()[0]
            return f"{source.name} failed in cell [{error.exec_count}]: {reason}"
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"{source.name} could not be executed: {reason}"
    return ""


def _end_with_batch() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOPPING)
    os._exit(1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
