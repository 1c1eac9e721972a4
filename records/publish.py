"""``python -m records.publish FOLDER --repo NAME``: a packed folder as a model on the Hugging Face hub.

Without ``--yes`` nothing is sent: the command lists the files and shows the card. The card is the folder's
``README.md`` with the figures of ``submission.json`` as the metadata that the hub reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from components.command import run_command
from components.errors import UserError
from records.pack import SUBMISSION_NAME
from records.runs import read_json

CARD_NAME = "README.md"
FRONT_MATTER_FENCE = "---\n"
REFUSED = (401, 402, 403)


def files_of(folder: Path) -> dict[str, Path]:
    """A packed folder's files by their paths in it, without hidden ones.

    Raises:
        UserError: the folder is not a packed one.
    """
    for name in (SUBMISSION_NAME, CARD_NAME):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; give a folder that `python -m records.pack` wrote.")
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in paths.items() if not any(part[0] == "." for part in Path(name).parts)}


def card(folder: Path) -> str:
    """The folder's ``README.md`` after its metadata; one that begins with metadata already stays as it is.

    Raises:
        UserError: ``submission.json`` cannot be read or lacks a figure.
    """
    text = (folder / CARD_NAME).read_text()
    if text.startswith(FRONT_MATTER_FENCE):
        return text
    remedy = "pack the runs again"
    facts = read_json(folder / SUBMISSION_NAME, remedy)
    try:
        data = _metadata(facts)
    except KeyError as error:
        raise UserError(f"{folder / SUBMISSION_NAME} has no {error}; {remedy}.") from error
    return f"{FRONT_MATTER_FENCE}{data.to_yaml()}\n{FRONT_MATTER_FENCE}\n{text}"


def _metadata(facts: dict[str, Any]) -> ModelCardData:
    metrics = {
        "val_bpb": ("bits_per_byte", "bits per byte"),
        "val_loss": ("nats_per_token", "nats per token"),
        "bytes_total": ("bytes", "bytes of code and compressed weights"),
    }
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="validation",
            dataset_name=f"validation split of {facts['track']}",
            metric_type=kind,
            metric_name=name,
            metric_value=facts[field],
        )
        for field, (kind, name) in metrics.items()
    ]
    return ModelCardData(
        model_name=facts["name"],
        pipeline_tag="text-generation",
        tags=["parameter-golf", "pytorch"],
        eval_results=results,
    )


def publish(folder: Path, repository: str, *, private: bool) -> str:
    """Create the repository if there is none, commit the folder's files and the card to it; returns its address.

    Raises:
        UserError: there is no token, the hub refuses it, or the upload fails. The files become visible together or
            not at all.
    """
    files = files_of(folder)
    content: dict[str, Any] = {**files, CARD_NAME: card(folder).encode()}
    if huggingface_hub.get_token() is None:
        raise UserError(
            "There is no token for the hub; run `hf auth login` or set HF_TOKEN, with a token that may write."
        )
    api = HfApi()
    try:
        # The account's own repository may be named without its owner.
        full_name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=what) for name, what in content.items()]
        api.create_commit(full_name, operations, commit_message="Publish a packed record")
    except Exception as error:  # the hub client's transports can raise anything
        if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED:
            raise UserError(
                f"The hub at {constants.ENDPOINT} does not let this token write to {repository} "
                f"({error.response.status_code}); check the name, and give a token that may write."
            ) from error
        reason = str(error).strip().partition("\n")[0] or repr(error)
        raise UserError(
            f"{folder} could not be published as {repository} at {constants.ENDPOINT} ({reason}); run the command "
            "again, which sends only what the hub does not have yet."
        ) from error
    return f"{constants.ENDPOINT}/{full_name}"


def _listing(folder: Path) -> str:
    sizes = {name: path.stat().st_size for name, path in files_of(folder).items()}
    sizes[CARD_NAME] = len(card(folder).encode())
    rows = [*((f"{size:,}", name) for name, size in sizes.items()), (f"{sum(sizes.values()):,}", "bytes in all")]
    width = max(len(size) for size, _ in rows)
    return "\n".join(f"  {size:>{width}}  {name}" for size, name in rows)


def main(arguments: Sequence[str]) -> None:
    """Show what would be published, or publish it.

    Raises:
        UserError: see `files_of`, `card` and `publish`, or the repository's name is none.
    """
    parser = argparse.ArgumentParser(
        prog="python -m records.publish", description="Put a packed folder on the Hugging Face hub."
    )
    parser.add_argument("folder", type=Path, help="a folder that python -m records.pack wrote")
    parser.add_argument("--repo", required=True, metavar="NAME", help="the model's repository, OWNER/NAME or NAME")
    parser.add_argument("--private", action="store_true", help="make a new repository that only you can see")
    parser.add_argument("--yes", action="store_true", help="upload (default: only show what would be)")
    args = parser.parse_args(arguments)
    try:
        validate_repo_id(args.repo)
    except HFValidationError as error:
        raise UserError(f"{args.repo} cannot be a repository's name; give OWNER/NAME, such as ada/golf.") from error
    print(f"{args.folder} as the model {args.repo} at {constants.ENDPOINT}:\n{_listing(args.folder)}")
    if args.yes:
        print(f"Published: {publish(args.folder, args.repo, private=args.private)}")
    else:
        print(f"\n{CARD_NAME}:\n\n{card(args.folder)}\nNothing was uploaded; add --yes to upload.")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
