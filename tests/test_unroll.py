"""The gradient engines against each other, against finite differences, and against plain MTT."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from iadd_lab.data.augment import AugmentConfig, draw_augmentation
from iadd_lab.distillation.matching import Learned, Pruned, Uniform
from iadd_lab.distillation.segments import on_device
from iadd_lab.distillation.unroll import ENGINES, Segment, Step, StudentLoss, Variables
from iadd_lab.study.bench import BenchConfig, measure
from iadd_lab.training.fast.compiling import PLAIN, compiled_kernels
from iadd_lab.training.fast.losses import CapturedStudentLoss, FusedStudentLoss
from iadd_lab.training.networks import NetworkConfig, build_network
from tests.samples import randn

CLASSES, IPC, SIZE = 3, 2, 8
LEARNED = Learned()
MATCHINGS = {
    "uniform": Uniform(),
    "pruned": Pruned(fraction=0.2),
    "learned": LEARNED,
    "literal": Learned(normalised=False),
    "tensor": Learned(granularity="tensor"),
    "literal tensor": Learned(normalised=False, granularity="tensor"),
}


PARTS = ("loss", "end", "images", "alpha", "raw")


def build(width, *, seed=1):
    config = NetworkConfig(width=width, depth=2)
    return build_network(config, channels=3, size=SIZE, classes=CLASSES, seed=seed)


def make_problem(*, width=5, steps=10, batch=4, operations=None, matching=LEARNED, dtype=torch.float64):
    """A random segment, with augmentation and mini-batches; W away from its start so that it matters."""
    generator = torch.Generator().manual_seed(7)
    network = build(width)
    loss = StudentLoss(network)
    start = loss.layout.flatten(network.parameters()).to(dtype)
    target = start + 0.05 * torch.randn(start.shape, generator=generator, dtype=dtype)
    augment = AugmentConfig() if operations is None else AugmentConfig(operations=operations)
    size, total = {"batch": batch, "height": SIZE, "width": SIZE}, CLASSES * IPC
    drawn = []
    for _ in range(steps):
        rows = torch.randperm(total, generator=generator)[:batch]
        drawn.append(Step(rows, draw_augmentation(augment, **size, generator=generator)))
    raw = matching.initial(loss.layout).to(dtype)
    raw = raw + 0.3 * torch.rand(raw.shape, generator=generator, dtype=dtype)
    variables = Variables(
        images=torch.randn(total, 3, SIZE, SIZE, generator=generator, dtype=dtype),
        labels=torch.arange(CLASSES).repeat_interleave(IPC),
        alpha=torch.tensor(0.05, dtype=dtype),
        raw=raw,
    )
    segment = Segment(start, target, tuple(drawn))
    return loss, segment, variables, make_objective(matching, segment, loss.layout)


def make_objective(matching, segment, layout):
    return lambda end, raw: matching.loss(end, raw, start=segment.start, target=segment.target, layout=layout)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def assert_equal(found, exact, parts=PARTS):
    for part in parts:
        assert torch.equal(getattr(found, part), getattr(exact, part)), part


OPERATIONS = ["color", "crop", "cutout", "flip", "scale", "rotate"]
PROBLEMS = [{"width": width, "matching": MATCHINGS[name]} for width in (1, 5, 16) for name in MATCHINGS]
PROBLEMS += [{"operations": (operation,), "steps": 3} for operation in OPERATIONS]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_adjoint_equals_full(problem):
    loss, *problem = make_problem(**problem)
    exact = ENGINES["full"](loss, *problem)
    for own in (loss, FusedStudentLoss(loss.network, PLAIN)):
        found = ENGINES["adjoint"](own, *problem)
        assert found.images.abs().sum() > 0
        for part in PARTS:
            assert relative(getattr(found, part), getattr(exact, part)) < 1e-10, part


@pytest.mark.parametrize("engine", ["adjoint", "frozen"])
def test_what_is_kept_saves_time_and_changes_no_bit(engine, monkeypatch):
    """Whatever the budget, and however many steps are augmented at once."""
    loss, *problem = make_problem()
    loss = FusedStudentLoss(loss.network, PLAIN, chunk=3)
    expected, passes = ENGINES[engine](loss, *problem), []
    there_and_back = FusedStudentLoss._there_and_back

    def counted(*given):
        passes.append(given)
        return there_and_back(*given)

    monkeypatch.setattr(FusedStudentLoss, "_there_and_back", counted)
    size = loss.step(problem[0].start, problem[1].images[:4], problem[1].labels[:4])[1].nbytes()
    for budget, repeated in ((0, 10), (3.5 * size, 7), (1e9, 0)):
        passes.clear()
        assert_equal(ENGINES[engine](loss, *problem, budget=budget), expected)
        assert len(passes) == 10 + repeated
    monkeypatch.setattr("iadd_lab.distillation.unroll._BLOCK", 1)
    found = ENGINES[engine](loss, *problem, budget=1e9)
    for part in PARTS:
        assert relative(getattr(found, part), getattr(expected, part)) < 1e-14


def test_several_networks_have_a_loss_and_a_slope_each():
    loss, segment, variables, _ = make_problem(steps=2)
    flats, rows = torch.stack([segment.start, segment.target]), torch.stack([s.rows for s in segment.steps])
    found = loss.slopes(flats, variables.images[rows], variables.labels[rows])
    alone = [
        loss.slopes(flats[n : n + 1], variables.images[rows[n : n + 1]], variables.labels[rows[n : n + 1]])
        for n in range(2)
    ]
    for both, parts in zip(found, zip(*alone, strict=True), strict=True):
        assert torch.equal(both, torch.cat(parts))
        assert not torch.equal(*parts)


@pytest.mark.parametrize("engine", ["full", "adjoint"])
@pytest.mark.parametrize("name", ["learned", "literal", "tensor"])
def test_gradients_equal_finite_differences(engine, name):
    # The network is smooth but for its ReLUs, and none of them changes sign within ±1e-6.
    loss, segment, variables, objective = make_problem(width=3, steps=2, batch=3, matching=MATCHINGS[name])
    gradients = ENGINES[engine](loss, segment, variables, objective)
    generator = torch.Generator().manual_seed(0)
    for part in ("images", "alpha", "raw"):
        value = getattr(variables, part)
        direction = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        slope = (getattr(gradients, part) * direction).sum()
        moved = [replaced(variables, part, value + sign * 1e-6 * direction) for sign in (1, -1)]
        losses = [ENGINES["full"](loss, segment, variables, objective).loss for variables in moved]
        assert relative((losses[0] - losses[1]) / 2e-6, slope) < 1e-6, part


def soft_problem(**options):
    """A problem whose labels are probabilities; its images are twice as many as `make_problem`'s batch."""
    loss, segment, variables, objective = make_problem(**options)
    logits = randn(*variables.images.shape[:1], CLASSES, seed=11)
    return logits, (loss, segment, replaced(variables, "labels", logits.softmax(1)), objective)


def by_logits(gradient, labels):
    """The gradient by the logits of `labels`, from that by the labels; rows may differ by a constant."""
    return labels * (gradient - (labels * gradient).sum(1, keepdim=True))


@pytest.mark.parametrize("problem", [{"width": 1}, {"width": 5}, {"operations": ("crop",)}], ids=str)
def test_the_gradient_of_soft_labels_equals_that_of_plain_mtt(problem):
    """Adjoint and full, with images and all else, against a graph from the logits on; and the step's loss."""
    logits, (loss, segment, variables, objective) = soft_problem(**problem, matching=Uniform())
    point = logits.clone().requires_grad_()
    own = replaced(variables, "labels", point.softmax(1))
    expected = plain_mtt(loss_network(problem), segment, own, variables=(point,))
    fused = FusedStudentLoss(loss.network, PLAIN, chunk=3)  # four images are 2 + 2
    for engine, way in (("full", loss), ("adjoint", loss), ("adjoint", fused)):
        found = ENGINES[engine](way, segment, variables, objective, budget=1e9)
        mine = found.loss, found.images, found.alpha, by_logits(found.soft, variables.labels)
        for part, exact in zip(mine, expected, strict=True):
            assert relative(part, exact) < 1e-10, engine
    hard = ENGINES["adjoint"](*make_problem(**problem, matching=Uniform()))
    assert hard.soft.shape == (0,)
    assert hard.loss != found.loss


def test_frozen_is_exact_in_the_last_step_and_soft_labels_that_are_one_hot_are_hard():
    _, problem = soft_problem(steps=1)
    exact, found = ENGINES["full"](*problem), ENGINES["frozen"](*problem)
    labels = problem[2].labels
    assert relative(by_logits(found.soft, labels), by_logits(exact.soft, labels)) < 1e-10
    loss, segment, variables, objective = make_problem()
    hard = replaced(variables, "labels", functional.one_hot(variables.labels).double())
    for engine in ENGINES:
        one, other = (ENGINES[engine](loss, segment, each, objective) for each in (hard, variables))
        assert relative(one.images, other.images) < 1e-12


def test_the_gradient_of_soft_labels_equals_finite_differences():
    logits, (loss, segment, variables, objective) = soft_problem(width=3, steps=2, batch=3)
    found, direction = ENGINES["adjoint"](loss, segment, variables, objective), randn(*logits.shape, seed=3)
    slope = (by_logits(found.soft, variables.labels) * direction).sum()
    moved = [replaced(variables, "labels", (logits + h * direction).softmax(1)) for h in (1e-6, -1e-6)]
    losses = [ENGINES["full"](loss, segment, each, objective).loss for each in moved]
    assert relative((losses[0] - losses[1]) / 2e-6, slope) < 1e-6


@pytest.mark.parametrize("fused", [False, True])
def test_one_step_of_training_on_soft_labels_is_an_independent_formula(fused):
    """ℓ = −(1/B) Σ_b Σ_c y_bc log softmax(z_b)_c, and by hand its gradient at the last layer, in float64."""
    _, (loss, segment, variables, _) = soft_problem(width=5)
    loss = FusedStudentLoss(loss.network, PLAIN) if fused else loss
    images, labels, flat = variables.images, variables.labels, segment.start.clone().requires_grad_()
    scores = loss.logits(flat, images)
    shares = scores.exp() / scores.exp().sum(1, keepdim=True)
    expected = -(labels * shares.log()).sum() / len(images)
    errors = (shares - labels).detach() / len(images)  # ∂ℓ/∂z
    (slope,) = torch.autograd.grad(scores, flat, errors)
    (value,), (own,) = loss.slopes(segment.start[None], images[None], labels[None])
    assert relative(value, expected.detach()) < 1e-10
    assert relative(own, slope) < 1e-10


def loss_network(problem):
    return build(problem.get("width", 5), seed=9)


def replaced(variables, part, value):
    return Variables(**{**vars(variables), part: value})


ON_A_GPU = {
    "plain": lambda loss: loss,
    "fused": lambda loss: FusedStudentLoss(loss.network, PLAIN),
    "compiled": lambda loss: FusedStudentLoss(loss.network, compiled_kernels("cuda")),
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("way", ON_A_GPU)
@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "graphs"])
def test_a_gpu_has_the_same_gradients(way, graphs):
    """In float64, against the full unroll on the CPU; twice, as a graph is captured first, then replayed."""
    device = torch.device("cuda")
    loss, segment, variables, objective = make_problem()
    exact = ENGINES["full"](loss, segment, variables, objective)
    fast = CapturedStudentLoss(ON_A_GPU[way](loss)) if graphs else ON_A_GPU[way](loss)
    moved = Segment(segment.start.to(device), segment.target.to(device), on_device(segment.steps, device))
    variables = Variables(**{name: value.to(device) for name, value in vars(variables).items()})
    objective = make_objective(MATCHINGS["learned"], moved, loss.layout)
    for _ in range(2):
        found = ENGINES["adjoint"](fast, moved, variables, objective)
        for part in PARTS:
            assert relative(getattr(found, part).cpu(), getattr(exact, part)) < 1e-10, part


class StandInGraphs:
    """`Graphs` without a GPU: the first function of each key is called ever after, as a captured one is, and
    what a replay returned is spoilt by the next."""

    def __init__(self):
        self.functions, self.returned = {}, ()

    def replay(self, key, function, *tensors):
        with torch.no_grad():
            for tensor in self.returned:
                tensor.fill_(torch.nan)
        key = (key, *((tensor.shape, tensor.dtype) for tensor in tensors))
        found = self.functions.setdefault(key, function)(*tensors)
        copies = [tensor if tensor is None else tensor.detach().clone() for tensor in found]
        self.returned = [tensor for tensor in copies if tensor is not None]
        return copies


@pytest.mark.parametrize("engine", ["adjoint", "frozen"])
@pytest.mark.parametrize("fused", [False, True])
def test_what_graphs_return_is_used_before_the_next_replay(monkeypatch, engine, fused):
    monkeypatch.setattr("iadd_lab.training.fast.losses.Graphs", StandInGraphs)
    loss, segment, variables, objective = make_problem(steps=12)
    loss = FusedStudentLoss(loss.network, PLAIN) if fused else loss
    expected = ENGINES[engine](loss, segment, variables, objective)
    replayed = CapturedStudentLoss(loss)
    found = ENGINES[engine](replayed, segment, variables, objective)
    assert_equal(found, expected)
    soft = replaced(variables, "labels", functional.one_hot(variables.labels).double() / 2 + 1 / 6)
    found, expected = (ENGINES[engine](each, segment, soft, objective) for each in (replayed, loss))
    assert_equal(found, expected, (*PARTS, "soft"))
    assert len(replayed.graphs.functions) == 4  # the way there and back, with labels of either kind


def plain_mtt(network, segment, given, variables=()):
    """MTT's loss and gradients as its paper states them, with nothing of this package but the network."""
    images, alpha = given.images.clone().requires_grad_(), given.alpha.clone().requires_grad_()
    names, shapes = zip(*((name, value.shape) for name, value in network.named_parameters()), strict=True)
    student = segment.start.clone().requires_grad_()
    for step in segment.steps:
        pieces = student.split([shape.numel() for shape in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        logits = functional_call(network, weights, (step.augmentation(images[step.rows]),))
        value = functional.cross_entropy(logits, given.labels[step.rows])
        (gradient,) = torch.autograd.grad(value, student, create_graph=True)
        student = student - alpha * gradient
    distance = functional.mse_loss(student, segment.target, reduction="sum")
    distance = distance / functional.mse_loss(segment.start, segment.target, reduction="sum")
    return distance, *torch.autograd.grad(distance, (images, alpha, *variables))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_plain_mtt_bit_for_bit(dtype):
    loss, segment, variables, objective = make_problem(matching=Uniform(), dtype=dtype)
    found = ENGINES["full"](loss, segment, variables, objective)
    mine = found.loss, found.images, found.alpha
    assert all(map(torch.equal, mine, plain_mtt(build(5, seed=9), segment, variables)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["learned", "literal", "tensor", "literal tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learned_at_its_start_is_uniform_bit_for_bit(engine, name, dtype):
    matching = MATCHINGS[name]
    loss, segment, variables, uniform = make_problem(matching=Uniform(), dtype=dtype)
    ones = replaced(variables, "raw", matching.initial(loss.layout).to(dtype))
    expected = ENGINES[engine](loss, segment, variables, uniform)
    found = ENGINES[engine](loss, segment, ones, make_objective(matching, segment, loss.layout))
    assert_equal(found, expected, PARTS[:-1])


def test_frozen_equals_its_definition():
    """λ ≡ ∂L/∂θ̃_J in every step: the gradient of −α Σ_j ⟨∇ℓ(x_j; θ̃_j), λ⟩ at constant θ̃_j."""
    loss, segment, variables, objective = make_problem(steps=4)
    found = ENGINES["frozen"](loss, segment, variables, objective)
    images, flat, total = variables.images.clone().requires_grad_(), segment.start, 0.0
    end = found.end.clone().requires_grad_()
    (costate,) = torch.autograd.grad(objective(end, variables.raw), end)
    for step in segment.steps:
        point = flat.clone().requires_grad_()
        value = loss(point, step.augmentation(images[step.rows]), variables.labels[step.rows])
        (slope,) = torch.autograd.grad(value, point, create_graph=True)
        total = total - variables.alpha * slope @ costate
        flat = flat - variables.alpha * slope.detach()
    (expected,) = torch.autograd.grad(total, images)
    assert relative(found.images, expected) < 1e-12
    assert relative(found.alpha, total.detach() / variables.alpha) < 1e-12


def test_adjoint_memory_grows_by_the_stored_vectors_alone():
    """100 images of 3×32×32: the peak at J = 25 is within 10 % of that at J = 5 plus 20 vectors.

    Narrow, for speed; the README has the figures at width 128 and J = 50.
    """
    scale = {"width": 16, "images": (100,), "steps": (5, 25), "iterations": 1, "training": False}
    config = BenchConfig(engines=("adjoint", "full"), kept_megabytes=0, **scale)
    found = measure(config, progress=False)["engines"]
    peaks = {(record["engine"], record["steps"]): record["peak_mb"] for record in found}
    vector = sum(parameter.numel() for parameter in config.network(0).parameters()) * 4 / 1e6
    allowed = 0.1 * peaks["adjoint", 5] + 20 * vector
    assert peaks["adjoint", 25] - peaks["adjoint", 5] < allowed
    assert peaks["full", 25] - peaks["full", 5] > 3 * allowed
