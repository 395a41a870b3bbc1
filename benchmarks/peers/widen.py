"""Rewrites a GGUF file's Q5_0 blocks as Q8_0, which hold the same values exactly: `python -m peers.widen FILE` prints the file to use.

A Q5_0 block is a half d, 32 fifth bits and 32 nibbles, with values d * (q - 16); a Q8_0 block is the same d and 32 bytes q - 16.
"""

import os
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

Q5_0, Q8_0 = gguf.GGMLQuantizationType.Q5_0, gguf.GGMLQuantizationType.Q8_0


def widened(rows: np.ndarray) -> np.ndarray:
    """uint8 [R, N * 22] Q5_0 -> uint8 [R, N * 34] Q8_0."""
    blocks = np.ascontiguousarray(rows).reshape(-1, 22)
    fifth = (blocks[:, 2:6].copy().view("<u4") >> np.arange(32, dtype=np.uint32)) & 1
    nibbles = np.concatenate([blocks[:, 6:] & 15, blocks[:, 6:] >> 4], axis=1)
    values = (nibbles | (fifth << 4).astype(np.uint8)).astype(np.int8) - np.int8(16)
    return np.concatenate([blocks[:, :2], values.view(np.uint8)], axis=1).reshape(len(rows), -1)


def rewrite(source: Path, target: Path) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        is_q5 = tensor.tensor_type == Q5_0
        writer.add_tensor(tensor.name, widened(tensor.data) if is_q5 else tensor.data, raw_dtype=Q8_0 if is_q5 else tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(source: Path) -> Path:
    """The file that OpenVINO's reader can take; a rewritten one is kept in $PEERS_CACHE."""
    if all(tensor.tensor_type != Q5_0 for tensor in gguf.GGUFReader(source).tensors):
        return source
    target = Path(os.environ.get("PEERS_CACHE") or tempfile.gettempdir()) / f"{source.stem}-q8_0-for-q5_0.gguf"
    if not target.is_file():
        unfinished = target.with_suffix(".part")
        rewrite(source, unfinished)
        unfinished.replace(target)
    return target


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
