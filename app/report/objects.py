"""Reading one object of a run, or saying in a few words why it cannot be used."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import BaseModel, ValidationError


class Damaged(Exception):
    """An object is there but cannot be used; the message says why, in a few words."""


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], data: bytes) -> M:
    """Read JSON as a model.

    Raises:
        Damaged: it is none.
    """
    try:
        return model.model_validate(json.loads(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "record"
        raise Damaged(f"damaged record ({where}: {first['msg']})") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise Damaged("damaged record (not JSON)") from error
