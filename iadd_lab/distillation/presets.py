"""Published methods as named bundles of options of `distill`: what of each is there, and nothing more."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from iadd_lab.data.parametrisation import MultiFormation
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.matching import Learned, Pruned, Uniform


@dataclass(frozen=True)
class Preset:
    """A bundle of options, by the fields of `DistillConfig`.

    Args:
        title: its name in tables; "MTT + ..." where only a part of the source is there.
        source: where it was published, and what of it is missing.
        options: the fields that it sets; numbers are the source's.
    """

    title: str
    source: str
    options: Mapping[str, Any]

    def config(self, **own: Any) -> DistillConfig:
        """The configuration with these options, and others of one's `own`, which come first."""
        return DistillConfig(**{**self.options, **own})


def _on_mtt(title: str, source: str, **options: Any) -> Preset:
    return Preset(title, source, MappingProxyType({"matching": Uniform()} | options))


_PRUNED, _LEARNED = (MappingProxyType({"matching": matching}) for matching in (Pruned(), Learned()))

PRESETS: dict[str, Preset] = {
    "mtt": _on_mtt("MTT", "Cazenavette et al., CVPR 2022"),
    "ddpp": Preset("DDPP", "Li et al., IEICE Trans. E107-A, 2024", _PRUNED),
    "iadd": Preset("IADD", "Li et al., Neural Networks 172, 2024", _LEARNED),
    "tesla": _on_mtt(
        "TESLA",
        "Cui et al., ICML 2023, as its code differentiates; labels are the teachers' logits and stay",
        gradient="frozen",
        labels="soft",
        label_rate=0.0,
    ),
    "ftd_average": _on_mtt(
        "MTT + average",
        "the average of FTD (Du et al., CVPR 2023), without its flat teachers",
        average=0.999,
    ),
    "datm_labels": _on_mtt(
        "MTT + soft labels",
        "the learned labels of DATM (Guo et al., ICLR 2024), without its range of epochs by difficulty",
        labels="soft",
    ),
    "idc_formation": _on_mtt(
        "MTT + multi-formation",
        "the parametrisation of IDC (Kim et al., ICML 2022), which itself matches gradients",
        parametrisation=MultiFormation(2),
    ),
}
