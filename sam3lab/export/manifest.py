"""What a directory of exported files holds, and the proof that it still holds it.

manifest.json names every file with its size and SHA-256. A runtime is given a file only after `verify` has read it.
"""

import hashlib
import json
import os
import stat
from pathlib import Path

from sam3lab.errors import UserError

NAME, FORMAT = "manifest.json", 1


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(directory: Path, facts: dict) -> dict:
    """Write the manifest of all files in `directory`, with `facts` about what they were made of; returns it."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(directory.iterdir())
        if path.name != NAME
    }
    manifest = {"format": FORMAT, **facts, "files": files}
    (directory / NAME).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


def verify(directory: Path, remedy: str = "") -> dict:
    """The manifest of `directory`, after every file in it was found as it was written. remedy: what to do if not.

    Raises UserError naming the file where one is absent, of another size or content, outside the directory, a symbolic
    or hard link (its content could change under another name), or not in the manifest; or where an ONNX file in it
    keeps its tensors in a file that the manifest does not name.
    """
    path = directory / NAME
    remedy = remedy or f"export it again into an empty directory instead of {directory}"
    try:
        manifest = json.loads(path.read_text())
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise UserError(f"{directory} has no {NAME}, so nothing says what it should hold: {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path} has format {manifest.get('format')!r}, this version reads {FORMAT}: {remedy}")
    for name, (size, sha256) in files.items():
        if Path(name).name != name or name in ("", ".", "..", NAME):
            raise UserError(f"{path} names {name!r}, which is not a file of its own directory: {remedy}")
        file = directory / name
        try:
            status = os.lstat(file)
        except OSError:
            raise UserError(f"{file} is absent: {remedy}") from None
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise UserError(f"{file} is a symbolic or hard link or no regular file: {remedy}")
        if status.st_size != size or digest(file) != sha256:
            raise UserError(f"{file} was changed since it was exported (size or SHA-256 differs): {remedy}")
    unknown = sorted({entry.name for entry in directory.iterdir()} - files.keys() - {NAME})
    if unknown:
        raise UserError(f"{directory} holds {unknown[0]}, which its manifest does not name: {remedy}")
    for name in files:
        if name.endswith(".onnx"):
            _refuse_foreign_tensors(directory / name, files.keys(), remedy)
    return manifest


def _refuse_foreign_tensors(path: Path, known, remedy: str) -> None:
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exception types differ by its version
        raise UserError(f"{path} is no ONNX file ({type(error).__name__}): {remedy}") from error
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            location = next((e.value for e in tensor.external_data if e.key == "location"), "")
            if location not in known:
                raise UserError(f"{path} keeps tensor {tensor.name} in {location!r}, outside its manifest: {remedy}")
