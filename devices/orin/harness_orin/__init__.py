"""A Jetson Orin over SSH: `orin-gpu` uses TensorRT's trtexec, `orin-cpu` the agent with ONNX Runtime."""

from __future__ import annotations

from harness import DeviceSpec, hookimpl


@hookimpl
def harness_register_devices():
    return [
        DeviceSpec(
            name="orin-gpu",
            target="harness_orin.gpu:OrinGpu",
            summary="a Jetson Orin's GPU over SSH: TensorRT engines timed by trtexec",
            runtimes=("tensorrt",),
            clock="device",
            dtype="fp16",
            workload="prefill:1x512",
        ),
        DeviceSpec(
            name="orin-cpu",
            target="harness_orin.cpu:OrinCpu",
            summary="a Jetson Orin's CPU over SSH: ONNX Runtime",
            runtimes=("onnxruntime",),
            clock="wall",
            workload="prefill:1x128",
        ),
    ]
