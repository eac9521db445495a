"""The distillation loop: images, the student's learning rate α and the importance W, optimised together."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.sampling import INITIAL_IMAGES, check_class_sizes
from iadd_lab.data.sets import ImageData
from iadd_lab.device import DEFAULT, Execution, executes, finite, to_device
from iadd_lab.distillation.config import OPTIMIZERS, DistillConfig
from iadd_lab.distillation.history import ALL_RATES, History
from iadd_lab.distillation.matching import Uniform, effective_share
from iadd_lab.distillation.result import DistillResult
from iadd_lab.distillation.segments import ALONE, Ranks, draw_place, draw_segment
from iadd_lab.distillation.unroll import ENGINES, Gradients, Variables
from iadd_lab.errors import DivergenceError, check_whole, require
from iadd_lab.seeds import generator
from iadd_lab.store.artefacts import Artefact
from iadd_lab.store.configs import describe, fingerprint
from iadd_lab.store.locks import expanded, lock_of, locked
from iadd_lab.store.resumable import State, check_result, complete, under
from iadd_lab.training.fast.compiling import choose_kernels, flops
from iadd_lab.training.fast.losses import student_loss
from iadd_lab.training.fast.memory import reuse_freed_memory
from iadd_lab.training.teachers import Teachers

# Of what each optimizer moves.
_RATES = {"images": "image_rate", "alpha": "alpha_rate", "soft_labels": "label_rate"}
# Forward passes that the adjoint engine's convolutions amount to, per image and step.
ADJOINT_PASSES = 11


@executes
def distill(
    data: ImageData,
    teachers: Teachers,
    config: DistillConfig,
    *,
    folder: Path | None = None,
    how: Execution = DEFAULT,
    on_iteration: Callable[[int, History], None] | None = None,
    ranks: Ranks = ALONE,
) -> DistillResult:
    """Distil `data` with trajectories of `teachers` (IADD, arXiv 2401.15863).

    Args:
        data: the real set; only its training images are used, and only to start from.
        teachers: trained on that very set.
        config: everything that the result depends on.
        folder: where `distilled.safetensors` and the checkpoint go. A finished run is read from there, an
            interrupted one goes on, on the CPU bit for bit. None keeps nothing.
        how: where it runs, and what is shown and kept meanwhile.
        on_iteration: called with (iteration, history) after every update, for live plots.
        ranks: which process of how many this is, where several share the segments; see `iadd_lab.ranks`. All
            are given the same `folder` and get the result; only the first writes, shows progress, and calls
            `on_iteration`.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: data, teachers and config do not fit together, or `folder` holds another run.
        ConnectionError: another rank is gone; the state before the iteration is in the checkpoint.
        DivergenceError: the loss is not finite or α is not positive any more, and `back_offs` are used up.
            The last state whose loss was finite is in the checkpoint, and in the error's `result`.
        KeyboardInterrupt: by Ctrl-C, after the state was saved.
    """
    seconds = min(how.checkpoint_seconds, ranks.patience)
    how = replace(how, progress=how.progress and ranks.first, checkpoint_seconds=seconds)
    # Resolved here, so that the artefact says what was done.
    config = replace(config, augment=data.augmentation(config.augment))
    check_inputs(data, teachers, config)
    ranks.own(config.segments)
    identity = fingerprint(config, teachers.fingerprint)
    folder = folder and expanded(folder)
    target = folder and folder / "distilled.safetensors"
    path = target and target.with_name("checkpoint.safetensors")
    with locked(lock_of(folder), str(folder)) if target and ranks.first else nullcontext():
        ranks.agree(identity)  # which is not before the first rank has the folder for itself
        if target and target.exists():
            if ranks.first:
                path.unlink(missing_ok=True)  # left by a kill between writing the result and removing it
            result = DistillResult.load(target)
            check_result(target, fingerprint(result.config, result.teachers.get("fingerprint")), identity)
            return result
        reuse_freed_memory()
        run = Distillation(data, teachers, config, how, ranks)
        hooks = {
            "on_advance": lambda: on_iteration and ranks.first and on_iteration(run.done, run.history),
            "save": lambda: target and run.result().save(target),
        }
        complete(run, path=path, identity=identity, title="distill", how=how, writes=ranks.first, **hooks)
        return run.result()


def check_inputs(data: ImageData, teachers: Teachers, config: DistillConfig) -> None:
    """Require that data, teachers and config fit together, before anything expensive starts.

    Raises:
        InputError: with what does not fit and how to mend it.
    """
    teachers.check_data(data)
    first, length, epochs = config.max_start_epoch, config.teacher_epochs, teachers.config.epochs
    reached = f"max_start_epoch {first} and teacher_epochs {length} reach epoch {first - 1 + length}"
    sentence = f"{reached}, but the teachers have {epochs} epochs: lower either, or train longer."
    require(first - 1 + length <= epochs, sentence)
    config.parametrisation.check(data.size)
    check_class_sizes(data, config.shown_ipc if config.initial_images == "real" else 1)
    total = config.shown_ipc * len(data.classes)
    sentence = f"batch is {config.batch}, but there are only {total} distilled images: lower it."
    require(config.batch is None or config.batch <= total, sentence)


def distillation_flops(network: nn.Module, data: ImageData, config: DistillConfig) -> float:
    """Floating-point operations of the run, by the adjoint engine; 0 where compiling has nothing to offer."""
    if config.gradient == "full":
        return 0.0
    images = config.batch or config.shown_ipc * len(data.classes)
    passes = ADJOINT_PASSES * images * config.student_steps * config.segments * config.iterations
    return passes * flops(network, channels=data.channels, size=data.size)


class Distillation:
    """One distillation on its way: what is learned, and all else that a checkpoint holds. A `Resumable`."""

    unit = "iteration"

    def __init__(
        self, data: ImageData, teachers: Teachers, config: DistillConfig, how: Execution, ranks: Ranks = ALONE
    ):
        self.data, self.teachers, self.config, self.ranks = data, teachers, config, ranks
        network, device = teachers.network(0), how.place
        kernels = choose_kernels(how.compile, work=distillation_flops(network, data, config), device=device)
        self.loss = student_loss(network, replace(kernels, graphs=how.graphs), plain=True)
        self.budget = how.budget
        self.layout = self.loss.layout
        start = generator(config.seed, "initial images")
        initial = INITIAL_IMAGES[config.initial_images](data, teachers.preprocess, config.shown_ipc, start)
        # As they are stored, (classes * ipc, channels, height, width), and the labels of what networks see.
        self.images = config.parametrisation.encode(initial.to(device))
        self.labels = torch.arange(len(data.classes), device=device).repeat_interleave(config.shown_ipc)
        soft = config.labels == "soft"
        self.soft_labels = self.first_soft_labels() if soft else torch.zeros(0, device=device)
        self.alpha = torch.tensor(config.alpha, device=device)  # ()
        self.raw = config.matching.initial(self.layout).to(device)  # what is learned of W
        self.importance = torch.ones(self.layout.count, device=device)  # W, (P,)
        self.optimizers = {
            "images": OPTIMIZERS[config.image_optimizer](self.images, config.momentum),
            "alpha": torch.optim.SGD([self.alpha], momentum=config.momentum),
        }
        if soft:
            sgd = torch.optim.SGD([self.soft_labels], momentum=config.label_momentum)
            self.optimizers["soft_labels"] = sgd
        # Over the iterations; the result, where there are any.
        averaged = [name for name in self.optimizers if config.average and name != "alpha"]
        self.averages = {name: getattr(self, name).clone() for name in averaged}
        self.generator = generator(config.seed, "segments")
        self.done, self.total = 0, config.iterations
        self.history = History()
        spaced = torch.linspace(0, self.total, min(config.snapshots, self.total + 1))
        self.snapshot_at = set(spaced.round().long().tolist())
        self.last_good: dict[str, Tensor] = {}  # the state before the last update, if there was one
        self.at_fault = ALL_RATES  # by the last divergence
        self.take_snapshot()

    @torch.no_grad()
    def first_soft_labels(self) -> Tensor:
        """For each image the mean logits of the trained teachers that classify it rightly (DATM; TESLA).

        Where none of them does, the mean of all, the largest logit changing places with that of its class.
        """
        seen, epochs = self.config.parametrisation.decode(self.images), self.teachers.config.epochs
        ends = (to_device(self.teachers.snapshot(n, epochs), seen.device) for n in range(len(self.teachers)))
        logits = torch.stack([self.loss.logits(end, seen) for end in ends])  # (teachers, count, classes)
        right = (logits.argmax(2) == self.labels).to(logits.dtype)[..., None]
        right = torch.where(right.any(0), right, torch.ones_like(right))
        mean, rows = (right * logits).sum(0) / right.sum(0), torch.arange(len(seen), device=seen.device)
        top, own = mean.argmax(1), mean[rows, self.labels]
        mean[rows, self.labels], mean[rows, top] = mean[rows, top], own
        return mean

    def advance(self) -> dict[str, str]:
        """One iteration: draw segments, differentiate, update images, α and W.

        Raises:
            DivergenceError: the loss is not finite, or an update would be unusable. The run is then back in
                the last state whose loss was finite.
            ConnectionError: another rank is gone. The run is then as it was before.
        """
        started, config, before = time.perf_counter(), self.config, self.tensors()
        try:
            gradients, unweighted, target = self.gradients()
        except ConnectionError:
            self.restore(before)
            raise
        if not finite(gradients.loss, gradients.images, gradients.alpha, gradients.raw, gradients.soft):
            # The update before led here: the state before that one is the last that is known to be good.
            self.restore(self.last_good or before)
            self.done -= bool(self.last_good)
            self.history.keep(self.done)
            self.last_good, self.at_fault = {}, ALL_RATES
            what = f"the matching loss after iteration {self.done}, or its gradient, became not finite"
            rates = f"alpha ({self.alpha.item():.4g}), image_rate ({config.image_rate:g}) or the rate of W"
            raise DivergenceError(f"{what} ({gradients.loss.item():.4g}): lower {rates}.")
        self.update(gradients)
        alpha = self.alpha.item()
        if not (0 < alpha < math.inf and finite(self.images, self.raw, self.soft_labels)):
            own = {"image_rate": self.images, "label_rate": self.soft_labels, "rate of W": self.raw}
            wrong = next((rate for rate, tensor in own.items() if not finite(tensor)), "")
            self.at_fault = wrong if 0 < alpha < math.inf else "alpha_rate"
            self.restore(before)
            fall = f"alpha would fall from {self.alpha.item():.4g} to {alpha:.4g}"
            what = fall if alpha <= 0 else "the update would not be finite"
            now = f" (now {getattr(config, self.at_fault):g})" if hasattr(config, self.at_fault) else ""
            raise DivergenceError(f"{what} in iteration {self.done + 1}: lower {self.at_fault}{now}.")
        self.last_good = before
        # Where W depends on the segment, it is the last one's.
        place = {"end": gradients.end, "target": target, "layout": self.layout}
        self.importance = weights = config.matching.weights(self.raw, **place)
        self.done += 1
        noted = {"loss": gradients.loss.item(), "unweighted_loss": unweighted.item(), "alpha": alpha}
        noted |= {"importance_min": weights.min().item(), "importance_max": weights.max().item()}
        noted |= {"importance_share": effective_share(weights), "seconds": time.perf_counter() - started}
        self.history.append(**noted, **self.take_average())
        self.take_snapshot()
        return {name: f"{noted[name]:.4f}" for name in ("loss", "alpha")}

    def gradients(self) -> tuple[Gradients, Tensor, Tensor]:
        """Means over the segments of all ranks: gradients and unweighted loss; and the last one's target."""
        self.ranks.agree(f"iteration {self.done}")
        form = self.config.parametrisation
        soft = self.soft_labels.softmax(-1)
        labels = soft if len(soft) else self.labels
        variables = Variables(form.decode(self.images), labels, self.alpha, self.raw)
        config, own = self.config, self.ranks.own(self.config.segments)
        rows = []
        for number in range(config.segments):
            drawn = draw_place(self.teachers, config, self.generator)
            segment = draw_segment(self.teachers, config, variables.images, self.generator, *drawn)
            if number in own:
                place = {"start": segment.start, "target": segment.target, "layout": self.layout}
                objective = partial(config.matching.loss, **place)
                given = self.loss, segment, variables, objective
                found = ENGINES[config.gradient](*given, budget=self.budget)
                unweighted = Uniform().loss(found.end, found.raw, **place)
                parts = found.loss, found.images, found.alpha, found.raw, found.soft, unweighted
                rows.append((*parts, found.end, segment.target))
        *columns, ends, targets = zip(*self.ranks.gather(rows), strict=True)
        means = [torch.stack(column).mean(0) if len(column) > 1 else column[0] for column in columns]
        found = Gradients(*means[:-1], ends[-1])
        found = replace(found, images=form.transpose(found.images, stored=self.images))
        # Through the softmax, to the logits.
        found = replace(found, soft=soft * (found.soft - (soft * found.soft).sum(-1, keepdim=True)))
        return found, means[-1], targets[-1]

    def back_off(self, reason: str) -> bool:
        """Halve the rate at fault, and say so; False where that was done as often as it may be."""
        return self.history.back_off(self.at_fault, reason=reason, limit=self.config.back_offs)

    def update(self, gradients: Gradients) -> None:
        config, share_of = self.config, self.history.share_of
        self.images.grad, self.alpha.grad = gradients.images, gradients.alpha
        self.soft_labels.grad = gradients.soft
        for name, optimizer in self.optimizers.items():
            rate = _RATES[name]
            optimizer.param_groups[0]["lr"] = getattr(config, rate) * share_of(rate)
            optimizer.step()
        slope = gradients.raw * share_of("rate of W")
        self.raw = config.matching.learn(self.raw, slope, layout=self.layout, iteration=self.done)

    def take_average(self) -> dict[str, float]:
        """Move the averages towards what there is now; returns how far off they are, for the history."""
        for name, average in self.averages.items():
            average.lerp_(getattr(self, name), 1 - self.config.average)
        if not self.averages:
            return {}
        away = (self.images - self.averages["images"]).norm() / self.images.norm()
        return {"average_distance": away.item()}

    def take_snapshot(self) -> None:
        if self.done in self.snapshot_at:
            kept = {f"snapshot_{name}": value for name, value in self.learned().items()}
            self.history.append(snapshot_iterations=self.done, **kept)
            if self.config.matching.varies:
                self.history.append(snapshot_importance=self.importance.cpu().clone())

    def learned(self) -> dict[str, Tensor]:
        """The images and soft labels that the result would have now: the averages, where there are any."""
        found = {n: self.averages.get(n, getattr(self, n)) for n in self.optimizers if n != "alpha"}
        return {name: tensor.cpu().clone() for name, tensor in found.items()}

    def result(self) -> DistillResult:
        """What there is now."""
        config, data, teachers = self.config, self.data, self.teachers
        form = config.parametrisation
        # Of stored images.
        parts = self.learned() | {"labels": self.labels[:: form.views].cpu(), "alpha": self.alpha.item()}
        augment = None if config.augment == data.augmentation(None) else config.augment
        parts |= {"method": config.matching.name, "augment": augment, "parametrisation": form}
        made = DistilledSet.of(data, teachers.preprocess, **parts)
        source = {"config": describe(teachers.config), "fingerprint": teachers.fingerprint}
        source["count"] = len(teachers)
        return DistillResult(made, self.importance.cpu(), self.raw.cpu(), self.history, config, source)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all that an iteration changes, but for the history."""
        tensors = {name: getattr(self, name) for name in (*self.optimizers, "raw", "importance")}
        tensors["generator"] = self.generator.get_state()
        tensors |= {f"average/{name}": average for name, average in self.averages.items()}
        for owner, optimizer in self.optimizers.items():
            moments = optimizer.state_dict()["state"].get(0, {})
            tensors |= {f"optimizer/{owner}/{n}": value for n, value in moments.items() if value is not None}
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `tensors` returned."""
        for name in self.optimizers:
            getattr(self, name).copy_(tensors[name])
        for name, average in self.averages.items():
            average.copy_(tensors[f"average/{name}"])
        own = {name: getattr(self, name) for name in ("raw", "importance")}
        self.raw, self.importance = (tensors[name].to(now).view_as(now) for name, now in own.items())
        self.generator.set_state(tensors["generator"])
        for owner, optimizer in self.optimizers.items():
            own = {name: tensor.clone() for name, tensor in under(f"optimizer/{owner}/", tensors).items()}
            own |= {
                name: tensor.view_as(getattr(self, owner)) for name, tensor in own.items() if name != "step"
            }
            optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: own} if own else {}})

    def state(self) -> State:
        """All that a checkpoint holds."""
        last_good = {f"proven/{name}": tensor for name, tensor in self.last_good.items()}
        return self.tensors() | last_good | self.history.tensors(), {"iteration": self.done}

    def load(self, artefact: Artefact) -> None:
        """Go on from a checkpoint, on the CPU bit for bit."""
        self.restore(artefact.tensors)
        self.last_good = under("proven/", artefact.tensors)
        self.done = artefact.metadata["iteration"]
        check_whole("iteration", self.done, minimum=0, maximum=self.total)
        self.history = History.from_tensors(artefact.tensors)
        for name in (*self.learned(), "importance"):  # that the next snapshot fits to those before
            torch.stack([getattr(self, name).cpu(), *getattr(self.history, f"snapshot_{name}")])
