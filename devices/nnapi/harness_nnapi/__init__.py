"""The device `nnapi`: Android's NNAPI over ADB, timed by benchmark_model. NNAPI is deprecated since Android 15."""

from __future__ import annotations

from harness import DeviceSpec, hookimpl


@hookimpl
def harness_register_devices():
    return [
        DeviceSpec(
            name="nnapi",
            target="harness_nnapi.phone:Nnapi",
            summary="an Android phone's accelerator by NNAPI over ADB; legacy: deprecated since Android 15",
            runtimes=("tflite",),
            clock="wall",
            workload="prefill:1x128",
            exceptions={
                "units": "a sample is the mean of many passes, so samples add up to less than the time of all passes"
            },
        )
    ]
