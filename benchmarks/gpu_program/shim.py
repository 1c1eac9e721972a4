"""Stand-ins for NVIDIA's runtime and driver libraries that describe one GPU and launch nothing.

Torch asks the runtime how many GPUs there are and what they are like, and loads the driver's library. A process that
loads these two first gets answers on a machine without either.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.gpu_program.chips import Chip
from components.errors import UserError

RUNTIME = r"""
#include <cuda_runtime_api.h>
#include <string.h>
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; return cudaSuccess; }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
cudaError_t cudaFree(void *pointer) { return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  *stream = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = MEMORY; return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, NAME);
  p->major = MAJOR; p->minor = MINOR; p->multiProcessorCount = SMS; p->warpSize = 32;
  p->totalGlobalMem = MEMORY; p->l2CacheSize = L2;
  p->sharedMemPerBlock = 49152; p->sharedMemPerBlockOptin = SHARED; p->sharedMemPerMultiprocessor = SHARED + 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxThreadsPerBlock = 1024; p->maxThreadsPerMultiProcessor = 2048;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->unifiedAddressing = p->concurrentKernels = p->memoryPoolsSupported = 1;
  return cudaSuccess;
}
"""

CONTEXT_CALLS = ("CtxGetCurrent", "CtxSetCurrent")  # succeed
# These fail; torch binds the names when it starts, and calls none of them here.
OTHER_CALLS = """
DeviceGet DeviceGetAttribute DevicePrimaryCtxRetain FuncGetAttribute FuncSetAttribute FuncSetCacheConfig GetErrorString
LaunchCooperativeKernel LaunchKernel LinkAddData_v2 LinkComplete LinkCreate_v2 ModuleGetFunction ModuleLoad
ModuleLoadData ModuleLoadDataEx ModuleUnload OccupancyMaxActiveBlocksPerMultiprocessor PointerGetAttribute
TensorMapEncodeTiled
""".split()  # noqa: SIM905 # a list of 22 lines would say no more


def driver_source() -> str:
    """C source of the driver's stand-in."""
    state = (
        "int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {*flags = 0; *active = 1; return 0;}"
    )
    answers = {**dict.fromkeys(CONTEXT_CALLS, 0), **dict.fromkeys(OTHER_CALLS, 999)}
    return "\n".join([state, *(f"int cu{name}(void) {{ return {answer}; }}" for name, answer in answers.items()), ""])


def build(chip: Chip, folder: Path) -> list[Path]:
    """Compile both stand-ins into a folder.

    Returns:
        The two libraries, for LD_PRELOAD.

    Raises:
        UserError: There is no C compiler.
    """
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise UserError("The GPU's program needs a C compiler, and there is no gcc; install gcc, or name one with CC.")
    triton = importlib.util.find_spec("triton")
    assert triton is not None, "the caller has checked the build of torch"
    assert triton.origin is not None, "triton is a package with a file"
    headers = Path(triton.origin).parent / "backends" / "nvidia" / "include"
    values = {
        "NAME": f'"{chip.name}"',
        "MAJOR": chip.capability[0],
        "MINOR": chip.capability[1],
        "SMS": chip.num_sms,
        "MEMORY": f"((size_t){chip.memory}ull)",
        "L2": chip.l2_cache,
        "SHARED": chip.shared_memory,
    }
    defined = "".join(f"#define {name} {value}\n" for name, value in values.items())
    runtime, driver = folder / "runtime.so", folder / "libcuda.so.1"
    _compile(compiler, defined + RUNTIME, runtime, "-I", str(headers))
    _compile(compiler, driver_source(), driver, "-Wl,-soname,libcuda.so.1")
    return [runtime, driver]


def _compile(compiler: str, source: str, library: Path, *options: str) -> None:
    file = library.with_suffix(".c")
    file.write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", *options, file, "-o", library], check=True)
