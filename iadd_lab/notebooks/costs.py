"""What a profile costs, before any of it is computed: tasks, operations, hours, disk and memory.

`dry_run` finds what the notebooks need. Its pieces are then timed on this machine, each for a
fraction of a second, by the very code that computes them, in as many processes at once as notebooks will run.
"""

from __future__ import annotations

import itertools
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from iadd_lab.baselines.features import match_distributions
from iadd_lab.baselines.gradients import GradientMatchingConfig, match_gradients
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.preprocess import Standardise
from iadd_lab.data.sets import DataConfig, ImageData
from iadd_lab.data.splits import Split
from iadd_lab.device import pick_device
from iadd_lab.distillation.loop import _Run as DistillRun
from iadd_lab.errors import check_whole, choose
from iadd_lab.notebooks.dry_run import DryRun, Needed, Probe, Shape, descent_passes, follow
from iadd_lab.notebooks.notebook import read_notebooks
from iadd_lab.notebooks.plan_batch import PROFILES
from iadd_lab.notebooks.profiles import check_known, merge, read_given, read_profile
from iadd_lab.study.bench import peak_memory
from iadd_lab.training.fast.compiling import PLAIN
from iadd_lab.training.networks import NetworkConfig, build_network
from iadd_lab.training.sgd import Training, predict
from iadd_lab.training.teachers import Teachers

_SECONDS = 0.1  # that each piece is timed for, at least twice
_GPU_WARM_UPS = 5
# Operations of a piece that is timed as it is, for a kind of device; larger ones are timed in part.
_LARGEST = {"cpu": 1e10, "cuda": 1e13}
# What compiling leaves of the time: measured on two cores, see the README's tables of `iadd-lab bench`.
COMPILED_SHARE = {"training": 0.45, "prediction": 0.6, "distillation": 0.6}
_NOTEBOOK = "notebook"


@dataclass(frozen=True)
class Costs:
    """What was found and measured.

    Attributes:
        profile: whose.
        found: what the notebooks need.
        seconds: of each piece, and of a notebook that computes nothing.
        base: bytes of a process that has imported everything.
        jobs: notebooks at once.
        device: where pieces were timed.
    """

    profile: str
    found: DryRun
    seconds: Mapping[Probe, float]
    base: float
    jobs: int
    device: str

    def time(self, needed: Needed) -> float:
        """Seconds that it takes, in one process of `jobs`."""
        return sum(
            times * self.seconds[probe] * (COMPILED_SHARE.get(probe.kind, 1.0) if probe.compiled else 1.0)
            for probe, times in needed.work
        )

    def notebooks(self) -> dict[str, float]:
        """Seconds of each notebook, where all others before it are done."""
        spent = dict.fromkeys(self.found.notebooks, self.seconds[Probe(_NOTEBOOK)])
        for needed in self.found.needed:
            spent[needed.notebook] += self.time(needed)
        return spent

    def wall(self) -> float:
        """Seconds from start to end, so many notebooks at once in their order."""
        free = [0.0] * self.jobs
        for seconds in self.notebooks().values():
            free[free.index(min(free))] += seconds
        return max(free)

    def disk(self) -> float:
        """Bytes in the folder of runs."""
        return sum(needed.disk for needed in self.found.needed) + 2_000 * len(self.found.notebooks)

    def memory(self) -> float:
        """Bytes of the largest process."""
        return self.base + max((needed.memory for needed in self.found.needed), default=0.0)


def plan_costs(
    *,
    profile: str = "quick",
    only: Sequence[str] = (),
    parameters: Mapping[str, str] | None = None,
    notebooks: Path = Path("notebooks"),
    jobs: int = 1,
    device: str = "auto",
    progress: bool = True,
) -> Costs:
    """What `reproduce` with the same arguments would compute from an empty folder of runs, and how long.

    Raises:
        InputError: a profile, notebook or parameter is unknown, or nothing is known of a data set.
    """
    check_whole("jobs", jobs, minimum=1)
    place = pick_device(device)
    choose("profile", profile, PROFILES)
    given, read = read_given(parameters or {}), read_notebooks(notebooks)
    named = {name: choose("notebook", name, read) for name in only}
    chosen = [notebook for name, notebook in read.items() if name in named or not named]
    stored = read_profile(profile, notebooks)
    stored.check(read)
    check_known(given, chosen)
    found = follow([(notebook, merge(notebook, stored, given, {})) for notebook in chosen])
    probes = list(dict.fromkeys(probe for needed in found.needed for probe, _ in needed.work))
    seconds, base = measure_probes([Probe(_NOTEBOOK), *probes], jobs, str(place), progress=progress)
    return Costs(profile, found, seconds, base, jobs, str(place))


def measure_probes(
    probes: Sequence[Probe], jobs: int, device: str, *, progress: bool = True
) -> tuple[dict[Probe, float], float]:
    """Seconds of each piece while `jobs` processes are at it, and the bytes that such a process has."""
    started = time.time()
    message = pickle.dumps((list(probes), device, started))
    command = [sys.executable, "-m", "iadd_lab.notebooks.costs"]
    with tempfile.TemporaryDirectory(prefix="iadd-lab-plan-") as folder:
        workers = []
        for number in range(jobs):
            said, out = Path(folder, f"{number}.said"), Path(folder, f"{number}.out")
            given = Path(folder, f"{number}.given")
            given.write_bytes(message)
            # In files, since a full pipe would stop the worker.
            with given.open("rb") as source, said.open("wb") as errors, out.open("wb") as sink:
                worker = subprocess.Popen(command, stdin=source, stdout=sink, stderr=errors)
            workers.append((worker, said, out))
        try:
            with tqdm(total=len(probes), desc="timing", leave=None, disable=not progress) as bar:
                while any(worker.poll() is None for worker, _, _ in workers):
                    bar.update(min(said.read_bytes().count(b"\n") for _, said, _ in workers) - bar.n)
                    time.sleep(0.1)
        finally:
            for worker, _, _ in workers:
                worker.kill()
        for worker, said, _ in workers:
            if worker.wait() != 0:
                reason = (said.read_text(errors="replace").strip().splitlines() or ["killed"])[-1]
                raise RuntimeError(f"timing failed: {reason}")
        answers = [pickle.loads(out.read_bytes()) for _, _, out in workers]
    means = [statistics.mean(values) for values in zip(*(seconds for seconds, _ in answers), strict=True)]
    return dict(zip(probes, means, strict=True)), max(base for _, base in answers)


def main() -> None:
    """A process that times pieces for `measure_probes`, which has given them on standard input."""
    probes, device, started = pickle.load(sys.stdin.buffer)
    begun, base, seconds = time.time() - started, float(peak_memory()), []
    own = torch.get_num_threads()
    for probe in probes:
        torch.set_num_threads(probe.threads or own)
        if probe.kind == "process":
            seconds.append(begun)
        else:
            seconds.append(PROBES[probe.kind](probe, torch.device(device)))
        print("done", file=sys.stderr, flush=True)
    sys.stdout.buffer.write(pickle.dumps((seconds, base)))


def _timed(step: Callable[[], Any], device: torch.device, *, warm_up: bool = True) -> float:
    """The usual time of `step`, over a fraction of a second."""

    def once() -> float:
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    if device.type == "cuda":  # each operation of the augmentation is captured when it is first drawn
        for _ in range(_GPU_WARM_UPS if warm_up else 0):
            once()
    else:
        first = once() if warm_up else 0.0
        if first > 2.0:
            return first
    times = [once()]
    while sum(times) < _SECONDS or len(times) < 2:
        times.append(once())
    # On a GPU an operation that was not drawn before is captured in between, which long runs do once.
    return statistics.median(times) if device.type == "cuda" else statistics.mean(times)


def _share(probe: Probe, most: int, device: torch.device) -> int:
    """How many of `most` equal parts of the piece are few enough to be timed."""
    return max(min(int(most * _LARGEST[device.type] / max(probe.flops, 1.0)), most), 1)


def _network(probe: Probe, seed: int) -> torch.nn.Module:
    shape = probe.shape
    return build_network(
        probe.network, channels=shape.channels, size=shape.size, classes=shape.classes, seed=seed
    )


def _noise(shape: Shape, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(count, shape.channels, shape.size, shape.size, device=device)
    return images, torch.arange(count, device=device) % shape.classes


def _time_training(probe: Probe, device: torch.device) -> float:
    """An epoch of one network, or of as many images as are timed fast enough."""
    config = probe.config
    batches = -(-probe.images // config.batch)
    part = _share(probe, batches, device)
    count = probe.images if part == batches else part * config.batch
    if batches == 1:  # a single batch that is too large
        count = max(_share(probe, probe.images, device), 1)
    images, labels = _noise(probe.shape, count, device)
    training = Training(
        [_network(probe, 0).to(device)],
        [images],
        [labels],
        batch=config.batch,
        rates=[1e-4],
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        augment=config.augment,
        generators=[torch.Generator().manual_seed(0)],
    )
    return _timed(training.advance, device) * probe.images / count


def _time_prediction(probe: Probe, device: torch.device) -> float:
    """The test of one network."""
    count = _share(probe, probe.images, device)
    images, _ = _noise(probe.shape, count, device)
    network = _network(probe, 0).to(device)
    return _timed(lambda: predict(network, images, kernels=PLAIN), device) * probe.images / count


class _RandomTeachers(Teachers):
    """Two epochs of a teacher that was never trained."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return (Path("teacher_000.safetensors"),)

    @property
    def fingerprint(self) -> str:
        return ""

    def snapshot(self, teacher: int, epoch: int) -> torch.Tensor:
        return self.layout.flatten(self.network(epoch).parameters()).detach()


def _data(shape: Shape, per_class: int) -> ImageData:
    """Noise, with so many images of each class."""
    count = per_class * shape.classes
    pixels = torch.randint(0, 256, (count, shape.channels, shape.size, shape.size), dtype=torch.uint8)
    split = Split(pixels, torch.arange(count) % shape.classes)
    names = tuple(map(str, range(shape.classes)))
    return ImageData(DataConfig("digits"), names, split, split, split, "")


def _time_distillation(probe: Probe, device: torch.device) -> float:
    """An iteration, or one with fewer student steps, and fewer classes where one step is too much."""
    config, steps = probe.config, _share(probe, probe.config.student_steps, device)
    step = replace(probe, flops=probe.flops / config.student_steps)
    kept = max(_share(step, probe.shape.classes, device), 2)
    shape = replace(probe.shape, classes=kept)
    share = kept / probe.shape.classes
    batch = config.batch if share == 1 else max(round(probe.images * share), 1)
    augment = config.augment or AugmentConfig()
    # Rates so small that nothing diverges, however often an iteration is timed.
    harmless = {"image_rate": 1e-6, "alpha_rate": 0.0, "alpha": 1e-4, "back_offs": 1000}
    part = replace(config, student_steps=steps, teacher_epochs=1, batch=batch, augment=augment, **harmless)
    data = _data(shape, config.ipc)
    teachers = _RandomTeachers(
        folder=Path(),
        config=_teacher_config(probe.network),
        data=data.config,
        data_fingerprint="",
        classes=data.classes,
        channels=shape.channels,
        size=shape.size,
        preprocess=Standardise(torch.zeros(shape.channels), torch.ones(shape.channels)),
        count=1,
        identity="",
    )
    run = DistillRun(data, teachers, part, device, "never")
    return _timed(run.iterate, device) * config.student_steps / steps / share


def _teacher_config(network: NetworkConfig) -> Any:
    from iadd_lab.training.teachers import TeacherConfig

    return TeacherConfig(network=network, epochs=1)


def _time_descent(probe: Probe, device: torch.device) -> float:
    """An iteration of DC, DSA or DM, or one with fewer images and matches."""
    config, shape = probe.config, probe.shape
    real = min(config.real_batch, shape.train // shape.classes)
    part, kept, drawn = _part_of_descent(probe, real, device)
    whole = descent_passes(config, shape.classes, real) / descent_passes(part, kept, drawn)
    data = _data(replace(shape, classes=kept), max(drawn, part.ipc))
    preprocess = Standardise(torch.zeros(shape.channels), torch.ones(shape.channels))
    make = match_gradients if isinstance(config, GradientMatchingConfig) else match_distributions
    moments = [time.perf_counter()]

    def note(*_: object) -> None:
        moments.append(time.perf_counter())

    make(
        data,
        preprocess,
        probe.network,
        replace(part, iterations=4 if probe.flops < _LARGEST[device.type] / 10 else 2, image_rate=1e-6),
        device=device,
        progress=False,
        on_iteration=note,
    )
    # Without the first, which warms up.
    spent = [after - before for before, after in itertools.pairwise(moments[1:])]
    return statistics.mean(spent) * whole


def _part_of_descent(probe: Probe, real: int, device: torch.device) -> tuple[Any, int, int]:
    """A configuration, a number of classes and of real images of each that are timed fast enough."""
    config, classes = probe.config, probe.shape.classes
    forward = probe.flops / descent_passes(config, classes, real)

    def too_large() -> bool:
        return descent_passes(config, classes, real) * forward > 2 * _LARGEST[device.type]

    if too_large() and getattr(config, "matches_per_network", 1) > 2:
        # Two matches, with the network's steps between them, are like all others.
        config = replace(config, matches_per_network=2)
    while too_large() and classes > 2:
        classes = max(classes // 2, 2)
    while too_large() and real > 4:
        real, config = real // 2, replace(config, ipc=max(config.ipc // 2, 1))
    return replace(config, real_batch=real), classes, real


_TRIVIAL = """
from iadd_lab import plots
from iadd_lab.study.study import Study
import torch
pictures = torch.rand(10, 1, 8, 8)
plots.save_figure(plots.image_grid(pictures, torch.arange(10), tuple("0123456789")), figures_dir, "trivial")
"""


def _time_notebook(probe: Probe, device: torch.device) -> float:
    """A notebook that only draws a picture: kernel, imports, and a figure."""
    import nbformat
    from papermill import execute_notebook

    with tempfile.TemporaryDirectory(prefix="iadd-lab-plan-") as folder:
        cells = [nbformat.v4.new_code_cell(f"figures_dir = {folder!r}"), nbformat.v4.new_code_cell(_TRIVIAL)]
        path = Path(folder, "trivial.ipynb")
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        started = time.perf_counter()
        execute_notebook(
            path, Path(folder, "done.ipynb"), kernel_name="python3", language="python", progress_bar=False
        )
        return time.perf_counter() - started


# How each kind of piece is timed: seconds of one of them.
PROBES: dict[str, Callable[[Probe, torch.device], float]] = {
    "training": _time_training,
    "prediction": _time_prediction,
    "distillation": _time_distillation,
    "descent": _time_descent,
    _NOTEBOOK: _time_notebook,
}


def describe_costs(costs: Costs) -> str:
    """The plan as lines of text."""
    count = len(costs.found.notebooks)
    lines = [
        f"profile {costs.profile}: {count} notebooks, {costs.jobs} at once, timed on {costs.device}; "
        "what is computed is computed once for all of them",
        "",
        f"{'task':58} {'count':>6} {'PFLOP':>11} {'hours':>9}",
    ]
    for kind in ("teachers", "distillation", "evaluation", "engines"):
        lines += _rows(kind, [needed for needed in costs.found.needed if needed.kind == kind], costs)
    rest = count * costs.seconds[Probe(_NOTEBOOK)] / 3600
    lines += [
        _row("notebooks: kernels, imports, figures", count, 0.0, rest),
        "",
        f"time    {_duration(costs.wall())} with {costs.jobs} at once; "
        f"{_duration(sum(costs.notebooks().values()))} one after another",
        f"disk    {_bytes(costs.disk())} of runs",
        *_trajectories(costs.found),
        f"memory  {_bytes(costs.memory())} per worker, roughly",
    ]
    if any(probe.compiled for needed in costs.found.needed for probe, _ in needed.work):
        shares = ", ".join(f"{kind} {share}" for kind, share in COMPILED_SHARE.items())
        lines.append(f"Long runs are compiled: of the time measured without, this counts {shares}.")
    return "\n".join([*lines, *costs.found.unclear])


def _rows(kind: str, found: Sequence[Needed], costs: Costs) -> list[str]:
    counts, operations, seconds = Counter(), Counter(), Counter()
    for needed in found:
        counts[needed.title] += needed.count
        operations[needed.title] += needed.flops
        seconds[needed.title] += costs.time(needed)
    if not found:
        return []
    total = _row(kind, sum(counts.values()), sum(operations.values()), sum(seconds.values()) / 3600)
    return [total, *(_row(f"  {t}", counts[t], operations[t], seconds[t] / 3600) for t in counts)]


def _row(title: str, count: int, operations: float, hours: float) -> str:
    return f"{title[:58]:58} {count:6,} {operations / 1e15:11,.4f} {hours:9,.3f}"


def trajectory_bytes(found: DryRun) -> dict[tuple[str, str], float]:
    """Bytes of all trajectories, by how they are stored and by which epochs are."""
    sizes: dict[tuple[str, str], float] = defaultdict(float)
    for place, needed in enumerate(found.needed):
        if needed.trajectories is not None:
            count, snapshots, parameters = needed.trajectories
            for name, width in (("float32", 4), ("float16", 2)):
                sizes[name, "all epochs"] += count * snapshots * parameters * width
                used = min(found.used.get(place, snapshots), snapshots)
                sizes[name, "used epochs"] += count * used * parameters * width
    return sizes


def _trajectories(found: DryRun) -> Iterable[str]:
    sizes = trajectory_bytes(found)
    if sizes:
        parts = [f"{_bytes(size)} as {name}, {epochs}" for (name, epochs), size in sizes.items()]
        yield f"        of it trajectories: {'; '.join(parts)}"


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds / 3600:,.1f} h"


def _bytes(count: float) -> str:
    power = next((power for power in (1, 2, 3) if count < 1000 ** (power + 1)), 4)
    return f"{count / 1000**power:.1f} {'kMGT'[power - 1]}B"


if __name__ == "__main__":
    main()
