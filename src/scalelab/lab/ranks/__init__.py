"""Many ranks beside a notebook: ipyparallel's engines, joined by torch.distributed, used by `%%px` cells.

    ranks = lab.ranks(4)

`ranks` is what the notebook holds, `cluster` the processes, `nursery` their parent, `engine` what each does.
Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

from scalelab.lab.ranks.outputs import RanksError
from scalelab.lab.ranks.ranks import Ranks, ensure

__all__ = ["Ranks", "RanksError", "ensure"]
