"""What start-up waits for and others can do meanwhile: none of it changes anything but the time that is left to wait.

No torch at import: the first is for whoever is about to import it.
"""

import ctypes
import importlib.metadata
import threading
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["begin_context", "hash_compiler"]


def begin_context(device: str) -> None:
    """Make the GPU's context, which torch will use, while the libraries are imported.

    Where there is no driver, no GPU, or a torch that could not use one, nothing is made, and nothing is said here.
    """
    try:
        if device != "cpu" and not importlib.metadata.version("torch").endswith("+cpu"):
            threading.Thread(target=_make_context, name="hotstart-context", daemon=True).start()
    except importlib.metadata.PackageNotFoundError:
        return


def _make_context() -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def hash_compiler() -> Future[str]:
    """Triton names binaries on disk by a hash of its own 400 MB, which it keeps: the first compile finds it made."""
    from triton.runtime.cache import triton_key

    pool = ThreadPoolExecutor(1, "hotstart-hash")
    done: Future[str] = pool.submit(triton_key)
    pool.shutdown(wait=False)
    return done
