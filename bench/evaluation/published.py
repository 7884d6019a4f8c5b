"""CA, ASR and PA in percent as the paper reports them, None where it has no number.

Shi et al., "Black-box Backdoor Defense via Zero-shot Image Purification", NeurIPS 2023 (arXiv:2303.12175). Keys are
data set, attack and the text of the defense; see bench/defenses/registry.py.
"""

from __future__ import annotations

Figures = tuple[float, float, float | None]

_TABLE1: dict[str, dict[str, tuple[Figures, Figures, Figures, Figures]]] = {
    "cifar10": {
        "badnets": ((82.31, 99.98, 10.00), (62.89, 9.34, 63.12), (58.19, 21.78, 53.47), (78.97, 5.53, 79.10)),
        "blended": ((80.26, 99.96, 10.03), (58.97, 2.28, 40.22), (55.91, 3.04, 49.91), (72.62, 7.75, 57.98)),
        "physicalba": ((85.30, 98.73, 11.20), (82.84, 90.50, 18.37), (41.84, 1.09, 41.37), (80.10, 4.33, 80.33)),
    },
    "gtsrb": {
        "badnets": ((96.53, 99.99, 5.70), (78.33, 5.81, 78.82), (95.98, 7.33, 95.11), (96.18, 6.19, 96.03)),
        "blended": ((96.58, 99.89, 5.79), (76.76, 10.54, 56.41), (93.68, 11.07, 73.91), (95.74, 8.53, 81.27)),
        "physicalba": ((96.83, 100.00, 5.70), (97.41, 100.00, 5.70), (91.00, 5.53, 90.53), (95.44, 6.57, 94.91)),
    },
    "imagenette": {
        "badnets": ((84.99, 94.53, 14.98), (71.23, 8.56, 70.72), (81.47, 16.45, 79.94), (84.05, 7.55, 83.97)),
        "blended": ((86.14, 99.85, 10.19), (74.06, 20.63, 36.10), (78.95, 79.41, 25.57), (81.42, 8.35, 78.36)),
        "physicalba": ((90.67, 72.94, 34.29), (90.21, 96.81, 13.07), (84.84, 32.40, 74.87), (87.26, 10.91, 86.54)),
    },
}
_COLUMNS1 = ("none", "shrinkpad", "blur", "zip-paper")

_TABLE2: dict[str, tuple[Figures, Figures, Figures, Figures]] = {
    "badnets": ((84.05, 7.55, 83.97), (82.77, 7.15, 82.39), (72.38, 13.41, 72.50), (70.52, 10.79, 68.61)),
    "blended": ((84.05, 26.11, 63.46), (81.42, 8.35, 78.36), (71.03, 7.69, 67.13), (79.79, 99.40, 10.59)),
    "physicalba": ((90.24, 22.88, 79.89), (87.26, 10.91, 86.54), (76.58, 19.43, 76.43), (76.66, 17.51, 74.87)),
}
_COLUMNS2 = tuple(f"zip-paper transforms={t}" for t in ("blur2", "blur4", "blur8", "gray"))

#: On CIFAR-10; Table 3 has no PA.
_TABLE3: dict[str, Figures] = {"badnets": (81.44, 1.12, None), "blended": (78.57, 99.88, None)}

#: The paper names no data set for Table 4; its CA are nearest CIFAR-10's. "none" is the column "Original Trigger".
_TABLE4: dict[str, tuple[Figures, ...]] = {
    "enhanced-badnets": ((82.36, 24.00, 76.05), (69.32, 10.34, 70.44), (80.58, 31.41, 70.70), (58.01, 79.89, 28.02),
                         (82.39, 18.47, 77.29), (63.26, 73.52, 32.91)),
    "enhanced-blended": ((85.42, 21.83, 48.30), (75.10, 11.71, 47.13), (78.47, 63.61, 37.04), (75.79, 75.21, 33.01),
                         (81.63, 28.83, 51.32), (73.80, 40.71, 36.22)),
}  # fmt: skip
_COLUMNS4 = ("none", "shrinkpad", "blur", *(f"zip-paper transforms={t}" for t in ("blur2+gray", "blur2", "gray")))

#: On Imagenette.
_TABLE6: dict[str, tuple[Figures, Figures, Figures]] = {
    "badnets": ((78.85, 91.41, 18.11), (75.13, 10.16, 74.31), (84.56, 9.14, 82.24)),
    "blended": ((80.63, 43.82, 56.68), (75.89, 13.53, 73.98), (85.37, 93.37, 15.46)),
}
_COLUMNS6 = ("diffpure", "blur+diffpure", "blur+ddnm")


def figures(dataset: str, attack: str, defense: str) -> Figures | None:
    """Return the paper's CA, ASR and PA, or None."""
    found: dict[str, Figures] = dict(zip(_COLUMNS1, _TABLE1.get(dataset, {}).get(attack, ()), strict=False))
    if dataset == "imagenette":
        found.update(zip(_COLUMNS2, _TABLE2.get(attack, ()), strict=False))
        found.update(zip(_COLUMNS6, _TABLE6.get(attack, ()), strict=False))
    if dataset == "cifar10":
        found.update(zip(_COLUMNS4, _TABLE4.get(attack, ()), strict=False))
        if attack in _TABLE3:
            found["bdmae"] = _TABLE3[attack]
    return found.get(defense)
