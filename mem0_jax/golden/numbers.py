"""What a reference's numbers are asked for."""

from pathlib import Path
from typing import Any, Protocol

from mem0_jax.convert.dotted import flat
from mem0_jax.errors import UserError
from mem0_jax.family import Config, family_of
from mem0_jax.reference import Report


class Numbers(Protocol):
    """The numbers of a policy's reference.

    Attributes:
        files: what a folder with them holds, among other things.
    """

    files: tuple[str, ...]

    def replay(self, folder: Path, bundle: Any | None, report: Report) -> None:
        """Replays everything in a folder, in float32, and adds what it compared; the parameters of `bundle` take the
        place of those in the folder.

        Raises:
            UserError: the folder is damaged, or the bundle is of another configuration.
        """
        ...


def check_same_model(config: Config, expected: Config) -> None:
    """Raises UserError, naming every setting that differs, apart from those a golden sets for itself."""
    kinds = [family_of(one).name for one in (config, expected)]
    if kinds[0] != kinds[1]:
        raise UserError(f"the bundle holds a {kinds[0]}, the golden is of a {kinds[1]}")
    free = {"image_size", "dtype", "remat"}
    ours, theirs = flat(config), flat(expected)
    differing = [
        f"{name} is {ours[name]}, the golden's {theirs[name]}"
        for name in ours
        if ours[name] != theirs[name] and name not in free and not name.endswith(".dropout")
    ]
    if differing:
        raise UserError("bundle and golden are of different models: " + "; ".join(differing))
