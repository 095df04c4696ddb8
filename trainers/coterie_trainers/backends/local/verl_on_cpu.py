"""A verl plugin that adds the CPU as a platform. It does nothing unless ``VERL_PLATFORM`` is ``cpu``.

verl 0.9.1 knows accelerators only. The platform below answers its questions for a CPU: gloo for communication, weights
over shared memory instead of CUDA IPC, and no device memory to speak of.
"""

from __future__ import annotations

import contextlib
import os
import resource
import types
from collections.abc import Iterator
from typing import Any


def register() -> None:
    """Make ``VERL_PLATFORM=cpu`` known to verl."""
    import torch
    from torch import distributed
    from verl.plugin.platform.platform_base import PlatformBase
    from verl.plugin.platform.platform_manager import PlatformRegistry

    module = _device_module(torch)

    @PlatformRegistry.register(platform="cpu")  # type: ignore[untyped-decorator,unused-ignore]
    class CpuPlatform(PlatformBase):  # type: ignore[misc]
        device_name = "cpu"
        vendor_name = "cpu"
        device_module = module

        def is_available(self) -> bool:
            return True

        def is_platform_available(self, use_smi_check: bool = False) -> bool:  # noqa: ARG002
            return True

        def current_device(self) -> str:
            return "cpu"

        def device_count(self) -> int:
            return 1

        def set_device(self, device_index: int) -> None:
            pass

        def synchronize(self, device_index: int | None = None) -> None:
            pass

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def manual_seed_all(self, seed: int) -> None:
            torch.manual_seed(seed)

        def set_allocator_settings(self, settings: str) -> None:
            pass

        def empty_cache(self) -> None:
            pass

        def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:  # noqa: ARG002
            return None, None

        def communication_backend_name(self) -> str:
            return "gloo"

        def visible_devices_envvar(self) -> str:
            return "CUDA_VISIBLE_DEVICES"

        def ray_resource_name(self) -> str:
            return "GPU"

        def ray_resource_options(self, num_gpus: float) -> dict[str, float]:
            return {"num_gpus": num_gpus}

        def ray_noset_envvars(self) -> list[str]:
            return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

        def is_ipc_supported(self) -> bool:
            return False

        @contextlib.contextmanager
        def nvtx_range(self, msg: str) -> Iterator[None]:  # noqa: ARG002
            yield

        def profiler_start(self) -> None:
            pass

        def profiler_stop(self) -> None:
            pass

        def cudart(self) -> None:
            return None

    initialise = distributed.init_process_group

    def init_process_group(backend: str | None = None, *arguments: Any, **settings: Any) -> Any:
        # verl asks for "cpu:gloo,<device>:<backend>": with the CPU as the device one key comes twice.
        backend = "cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend
        return initialise(backend, *arguments, **settings)

    distributed.init_process_group = init_process_group


def _device_module(torch: Any) -> types.ModuleType:
    """What ``torch.cuda`` is for a GPU, as far as verl uses it."""

    def peak_bytes(*_: Any) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def nothing(*_: Any) -> None:
        return None

    module = types.ModuleType("coterie_cpu_device")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")})
    module.__dict__.update(
        is_available=lambda: False,
        current_device=lambda: "cpu",
        device_count=lambda: 1,
        get_device_name=lambda *_: "cpu",
        set_device=nothing,
        synchronize=nothing,
        empty_cache=nothing,
        ipc_collect=nothing,
        reset_peak_memory_stats=nothing,
        memory_allocated=peak_bytes,
        memory_reserved=peak_bytes,
        max_memory_allocated=peak_bytes,
        max_memory_reserved=peak_bytes,
        mem_get_info=lambda *_: (0, 0),
        get_rng_state=torch.get_rng_state,
        set_rng_state=torch.set_rng_state,
        manual_seed=torch.manual_seed,
    )
    return module


if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    register()
