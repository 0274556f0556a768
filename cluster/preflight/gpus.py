"""GPUs of this node as `nvidia-smi -q -x` tells of them. Owns the reading of its XML; loads no CUDA.

The names of elements differ between drivers (clocks_throttle_reasons, later clocks_event_reasons), so they are found by their ends.
"""

import shutil
import subprocess
from dataclasses import dataclass
from xml.etree import ElementTree

_SECONDS = 30
_USED_MIB = 2048  # more than this before a job starts is another job's
_SLOWDOWNS = ("_hw_slowdown", "_hw_thermal_slowdown", "_hw_power_brake_slowdown", "_sw_thermal_slowdown")


@dataclass(frozen=True)
class Gpu:
    """One GPU: `name`, `driver`, and what is wrong with it."""

    name: str
    driver: str
    faults: tuple[str, ...]


def find_gpus() -> list[Gpu]:
    """All GPUs, in nvidia-smi's order; none where there is no driver. A driver that does not answer is one broken GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run([tool, "-q", "-x"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [Gpu("unknown", "unknown", (f"nvidia-smi did not answer within {_SECONDS} s",))]
    if done.returncode:
        return [Gpu("unknown", "unknown", (f"nvidia-smi failed: {' '.join((done.stdout + done.stderr).split())[:200]}",))]
    return read_xml(done.stdout)


def read_xml(text: str) -> list[Gpu]:
    """GPUs of a report; ValueError where it is none."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"nvidia-smi -q -x wrote no XML: {error}") from error
    driver = root.findtext("driver_version", "unknown")
    return [
        Gpu(gpu.findtext("product_name", "unknown"), driver, tuple(f"GPU {number}: {fault}" for fault in _faults(gpu)))
        for number, gpu in enumerate(root.iter("gpu"))
    ]


def _faults(gpu: ElementTree.Element) -> list[str]:
    faults = []
    volatile = gpu.find("ecc_errors/volatile")
    for counter in volatile if volatile is not None else ():
        if "uncorrectable" in counter.tag and _number(counter.text):
            faults.append(f"uncorrectable memory errors ({counter.tag} {counter.text})")
    for tag, what in (("pending", "remapped memory rows wait for a reset"), ("failure", "memory rows could not be remapped")):
        if (gpu.findtext(f"remapped_rows/remapped_row_{tag}") or "").strip() == "Yes":
            faults.append(what)
    for element in gpu.iter():
        if element.tag.endswith(_SLOWDOWNS) and (element.text or "").strip() == "Active":
            faults.append(f"throttled ({element.tag.split('_reason_')[-1]}, {gpu.findtext('temperature/gpu_temp', 'unknown temperature')})")
    widths = "pci/pci_gpu_link_info/link_widths/"
    now, most = (_number(gpu.findtext(f"{widths}{which}_link_width")) for which in ("current", "max"))
    if now and most and now < most:
        faults.append(f"PCIe link of {now:g} lanes instead of {most:g}")
    if (used := _number(gpu.findtext("fb_memory_usage/used"))) and used > _USED_MIB:
        faults.append(f"{used:g} MiB in use before the job: another process")
    return faults


def _number(text: str | None) -> float:
    """The number that a text such as `81559 MiB` or `16x` begins with; 0 where it has none (`N/A`)."""
    digits = (text or "").strip().rstrip("x").split(" ")[0].rstrip("x")
    return float(digits) if digits.replace(".", "", 1).isdigit() else 0.0
