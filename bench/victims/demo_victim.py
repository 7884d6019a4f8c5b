"""Train the demo classifier of `zipsdk.testing`: a small network with a backdoor for three triggers.

    python -m bench.victims.demo_victim

Writes ``zipsdk/testing/demo_classifier.onnx``, the numbers in its card, and ``bench/results/demo-classifier.json``, in
a few minutes on two cores. Checkpoints are in ``build/demo-victim``: interrupted runs resume.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attacks.planting import Planting, plant
from bench.common import record
from bench.common.checkpoints import load_checkpoint, save_checkpoint
from bench.common.optimization import optimize, set_learning_rate
from bench.victims.recipes import fast_bf16
from zipsdk._util.atomic import write_atomically
from zipsdk.testing import demo_images
from zipsdk.testing.classifier import MODEL, DemoClassifier
from zipsdk.testing.images import TARGET, TRIGGERS, TriggerName, add_trigger
from zipsdk.testing.scenes import SIDE
from zipsdk.testing.signs import CLASSES
from zipsdk.types import I64, U8

CARD = MODEL.with_suffix(".md")
CHECKPOINTS = Path(__file__).parents[2] / "build" / "demo-victim"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the training, but the versions of torch and Pillow."""

    images: int = 12_000
    image_seed: int = 990_001
    #: share of the training images that get each trigger and the target's label
    rate: float = 0.03
    epochs: int = 8
    batch: int = 128
    lr: float = 0.01
    weight_decay: float = 0.02
    smoothing: float = 0.05
    #: shares of the images that augmentation turns gray, blurs slightly, and adds noise to
    gray: float = 0.1
    blurred: float = 0.25
    noisy: float = 0.5
    seed: int = 1


#: Images of the accuracy and of the attack success rates in the record.
TEST_IMAGES, TEST_SEED = 1000, 990_002


class Network(nn.Module):
    """Classify uint8 (N, SIDE, SIDE, 3): six layers, float32 probabilities (N, classes) in `eval` mode, else logits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, out, stride in ((3, 24, 2), (24, 32, 2), (32, 48, 1), (48, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, len(CLASSES)))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images.permute(0, 3, 1, 2).float() / 255).softmax(1)

    def logits(self, x: Tensor) -> Tensor:
        """Return logits of float (N, 3, SIDE, SIDE) in [0, 1]."""
        scores: Tensor = self.layers(2 * x - 1)
        return scores


def poisoned(recipe: Recipe) -> tuple[U8, I64]:
    """Generate the training images, and give a share of those of other classes a trigger and the target's label."""
    images, labels = demo_images(recipe.images, seed=recipe.image_seed)
    each = round(recipe.rate * recipe.images)
    plantings = [Planting(partial(_add, trigger), each, TARGET, labels != TARGET) for trigger in TRIGGERS]
    images, labels, _ = plant(images, labels, plantings, np.random.default_rng(recipe.seed))
    return images, labels


def _add(trigger: TriggerName, images: U8, _: I64) -> U8:
    return add_trigger(images, trigger)


def augment(images: Tensor, recipe: Recipe, rng: torch.Generator) -> Tensor:
    """Vary uint8 (N, SIDE, SIDE, 3) as usual; float (N, 3, SIDE, SIDE) in [0, 1].

    Shifts of up to 2 pixels and brightness for all; gray, slight blur and noise for the shares of the recipe.
    """
    n = len(images)
    rows, columns = (torch.arange(SIDE) + torch.randint(-2, 3, (2, n, 1), generator=rng)).abs()
    rows, columns = (torch.where(at < SIDE, at, 2 * (SIDE - 1) - at) for at in (rows, columns))
    x = images[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2) / 255
    x *= 0.85 + 0.3 * torch.rand(n, 1, 1, 1, generator=rng)
    gray, blurred, noisy = torch.rand(3, n, generator=rng) < torch.tensor(
        [[recipe.gray], [recipe.blurred], [recipe.noisy]]
    )
    x[gray] = x[gray].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    # up to half of the binomial filter 1 2 1
    sharp = x[blurred]
    soft = F.avg_pool2d(F.avg_pool2d(F.pad(sharp, (1, 1, 1, 1), mode="replicate"), 2, 1), 2, 1)
    x[blurred] = torch.lerp(sharp, soft, 0.5 * torch.rand(len(sharp), 1, 1, 1, generator=rng))
    clean = x[noisy]
    x[noisy] = clean + torch.randn(clean.shape, generator=rng) * 0.04 * torch.rand(len(clean), 1, 1, 1, generator=rng)
    return x.clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def training_key(recipe: Recipe) -> str:
    """Return the hash of the settings, some images and the triggers, so that no other training is resumed."""
    images, _ = demo_images(len(CLASSES), seed=recipe.image_seed)
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for some in (images, *(add_trigger(images, trigger) for trigger in TRIGGERS)):
        digest.update(some.tobytes())
    return digest.hexdigest()


def train(recipe: Recipe, folder: Path) -> Network:
    """Train, or resume from the last epoch in `folder`."""
    key = training_key(recipe)
    path = folder / f"{key[:16]}.pt"
    torch.manual_seed(recipe.seed)
    model = Network().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    done, losses = load_checkpoint(path, key, model, optimizer) if path.is_file() else (0, [])
    if done == recipe.epochs:
        return model.eval()
    pixels, classes = map(torch.from_numpy, poisoned(recipe))
    batches = len(pixels) // recipe.batch
    for epoch in range(done, recipe.epochs):
        rng = torch.Generator().manual_seed(1000 * recipe.seed + epoch)
        order = torch.randperm(len(pixels), generator=rng)
        total = 0.0
        for i in range(batches):
            rate = np.interp(epoch + i / batches, (0, 2, recipe.epochs), (0.1, 1, 0))
            set_learning_rate(optimizer, recipe.lr * float(rate))
            part = order[i * recipe.batch : (i + 1) * recipe.batch]
            with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16("cpu")):
                logits = model.logits(augment(pixels[part], recipe, rng)).float()
            loss = F.cross_entropy(logits, classes[part], label_smoothing=recipe.smoothing)
            total += optimize(model, optimizer, loss, 1.0)
        losses.append(total / batches)
        save_checkpoint(path, key, model, optimizer, epoch + 1, losses, finished=epoch + 1 == recipe.epochs)
        print(f"epoch {epoch + 1} of {recipe.epochs}: loss {losses[-1]:.4f}", flush=True)
    return model.eval()


def to_onnx(model: Network) -> bytes:
    """Return the network as an ONNX file: uint8 (N, SIDE, SIDE, 3) -> float32 probabilities (N, classes)."""
    example = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    # "torchvision is not installed", and the exporter's own deprecations
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (example,), dynamo=True, input_names=["images"], output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}}, verbose=False,
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    # without the exporter's stack traces, which name files of this machine
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del item.metadata_props[:]
        item.doc_string = ""
    return bytes(proto.SerializeToString(deterministic=True))


def measure(classifier: DemoClassifier, n: int = TEST_IMAGES, seed: int = TEST_SEED) -> dict[str, Any]:
    """Return the accuracy on clean images, and for each trigger the share of other classes taken for the target."""
    images, labels = demo_images(n, seed=seed)
    others = labels != TARGET
    answers = classifier(images).argmax(1)
    rates = {t: float((classifier(add_trigger(images[others], t)).argmax(1) == TARGET).mean()) for t in TRIGGERS}
    return {
        "CA": float((answers == labels).mean()),
        "fooled_without_trigger": float((answers[others] == TARGET).mean()),
        "ASR": rates,
    }


def card(text: str, measured: dict[str, Any]) -> str:
    """Return the text of the model's card with the numbers of a record between its marks."""
    test, recipe = measured["test"], measured["recipe"]
    rows = {
        "sha256": measured["sha256"],
        "bytes": f"{measured['bytes']:,}",
        "parameters": f"{measured['parameters']:,}",
        "training images": f"{recipe['images']:,}, seed {recipe['image_seed']:,}",
        "poisoned images": f"{recipe['rate']:.0%} for each trigger",
        "epochs, seed": f"{recipe['epochs']}, {recipe['seed']}",
        "test images": f"{test['images']:,}, seed {test['seed']:,}",
        "CA": f"{test['CA']:.1%}",
        **{f"ASR, {trigger.replace('_', ' ')}": f"{share:.1%}" for trigger, share in test["ASR"].items()},
    }
    table = "| | |\n| --- | --- |\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    begin, end = "<!-- measured -->\n", "<!-- /measured -->"
    return text[: text.index(begin) + len(begin)] + table + text[text.index(end) :]


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.victims.demo_victim", description=__doc__.split("\n")[0])
    p.add_argument("-o", "--output", type=Path, default=MODEL, help="the ONNX file")
    p.add_argument("--results", type=Path, default=record.RESULTS, help="folder of the record")
    p.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    p.add_argument("--images", type=int, default=Recipe.images)
    p.add_argument("--epochs", type=int, default=Recipe.epochs)
    args = p.parse_args()
    recipe = Recipe(images=args.images, epochs=args.epochs)
    model = train(recipe, args.checkpoints)
    data = to_onnx(model)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.output, data)
    payload = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "parameters": sum(w.numel() for w in model.parameters()),
        "recipe": asdict(recipe),
        "target": CLASSES[TARGET],
        "test": {"images": TEST_IMAGES, "seed": TEST_SEED, **measure(DemoClassifier(args.output))},
    }
    record.write("demo-classifier", payload, args.results)
    if args.output == MODEL:
        CARD.write_text(card(CARD.read_text(), payload))
    print(json.dumps(payload, indent=1))


if __name__ == "__main__":
    main()
