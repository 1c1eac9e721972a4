"""The first minutes on a GPU: what must hold there, what a step takes beside its prediction; see `__main__`."""
