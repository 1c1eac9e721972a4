"""Stand-ins for GPU kernel packages, so a script that needs them can be imported and built without a GPU.

Torch computes FlashAttention's functions. Triton's only serve as decorators and launch nothing.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

REPLACED = ("flash_attn_interface", "flash_attn", "triton")


def install() -> list[str]:
    """Replace missing packages and return their names, added as a script imports them."""
    used: list[str] = []
    absent = [name for name in REPLACED if importlib.util.find_spec(name) is None]
    sys.meta_path.append(_Finder(absent, used))
    return used


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, absent, used):  # type: ignore[no-untyped-def]
        self.absent, self.used = absent, used

    def find_spec(self, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        package = fullname.partition(".")[0]
        if package not in self.absent or _asked_by_torch():
            return None
        if package not in self.used:
            self.used.append(package)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):  # type: ignore[no-untyped-def]
        return _StandIn(spec.name)

    def exec_module(self, module):  # type: ignore[no-untyped-def]
        pass


def _asked_by_torch():  # type: ignore[no-untyped-def]
    """Whether torch itself is checking if a package is available."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("importlib", "stand_ins")):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "torch"


class _StandIn(types.ModuleType):
    """A module in which every name exists."""

    __path__: list[str] = []  # noqa: RUF012 # a package without files

    def __getattr__(self, name):  # type: ignore[no-untyped-def]
        if name.startswith("__"):
            raise AttributeError(name)
        return _attention if name == "flash_attn_func" else _Anything(f"{self.__name__}.{name}")


class _Anything:
    """A name in such a module: a decorator, an annotation or a number that is never read."""

    def __init__(self, name):  # type: ignore[no-untyped-def]
        self.name = name

    def __getattr__(self, name):  # type: ignore[no-untyped-def]
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self.name}.{name}")

    def __call__(self, *arguments, **keywords):  # type: ignore[no-untyped-def]
        if len(arguments) == 1 and isinstance(arguments[0], _Kernel):
            return arguments[0]
        if len(arguments) == 1 and isinstance(arguments[0], types.FunctionType):
            return _Kernel(arguments[0])
        return self

    def __mro_entries__(self, bases):  # type: ignore[no-untyped-def]
        return ()


class _Kernel:
    """A function that would run on a GPU."""

    def __init__(self, function):  # type: ignore[no-untyped-def]
        self.function = function

    def __getitem__(self, grid):  # type: ignore[no-untyped-def]
        raise NotImplementedError(f"the kernel {self.function.__name__} needs Triton and a GPU")


def _attention(q, k, v, *arguments, causal=False, softmax_scale=None, **keywords):  # type: ignore[no-untyped-def]
    """Attention over [B, T, H, D]; k and v may have fewer heads than q."""
    from torch.nn.functional import scaled_dot_product_attention

    repeats = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(repeats, 2), v.repeat_interleave(repeats, 2)))
    return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale).transpose(1, 2)
