"""Change single characters in the arithmetic of the kernels and check that the kernel tests fail; takes minutes.

    python tests/tools/mutate_kernels.py [word ...]      only the mutations whose kernel has one of these words

Each mutation is applied to a temporary copy of kernels/, which the tests then build and run in place of the original.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.paths import ROOT

# kernel or shared part, file, text that occurs exactly once, replacement
MUTATIONS = [
    ("philox", "noise.h", "0xD2511F53", "0xD2511F57"),
    ("philox", "noise.h", "0xCD9E8D57", "0xCD9E8D55"),
    ("philox", "noise.h", "0x9E3779B9", "0x9E3779B8"),
    ("philox", "noise.h", "0xBB67AE85", "0xBB67AE84"),
    ("philox", "noise.h", "round < 10", "round < 9"),
    ("zip_philox", "test_kernels.cuh", "c[j][m] = in[j *", "c[m][j] = in[j *"),
    ("normals", "noise.h", "row << 16", "row << 15"),
    ("normals", "noise.h", "entry.id_high", "entry.id_low"),
    ("normals", "noise.h", "z[1][m] = first[m] * sine[m]", "z[1][m] = first[m] * cosine[m]"),
    ("normals", "noise.h", "radius(c2[m])", "radius(c0[m])"),
    ("normals", "noise.h", "batch.seed_high", "batch.seed_low"),
    ("normals: log", "noise.h", "0x1p-33f", "0x1p-34f"),
    ("normals: log", "noise.h", "0x3F2AAAABu", "0x3F4AAAABu"),
    ("normals: log", "noise.h", "5.50613996e-4f", "9.50613996e-4f"),
    ("normals: log", "noise.h", "1.17574242e-3f", "1.27574242e-3f"),
    ("normals: log", "noise.h", "5.15048973e-3f", "5.25048973e-3f"),
    ("normals: log", "noise.h", "1.25068661e-2f", "1.26068661e-2f"),
    ("normals: log", "noise.h", "8.33330513e-2f", "8.34330513e-2f"),
    ("normals: log", "noise.h", "0.249999926f", "0.249989926f"),
    ("normals: log", "noise.h", "-1.65259164e-7f", "-1.65269164e-7f"),
    ("normals: circle", "noise.h", "1.46291808e-9f", "1.46281808e-9f"),
    ("normals: circle", "noise.h", "-1.95880089e-4f", "-1.85880089e-4f"),
    ("normals: circle", "noise.h", "-0.166666647f", "-0.166656647f"),
    ("normals: circle", "noise.h", "2.45480405e-5f", "2.95480405e-5f"),
    ("normals: circle", "noise.h", "4.16666647e-2f", "4.16766647e-2f"),
    ("normals: circle", "noise.h", "fmaf(-0.5f, z, 1.0f)", "fmaf(-0.5f, z, 0.9999f)"),
    ("normals: circle", "noise.h", "(quarter + 1) << 30", "(quarter + 3) << 30"),
    ("zip_ingest", "ingest.cuh", "rgb[3 * j + c] = row[from + c]", "rgb[3 * j + c] = row[from + 2 - c]"),
    ("zip_ingest", "ingest.cuh", "rgb[6 + c], rgb[9 + c]}", "rgb[6 + c], rgb[6 + c]}"),
    ("zip_ingest", "ingest.cuh", "row + 3 * q.left + 4 * k", "row + 3 * q.left + 3 * k"),
    ("zip_ingest", "ingest.cuh", "ZIP_INITIAL", "ZIP_INITIAL - 1"),
    ("zip_ingest", "ingest.cuh", "ZIP_INITIAL, q.y, q.left, z", "ZIP_INITIAL, q.y, q.left + 1, z"),
    ("zip_fill", "ingest.cuh", "% (batch->images - first)", "% (batch->images - first + 1)"),
    ("zip_fill", "ingest.cuh", "mirror(column, covered_width)", "mirror(column, covered_width - 1)"),
    ("mirror", "zip.h", "2 * (n - 1)", "2 * n"),
    ("zip_step", "step.cuh", "k.a * x_t[m] - k.b", "k.a * x_t[m] + k.b"),
    ("zip_step", "step.cuh", "fmaf(k.c, x0, k.d * eps[m])", "fmaf(k.c, x0, k.b * eps[m])"),
    ("zip_step", "step.cuh", "k.c * k.w * p.gray[0]", "k.c * k.w * p.gray[1]"),
    ("zip_step", "step.cuh", "p.gray[0] * (1.0f / 3.0f)", "p.gray[0] * (1.0f / 2.0f)"),
    ("zip_step", "step.cuh", "(share / 3.0f)", "(share / 4.0f)"),
    ("zip_step", "step.cuh", "1u << (2 * l)", "1u << (l + 1)"),
    ("zip_step", "step.cuh", "fmaf(p.blur[l], blue * share, gray)", "fmaf(p.blur[l], green * share, gray)"),
    ("zip_step", "step.cuh", "sums[c][m / 2]", "sums[c][m % 2]"),
    ("zip_step", "step.cuh", "blue[lane] = sums[2][0] + sums[2][1]", "blue[lane] = sums[2][0] - sums[2][1]"),
    ("zip_step", "step.cuh", "{{4, 0}, {1, 8}, {2, 16}}", "{{8, 0}, {1, 8}, {2, 16}}"),
    ("zip_step", "step.cuh", "{{4, 0}, {1, 8}, {2, 16}}", "{{4, 0}, {1, 8}, {2, 0}}"),
    ("zip_step", "step.cuh", "if (l > p.levels) break", "if (l >= p.levels) break"),
    ("zip_step", "step.cuh", "fmaf(k.c * k.w, u.correction", "fmaf(k.c, u.correction"),
    ("zip_step", "step.cuh", "fmaf(k.s, z[c][m]", "fmaf(k.w, z[c][m]"),
    ("zip_step", "step.cuh", "clamp(x0, -1.0f, 1.0f)", "clamp(x0, -1.0f, 1.1f)"),
    ("zip_step", "step.cuh", "1.0f / k.c", "1.0f / k.w"),
    ("zip_step", "step.cuh", "k.t, y + j, column, z", "k.t, y, column, z"),
    ("zip_step", "step.cuh", "step_table[image / (a.rows * a.columns)]", "step_table[0]"),
    ("zip_step", "step.cuh", "guide_table[entry.guide]", "guide_table[0]"),
    ("zip_step", "step.cuh", "y + j < a.tile_height ? count", "y + j <= a.tile_height ? count"),
    ("zip_step_bf16", "zip.h", "unsigned(v.bits) << 16", "unsigned(v.bits) << 15"),
    ("zip_step_f16 (shim)", "host.h", "exponent + 112", "exponent + 113"),
    ("value of x_P", "zip.h", "(1.0f / 127.5f) - 1.0f", "(1.0f / 127.0f) - 1.0f"),
    ("where tiles lie", "zip.h", "tile % a.columns * a.tile_width", "tile % a.rows * a.tile_width"),
    ("wide accesses", "zip.h", "a.width % 4 == 0 && a.tile_width % 4 == 0", "a.width % 4 == 0"),
    ("for_each_quad", "zip.h", "i % each % across * 4", "i % each % across * 3"),
    ("for_each_quad", "zip.h", "within(left, width)", "within(left, width + 1)"),
    ("store4", "zip.h", "if (i < count) p[i] = v[i]", "if (i <= count) p[i] = v[i]"),
    ("zip_egress", "egress.cuh", "* 127.5f", "* 127.0f"),
    ("zip_egress", "egress.cuh", "+ 1.0f", "+ 1.001f"),
    ("zip_egress", "egress.cuh", "rintf", "roundf"),
    ("zip_egress", "egress.cuh", "255.0f)", "254.0f)"),
    ("zip_egress", "egress.cuh", "rgb[3 * j + c]", "rgb[3 * j + 2 - c]"),
    ("zip_egress", "egress.cuh", "within(4 * k, 3 * q.count)", "within(4 * k, 3 * q.count - 1)"),
    ("zip_egress", "egress.cuh", "finite = finite &&", "finite = true ||"),
    ("zip_residual", "linear.cuh", "guide[j] - (k.a", "guide[j] + (k.a"),
    ("zip_residual", "linear.cuh", "k.b * eps[j]);\n      store4(r", "k.d * eps[j]);\n      store4(r"),
    ("zip_apply", "linear.cuh", "matrix[row * n + j]", "matrix[j * n + row]"),
    ("zip_apply", "linear.cuh", "(axis == 0 ? x : axis == 1 ? y : c)", "(axis == 0 ? x : axis == 1 ? x : c)"),
    ("zip_apply", "linear.cuh", "fmaf(alpha, sum, beta * out[at])", "fmaf(alpha, sum, out[at])"),
    ("zip_apply", "linear.cuh", "(next - sum) - term", "(next - sum) + term"),
    ("zip_apply", "linear.cuh", "beta == 0.0f ?", "beta == 9.0f ?"),
    ("zip_finish", "linear.cuh", "fmaf(k.w, toward[j]", "fmaf(k.c, toward[j]"),
    ("zip_finish", "linear.cuh", "fmaf(k.d, eps[j], k.s", "fmaf(k.b, eps[j], k.s"),
    ("zip_finish", "linear.cuh", "k.s * z[c][j]", "k.s * z[0][j]"),
    ("zip_finish", "linear.cuh", "clamp(x0, -1.0f, 1.0f)", "clamp(x0, -1.0f, 0.9f)"),
]  # fmt: skip


def outcome(folder: Path) -> str:
    """What became of the tests: survived, caught, or not even compiled."""
    tests = ["tests/kernels/test_kernels.py", "tests/kernels/test_kernel_step.py"]
    command = [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", "-m", "not gpu and not stress", *tests]
    env = {**os.environ, "ZIPSDK_KERNELS": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode == 0:
        return "survived"
    if "g++ failed" in done.stdout:
        return "does not compile"
    failed = [line.split("::")[1].split(" ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return "caught by " + failed[0] if failed else "caught (the process ended)"


def main() -> int:
    words, bad = sys.argv[1:], 0
    for kernel, file, old, new in MUTATIONS:
        if words and not any(w in kernel for w in words):
            continue
        text = (ROOT / "kernels" / file).read_text()
        if text.count(old) != 1:
            sys.exit(f"{file}: got {old!r} {text.count(old)} times, expected once")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(shutil.copytree(ROOT / "kernels", Path(temporary) / "kernels"))
            (folder / file).write_text(text.replace(old, new))
            result = outcome(folder)
        bad += not result.startswith("caught")
        print(f"{kernel:20} {' '.join(old.split())} -> {' '.join(new.split())}: {result}", flush=True)
    print(f"{bad} not caught")
    return bad


if __name__ == "__main__":
    sys.exit(min(1, main()))
