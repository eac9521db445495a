"""Distilled sets in MTT's format: others' with their preprocessing named, our own back bit for bit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from iadd_lab.baselines.real_images import random_real
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.mtt_format import COMPANION, CONSTANTS, FITS, import_mtt, likely_preprocess, reread_mtt
from iadd_lab.data.preprocess import Standardise, Zca
from iadd_lab.data.sets import load_data
from iadd_lab.data.splits import Split
from iadd_lab.evaluation.export import export_set
from iadd_lab.evaluation.fair import FairConfig, evaluate_fairly
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate
from iadd_lab.evaluation.training_set import TrainingSet
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import open_teachers
from tests.conftest import AUGMENT
from tests.processes import complete, ended
from tests.samples import assert_refused, noise, randn

EVALUATE = EvaluateConfig(network=NetworkConfig(width=4, depth=2), networks=2, epochs=10, augment=AUGMENT)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", progress=False)


def release(folder, images, labels):
    """Files as MTT's code writes them, by PyTorch alone."""
    folder.mkdir(exist_ok=True)
    torch.save(images, folder / "images_best.pt")
    torch.save(labels, folder / "labels_best.pt")
    return folder


@pytest.fixture
def released(digits, tmp_path):
    """A set of real images, whitened as MTT's code does, as a parameter that still wants gradients."""
    real = torch.cat([digits.train.images, digits.validation.images]).float().flatten(1) / 255
    centred = real - real.mean(0)
    left, scales, _ = torch.linalg.svd(centred.T @ centred / (len(real) - 1))
    whitened = centred @ (left / (scales + 0.1).sqrt()) @ left.T
    rows = torch.cat([torch.nonzero(digits.train.labels == label)[:2, 0] for label in range(10)])
    images = nn.Parameter(whitened[rows].view(-1, 1, 8, 8))
    return release(tmp_path / "released", images, digits.train.labels[rows])


def test_a_released_set_becomes_one_of_our_own_and_the_wrong_preprocessing_is_warned_of(
    digits, released, caplog
):
    made = import_mtt(released, digits, preprocess="zca")
    assert not caplog.records
    assert (made.ipc, made.alpha, made.preprocess.kind, made.method) == (2, 0.01, "zca", "imported")
    assert not made.images.requires_grad
    # Undone with the preprocessing fitted here, its images are the real ones again.
    rows = torch.cat([torch.nonzero(digits.train.labels == label)[:2, 0] for label in range(10)])
    assert torch.allclose(made.preprocess.invert(made.images), digits.train.images[rows] / 255, atol=1e-3)
    protocol = replace(EVALUATE, epochs=80, rate=0.1)
    assert evaluate(made, digits, protocol, progress=False).accuracies.mean() > 0.3
    import_mtt(released, digits, preprocess="standardise")
    assert "look as if their preprocessing was 'zca', but 'standardise' was given" in caplog.text


@pytest.mark.parametrize("kind", list(FITS))
def test_the_preprocessing_shows_in_real_images_whatever_their_contrast(digits, kind):
    fitted = {"standardise": Standardise, "zca": Zca}[kind].fit(digits.train.images)
    images = fitted.apply(digits.train.images[:100])
    for contrast in (0.3, 1.0, 4.0):
        assert likely_preprocess(contrast * images, digits) == kind


def test_mtts_constants_are_used_where_mtt_has_them(digits):
    coloured = Split(torch.from_numpy(noise((20, 3, 8, 8))), torch.arange(20) % 2)
    known = replace(
        digits, train=coloured, validation=coloured, config=replace(digits.config, name="cifar10")
    )
    made = FITS["standardise"](known)
    assert made.mean.tolist() == pytest.approx(CONSTANTS["cifar10"][0])
    assert made.deviation.tolist() == pytest.approx((0.2023, 0.1994, 0.2010))
    together = torch.cat([digits.train.images, digits.validation.images])
    assert torch.equal(FITS["standardise"](digits).mean, Standardise.fit(together).mean)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda i, y: (i[:, :, :4], y), "name the data set and its size"),
        (lambda i, y: (i * torch.inf, y), "not finite"),
        (lambda i, y: (i, y[:-1]), r"20 whole numbers or \(20, 10\) logits are needed"),
        (lambda i, y: (i, torch.eye(9)[y % 9]), r"holds \(20, 9\) torch.float32; 20 whole numbers or"),
        (lambda i, y: (i, torch.eye(10)[y].log()), r"labels_best\.pt holds values that are not finite"),
        (lambda i, y: (i, y + 1), "labels outside of 0 to 9"),
        (lambda i, y: (i[:-1], y[:-1]), "from 1 to 2 images of a class"),
        (lambda i, y: ([i], y), "holds no single tensors"),
    ],
)
def test_what_does_not_fit_is_refused(digits, released, change, sentence):
    stored = [torch.load(released / f"{name}_best.pt").detach() for name in ("images", "labels")]
    release(released, *change(*stored))
    assert_refused(sentence, import_mtt, released, digits, preprocess="zca")


def test_other_refusals_say_what_to_do_and_a_learned_rate_is_taken(digits, released, tmp_path):
    assert_refused("unknown preprocess 'ZCA'", import_mtt, released, digits, preprocess="ZCA")
    assert_refused(r"images_best\.pt is not there", import_mtt, tmp_path, digits, preprocess="zca")
    limited = replace(digits, config=replace(digits.config, train_limit=100))
    assert_refused("train_limit is set", import_mtt, released, limited, preprocess="zca")
    torch.save(torch.tensor(0.037), released / "lr_best.pt")  # a learned rate beside the set is taken
    assert import_mtt(released, digits, preprocess="zca").alpha == pytest.approx(0.037)
    assert import_mtt(released, digits, preprocess="zca", alpha=0.2).alpha == 0.2
    torch.save(torch.ones(2), released / "lr_best.pt")
    assert_refused("holds no single number", import_mtt, released, digits, preprocess="zca")


@pytest.fixture
def softened(digits, released):
    """The set with learned labels and a learned rate, as TESLA, DATM and PAD release theirs."""
    images, labels = (torch.load(released / f"{name}_best.pt").detach() for name in ("images", "labels"))
    logits = 4 * nn.functional.one_hot(labels, 10) + randn(20, 10, dtype=torch.float32)
    torch.save(0.037, release(released, images, nn.Parameter(logits)) / "lr_best.pt")
    return import_mtt(released, digits, preprocess="zca"), logits


def test_soft_labels_and_the_learned_rate_come_in_and_go_out_again(digits, softened, tmp_path):
    made, logits = softened
    assert torch.equal(made.soft_labels, logits)
    assert torch.equal(made.labels, logits.argmax(1))
    assert made.alpha == 0.037
    assert made.fingerprint != replace(made, soft_labels=None).fingerprint
    made.save(tmp_path / "distilled.safetensors")
    assert DistilledSet.load(tmp_path / "distilled.safetensors").fingerprint == made.fingerprint
    export_set(tmp_path, "mtt", tmp_path / "out")
    assert reread_mtt(tmp_path / "out").fingerprint == made.fingerprint
    (tmp_path / "out" / COMPANION).unlink()
    assert import_mtt(tmp_path / "out", digits, preprocess="zca").fingerprint == made.fingerprint
    assert "Of soft labels only the largest is left" in export_set(tmp_path, "image_folder", tmp_path / "png")
    assert "labels: soft" in (tmp_path / "png" / "README.md").read_text()
    assert len([path for path in (tmp_path / "png").iterdir() if path.is_dir()]) == 10


def test_networks_are_trained_towards_the_softmax_of_logits_and_fairly_towards_the_largest(digits, softened):
    made, logits = softened
    assert torch.equal(TrainingSet(made)[3][1], logits[3].softmax(0))
    hard = replace(made, soft_labels=None)
    shares = replace(made, soft_labels=nn.functional.one_hot(made.labels, 10).float())
    losses = [evaluate(each, digits, EVALUATE, progress=False).losses for each in (made, hard, shares)]
    assert torch.allclose(losses[1], losses[2], rtol=1e-3)
    assert (losses[0] - losses[1]).abs().min() > 0.01
    protocol, once = (
        replace(EVALUATE, epochs=1),
        FairConfig(rates=(0.037,), tuning_networks=1, whole_epochs=1),
    )
    found = evaluate_fairly(made, digits, protocol, once, progress=False)
    expected = evaluate(hard, digits, replace(protocol, rate=0.037), progress=False)
    assert found.distilled.identity == expected.identity


@pytest.mark.parametrize("kind", [Standardise, Zca])
def test_a_set_of_our_own_comes_back_bit_for_bit_and_evaluates_alike(toy_data, tmp_path, kind):
    made = random_real(toy_data, kind.fit(toy_data.train.images), ipc=3, seed=0, alpha=0.1 / 3)
    made.save(tmp_path / "distilled.safetensors")
    export_set(tmp_path, "mtt", tmp_path / "out")
    assert torch.equal(torch.load(tmp_path / "out" / "images_best.pt"), made.images)
    assert torch.equal(torch.load(tmp_path / "out" / "labels_best.pt"), made.labels)
    back = reread_mtt(tmp_path / "out")
    assert back.fingerprint == made.fingerprint
    before, after = (evaluate(each, toy_data, EVALUATE, progress=False) for each in (made, back))
    assert torch.equal(before.confusion, after.confusion)
    assert before.identity == after.identity


def test_the_command_line_imports_and_evaluates(digits, released, tmp_path):
    done = complete("import-set {} --data digits --preprocess zca --out {}", released, tmp_path / "set")
    assert "20 images of 10 classes, preprocessing zca, α 0.01" in done.stdout
    options = "--epochs 2 --networks 1 --width 4 --fair --whole-epochs 1 --device cpu"
    scores = complete("evaluate {} " + options, tmp_path / "set").stdout
    for said in ("imported: ", "imported, fairly: accuracy 0.", "HLR"):
        assert said in scores
    again = "import-set {} --data digits --preprocess zca --out {}"
    assert "is there already" in ended(2, again, released, tmp_path / "set")
    assert "give both" in ended(2, "import-set {} --data digits --out {}", released, tmp_path / "other")


def test_a_set_of_our_own_is_exported_and_imported_by_commands(toy_data, tmp_path):
    made = random_real(toy_data, Zca.fit(toy_data.train.images), ipc=1, seed=0)
    made.save(tmp_path / "distilled.safetensors")
    complete("export {} --to mtt --out {}", tmp_path, tmp_path / "out")
    complete("import-set {} --out {}", tmp_path / "out", tmp_path / "back")
    assert DistilledSet.load(tmp_path / "back" / "distilled.safetensors").fingerprint == made.fingerprint
    sentence = ended(2, "import-set {} --preprocess zca --out {}", tmp_path / "out", tmp_path / "other")
    assert "--preprocess was given" in sentence
    assert "unknown format 'mmt'" in ended(2, "export {} --to mmt --out {}", tmp_path, tmp_path / "x")


def train_as_others_do(images, labels, *, seed):
    """A trajectory of MTT's ConvNet (width 4, depth 2), written and trained with PyTorch alone."""
    torch.manual_seed(seed)

    def block(inputs):
        return nn.Conv2d(inputs, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2)

    network = nn.Sequential(*block(1), *block(4), nn.Flatten(), nn.Linear(4 * 2 * 2, 10))
    descent, trajectory = torch.optim.SGD(network.parameters(), lr=0.05), []
    for _ in range(4):
        trajectory.append([p.detach().clone() for p in network.parameters()])
        for rows in torch.randperm(len(labels)).split(64):
            descent.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            descent.step()
    return trajectory


def test_a_foreign_replay_buffer_distils_without_conversion_by_hand(digits, tmp_path):
    images = Standardise.fit(digits.train.images).apply(digits.train.images)
    buffer = [train_as_others_do(images, digits.train.labels, seed=seed) for seed in range(2)]
    torch.save(buffer, tmp_path / "replay_buffer_0.pt")
    teach = "teach --data digits --width 4 --import-buffers {} --out {}"
    taught = complete(teach, tmp_path / "replay_buffer_0.pt", tmp_path / "teachers")
    assert "2 teachers of 3 epochs" in taught.stdout
    assert "% mean validation accuracy" in taught.stdout
    teachers = open_teachers(tmp_path / "teachers")
    network = teachers.network(0)  # their last parameters do in our network what they did in theirs
    network.load_state_dict(teachers.layout.split(teachers.snapshot(1, 3)))
    right = (network(images).argmax(1) == digits.train.labels).double().mean()
    assert right > 0.3
    options = "--iterations 3 --student-steps 2 --teacher-epochs 1 --max-start-epoch 2 --alpha-rate 1e-6"
    distill = "distill --teachers {} --out {} --alpha 0.02 --device cpu " + options
    complete(distill, tmp_path / "teachers", tmp_path / "run")
    complete("evaluate {} --epochs 1 --networks 1 --no-random --device cpu", tmp_path / "run")
