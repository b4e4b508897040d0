"""A double of the module onnxruntime with GPU providers: it checks what it is told, and computes with the real one.

What it imitates is what makes a GPU provider dangerous: without the right settings it goes on with the CPU, at the
creation of a session and in a run, and says so on standard output at most.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

real = pytest.importorskip("onnxruntime")

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"

OPTIONS = {
    # https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html; use_tf32 since 1.18
    CUDA: """device_id user_compute_stream do_copy_in_default_stream use_ep_level_unified_stream gpu_mem_limit
        arena_extend_strategy cudnn_conv_algo_search cudnn_conv_use_max_workspace cudnn_conv1d_pad_to_nc1d
        enable_cuda_graph enable_skip_layer_norm_strict_mode use_tf32 prefer_nhwc""",
    # provider_option_names in ONNX Runtime's tensorrt_execution_provider_info.cc
    TENSORRT: """device_id has_user_compute_stream user_compute_stream trt_max_partition_iterations
        trt_min_subgraph_size trt_max_workspace_size trt_fp16_enable trt_int8_enable trt_int8_calibration_table_name
        trt_int8_use_native_calibration_table trt_dla_enable trt_dla_core trt_dump_subgraphs trt_engine_cache_enable
        trt_engine_cache_path trt_weight_stripped_engine_enable trt_onnx_model_folder_path trt_engine_cache_prefix
        trt_engine_decryption_enable trt_engine_decryption_lib_path trt_force_sequential_engine_build
        trt_context_memory_sharing_enable trt_layer_norm_fp32_fallback trt_timing_cache_enable trt_timing_cache_path
        trt_force_timing_cache trt_detailed_build_log trt_build_heuristics_enable trt_sparsity_enable
        trt_builder_optimization_level trt_auxiliary_streams trt_tactic_sources trt_extra_plugin_lib_paths
        trt_profile_min_shapes trt_profile_max_shapes trt_profile_opt_shapes trt_cuda_graph_enable
        trt_ep_context_embed_mode trt_ep_context_file_path trt_dump_ep_context_model trt_engine_hw_compatible
        trt_onnx_bytestream trt_onnx_bytestream_size trt_op_types_to_exclude""",
    # src/tensorrt_rtx_provider_options.h in NVIDIA's TensorRT-RTX-EP-ABI
    RTX: """device_id has_user_compute_stream user_compute_stream nv_max_workspace_size nv_max_shared_mem_size
        nv_dump_subgraphs nv_detailed_build_log nv_profile_min_shapes nv_profile_max_shapes nv_profile_opt_shapes
        enable_cuda_graph nv_multi_profile_enable nv_use_external_data_initializer nv_runtime_cache_path
        nv_weight_streaming_budget nv_op_types_to_exclude""",
}


class SessionOptions:
    """Session options with what the code sets, and the providers chosen by device."""

    def __init__(self) -> None:
        self.log_severity_level = 2
        self.intra_op_num_threads = 0
        self.entries: dict[str, str] = {}
        self.by_device: tuple[str, dict[str, str]] | None = None

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_provider_for_devices(self, devices: list[Any], options: Mapping[str, str]) -> None:
        (name,) = {device.ep_name for device in devices}
        assert "device_id" not in options, "the device says which"
        self.by_device = name, dict(options)


class OnnxRuntime:
    """A machine with ONNX Runtime, and whatever a test sets on it.

    Args:
        available: what the package lists, whether it can be used here or not.
        creation: what the creation of a GPU session raises.
        unloaded: the provider's library cannot be loaded, which ONNX Runtime only warns of.
        run: what a run on the GPU raises.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *available: str) -> None:
        self.available = available
        self.creation: Exception | None = None
        self.run: Exception | None = None
        self.unloaded = False
        self.plugin_devices: list[Any] = []
        self.registered: dict[str, str] = {}
        self.sessions: list[Session] = []
        world = self

        class Bound(Session):
            def __init__(self, *arguments: Any, **keywords: Any) -> None:
                super().__init__(world, *arguments, **keywords)

        module: Any = ModuleType("onnxruntime")
        module.__version__ = "1.32.0"
        module.capi = real.capi
        module.SessionOptions = SessionOptions
        module.GraphOptimizationLevel = real.GraphOptimizationLevel
        module.InferenceSession = Bound
        module.get_available_providers = lambda: [*self.available, CPU]
        module.get_ep_devices = lambda: [
            SimpleNamespace(ep_name=CPU),
            *(self.plugin_devices if self.registered else []),
        ]
        module.register_execution_provider_library = self.register
        self.module = module
        monkeypatch.setitem(sys.modules, "onnxruntime", module)

    def register(self, name: str, path: str) -> None:
        if name in self.registered:
            raise self.error("Fail")(f"EP library is already registered under {name}")
        self.registered[name] = path

    def install_plugin(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """Install NVIDIA's plugin package, as its __init__.py has it."""
        plugin: Any = ModuleType(PLUGIN)
        plugin.get_ep_name = lambda: name
        plugin.get_library_path = lambda: "/plugin/libonnxruntime_providers_nv_tensorrt_rtx.so"
        monkeypatch.setitem(sys.modules, PLUGIN, plugin)
        self.plugin_devices = [SimpleNamespace(ep_name=name)]

    @staticmethod
    def error(name: str) -> Any:
        """Return one of ONNX Runtime's exception classes."""
        return getattr(real.capi.onnxruntime_pybind11_state, name)


class Session:
    """A session that computes on the CPU and says which provider it has."""

    def __init__(
        self,
        world: OnnxRuntime,
        model: bytes | Path,
        options: SessionOptions,
        providers: list[tuple[str, dict[str, str]]] | None = None,
        enable_fallback: int = 1,
    ) -> None:
        self.world, self.options, self.fallback = world, options, bool(enable_fallback)
        self._real = real.InferenceSession(model, providers=[CPU])
        ((self.provider, self.settings),) = providers if providers else [options.by_device or (CPU, {})]
        try:
            self._create()
        except (ValueError, RuntimeError) as error:
            if not self.fallback:
                raise
            print(f"EP Error {error} Falling back to {CPU}")
            self.provider = CPU
        world.sessions.append(self)

    def _create(self) -> None:
        no_cpu = self.options.entries.get("session.disable_cpu_ep_fallback") == "1"
        if self.provider == CPU:
            if no_cpu:
                raise self.world.error("Fail")("Conflicting session configuration: explicitly added the CPU EP")
            return
        known = OPTIONS[RTX if self.provider == "nv_tensorrt_rtx" else self.provider].split()
        for name, value in self.settings.items():
            if name not in known:
                raise RuntimeError(f'Unknown provider option: "{name}".')
            assert isinstance(value, str), name
        if self.world.creation is not None:
            raise self.world.creation
        if self.world.unloaded:
            if no_cpu:
                raise self.world.error("Fail")(
                    "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP "
                    "has been explicitly disabled by the user."
                )
            self.provider = CPU

    def get_providers(self) -> list[str]:
        return [self.provider] if self.provider == CPU else [self.provider, CPU]

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def run(self, outputs: Any, feeds: Any) -> Any:
        if self.world.run is not None and self.provider != CPU:
            if not (self.fallback and isinstance(self.world.run, self.world.error("EPFail"))):
                raise self.world.run
            print("EP Error Falling back")
            self.provider = CPU
        return self._real.run(outputs, feeds)
