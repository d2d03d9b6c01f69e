"""What became of a key of another project's file."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Note:
    """What became of one key.

    Attributes:
        key: key path as it stands in the file.
        outcome: ``mapped`` to a native key, or has ``no effect`` here.
        text: the native key and value, or the reason.
    """

    key: str
    outcome: Literal["mapped", "no effect"]
    text: str
