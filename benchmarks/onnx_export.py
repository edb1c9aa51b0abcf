"""Real networks in ONNX Runtime: what they compute there, compared with torch, and how large the files are.

DINOv2 ViT-S/14 split over its last block, the same with one concept faded for good, and MiniLM with its neurons split.
Each is written with `save_onnx`, loaded by ONNX Runtime alone, and run on inputs that the discovery has not seen.

    python benchmarks/onnx_export.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import elude_nb as en
from elude_nb import text
from elude_nb.steering import make_permanent, save_onnx


def measure(name: str, network: nn.Module, model: en.Model, batch: Tensor, folder: Path) -> None:
    """Write a network, run it outside, and print one row of the table."""
    start = time.perf_counter()
    found = save_onnx(network, folder / "network.onnx", like=model)
    written = time.perf_counter() - start
    session = onnxruntime.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])
    with torch.no_grad():
        ours = network(batch)
        plain = model(batch)
    apart = float((theirs - ours).abs().max())
    print(
        f"| {name} | {found.size / 1e6:.0f} MB | {written:.0f} s | {apart:.1e} ({apart / float(ours.abs().max()):.0e} "
        f"of the largest) | {float((theirs - plain).abs().max()):.1e} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=120, help="crops of photographs, half of them for the discovery")
    parser.add_argument("--inputs", type=int, default=24, help="inputs that are compared")
    given = parser.parse_args()
    print("| network | file | written in | largest difference to torch | and to the model as it was loaded |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = en.load_model("dinov2-small", progress=False)
        seen, unseen = en.load_images("photographs", count=given.images).split(0.5)
        split = en.disentangle(model, seen, blocks=1, concepts=32, progress=False)
        batch = model.prepare(list(unseen[: given.inputs]))
        concept = int(split.units["concept"].dropna().mode()[0])
        fade = en.Edit.scale(concept=concept, by=0.0)
        measure("DINOv2 ViT-S/14, as loaded", model.network, model, batch, folder)
        measure("DINOv2 ViT-S/14, explicit over the last block", split.explicit(), model, batch, folder)
        measure("DINOv2 ViT-S/14, one concept faded for good", make_permanent(split, fade), model, batch, folder)
        encoder, sentences = text.load_text_model(length=24), text.load_sentences()
        read = en.disentangle(encoder, sentences[::2], text.MINILM_SITE, concepts=48, units=6, progress=False)
        words = encoder.prepare(list(sentences[1::2])[: given.inputs])
        measure("MiniLM, explicit neurons of block 5", read.explicit(), encoder, words, folder)


if __name__ == "__main__":
    main()
