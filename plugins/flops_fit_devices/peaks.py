"""Dense peak FLOP/s of GPUs from the manufacturers' data sheets, by the driver's name of the GPU.

Each peak is a pair in TFLOP/s, without sparsity: bfloat16 with float32 accumulation on tensor (matrix) cores, and
float32 without TF32, which torch does not use for matrix products by default. None: the card has no such cores, or
the sheet does not have the number.

Numbers with sparsity are halved. Sheets of RTX workstation cards have one tensor performance: for FP16 with
sparsity (Ampere; bfloat16 is a half of it), FP8 with sparsity (Ada; a quarter) or FP4 with sparsity (Blackwell; an
eighth). GeForce cards accumulate in float32 at half the rate, as listed in the white papers of their
architectures.
"""

from __future__ import annotations

Peak = tuple[float | None, float | None]

A100: Peak = (312.0, 19.5)
A800: Peak = (312.0, 19.5)
H100_SXM: Peak = (989.0, 67.0)
H100_PCIE: Peak = (756.0, 51.0)
HOPPER_NVL: Peak = (835.0, 60.0)
H20: Peak = (148.0, 44.0)
MI250_DIE: Peak = (181.05, 45.25)

_TERAFLOPS: dict[str, Peak] = {
    # NVIDIA Blackwell Architecture Technical Brief and HGX B200 / HGX B300 / GB200 NVL72 / GB300 NVL72
    # specifications: per GPU, that is the platform's number over 8 or 72.
    "B200": (2250.0, 75.0),
    "B300 SXM6 AC": (2250.0, 75.0),
    "GB200": (2500.0, 80.0),
    "GB300": (2500.0, None),
    # NVIDIA H200 Tensor Core GPU data sheet: SXM and NVL.
    "H200": H100_SXM,
    "H200 NVL": HOPPER_NVL,
    # NVIDIA H100 Tensor Core GPU data sheet: SXM5, PCIe and NVL (per GPU).
    "H100 80GB HBM3": H100_SXM,
    "H100 PCIe": H100_PCIE,
    "H100 NVL": HOPPER_NVL,
    # NVIDIA H800 data sheet: the H100's rates, with a slower interconnect.
    "H800": H100_SXM,
    "H800 PCIe": H100_PCIE,
    # NVIDIA H20 data sheet.
    "H20": H20,
    "H20-3e": H20,
    # NVIDIA GH200 Grace Hopper Superchip data sheet.
    "GH200 480GB": H100_SXM,
    "GH200 120GB": H100_SXM,
    "GH200 144G HBM3e": H100_SXM,
    # NVIDIA A100 Tensor Core GPU data sheet.
    "A100-SXM4-40GB": A100,
    "A100-SXM4-80GB": A100,
    "A100-SXM-80GB": A100,
    "A100-PCIE-40GB": A100,
    "A100-PCIE-80GB": A100,
    "A100 80GB PCIe": A100,
    # NVIDIA A800 and A800 40GB Active data sheets: the A100's rates, with a slower interconnect.
    "A800-SXM4-40GB": A800,
    "A800-SXM4-80GB": A800,
    "A800 80GB PCIe": A800,
    "A800 40GB Active": A800,
    # NVIDIA A30, A10, A40, A16 (each of its 4 GPUs) and A2 data sheets; A10G: "NVIDIA A10G" of Amazon EC2 G5.
    "A30": (165.0, 10.3),
    "A10": (125.0, 31.2),
    "A10G": (70.0, 35.0),
    "A40": (149.7, 37.4),
    "A16": (17.9, 4.5),
    "A2": (18.0, 4.5),
    # NVIDIA L40S, L40 and L4 Tensor Core GPU data sheets.
    "L40S": (362.05, 91.6),
    "L40": (181.05, 90.5),
    "L4": (121.0, 30.3),
    # NVIDIA RTX PRO 6000 Blackwell Workstation Edition and Max-Q Workstation Edition data sheets.
    "RTX PRO 6000 Blackwell Workstation Edition": (500.0, 125.0),
    "RTX PRO 6000 Blackwell Max-Q Workstation Edition": (438.9, 110.0),
    # NVIDIA RTX Ada Generation data sheets: 6000, 5880, 5000, 4500, 4000, 4000 SFF, 2000.
    "RTX 6000 Ada Generation": (364.2, 91.1),
    "RTX 5880 Ada Generation": (277.1, 69.3),
    "RTX 5000 Ada Generation": (261.1, 65.3),
    "RTX 4500 Ada Generation": (158.5, 39.6),
    "RTX 4000 Ada Generation": (106.9, 26.7),
    "RTX 4000 SFF Ada Generation": (76.7, 19.2),
    "RTX 2000 Ada Generation": (48.0, 12.0),
    # NVIDIA RTX A6000, A5500, A5000, A4500, A4000, A2000 data sheets.
    "RTX A6000": (154.8, 38.7),
    "RTX A5500": (136.4, 34.1),
    "RTX A5000": (111.1, 27.8),
    "RTX A4500": (94.6, 23.7),
    "RTX A4000": (76.7, 19.2),
    "RTX A2000": (31.9, 8.0),
    "RTX A2000 12GB": (31.9, 8.0),
    # NVIDIA RTX Blackwell GPU Architecture white paper, appendices.
    "GeForce RTX 5090": (209.5, 104.8),
    "GeForce RTX 5080": (112.6, 56.3),
    "GeForce RTX 5070 Ti": (87.9, 43.9),
    "GeForce RTX 5070": (61.7, 30.9),
    # NVIDIA Ada GPU Architecture white paper, appendix A.
    "GeForce RTX 4090": (165.2, 82.6),
    "GeForce RTX 4080": (97.5, 48.7),
    # NVIDIA Ampere GA102 GPU Architecture white paper; 3090 Ti: the Ada white paper.
    "GeForce RTX 3090 Ti": (80.0, 40.0),
    "GeForce RTX 3090": (71.0, 35.6),
    "GeForce RTX 3070": (40.6, 20.3),
    # NVIDIA T4, V100 (SXM2, PCIe, V100S) and P100 data sheets; Quadro RTX 8000 and 6000 data sheets. No bfloat16.
    "Tesla T4": (None, 8.1),
    "Tesla V100-SXM2-16GB": (None, 15.7),
    "Tesla V100-SXM2-32GB": (None, 15.7),
    "Tesla V100-PCIE-16GB": (None, 14.0),
    "Tesla V100-PCIE-32GB": (None, 14.0),
    "Tesla V100S-PCIE-32GB": (None, 16.4),
    "Tesla P100-SXM2-16GB": (None, 10.6),
    "Tesla P100-PCIE-16GB": (None, 9.3),
    "Tesla P100-PCIE-12GB": (None, 9.3),
    "Quadro RTX 8000": (None, 16.3),
    "Quadro RTX 6000": (None, 16.3),
    # AMD Instinct MI355X, MI350X, MI325X, MI300X, MI300A, MI210 and MI100 data sheets: matrix rates.
    "AMD Instinct MI355X": (2516.6, 157.3),
    "AMD Instinct MI350X": (2306.9, 144.2),
    "AMD Instinct MI325X": (1307.4, 163.4),
    "AMD Instinct MI300X": (1307.4, 163.4),
    "AMD Instinct MI300A": (980.6, 122.6),
    "AMD Instinct MI210": (181.0, 45.3),
    "AMD Instinct MI100": (92.3, 46.1),
    # AMD Instinct MI250X and MI250 data sheets: half of the card, since each of its two dies is a device.
    "AMD Instinct MI250X": (191.5, 47.85),
    "AMD Instinct MI250": MI250_DIE,
}
"""``torch.cuda.get_device_name()`` without the word NVIDIA, which drivers before 470 omit -> peak."""


_COMPUTE_UNITS = {
    "AMD Instinct MI355X": 256,
    "AMD Instinct MI350X": 256,
    "AMD Instinct MI325X": 304,
    "AMD Instinct MI300X": 304,
    "AMD Instinct MI300A": 228,
}
"""Compute units of complete GPUs that can be partitioned (DPX, QPX, TPX, CPX) into devices of the same name."""


def dense_peak(name: str, precision: str, multiprocessors: int | None = None) -> float | None:
    """FLOP/s of the GPU ``name``, for example ``NVIDIA A100-SXM4-80GB``. None if unknown.

    The complete name must be in the table: laptop cards, slices of a GPU (MIG) and virtual GPUs have names that
    start like a card's name, but other peaks. Names that several cards share (``NVIDIA GeForce RTX 3080``) are not
    in the table. A device with fewer ``multiprocessors`` than the complete GPU is a partition: its peak is
    unknown.
    """
    units = _COMPUTE_UNITS.get(name.strip())
    if units is not None and multiprocessors is not None and multiprocessors != units:
        return None
    bfloat16, float32 = _TERAFLOPS.get(name.strip().removeprefix("NVIDIA "), (None, None))
    peak = bfloat16 if precision == "bfloat16" else float32
    return None if peak is None else peak * 1e12


_SHORT_NAMES = {
    "h100": "H100 80GB HBM3",
    "h100-sxm": "H100 80GB HBM3",
    "h200-sxm": "H200",
    "a100": "A100-SXM4-80GB",
    "a100-40gb": "A100-SXM4-40GB",
    "a100-80gb": "A100-SXM4-80GB",
    "a800": "A800-SXM4-80GB",
    "b300": "B300 SXM6 AC",
    "gh200": "GH200 480GB",
    "rtx-5090": "GeForce RTX 5090",
    "rtx-4090": "GeForce RTX 4090",
    "rtx-3090": "GeForce RTX 3090",
    "mi355x": "AMD Instinct MI355X",
    "mi350x": "AMD Instinct MI350X",
    "mi325x": "AMD Instinct MI325X",
    "mi300x": "AMD Instinct MI300X",
    "mi210": "AMD Instinct MI210",
}
"""Usual name -> name in the table. ``h100`` is the SXM card; the others are ``h100-pcie`` and ``h100-nvl``."""


def named_peaks() -> dict[str, float]:
    """Name of a GPU in lower case, with ``-`` between words -> dense peak FLOP/s in bfloat16."""
    names = {name.lower().replace(" ", "-"): name for name in _TERAFLOPS} | _SHORT_NAMES
    peaks = {short: dense_peak(name, "bfloat16") for short, name in names.items()}
    return {short: peak for short, peak in peaks.items() if peak is not None}
