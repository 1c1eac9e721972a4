"""The fused MLP under Triton's interpreter, beside torch's own formula in float64: how far off each tensor is, as JSON.

python -m tests.components.interpreted_mlp

runs in a process of its own with TRITON_INTERPRET=1, in an environment that has Triton.
"""

import json
import math

import torch
from torch import Tensor

from components.layers import seen_weight
from components.mlp import MLP
from components.quantization import Nearest
from components.storage import Storage

MODEL, HIDDEN = 128, 512
"""Two steps of the sum, and two blocks of columns."""


def off(found: Tensor | None, expected: Tensor | None) -> float:
    """Root mean square of the difference over that of what is expected."""
    assert found is not None
    assert expected is not None
    return ((found.double() - expected).norm() / expected.norm()).item()


def plain(x: Tensor, fc: Tensor, proj: Tensor) -> Tensor:
    return (x @ fc.T).relu().square() @ proj.T


def compared(dtype: torch.dtype, faking: bool) -> dict[str, float]:
    torch.manual_seed(0)
    mlp = MLP(MODEL, HIDDEN)
    mlp.fused = True
    if faking:
        mlp.fc.fake, mlp.proj.fake = (Nearest(), Storage.INT5), (Nearest(), Storage.INT6)
    # The last 75 of 80 positions: apart in memory, and with a block of rows that is not full.
    x = torch.randn(2, 80, MODEL).to(dtype).requires_grad_()
    y = mlp(x[:, -75:])
    upstream = torch.randn(y.shape)
    y.backward(upstream.to(dtype))
    wide = [t.detach().to(dtype).double().requires_grad_() for t in (x, *map(seen_weight, (mlp.fc, mlp.proj)))]
    expected = plain(wide[0][:, -75:], *wide[1:])
    expected.backward(upstream.to(dtype).double())
    pairs = {"y": (y, expected), "x": (x.grad, wide[0].grad)}
    pairs |= {"fc": (mlp.fc.weight.grad, wide[1].grad), "proj": (mlp.proj.weight.grad, wide[2].grad)}
    return {name: off(*pair) for name, pair in pairs.items()}


def broken_positions() -> list[int]:
    """Positions whose output is not finite when the input of one is not."""
    x = torch.ones(1, 5, MODEL)
    x[0, 3, 7] = math.nan
    mlp = MLP(MODEL, HIDDEN)
    mlp.fused = True
    return [t for t, row in enumerate(mlp(x)[0]) if not row.isfinite().all()]


def main() -> None:
    found = {f"{dtype}, faking {faking}": compared(dtype, faking) for dtype in DTYPES for faking in (False, True)}
    print(json.dumps({"off": found, "broken positions": broken_positions()}))


DTYPES = (torch.float32, torch.float16)
"""The interpreter multiplies no bfloat16."""

if __name__ == "__main__":
    main()
