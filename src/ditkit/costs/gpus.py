"""GPUs that one can rent or buy: what their makers state, none of it measured here.

Sources, all NVIDIA's: the data sheets of V100 (2020), A100 (2021), H100, H200 and L40S (2024) and DGX B200; of the RTX 3090
and 4090 the white papers on GA102 and Ada. Tensor-core figures are dense, which is half of what is
printed "with sparsity", and sum in float32. A link's speed is that of one direction, half of what is printed; where a GPU has
no NVLink, its PCIe 4.0 x16. Networks are those of DGX machines (V100: four adapters of 100 Gbit/s for eight GPUs; A100:
eight of 200; H100, H200, B200: eight of 400); for the others an assumption, 100 Gbit/s for eight GPUs.
"""

from typing import NamedTuple

from ditkit.errors import InputError

GIB = 2**30
TERA, GIGA = 1e12, 1e9


class Gpu(NamedTuple):
    """One GPU and what connects it to others."""

    memory: int
    """Bytes; a card of "80 GB" has about 80 GiB."""
    bf16: float
    """Operations per second of products in bf16 (two per multiply-add); 0: it has none."""
    tf32: float
    """The same of float32 rounded to TF32; 0: it has none."""
    fp32: float
    """The same in float32."""
    bandwidth: float
    """Of its memory, bytes per second."""
    link: float
    """To the GPUs of the same machine, bytes per second in each direction."""
    network: float
    """To other machines, bytes per second for each GPU."""
    machine: int = 8
    """GPUs in one machine."""

    def products(self, precision: str) -> float:
        """Operations per second of products: bf16, tf32 (of a GPU that has none fp32), or fp32."""
        if precision == "bf16":
            return self.bf16
        return self.tf32 if precision == "tf32" and self.tf32 else self.fp32

    def between(self, group: int, apart: int = 1) -> float:
        """Bytes per second from one of a group's GPUs to the next in its ring, where every `apart`-th GPU is of the group.

        Within a machine that of the link. Rings that leave it share its adapters: those of NCCL pass each machine once, each
        through another adapter, so a group has as many adapters as it has GPUs in a machine (Hu et al., "Demystifying
        NCCL", 2025).
        """
        if group * apart <= self.machine:
            return self.link
        return min(self.link, self.network * max(1, self.machine // apart))


def _gpu(
    memory: int, bf16: float, tf32: float, fp32: float, bandwidth: float, link: float, gigabits: float
) -> Gpu:
    """From GB, TFLOP/s, GB/s and Gbit/s."""
    return Gpu(
        memory * GIB,
        bf16 * TERA,
        tf32 * TERA,
        fp32 * TERA,
        bandwidth * GIGA,
        link * GIGA,
        gigabits * GIGA / 8,
    )


GPUS: dict[str, Gpu] = {
    #                GB    bf16    tf32   fp32  memory  link network
    "v100": _gpu(32, 0, 0, 15.7, 900, 150, 50),  # SXM2; tensor cores for fp16 only, which ditkit does not use
    "a100-40": _gpu(40, 312, 156, 19.5, 1_555, 300, 200),  # SXM4
    "a100-80": _gpu(80, 312, 156, 19.5, 2_039, 300, 200),  # SXM4
    "h100": _gpu(80, 989.4, 494.7, 66.9, 3_350, 450, 400),  # SXM5
    "h200": _gpu(141, 989.4, 494.7, 66.9, 4_800, 450, 400),  # SXM
    "b200": _gpu(180, 2_250, 1_125, 75, 8_000, 900, 400),  # of a DGX B200
    "l40s": _gpu(48, 362.05, 183, 91.6, 864, 32, 12.5),
    "rtx-4090": _gpu(24, 165.2, 82.6, 82.6, 1_008, 32, 12.5),
    "rtx-3090": _gpu(24, 71, 35.6, 35.6, 936, 32, 12.5),
}


NAMES: dict[str, str] = {
    "Tesla V100-SXM2-32GB": "v100",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
}
"""Their names here by those that CUDA gives. Others of the same family, such as cards for PCIe, are slower."""


def known_as(device: str) -> str | None:
    """The name here of a GPU that CUDA calls `device`; None for one that is not known."""
    return NAMES.get(device.strip())


def gpu(name: str) -> Gpu:
    """InputError, naming what there is, for an unknown one."""
    if name not in GPUS:
        raise InputError(f"gpu {name!r}: unknown; give one of: {', '.join(GPUS)}")
    return GPUS[name]
