"""The late record's calibration batches, for the tests of Hessians and of what is rounded by them."""

import numpy as np
import torch

from datamodules.shards import find_shards
from datamodules.stream import TokenStream
from tests.support import SAMPLE


def late_batches() -> list[torch.Tensor]:
    """Its 4 batches of 8 x 256 training ids: spans of 2,049 in order."""
    stream = TokenStream(find_shards(SAMPLE / "datasets" / "fineweb10B_sp1024", "train"), vocab_size=1024)
    spans = [torch.from_numpy(stream.take(2049 * i, 2049).astype(np.int64)) for i in range(4)]
    return [span[:-1].view(8, 256) for span in spans]
