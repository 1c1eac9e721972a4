"""``python -m components.artifact_report FILE``: a readable report of an artifact."""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from components.artifact import MAX_BYTES, MAX_FILE_BYTES, Artifact
from components.command import run_command
from components.files import read_user_file
from components.model_files import read_any_artifact
from components.public_artifact import write_public_artifact
from components.quantization import StoredTensor
from components.weight_coding import coded_sizes


def describe(path: Path, floats: Mapping[str, Tensor] | None = None) -> str:
    """The settings of the artifact at `path`, a table of its tensors, its size against the cap, and checksums.

    A tensor's bytes are its share of the coded values. A public file is compressed in one piece, so its tensors' bytes
    are counted before compression.

    Args:
        path: The artifact.
        floats: The weights that it was made from, by name, to show how far each tensor is from them.

    Raises:
        UserError: as `read_any_artifact`.
    """
    artifact = read_any_artifact(path)
    data = read_user_file(path, MAX_FILE_BYTES)
    margin = f"{abs(MAX_BYTES - len(data)):,} {'over' if len(data) > MAX_BYTES else 'under'}"
    return "\n".join(
        [
            f"{path}: {'public format' if artifact.settings is None else 'artifact'}",
            *_settings_lines(artifact),
            "",
            *_tensor_lines(artifact, len(data), floats),
            "",
            f"{len(data):,} bytes, {margin} the cap of {MAX_BYTES:,} for artifact and code",
            f"sha256 of the file     {hashlib.sha256(data).hexdigest()}",
            f"sha256 of the weights  {weights_sha256(artifact.tensors)}",
        ]
    )


def weights_sha256(tensors: Mapping[str, StoredTensor]) -> str:
    """A checksum of names, types, shapes and stored numbers; the same weights give the same one in either format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, tensor.storage, list(tensor.values.shape)]).encode())
        for part in (tensor.values, tensor.scales):
            if part is not None:
                digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def main(arguments: Sequence[str]) -> None:
    """Describe the file named on the command line, or write it in the public format.

    Raises:
        UserError: as `describe`, or the other file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m components.artifact_report", description="Describe an exported model."
    )
    parser.add_argument("file", type=Path, help="an artifact, or a public .int5int6.ptz file")
    parser.add_argument("--format", choices=["public"], help="write the same weights in the public format instead")
    parser.add_argument("--out", type=Path, help="the file to write, as .int5int6.ptz")
    options = parser.parse_args(arguments)
    if (options.format is None) != (options.out is None):
        parser.error("--format and --out go together: say what to write and where")
    if options.format:
        num_bytes = write_public_artifact(options.out, read_any_artifact(options.file).tensors)
        print(f"{options.out}: public format, {num_bytes:,} bytes")
    else:
        print(describe(options.file))


def _settings_lines(artifact: Artifact) -> list[str]:
    if artifact.settings is None:
        return ["settings: the public format holds none"]
    width = max(map(len, artifact.settings), default=0)
    lines = ["settings:", *(f"  {name:<{width}}  {json.dumps(value)}" for name, value in artifact.settings.items())]
    for rule in artifact.rules:
        size = f" of at most {rule.at_most:,} elements" if rule.at_most else ""
        lines.append(f"  stored as {rule.storage:<7}  {rule.names}{size}{', seen by late QAT' if rule.qat else ''}")
    return lines


def _tensor_lines(artifact: Artifact, file_bytes: int, floats: Mapping[str, Tensor] | None) -> list[str]:
    tensors = artifact.tensors
    if artifact.settings is None:
        title, sizes = "raw bytes", [float(tensor.num_bytes) for tensor in tensors.values()]
    else:
        title, sizes = "bytes", coded_sizes(list(tensors.values()))
    rows = [
        (name, str(tensor.storage), "x".join(map(str, tensor.values.shape)) or "scalar", tensor.values.numel(), size)
        for (name, tensor), size in zip(tensors.items(), sizes, strict=True)
    ]
    rows.append(("all tensors", "", "", sum(row[3] for row in rows), sum(sizes)))
    errors = {} if floats is None else {name: tensor.relative_error(floats[name]) for name, tensor in tensors.items()}
    width = max(len(row[0]) for row in rows)
    lines = [f"{'tensor':<{width}}  {'type':<7}  {'shape':>10}  {'weights':>10}  {title:>10}  bits per weight"]
    if errors:
        lines[0] += "  relative error"
    for name, storage, shape, weights, size in rows:
        bits = f"{8 * size / weights:.3f}" if weights else "-"
        error = f"  {errors[name]:>14.2e}" if name in errors else ""
        lines.append(
            f"{name:<{width}}  {storage:<7}  {shape:>10}  {weights:>10,}  {round(size):>10,}  {bits:>15}{error}"
        )
    if artifact.settings is not None:
        rest = file_bytes - sum(sizes)
        lines.append(f"{'header, statistical model, coder states':<{width + 31}}  {round(rest):>12,}")
    return lines


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
