"""The distillation loop: images, the student's learning rate α and the importance W, optimised together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.sampling import INITIAL_IMAGES, check_class_sizes
from iadd_lab.data.sets import ImageData
from iadd_lab.distillation.config import OPTIMIZERS, DistillConfig
from iadd_lab.distillation.history import ALL_RATES, History
from iadd_lab.distillation.matching import effective_share
from iadd_lab.distillation.result import DistillResult
from iadd_lab.distillation.segments import draw_segments
from iadd_lab.distillation.unroll import ENGINES, Gradients, Segment, Variables, mean_gradients
from iadd_lab.errors import (
    DivergenceError,
    require,
)
from iadd_lab.seeds import generator
from iadd_lab.store.artefacts import Artefact, unpacking
from iadd_lab.store.configs import describe, fingerprint
from iadd_lab.store.locks import locked_folder
from iadd_lab.store.ranks import ALONE, LostRankError, Ranks
from iadd_lab.store.resumable import Checkpoint, State
from iadd_lab.training.fast.compiling import choose_kernels, flops
from iadd_lab.training.fast.losses import student_loss
from iadd_lab.training.fast.memory import reuse_freed_memory
from iadd_lab.training.teachers import Teachers

logger = logging.getLogger(__name__)


@locked_folder("folder")
def distill(
    data: ImageData,
    teachers: Teachers,
    config: DistillConfig,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    compile: str = "auto",
    cuda_graphs: bool | None = None,
    progress: bool = True,
    on_iteration: Callable[[int, History], None] | None = None,
    checkpoint_seconds: float = 60.0,
    ranks: Ranks = ALONE,
) -> DistillResult:
    """Distil `data` with trajectories of `teachers` (IADD, arXiv 2401.15863).

    Args:
        data: the real set; only its training images are used, and only to start from.
        teachers: trained on that very set.
        config: everything that the result depends on.
        folder: where `distilled.safetensors` and the checkpoint go. A finished run is read from there, an
            interrupted one goes on, on the CPU bit for bit. None keeps nothing.
        device: where the student runs.
        compile: "auto" (where the run is long enough to pay for it), "always" or "never"; see
            `iadd_lab.training.fast.compiling`.
        cuda_graphs: replay the student's steps as CUDA graphs (see `training.fast.cuda_graphs`), which
            changes nothing but the time; None does so on every GPU.
        progress: whether to show a progress bar.
        on_iteration: called with (iteration, history) after every update, for live plots.
        checkpoint_seconds: at most so many seconds of work are lost to a kill.
        ranks: which process of how many this is, where they share the segments; see `iadd_lab.store.ranks`.
            All get the result; `progress` and `on_iteration` are only heeded in the first, and it alone may
            be given a `folder`: the others would wait for it to leave it.

    Raises:
        InputError: data, teachers and config do not fit together, or `folder` holds another run.
        LostRankError: another rank is gone; the state before the iteration is in the checkpoint.
        DivergenceError: the loss is not finite or α is not positive any more, and `back_offs` are used up.
            The last state whose loss was finite is in the checkpoint, and in the error's `result`.
        KeyboardInterrupt: by Ctrl-C, after the state was saved.
    """
    # Resolved here, so that the artefact says what was done.
    config = replace(config, augment=data.augmentation(config.augment))
    check_inputs(data, teachers, config)
    ranks.own(config.segments)
    ranks.require_same(fingerprint(config, teachers.fingerprint))
    folder = folder if ranks.first else None
    finished = ranks.from_first(_finished(folder, teachers, config))
    path = Path(folder) / "checkpoint.safetensors" if folder is not None else None
    if finished is not None:
        if path is not None:
            path.unlink(missing_ok=True)  # left by a kill between writing the result and removing it
        return finished
    reuse_freed_memory()
    run = _Run(data, teachers, config, torch.device(device), compile, cuda_graphs, ranks)
    seconds, shown = ranks.checkpoint_seconds(checkpoint_seconds), progress and ranks.first
    with (
        Checkpoint(path, run=run.identity(), unit="iteration", seconds=seconds, ranks=ranks) as checkpoint,
        tqdm(total=config.iterations, desc="distill", leave=None, disable=not shown) as bar,
    ):
        stored = ranks.from_first(checkpoint.load())
        if stored is not None:
            run.load(stored)
        while run.iteration < config.iterations:
            _iterate_or_keep(run, checkpoint)
            _show(run, bar)
            if on_iteration is not None and ranks.first:
                on_iteration(run.iteration, run.history)
            _keep_or_lose(run, checkpoint)
        result = run.result()
        if folder is not None:
            result.save(Path(folder) / "distilled.safetensors")
        checkpoint.remove()
    return result


def _iterate_or_keep(run: _Run, checkpoint: Checkpoint) -> None:
    """One iteration, or a back-off; one too many leaves the last good state on disk and in the error."""
    try:
        run.iterate()
    except DivergenceError as error:
        if run.back_off(str(error)):
            return
        raise DivergenceError(f"{error} {_keep_now(run, checkpoint)}", result=run.result()) from None
    except LostRankError as error:
        raise LostRankError(f"{error} {_keep_now(run, checkpoint)} Run the same again to go on.") from error


def _keep_or_lose(run: _Run, checkpoint: Checkpoint) -> None:
    """Save the state if it is time to, or if another rank is gone."""
    try:
        checkpoint.keep(run.iteration, run.stored)
    except LostRankError as error:
        raise LostRankError(f"{error} {_keep_now(run, checkpoint)} Run the same again to go on.") from error


def _keep_now(run: _Run, checkpoint: Checkpoint) -> str:
    """Save the state, where there is a place for it, and say so."""
    if not run.ranks.first:
        return "What rank 0 saved last is kept."
    where = ""
    if checkpoint.path is not None:
        checkpoint.save(run.stored)
        where = f" in {checkpoint.path}"
    return f"The state after {run.iteration} iterations is kept{where}."


def _show(run: _Run, bar: tqdm) -> None:
    """Bring the bar to where the run is: a back-off may take an iteration back."""
    bar.update(run.iteration - bar.n)
    if run.history.loss:
        loss, alpha = run.history.loss[-1], run.history.alpha[-1]
        bar.set_postfix(loss=f"{loss:.4f}", alpha=f"{alpha:.4f}", refresh=False)


def check_inputs(data: ImageData, teachers: Teachers, config: DistillConfig) -> None:
    """Require that data, teachers and config fit together, before anything expensive starts.

    Raises:
        InputError: with what does not fit and how to mend it.
    """
    require(
        data.fingerprint == teachers.data_fingerprint,
        f"the teachers in {teachers.folder} were trained on {teachers.data} (fingerprint "
        f"{teachers.data_fingerprint}), but the data is {data.config} (fingerprint {data.fingerprint}): "
        "load that data, or train teachers on this.",
    )
    needed = config.max_start_epoch - 1 + config.teacher_epochs
    require(
        needed <= teachers.config.epochs,
        f"max_start_epoch {config.max_start_epoch} and teacher_epochs {config.teacher_epochs} reach epoch "
        f"{needed}, but the teachers have {teachers.config.epochs} epochs: lower either, or train longer.",
    )
    if config.initial_images == "real":
        check_class_sizes(data, config.ipc)
    total = config.ipc * len(data.classes)
    require(
        config.batch is None or config.batch <= total,
        f"batch is {config.batch}, but there are only {total} distilled images: lower it, or leave it out.",
    )


# Forward passes that the adjoint engine's convolutions amount to, per image and step.
ADJOINT_PASSES = 11


def _unweighted(gradients: Gradients, segment: Segment) -> torch.Tensor:
    """The loss that W ≡ 1 would have where the student arrived, a scalar."""
    moved = (segment.start - segment.target).square().sum()
    return (gradients.end - segment.target).square().sum() / moved


def distillation_flops(network: nn.Module, data: ImageData, config: DistillConfig) -> float:
    """Floating-point operations of the run, by the adjoint engine; 0 where compiling has nothing to offer."""
    if config.gradient == "full":
        return 0.0
    images = min(config.batch or config.ipc * len(data.classes), config.ipc * len(data.classes))
    passes = ADJOINT_PASSES * images * config.student_steps * config.segments * config.iterations
    return passes * flops(network, channels=data.channels, size=data.size)


def _finished(folder: Path | None, teachers: Teachers, config: DistillConfig) -> DistillResult | None:
    path = Path(folder) / "distilled.safetensors" if folder is not None else None
    if path is None or not path.exists():
        return None
    result = DistillResult.load(path)
    require(
        result.config == config and result.teachers.get("fingerprint") == teachers.fingerprint,
        f"{path} is the result of another configuration: choose another folder, or delete it.",
    )
    return result


def _wants_graphs(asked: bool | None, device: torch.device) -> bool:
    there = device.type == "cuda"
    require(there or not asked, f"cuda_graphs needs a CUDA device, and this is {device.type}: leave it out.")
    return there if asked is None else asked


class _Run:
    """The mutable state of one distillation: all that a checkpoint holds."""

    def __init__(
        self,
        data: ImageData,
        teachers: Teachers,
        config: DistillConfig,
        device: torch.device,
        compile: str,
        cuda_graphs: bool | None = None,
        ranks: Ranks = ALONE,
    ):
        self.data, self.teachers, self.config, self.device = data, teachers, config, device
        self.ranks = ranks
        network = teachers.network(0)
        work = distillation_flops(network, data, config)
        kernels = choose_kernels(compile, work=work, device=device)
        self.loss = student_loss(network, replace(kernels, graphs=_wants_graphs(cuda_graphs, device)))
        self.layout = self.loss.layout
        self.engine = ENGINES[config.gradient]
        start = generator(config.seed, "initial images")
        initial = INITIAL_IMAGES[config.initial_images](data, teachers.preprocess, config.ipc, start)
        self.images = initial.to(device).requires_grad_()  # (classes * ipc, channels, height, width)
        self.labels = torch.arange(len(data.classes), device=device).repeat_interleave(config.ipc)
        self.alpha = torch.tensor(config.alpha, device=device, requires_grad=True)  # ()
        self.raw = config.matching.initial(self.layout).to(device)
        self.image_optimizer = OPTIMIZERS[config.image_optimizer]([self.images], config)
        self.alpha_optimizer = torch.optim.SGD([self.alpha], lr=config.alpha_rate, momentum=config.momentum)
        self.generator = generator(config.seed, "segments")
        self.iteration = 0
        self.history = History()
        spaced = torch.linspace(0, config.iterations, min(config.snapshots, config.iterations + 1))
        self.snapshot_at = set(spaced.round().long().tolist())
        self.importance = torch.ones(self.layout.count, device=device)
        self.proven: dict[str, torch.Tensor] | None = None  # the state before the last update
        self.at_fault = ALL_RATES  # by the last divergence
        self.take_snapshot()

    def iterate(self) -> None:
        """One iteration: draw segments, differentiate, update images, α and W.

        Raises:
            DivergenceError: the loss is not finite, or an update would be unusable. The run is then back in
                the last state whose loss was finite.
            LostRankError: another rank is gone. The run is then as it was before.
        """
        started = time.perf_counter()
        before = self.state()
        variables = Variables(self.images.detach(), self.labels, self.alpha.detach(), self.raw)
        try:
            gradients, unweighted, target = self.gradients(variables)
        except LostRankError:
            self.restore(before)
            raise
        if not finite(gradients.loss, gradients.images, gradients.alpha, gradients.raw):
            # The update before led here: the state before that one is the last that is known to be good.
            self.restore(self.proven or before)
            if self.proven is not None:
                self.iteration -= 1
                self.history.forget_last()
                self.proven = None
            self.at_fault = ALL_RATES  # the step that led here moved images, α and W
            raise DivergenceError(self.explain_loss(gradients.loss.item()))
        self.update(gradients)
        if not (finite(self.images, self.raw, self.alpha) and self.alpha > 0):
            after = self.alpha.item()
            self.at_fault = self.unusable()
            self.restore(before)
            raise DivergenceError(self.explain_update(after))
        self.proven = before
        # Where W depends on the segment, it is the last one's.
        self.importance = self.weights(self.raw, gradients.end, target)
        self.record(gradients.loss, unweighted, time.perf_counter() - started)

    def gradients(self, variables: Variables) -> tuple[Gradients, torch.Tensor, torch.Tensor]:
        """Means over the segments of all ranks: gradients and unweighted loss; and the last one's target."""
        segments = draw_segments(
            self.teachers,
            self.config,
            self.images,
            self.generator,
            own=self.ranks.own(self.config.segments),
        )
        parts = [self.engine(self.loss, segment, variables, self.objective(segment)) for segment in segments]
        end, target = self.ranks.from_last((parts[-1].end, segments[-1].target))
        rows = self.ranks.gather(
            [
                (part.loss, part.images, part.alpha, part.raw, _unweighted(part, segment))
                for part, segment in zip(parts, segments, strict=True)
            ]
        )
        mean = mean_gradients([Gradients(*row[:-1], end) for row in rows])
        return mean, torch.stack([row[-1] for row in rows]).mean(), target

    def unusable(self) -> str:
        """The rate whose update made something not finite, or α not positive."""
        if not (finite(self.alpha) and self.alpha > 0):
            return "alpha_rate"
        return "rate of W" if finite(self.images) else "image_rate"

    def back_off(self, reason: str) -> bool:
        """Halve the rate at fault, and say so; False where that was done as often as it may be."""
        if len(self.history.back_off_rates) >= self.config.back_offs:
            return False
        self.history.back_off(self.at_fault)
        if self.ranks.first:
            logger.warning(
                "%s Went back to iteration %d and halved %s.", reason, self.iteration, self.at_fault
            )
        return True

    def objective(self, segment: Segment) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        matching, layout = self.config.matching, self.layout
        return lambda end, raw: matching.loss(
            end, raw, start=segment.start, target=segment.target, layout=layout
        )

    def weights(self, raw: torch.Tensor, end: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.config.matching.weights(raw, end=end, target=target, layout=self.layout)

    def explain_loss(self, loss: float) -> str:
        return (
            f"the matching loss after iteration {self.iteration}, or its gradient, became not "
            f"finite ({loss:.4g}): lower alpha (now {self.alpha.item():.4g}), image_rate "
            f"({self.config.image_rate:g}) or the rate of W."
        )

    def explain_update(self, after: float) -> str:
        if after <= 0:
            return (
                f"alpha would fall from {self.alpha.item():.4g} to {after:.4g} in iteration "
                f"{self.iteration + 1}: lower alpha_rate (now {self.config.alpha_rate:g})."
            )
        return (
            f"the update of iteration {self.iteration + 1} is not finite: lower image_rate "
            f"({self.config.image_rate:g}), alpha_rate ({self.config.alpha_rate:g}) or the rate of W."
        )

    def update(self, gradients: Gradients) -> None:
        config, share_of = self.config, self.history.share_of
        self.images.grad, self.alpha.grad = gradients.images, gradients.alpha
        self.image_optimizer.param_groups[0]["lr"] = config.image_rate * share_of("image_rate")
        self.alpha_optimizer.param_groups[0]["lr"] = config.alpha_rate * share_of("alpha_rate")
        self.image_optimizer.step()
        self.alpha_optimizer.step()
        self.raw = config.matching.learn(
            self.raw, gradients.raw * share_of("rate of W"), layout=self.layout, iteration=self.iteration
        )

    def record(self, loss: torch.Tensor, unweighted: torch.Tensor, seconds: float) -> None:
        self.iteration += 1
        history = self.history
        history.loss.append(loss.item())
        history.unweighted_loss.append(unweighted.item())
        history.alpha.append(self.alpha.item())
        history.seconds.append(seconds)
        history.importance_min.append(self.importance.min().item())
        history.importance_max.append(self.importance.max().item())
        history.importance_share.append(effective_share(self.importance))
        self.take_snapshot()

    def take_snapshot(self) -> None:
        if self.iteration in self.snapshot_at:
            self.history.snapshot_iterations.append(self.iteration)
            self.history.snapshot_images.append(self.images.detach().cpu().clone())
            if self.config.matching.varies:
                self.history.snapshot_importance.append(self.importance.detach().cpu().clone())

    def result(self) -> DistillResult:
        augment = self.config.augment
        distilled = DistilledSet(
            images=self.images.detach().cpu().clone(),
            labels=self.labels.cpu(),
            alpha=self.alpha.item(),
            preprocess=self.teachers.preprocess,
            classes=self.data.classes,
            data=self.data.config,
            data_fingerprint=self.data.fingerprint,
            method=self.config.matching.name,
            augment=None if augment == self.data.augmentation(None) else augment,
        )
        teachers = {
            "config": describe(self.teachers.config),
            "fingerprint": self.teachers.fingerprint,
            "count": len(self.teachers),
        }
        return DistillResult(
            distilled=distilled,
            importance=self.importance.detach().cpu(),
            raw=self.raw.detach().cpu(),
            history=self.history,
            config=self.config,
            teachers=teachers,
        )

    def identity(self) -> str:
        return fingerprint(self.config, self.teachers.fingerprint)

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of all that an iteration changes, but for the history."""
        tensors = {
            "images": self.images,
            "alpha": self.alpha,
            "raw": self.raw,
            "importance": self.importance,
            "generator": self.generator.get_state(),
        }
        for owner, optimizer in self.optimizers().items():
            for name, value in optimizer.state_dict()["state"].get(0, {}).items():
                if value is not None:
                    tensors[f"optimizer/{owner}/{name}"] = value
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go back to what `state` returned."""
        with torch.no_grad():
            self.images.copy_(state["images"])
            self.alpha.copy_(state["alpha"])
        self.raw, self.importance = state["raw"].to(self.device), state["importance"].to(self.device)
        self.generator.set_state(state["generator"])
        for owner, optimizer in self.optimizers().items():
            prefix = f"optimizer/{owner}/"
            own = {n.removeprefix(prefix): t.clone() for n, t in state.items() if n.startswith(prefix)}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: own} if own else {}})

    def stored(self) -> State:
        """All that a checkpoint holds."""
        proven = {f"proven/{name}": tensor for name, tensor in (self.proven or {}).items()}
        return self.state() | proven | self.history.tensors(), {"iteration": self.iteration}

    def load(self, artefact: Artefact) -> None:
        """Go on from a checkpoint, on the CPU bit for bit."""
        tensors = artefact.tensors
        with unpacking(artefact.path):
            self.restore(tensors)
            proven = {n.removeprefix("proven/"): t for n, t in tensors.items() if n.startswith("proven/")}
            self.proven = proven or None
            self.iteration = artefact.metadata["iteration"]
            self.history = History.from_tensors(tensors)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"images": self.image_optimizer, "alpha": self.alpha_optimizer}


def finite(*tensors: torch.Tensor) -> bool:
    """Whether every value of every tensor is finite; one wait for the device."""
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())
