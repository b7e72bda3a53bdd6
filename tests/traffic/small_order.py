"""The Ed25519 public keys of small order, computed from the curve, in every encoding of 32 bytes.

-x^2 + y^2 = 1 + d x^2 y^2 over the integers modulo p = 2^255 - 19, with d = -121665/121666 (RFC 8032, 5.1).
"""

from __future__ import annotations

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def _root(square: int) -> int | None:
    """A square root modulo p, which is 5 modulo 8."""
    root = pow(square, (P + 3) // 8, P)
    for found in (root, root * pow(2, (P - 1) // 4, P) % P):
        if found * found % P == square % P:
            return found
    return None


def ordinates() -> set[int]:
    """y of the points whose order divides 8: of 1, 2 and 4, and of those whose double has y = 0: d y^4 + 2 y^2 = 1."""
    found = {1, P - 1, 0}
    half = _root(1 + D)  # y^2 = (-1 +- sqrt(1 + d)) / d
    assert half is not None
    for square in ((-1 + half) * pow(D, -1, P) % P, (-1 - half) * pow(D, -1, P) % P):
        y = _root(square)
        if y is not None and _root((y * y - 1) * pow(D * y * y + 1, -1, P) % P) is not None:
            found |= {y, P - y}
    return found


# With both signs of x, and y also unreduced where that has room in 255 bits.
ENCODINGS = tuple((y + more | sign << 255).to_bytes(32, "little")
                  for y in sorted(ordinates()) for more in (0, P) if y + more < 2**255 for sign in (0, 1))
