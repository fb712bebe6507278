"""Which content coding a client takes: RFC 9110, section 12.5.3. Pure.

Accept-Encoding   #( ( coding / "identity" / "*" ) [ OWS ";" OWS "q=" qvalue ] )
"""

from __future__ import annotations

import re
from functools import lru_cache

#: More than any client lists; a longer field is not worth reading.
_VALUE_CHARS = 512

_CODING = re.compile(
    r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)(?:[ \t]*;[ \t]*[qQ]=([01](?:\.[0-9]{0,3})?))?"
)


@lru_cache(maxsize=256)
def choose_coding(accept: str, offered: tuple[str, ...]) -> str:
    """The coding of `offered` that the client likes best; empty for none (``identity``).

    Args:
        accept: the Accept-Encoding field; empty if there is none, which asks for none.
        offered: lower case, the best for us first: it wins among those that the client likes alike.
    """
    weights = _weights(accept)
    rest = weights.get("*", 0.0)
    best, best_weight = "", 0.0
    for coding in offered:
        weight = weights.get(coding, rest)
        if weight > best_weight:
            best, best_weight = coding, weight
    return best if best_weight >= weights.get("identity", 0.0) else ""


def _weights(accept: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    if len(accept) > _VALUE_CHARS:
        return weights
    for item in accept.split(","):
        match = _CODING.fullmatch(item.strip(" \t"))
        if match is not None:
            coding = match[1].lower().removeprefix("x-")
            weights[coding] = min(1.0, float(match[2] or 1))
    return weights
