"""A process that executes notebooks with papermill, and lives no longer than the batch that started it.

A script, not a module to import: so importing this costs the batch nothing. Orders come on its standard
input, one a line, as JSON, and for each it prints the exit code of the process that carried it out. When the
input closes, because the batch was interrupted or even killed, the kernel is stopped, and then these
processes.

On Linux both a notebook's own process and its kernel are forked from this one, which has imported what all
of them need: that takes longer than to draw a picture. Nothing computes here, so they still choose their
instructions.
"""

import atexit
import contextlib
import gc
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

_LONGEST = 1000  # letters of what is told
_STOPPING = 10.0  # seconds in which papermill stops a kernel; one that was left ends by itself
_FORKS = sys.platform == "linux"  # elsewhere libraries do not bear it


def main() -> None:
    """Carry out the orders that come, one after the other."""
    leave_to_batch()
    logging.disable()  # a line of papermill's or a kernel's log would tear our own bars
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a kernel's child processes print is nobody's
    for line in sys.stdin:
        order, code = json.loads(line), 0
        if not _FORKS:
            _carry_out(order)
        else:
            _import_for(order)
            if number := os.fork():
                code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
            else:
                replies.close()
                _end(partial(_carry_out, order, _Kernel()))
        print(code, file=replies, flush=True)


def _import_for(order: dict) -> None:
    """Import what the order's processes will, unless that was done before."""
    # As a kernel has it before matplotlib is imported.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    source = Path(order["input_path"]).read_text(encoding="utf-8")
    ours = ("notebooks.page", "plots", "study.tables", "study.comparisons") if "iadd_lab" in source else ()
    for name in ("papermill", "ipykernel.kernelapp", *(f"iadd_lab.{name}" for name in ours)):
        with contextlib.suppress(Exception):  # the process that needs it says what is wrong
            importlib.import_module(name)
    gc.freeze()  # or collecting would copy all pages in each process


def _end(work: Callable[[], None]) -> NoReturn:
    """Do the work of a forked process, and end it without what its parent would do at its end."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


class _Kernel:
    """A kernel forked before there are threads and connections; a `subprocess.Popen` to its manager."""

    stdin = stdout = stderr = None

    def __init__(self) -> None:
        told, self._order = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.close(self._order)
            _end(partial(self._become, told))
        os.close(told)

    def start(self, command: list[str], env: dict[str, str]) -> None:
        """Be what `command` starts, python -m ipykernel_launcher with options, in the current folder."""
        with os.fdopen(self._order, "w") as order:
            # It ends when this process does.
            options = [*command[3:], f"--IPKernelApp.parent_handle={os.getpid()}"]
            json.dump({"options": options, "env": env, "cwd": os.getcwd()}, order)

    def _become(self, told: int) -> None:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        with os.fdopen(told) as order:
            text = order.read()
        if text:  # else it was never needed
            from ipykernel.kernelapp import launch_new_instance

            order = json.loads(text)
            os.environ.clear()
            os.environ.update(order["env"])
            os.chdir(order["cwd"])
            launch_new_instance(order["options"])

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.wait(os.WNOHANG)

    def wait(self, options: int = 0) -> int | None:
        """Its exit code, when it has ended."""
        if self.returncode is None:
            number, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if number else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _carry_out(order: dict, kernel: _Kernel | None = None) -> None:
    """Execute the notebook that is ordered, and say in a text beside its output why it failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which unwinds papermill, which stops the kernel
    threading.Thread(target=_end_with_batch, daemon=True).start()
    # Opened and filled now: what went wrong may be that nothing can be opened or written any more.
    path = Path(order["output_path"]).with_suffix(".txt")
    with path.open("w", encoding="utf-8", errors="backslashreplace") as told:
        told.write(" " * 4 * _LONGEST)  # bytes; a letter has four at most
        told.flush()
        failure = _failure(order, kernel)
        told.seek(0)
        told.write(failure[:_LONGEST])
        told.truncate()


def leave_to_batch() -> None:
    """Ignore what reaches all processes of a terminal or job, kernels too, which inherit this: it decides."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _failure(order: dict, kernel: _Kernel | None) -> str:
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

            async def _async_launch_kernel(self, kernel_cmd: list[str], **given: Any) -> None:
                if kernel is None:
                    return await super()._async_launch_kernel(kernel_cmd, **given)
                place = self.provisioner
                place.process, place.pid, place.pgid = kernel, kernel.pid, kernel.pid
                kernel.start(kernel_cmd, given["env"])
                self._reconcile_connection_info(place.connection_info)

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
    main()
