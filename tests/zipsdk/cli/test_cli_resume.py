"""Test resumed runs of `zipsdk purify`, and two runs at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.folders import contents, finished, folder, names, records, refused, state, write_image
from tests.helpers.paths import ROOT
from zipsdk.batch.manifest import MANIFEST
from zipsdk.cli import main


def test_a_second_run_purifies_only_changed_images(purify, tmp_path, capsys):
    src = folder(tmp_path / "in", 6)
    out = tmp_path / "out"
    assert purify(src, "-o", out) == 0
    before = state(out)
    assert purify(src, "-o", out) == 0
    assert state(out) == before
    assert "0 done, 6 already done before, 0 failed" in capsys.readouterr().out

    write_image(src / "003.png", 77)
    write_image(src / "new.png", 78)
    (out / "004.png").unlink()
    assert purify(src, "-o", out) == 0
    assert "3 done" in capsys.readouterr().out
    after = state(out)
    assert {n for n in after if after[n] != before.get(n)} == {"003.png", "004.png", "new.png"}
    assert purify(src, "-o", out) == 0
    assert state(out) == after


def test_other_settings_are_refused_before_anything_is_written(purify, model, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    src = folder(tmp_path / "in", 2)
    out = tmp_path / "out"
    assert purify(src, "-o", out) == 0
    write_image(src / "more.png")
    before, manifest = state(out), (out / MANIFEST).read_bytes()
    capsys.readouterr()
    refused(capsys, purify(src, "-o", out, "--lam", 2), 2, "lam: 10.0 then, 2.0 now")
    refused(capsys, purify(src, "-o", out, "--seed", 1), 2, "seed: ")
    refused(capsys, purify(src, "-o", out, "--format", "png"), 2, "--overwrite")
    refused(capsys, purify(src, "-o", out, steps=3), 2, "steps: ")
    refused(capsys, purify(src, "-o", out, "--start", 400), 2, "start: ")
    refused(capsys, purify(src, "-o", out, "--transforms", "blur4"), 2, "transforms: ")
    refused(capsys, purify(src, "-o", out, "--transforms", "blur2+gray", "--combine", "joint"), 2, "combine: ")
    refused(capsys, purify(src, "-o", out, "--eta", 0), 2, "eta: 1.0 then, 0.0 now")
    refused(capsys, purify(src, "-o", out, "--tile-size", 32), 2, "tile_size: None then, 32 now")
    other = tmp_path / "other.onnx"
    proto = onnx.load(model)
    proto.doc_string = "another file"
    onnx.save(proto, other)
    refused(capsys, main(["purify", str(src), "-o", str(out), "--model", str(other), "--steps", "2"]), 2, "model: ")
    assert state(out) == before and (out / MANIFEST).read_bytes() == manifest
    assert purify(src, "-o", out, "--lam", 2, "--overwrite") == 0
    assert names(out) == {"000.png", "001.png", "more.png"} and all(state(out)[n] != before[n] for n in before)


def test_every_option_reaches_the_purifier(purify, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def watched(engine, transforms, **options):
        assert transforms == "blur4"
        assert options == {"lam": 3.0, "steps": 7, "eta": 0.5, "combine": "joint", "preset": "fast", "start": 350,
                           "seed": 9, "tile_size": 32}  # fmt: skip
        raise Stop

    monkeypatch.setattr("zipsdk.cli.purify.Purifier", watched)
    src = folder(tmp_path / "in", 1)
    with pytest.raises(Stop):
        purify(src, "-o", tmp_path / "out", "--transforms", "blur4", "--lam", 3, "--eta", 0.5, "--combine", "joint",
               "--preset", "fast", "--start", 350, "--seed", 9, "--tile-size", 32,
               steps=7)  # fmt: skip


def test_without_a_seed_one_is_drawn_and_kept(purify, tmp_path):
    src = folder(tmp_path / "in", 4)
    for out in (tmp_path / "out", tmp_path / "other"):
        assert purify(src, "-o", out) == 0
    seed = records(tmp_path / "out")[0]["seed"]
    assert seed != records(tmp_path / "other")[0]["seed"]
    full = contents(tmp_path / "out")
    forget(tmp_path / "out", keep=2)
    assert purify(src, "-o", tmp_path / "out") == 0
    assert contents(tmp_path / "out") == full
    assert purify(src, "-o", tmp_path / "again", "--seed", seed) == 0
    assert contents(tmp_path / "again") == full


def forget(out: Path, keep: int, tail: bytes = b"") -> None:
    """Leave `out` as if the run had been killed after the first `keep` images of its manifest."""
    lines = (out / MANIFEST).read_bytes().splitlines(keepends=True)
    at = [i for i, line in enumerate(lines) if b'"done"' in line][keep]
    for line in lines[at:]:
        if "done" in (record := json.loads(line)):
            (out / record["done"]).unlink()
    (out / MANIFEST).write_bytes(b"".join(lines[:at]) + tail)


@pytest.mark.parametrize("keep", [0, 1, 4, 5, 10])
def test_a_resumed_run_gives_the_same_bits_although_images_share_frames(purify, tmp_path, keep):
    """4 images a frame and 6 a batch: the kill must not change which images share a frame."""
    src = folder(tmp_path / "in", 11)
    (src / "002.png").write_bytes(b"broken")
    out = tmp_path / "out"
    options = ("-o", out, "--seed", 3, "--tile-size", 32, "--batch", 6)
    assert purify(src, *options) == 1
    full = contents(out)
    alone = tmp_path / "alone"
    assert purify(src, "-o", alone, "--seed", 3, "--tile-size", 32, "--batch", 1) == 1
    assert contents(alone) != full  # otherwise this test proves nothing
    if keep < 10:
        forget(out, keep)
    before = state(out)
    assert purify(src, *options) == 1
    assert contents(out) == full
    assert {n: s for n, s in state(out).items() if n in before} == before
    assert sorted(finished(out)) == sorted(full)


@pytest.mark.parametrize("changed", [3, 6])
def test_changed_images_are_purified_with_their_batch(purify, tmp_path, changed):
    """Part of a batch or all of it: earlier outputs must not prevent it."""
    src, out = folder(tmp_path / "in", 6), tmp_path / "out"
    options = ("-o", out, "--seed", 3, "--tile-size", 32, "--batch", 6)
    assert purify(src, *options) == 0
    for i in range(changed):
        write_image(src / f"{i:03}.png", 100 + i)
    assert purify(src, *options) == 0
    full = contents(out)
    forget(out, 6 + 1)
    assert purify(src, *options) == 0
    assert contents(out) == full
    before, manifest = state(out), (out / MANIFEST).read_bytes()
    assert purify(src, *options) == 0
    assert state(out) == before and (out / MANIFEST).read_bytes() == manifest


def test_a_missing_output_is_written_again_alone(purify, tmp_path, capsys):
    src, out = folder(tmp_path / "in", 6), tmp_path / "out"
    assert purify(src, "-o", out, "--batch", 6) == 0
    write_image(src / "001.png", 100)
    assert purify(src, "-o", out, "--batch", 6) == 0
    (out / "003.png").unlink()
    for _ in range(2):
        assert purify(src, "-o", out, "--batch", 6) == 0
    assert "0 done, 6 already done" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("keep", [0, 2])
def test_a_killed_overwrite_resumes_without_the_option(purify, tmp_path, capsys, keep):
    src, out = folder(tmp_path / "in", 4), tmp_path / "out"
    assert purify(src, "-o", out, "--seed", 1) == 0
    old = contents(out)
    assert purify(src, "-o", out, "--seed", 2, "--batch", 2, "--overwrite") == 0
    full = contents(out)
    forget(out, keep)
    for name in old.keys() - contents(out).keys():
        (out / name).write_bytes(old[name])  # outputs of the first run, not yet replaced
    assert purify(src, "-o", out, "--seed", 2, "--batch", 2) == 0
    assert contents(out) == full
    write_image(src / "new.png", 9)
    (out / "new.png").write_bytes(b"somebody's")
    refused(capsys, purify(src, "-o", out, "--seed", 2), 2, "new.png: got a file that this run did not write")


def test_a_run_with_an_older_manifest_resumes(purify, tmp_path):
    src, out = folder(tmp_path / "in", 4), tmp_path / "out"
    assert purify(src, "-o", out, "--seed", 1) == 0
    full = contents(out)
    forget(out, 2)
    header, *lines = records(out)
    del header["replaces"]
    (out / MANIFEST).write_text("".join(json.dumps(r) + "\n" for r in (header, *lines)))
    assert purify(src, "-o", out, "--seed", 1) == 0
    assert contents(out) == full


@pytest.mark.parametrize("tail", [b'{"done": "003.png", "sour', b"\0\0\0\0", b"{"])
def test_a_torn_last_line_is_ignored(purify, tmp_path, tail):
    src = folder(tmp_path / "in", 5)
    out = tmp_path / "out"
    assert purify(src, "-o", out, "--seed", 1) == 0
    full = contents(out)
    forget(out, 3, tail)
    (out / ".zipsdk-0123456789abcdef.tmp").write_bytes(b"half an image")
    assert purify(src, "-o", out, "--seed", 1) == 0
    assert contents(out) == full  # and the temporary file is removed
    assert sorted(finished(out)) == sorted(full)


def test_an_output_without_a_record_is_purified_again(purify, tmp_path):
    src = folder(tmp_path / "in", 4)
    out = tmp_path / "out"
    assert purify(src, "-o", out, "--seed", 1) == 0
    full = contents(out)
    forget(out, 2)
    (out / "002.png").write_bytes(full["002.png"])  # killed between the rename and the line
    assert purify(src, "-o", out, "--seed", 1) == 0
    assert contents(out) == full


def command(src: Path, out: Path, model: str, *options: str) -> list[str]:
    """A process that takes seconds and can be interrupted even if the tests run in the background."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from zipsdk.cli import main; sys.exit(main())"
    )
    args = ["purify", str(src), "-o", str(out), "--model", model, "--threads", "1", "--seed", "7", "--batch", "4"]
    return [sys.executable, "-c", code, *args, "--tile-size", "32", *options]


def start_and_stop(args: list[str], out: Path, lines: int, sig: signal.Signals) -> tuple[int, str]:
    with subprocess.Popen(args, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 60
        manifest = out / MANIFEST
        while not manifest.exists() or manifest.read_bytes().count(b'"done"') <= lines:
            assert process.poll() is None and time.monotonic() < deadline, "the run ended or took too long"
            time.sleep(0.002)
        process.send_signal(sig)
        _, err = process.communicate(timeout=60)
        return process.returncode, err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_killed_in_the_middle_of_200_images_resumes(model, tmp_path):
    src = folder(tmp_path / "in", 200)
    out, whole = tmp_path / "out", tmp_path / "whole"
    args = command(src, out, model, "--steps", "80")
    code, _ = start_and_stop(args, out, 20, signal.SIGKILL)
    assert code == -signal.SIGKILL
    early = set(finished_so_far(out))
    assert 20 < len(early) < 200, "killed too late to show anything"
    before = {n: s for n, s in state(out).items() if n in early}

    result = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{200 - len(early)} done" in result.stdout and f"{len(early)} already done" in result.stdout
    assert {n: s for n, s in state(out).items() if n in early} == before
    assert sorted(finished(out)) == sorted(names(out)) == sorted(names(src))  # each once, and no temporary file

    assert main(command(src, whole, model, "--steps", "80")[3:]) == 0
    assert contents(whole) == contents(out)


def finished_so_far(out: Path) -> list[str]:
    whole = (out / MANIFEST).read_bytes().rpartition(b"\n")[0]
    return [r["done"] for r in map(json.loads, whole.splitlines()) if "done" in r]


def test_a_run_resumes_after_ctrl_c(model, tmp_path):
    src = folder(tmp_path / "in", 60)
    out = tmp_path / "out"
    args = command(src, out, model, "--steps", "200")
    code, err = start_and_stop(args, out, 3, signal.SIGINT)
    assert code == 130 and "Traceback" not in err
    done = len(finished(out))
    assert f"zipsdk: interrupted with {done} of 60 images done; the same command continues" in err
    assert 3 < done < 60 and names(out) == set(finished(out))
    assert main(args[3:]) == 0
    assert sorted(finished(out)) == sorted(names(src))


def test_a_second_run_in_one_folder_is_refused(model, tmp_path, capsys):
    src = folder(tmp_path / "in", 60)
    out = tmp_path / "out"
    args = command(src, out, model, "--steps", "80")
    with subprocess.Popen(args, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not (out / MANIFEST).exists() or not (out / MANIFEST).read_bytes():
            time.sleep(0.002)
        refused(capsys, main(args[3:]), 2, "another zipsdk run writes there")
        process.kill()


def test_the_precision_of_a_bundled_model_is_part_of_the_settings(tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")
    src, out = folder(tmp_path / "in", 1), tmp_path / "out"
    options = [str(src), "-o", str(out), "--preset", "fast", "--device", "cpu", "--threads", "1"]
    assert main(["purify", *options, "--precision", "int8"]) == 0
    capsys.readouterr()
    assert main(["purify", *options, "--model", "zip-tiny-int8"]) == 0
    assert "0 done, 1 already done" in capsys.readouterr().out
    assert main(["purify", *options, "--precision", "fp32"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main(["purify", *options, "--precision", "bf16"]) == 2
    assert "precision: got 'bf16' for zip-tiny, which is fp32; leave precision out" in capsys.readouterr().err
