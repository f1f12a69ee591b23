"""Qualcomm NPUs: `qnn-s23` is compiled here and run over ADB, `qnn-x-plus` compiled and run over SSH."""

from __future__ import annotations

from harness import DeviceSpec, hookimpl


@hookimpl
def harness_register_devices():
    return [
        DeviceSpec(
            name="qnn-s23",
            target="harness_qnn.s23:S23",
            summary="a Galaxy S23's NPU over ADB: a QNN context binary compiled here",
            runtimes=("perf-test", "net-run"),
            clock="wall",
            dtype="fp16",
            workload="prefill:1x128",
        ),
        DeviceSpec(
            name="qnn-x-plus",
            target="harness_qnn.x_plus:XPlus",
            summary="a Snapdragon X Plus laptop's NPU over SSH: ONNX Runtime with QNN",
            runtimes=("onnxruntime",),
            clock="wall",
            dtype="fp16",
            workload="prefill:1x128",
        ),
    ]
