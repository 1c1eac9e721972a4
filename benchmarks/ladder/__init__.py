"""What each rung of the ladder and each technique is worth at a small scale: ``python -m benchmarks.ladder``.

Each variant is trained, exported and scored by the command line's own ``fit``, from three seeds, on one thread. A seed
decides the initial weights; the order of the data is the same in every run, except where a variant changes it. A
technique is compared with the recipe from the same seed: the differences of the exported files' scores are averaged,
with a 95% interval by Student's t of the pairs. With three seeds that has two degrees of freedom, so an interval is 2.5
standard deviations of the differences to each side.

Two budgets are compared. The first is a number of steps. The second is the time that the recipe takes for them. Load
from elsewhere must not decide it, so it is not measured with a clock that runs through: every few steps of a run, one
is timed, and right after it a step of the recipe's network in the same process. The ratio of the two, over the same
ratio of the recipe's own runs, says how many steps a variant has time for. Where that is a different number by more
than 5%, the variant is trained again for so many, with its schedule fitted to them. Calibration, export and scoring are
not part of that time.

Finished runs are kept in ``runs/ladder``, so an interrupted benchmark goes on where it stopped; delete the folder to
measure everything again.
"""
