"""The training loop against one written by hand, its reproducibility, and predictions."""

import math

import pytest
import torch
from torch.nn import functional

from iadd_lab.data.augment import AugmentConfig, draw_augmentation
from iadd_lab.errors import DivergenceError
from iadd_lab.training.fast.compiling import PLAIN as PLAIN_KERNELS
from iadd_lab.training.fast.compiling import Kernels
from iadd_lab.training.networks import NetworkConfig, build_network
from iadd_lab.training.sgd import Training, predict, train
from tests.test_unroll import StandInGraphs

CLASSES, SIZE = 3, 8
PLAIN = AugmentConfig(operations=())
SIAMESE = AugmentConfig(operations=("color", "crop", "flip"))


def toy_set(count=10):
    """Noise: nothing to learn but each image by heart."""
    images = torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(count) % CLASSES


def toy_network(*, width=4, seed=0):
    config = NetworkConfig(width=width, depth=2)
    return build_network(config, channels=1, size=SIZE, classes=CLASSES, seed=seed)


def trained(*, seed=0, count=10, width=4, **options):
    """The network after training, and the losses."""
    options = {"epochs": 3, "batch": 4, "rate": 0.05, "augment": PLAIN} | options
    network = toy_network(width=width)
    options |= {"rates": [options.pop("rate")], "generators": [torch.Generator().manual_seed(seed)]}
    return network, train(network, *toy_set(count), **options)


def by_hand(*, epochs, batch, rates, augment, momentum=0.0, weight_decay=0.0):
    """Plain SGD with the given rate in each epoch, in order and augmentation of seed 0."""
    network, generator = toy_network(), torch.Generator().manual_seed(0)
    images, labels = toy_set()
    velocities = [torch.zeros_like(parameter) for parameter in network.parameters()]
    losses = []
    for epoch in range(epochs):
        order, total = torch.randperm(len(images), generator=generator), 0.0
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            augmentation = draw_augmentation(
                augment, batch=len(rows), height=SIZE, width=SIZE, generator=generator
            )
            loss = functional.cross_entropy(network(augmentation(images[rows])), labels[rows])
            total += loss.item() * len(rows)
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for p, g, v in zip(network.parameters(), gradients, velocities, strict=True):
                    v.mul_(momentum).add_(g + weight_decay * p)
                    p.sub_(rates[epoch] * v)
        losses.append(total / len(images))
    return network, losses


def distance(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"augment": SIAMESE}, {"batch": 10}, {"batch": 100}],
    ids=str,
)
def test_training_equals_a_loop_by_hand(options):
    found, losses = trained(**options)
    expected, expected_losses = by_hand(
        **{"epochs": 3, "batch": 4, "augment": PLAIN} | options, rates=[0.05] * 3
    )
    assert distance(found, expected) < 1e-6
    assert losses == pytest.approx(expected_losses, rel=1e-5)


def test_towards_probabilities_the_loss_is_soft_cross_entropy():
    """As TESLA and DATM have it: −Σ p log softmax(z), the mean over images."""
    images, labels = toy_set()
    targets = (functional.one_hot(labels, CLASSES) * 2.0 + images[:, 0, 0, :CLASSES]).softmax(1)
    network, by_hand = toy_network(), toy_network()
    options = {"rates": [0.05], "generators": [torch.Generator().manual_seed(0)], "batch": 10}
    (loss,) = train(network, images, targets, epochs=1, augment=PLAIN, **options)
    expected = -(targets * by_hand(images).log_softmax(1)).sum(1).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    slopes = torch.autograd.grad(expected, list(by_hand.parameters()))
    torch._foreach_sub_([parameter.data for parameter in by_hand.parameters()], [0.05 * s for s in slopes])
    assert distance(network, by_hand) < 1e-6


@pytest.mark.parametrize("decay_at", [0, 1, 3, 4, None])
def test_the_rate_falls_to_a_tenth_from_decay_at_on(decay_at):
    found, _ = trained(epochs=4, decay_at=decay_at, momentum=0.5)
    distances = {}
    for first in range(5):  # of every schedule
        rates = [0.05 if epoch < first else 0.005 for epoch in range(4)]
        other, _ = by_hand(epochs=4, batch=4, rates=rates, augment=PLAIN, momentum=0.5)
        distances[first] = distance(found, other)
    assert distances.pop(4 if decay_at is None else decay_at) < 1e-6
    assert min(distances.values()) > 1e-3


def test_a_seed_means_the_same_weights_bit_for_bit():
    before, (images, _) = torch.get_rng_state(), toy_set()
    one, losses = trained(augment=SIAMESE, momentum=0.9)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, toy_set()[0])
    torch.rand(3)
    again, same = trained(augment=SIAMESE, momentum=0.9)
    assert distance(one, again) == 0
    assert losses == same
    assert distance(one, trained(augment=SIAMESE, momentum=0.9, seed=1)[0]) > 1e-4


def test_the_network_is_up_to_date_after_every_epoch():
    """What lets a caller take a snapshot after each."""
    network, (images, labels) = toy_network(), toy_set()
    generators = [torch.Generator().manual_seed(0)]
    options = {"rates": [0.05], "batch": 4, "augment": PLAIN, "generators": generators}
    training = Training([network], [images], [labels], **options)
    for epochs in (1, 2):
        training.advance()
        assert distance(network, trained(epochs=epochs)[0]) == 0


@pytest.mark.parametrize(
    ("rate", "pixel", "message"),
    [
        (1e20, 0.0, r"^the training loss is (nan|inf) in epoch \d: lower the rate 1e\+20\.$"),
        (0.1, math.nan, r"is nan in epoch 1"),
    ],
)
def test_divergence_is_refused_and_says_what_to_lower(rate, pixel, message):
    images, labels = toy_set()
    images[3, 0, 0, 0] = pixel
    options = {"epochs": 3, "batch": 4, "augment": PLAIN, "generators": [torch.Generator().manual_seed(0)]}
    with pytest.raises(DivergenceError, match=message):
        train(toy_network(), images, labels, rates=[rate], **options)


@pytest.mark.parametrize("batch", [1, 3, 4, 10, 1024])
def test_predictions_are_the_largest_logits_in_any_batch(batch):
    network, _ = trained()
    images, _ = toy_set(10)
    found = predict(network, images, batch=batch)
    logits = torch.stack([network(image[None])[0] for image in images])
    assert found.tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert len(set(found.tolist())) > 1
    assert found.dtype == torch.int64
    assert not found.requires_grad


RATES = [0.05, 0.02, 0.1]
OPTIONS = {"batch": 4, "augment": SIAMESE, "momentum": 0.9, "weight_decay": 1e-3, "decay_at": 2}


def side_by_side(kernels, *, dtype=torch.float32):
    """Three networks of other initialisations, sets, rates and generators, and their losses."""
    networks = [toy_network(seed=seed).to(dtype) for seed in range(3)]
    images, labels = toy_set()
    sets = [(images + number).to(dtype) for number in range(3)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    training = Training(
        networks, sets, [labels] * 3, rates=RATES, generators=generators, kernels=kernels, **OPTIONS
    )
    return networks, [training.advance() for _ in range(3)]


def test_networks_side_by_side_end_as_each_alone():
    networks, losses = side_by_side(PLAIN_KERNELS)
    images, labels = toy_set()
    for number, (network, rate) in enumerate(zip(networks, RATES, strict=True)):
        alone, own = toy_network(seed=number), {"generators": [torch.Generator().manual_seed(number)]}
        own = train(alone, images + number, labels, epochs=3, rates=[rate], **own, **OPTIONS)
        assert own == [epoch[number] for epoch in losses]
        assert distance(network, alone) == 0


def test_fused_and_joint_training_is_the_same_training():
    expected, losses = side_by_side(PLAIN_KERNELS, dtype=torch.float64)
    # The fused layers as they are compiled, but for the compiling.
    found, same = side_by_side(Kernels(compiled=True, transforms=True), dtype=torch.float64)
    assert torch.tensor(same) == pytest.approx(torch.tensor(losses), rel=1e-9)
    for one, other in zip(found, expected, strict=True):
        assert 0 < distance(one, other) < 1e-9
    images = toy_set()[0].double()
    assert torch.equal(
        predict(found[0], images, kernels=Kernels(compiled=True, transforms=True)),
        predict(expected[0], images),
    )


def test_joint_training_uses_what_a_graph_returns_before_its_next_replay(monkeypatch):
    monkeypatch.setattr("iadd_lab.training.fast.losses.Graphs", StandInGraphs)
    expected, losses = side_by_side(Kernels(compiled=True))
    found, same = side_by_side(Kernels(compiled=True, graphs=True))
    assert same == losses
    for one, other in zip(found, expected, strict=True):
        assert distance(one, other) == 0


@pytest.mark.parametrize(
    "kernels", [PLAIN_KERNELS, Kernels(compiled=True, transforms=True)], ids=["apart", "jointly"]
)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_restored_state_goes_on_bit_for_bit(kernels, momentum):
    def begin(seed):
        networks = [toy_network(seed=seed + number) for number in range(2)]
        generators = [torch.Generator().manual_seed(seed + number) for number in range(2)]
        images, labels = toy_set()
        options = OPTIONS | {"momentum": momentum, "rates": RATES[:2], "generators": generators}
        return networks, Training(networks, [images] * 2, [labels] * 2, kernels=kernels, **options)

    networks, training = begin(0)
    others, other = begin(5)
    training.advance()
    other.restore(training.state())
    assert [distance(*pair) for pair in zip(networks, others, strict=True)] == [0, 0]  # there may be no more
    assert [training.advance() for _ in range(2)] == [other.advance() for _ in range(2)]  # over `decay_at`
    assert [distance(*pair) for pair in zip(networks, others, strict=True)] == [0, 0]
